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
from finetune_bench.errors import DataError, ModelError
from finetune_bench.metrics import Kind
from finetune_bench.model.pretrained import joins_pairs
from finetune_bench.printable import brief
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.task import Batch, Split

MANY_UNKNOWN = 0.2  # of the tokens; a tokenizer that fits its texts knows nearly all


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
        unknown: the share of the other tokens that stand for something that the tokenizer doesn't know.
        written_out: the number of examples whose text holds special tokens, which the tokenizer takes for its own.
        cut_left: whether texts that are too long lose their beginning.
    """

    columns: dict[str, list[np.ndarray]]
    padding: dict[str, int]
    left: bool
    labels: Tensor
    whole: np.ndarray | None = None
    special: int = 0
    unknown: float = 0.0
    written_out: int = 0
    cut_left: bool = False

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

    Where the tokenizer puts nothing between two texts, as those of decoders do, the second begins with a newline.

    Raises:
        DataError: so few tokens leave none for some text.
        ModelError: the tokenizer fails on a text.
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
    unknown, written_out = _oddities(columns["input_ids"], tokenizer, special)
    _fill_empty(columns, tokenizer)
    return Encoded(
        columns={name: [np.asarray(ids) for ids in column] for name, column in columns.items()},
        padding={name: fill.get(name, 0) for name in columns},
        left=tokenizer.padding_side == "left",
        labels=labels,
        whole=whole,
        special=special,
        unknown=unknown,
        written_out=written_out,
        cut_left=getattr(tokenizer, "truncation_side", "right") == "left",
    )


def _fill_empty(columns: Any, tokenizer: Any) -> None:
    """Give an example without any token one: its first, else its end token; only where the tokenizer adds none."""
    for index in [index for index, ids in enumerate(columns["input_ids"]) if not len(ids)]:
        known = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        values = {"input_ids": next(token for token in known if token is not None), "attention_mask": 1}
        for name, column in columns.items():
            column[index] = [values.get(name, 0)]


def _oddities(ids: Sequence[Sequence[int]], tokenizer: Any, special: int) -> tuple[float, int]:
    """Return the share of unknown tokens, and how many examples have more special tokens than the tokenizer adds."""
    if not len(ids):
        return 0.0, 0
    unknown = tokenizer.unk_token_id
    added = {*tokenizer.all_special_ids} - {unknown}
    of_its_own = unknown is not None and all(
        unknown != getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep")
    )  # GPT-2's unknown token is its end token
    lengths = [len(example) for example in ids]
    flat = np.concatenate([np.asarray(example, dtype=np.int64) for example in ids])
    example_of = np.repeat(np.arange(len(ids)), lengths)
    specials = np.bincount(example_of, weights=np.isin(flat, list(added)), minlength=len(ids))
    tokens = len(flat) - special * len(ids)
    share = (flat == unknown).sum() / tokens if of_its_own and tokens > 0 else 0.0
    return float(share), int((specials > special).sum())


def _tokenise(split: Split, positions: Iterable[int], tokenizer: Any, **options: Any) -> Any:
    positions = list(positions)
    between = "\n" if joins_pairs(tokenizer) else ""
    pairs = None if split.pairs is None else [between + split.pairs[i] for i in positions]
    try:
        return tokenizer([split.texts[i] for i in positions], pairs, padding=False, verbose=False, **options)
    except BaseException as error:  # the library's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise ModelError(
            f"--model: the tokenizer of '{tokenizer.name_or_path}' fails on texts of this task "
            f"({type(error).__name__}: {brief(error)}). Give another checkpoint, or save its tokenizer again."
        ) from error


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
        end = ", which leaves out their beginning" if examples.cut_left else ""
        notes.append(
            f"{cut.sum()} of {len(examples)} examples of the {name} split were cut to {kept.max()} tokens{end}: by "
            f"{lost[cut].mean():.0f} on average and {lost.max()} at most, {lost.sum() / examples.whole.sum():.1%} of "
            f"all tokens (--max-length, tokenizer of {model})."
        )
    if empty := int((examples.whole <= examples.special).sum()):
        notes.append(f"{empty} of {len(examples)} examples of the {name} split hold no token (tokenizer of {model}).")
    if examples.unknown > MANY_UNKNOWN:
        notes.append(
            f"Warning: the tokenizer of {model} doesn't know {examples.unknown:.0%} of the tokens of the {name} split; "
            "is it of that language, and does it keep capitals as its vocabulary does?"
        )
    if examples.written_out:
        notes.append(
            f"{examples.written_out} of {len(examples)} examples of the {name} split have special tokens written out "
            f"in their texts, which the tokenizer of {model} takes for its own."
        )
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
