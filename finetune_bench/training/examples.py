"""This file holds tokenised examples, the order in which a run takes them, and batches of them.

A step is a list of micro-batches, and a micro-batch a list of positions of examples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from finetune_bench import device as devices
from finetune_bench.errors import DataError
from finetune_bench.metrics import Kind
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.task import Batch, Split


@dataclass(frozen=True)
class Encoded:
    """An Encoded holds the tokenised examples of one split.

    Attributes:
        columns: for each model input, the unpadded ids of every example.
        padding: for each model input, the id that fills the end (or the start).
        left: whether padding stands at the start (XLNet).
        labels: (examples,).
        whole: the number of tokens of every example before any was cut, (examples,); None where that is not known.
        special: the number of tokens of every example that come from no text.
    """

    columns: dict[str, list[np.ndarray]]
    padding: dict[str, int]
    left: bool
    labels: Tensor
    whole: np.ndarray | None = None
    special: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Return how many tokens every example has, (examples,)."""
        return np.array([len(ids) for ids in self.columns["input_ids"]])

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """Put the examples at these positions on the device, padded to the longest of them."""
        lengths = tuple(len(self.columns["input_ids"][i]) for i in indices)
        longest = max(lengths)
        inputs = {}
        for name, column in self.columns.items():
            padded = np.full((len(indices), longest), self.padding[name], dtype=np.int64)
            for row, index in enumerate(indices):
                ids = column[index]
                padded[row, longest - len(ids) if self.left else 0 :][: len(ids)] = ids
            inputs[name] = devices.put(torch.from_numpy(padded), device)
        labels = devices.put(self.labels[torch.as_tensor(indices)], device)
        return Batch(inputs, labels, None if self.left else lengths)


def encode(split: Split, tokenizer: Any, max_length: int, kind: Kind) -> Encoded:
    """Tokenise a split; texts are cut to `max_length` tokens, the longer text of a pair first.

    Raises:
        DataError: so few tokens leave none for some text.
    """
    texts = 1 if split.pairs is None else 2
    special = tokenizer.num_special_tokens_to_add(pair=texts == 2)
    if max_length < special + texts:
        raise DataError(
            f"--max-length {max_length}: of {max_length} tokens, {special} are special ones, which leaves none for "
            f"{'a text' if texts == 1 else 'one of two texts'}; give {special + texts} at least."
        )
    columns = _tokenise(split, range(len(split)), tokenizer, truncation=True, max_length=max_length)
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    labels = torch.tensor(list(split.labels), dtype=torch.float32 if kind == "regression" else torch.int64)
    whole = np.array([len(ids) for ids in columns["input_ids"]])
    full = np.flatnonzero(whole >= max_length)  # only these may have been cut
    if len(full):
        whole[full] = [len(ids) for ids in _tokenise(split, full, tokenizer, truncation=False)["input_ids"]]
    return Encoded(
        columns={name: [np.asarray(ids) for ids in column] for name, column in columns.items()},
        padding={name: fill.get(name, 0) for name in columns},
        left=tokenizer.padding_side == "left",
        labels=labels,
        whole=whole,
        special=special,
    )


def _tokenise(split: Split, positions: Iterable[int], tokenizer: Any, **options: Any) -> Any:
    positions = list(positions)
    pairs = None if split.pairs is None else [split.pairs[i] for i in positions]
    return tokenizer([split.texts[i] for i in positions], pairs, padding=False, verbose=False, **options)


def truncation(name: str, examples: Encoded, model: str) -> list[str]:
    """Return what a reader should know of how a split was tokenised: what was cut, and which examples hold no token.

    Args:
        name: the split's name.
        examples: the split, from `encode`.
        model: the name that reports give the checkpoint whose tokenizer it was.

    Returns:
        One sentence each; none where nothing was cut.
    """
    if examples.whole is None or not len(examples):
        return []
    kept = examples.lengths()
    lost = examples.whole - kept
    cut = lost > 0
    notes = []
    if cut.any():
        notes.append(
            f"{cut.sum()} of {len(examples)} examples of the {name} split were cut to {kept.max()} tokens: by "
            f"{lost[cut].mean():.0f} on average and {lost.max()} at most, {lost.sum() / examples.whole.sum():.1%} of "
            f"all tokens (--max-length, tokenizer of {model})."
        )
    if empty := int((examples.whole <= examples.special).sum()):
        notes.append(f"{empty} of {len(examples)} examples of the {name} split hold no token (tokenizer of {model}).")
    return notes


def one_pass(count: int, batch_size: int, stream: Generator) -> list[list[int]]:
    """Shuffle the positions of `count` examples by a stream, and cut them into batches; the last may be smaller."""
    order = torch.randperm(count, generator=stream).tolist()
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def training_steps(count: int, recipe: Recipe, seed: int, task: str) -> Iterator[list[list[int]]]:
    """Yield every step of a run on `count` examples; the order depends on seed and task, not on the method."""
    stream = Generator().manual_seed(derive(seed, "order", task))
    micro, left = recipe.batch_size // recipe.accumulation, recipe.total_steps(count)
    while left > 0:
        for batch in one_pass(count, recipe.batch_size, stream)[:left]:
            yield [batch[start : start + micro] for start in range(0, len(batch), micro)]
            left -= 1
