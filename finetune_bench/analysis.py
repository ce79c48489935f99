"""An Analysis measures more of a trained model than its scores; here is the contract that it keeps.

A run's model is there for a moment only, at its end. Whatever is to be known of it is measured then, or later from the
model that was kept; each analysis leaves a file of its own beside the row, which never changes for it. Built-in
analyses and a stranger's are found in the same way: through the entry-point group `finetune_bench.analyses`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar, dataclass_transform

import numpy as np
import torch
from torch import Tensor, nn

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.model.structure import hidden_states_captured
from finetune_bench.parameters import validate
from finetune_bench.task import Split, Task, TaskData
from finetune_bench.training.examples import Encoded, encode

BATCH_SIZE = 32

Better: TypeAlias = Literal["higher", "lower", ""]
T = TypeVar("T")

# Measurements of untouched models, by all that they depend on: many runs of a process begin with the same one.
measured_before: dict[tuple[Hashable, ...], Any] = {}


@dataclass(frozen=True)
class Findings:
    """Findings are what an analysis yields of one run.

    Attributes:
        numbers: by name; NaN where a number is undefined, and then a note says why.
        layers: by the curve's name, one value per layer, from what enters the first layer to what leaves the last.
        better: by the name of a number or a curve, which way is better; absent where neither is.
        arrays: what is kept beside the numbers, by name.
        notes: sentences for the reader of the report.
        facts: what the numbers were measured on, as JSON can hold it.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    better: Mapping[str, Better] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class States:
    """States are the hidden states of some examples.

    Attributes:
        positions: of the examples, (batch,).
        layers: what enters the first layer and what leaves every layer, each (batch, seq, dim), float32.
        mask: whether a token is real, (batch, seq).
        ids: of the tokens, (batch, seq).
    """

    positions: list[int]
    layers: tuple[Tensor, ...]
    mask: Tensor
    ids: Tensor


@dataclass(frozen=True)
class Network:
    """A Network is a model in evaluation mode, with what it takes to run it.

    Attributes:
        model: the classifier.
        params: its weights by the names that they have in the checkpoint.
        device: the device that it is on.
        autocast: makes the context of the run's precision.
    """

    model: nn.Module
    params: Mapping[str, Tensor]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]

    def logits(self, examples: Encoded) -> np.ndarray:
        """Return the logits of all examples in their order, (examples, outputs), float32."""
        results: list[np.ndarray] = [np.empty(0)] * len(examples)
        for positions in by_length(examples):
            inputs = examples.batch(positions, self.device).inputs
            with torch.inference_mode(), self.autocast():
                logits = self.model(**inputs).logits
            for position, row in zip(positions, logits.float().cpu().numpy(), strict=True):
                results[position] = row
        return np.stack(results)

    def states(self, examples: Encoded) -> Iterator[States]:
        """Yield the hidden states of all examples, a batch at a time; the longest examples come first."""
        for positions in by_length(examples):
            inputs = examples.batch(positions, self.device).inputs
            with torch.inference_mode(), hidden_states_captured(self.model) as layers, self.autocast():
                self.model(**inputs)
            yield States(
                positions,
                tuple(state.float() for state in layers),
                inputs["attention_mask"].bool(),
                inputs["input_ids"],
            )

    def sentence_states(self, examples: Encoded) -> np.ndarray:
        """Return the state of each example's sentence token in every layer, (layers + 1, examples, dim), float32.

        The sentence token is the first; in a model that reads from left to right only, and where padding stands at the
        start, it is the last real one, the only one that has seen the whole text.
        """
        takes_last = examples.left or self.reads_forwards(examples)
        features: np.ndarray | None = None
        for batch in self.states(examples):
            real = batch.mask.long()
            last = real.shape[1] - 1 - real.flip(1).argmax(1)
            token = last if takes_last else real.argmax(1)
            rows = torch.arange(len(batch.positions), device=token.device)
            taken = torch.stack([layer[rows, token] for layer in batch.layers]).cpu().numpy()
            if features is None:
                features = np.empty((len(batch.layers), len(examples), taken.shape[2]), dtype=np.float32)
            features[:, batch.positions] = taken
        if features is None:
            raise FinetuneBenchError("There is no text to take hidden states of.")
        return features

    def reads_forwards(self, examples: Encoded) -> bool:
        """Return whether a token's state depends on none of the tokens behind it, by the longest example."""
        longest = int(np.argmax(examples.lengths()))
        inputs = examples.batch([longest], self.device).inputs
        length = inputs["input_ids"].shape[1]
        if length < 3:
            return False
        first = []
        for end in (length, length - 1):
            shorter = {name: values[:, :end] for name, values in inputs.items()}
            with torch.inference_mode(), hidden_states_captured(self.model) as layers, self.autocast():
                self.model(**shorter)
            first.append(layers[-1][0, 0].float())
        return torch.allclose(first[0], first[1], rtol=1e-3, atol=1e-5)


@dataclass(frozen=True)
class Trained:
    """Trained is a run that has ended, as analyses see it.

    Attributes:
        task: what the model was trained on.
        data: the examples of the task, as the run was given them.
        splits: the evaluation splits as they were tokenised, by name.
        predictions: the logits of every evaluation split, each (examples, outputs).
        checkpoint: the model's name, as reports have it.
        checkpoint_name: the same as typed, by which its files are found.
        tokenizer: the model's tokenizer.
        max_length: tokens that a text may have.
        data_root: the folder that data sets are read from; None for the hub.
        network: the trained model with the weights that are scored; None for an analysis that needs no model.
        untouched: loads the model as it was before any training.
        begins_with: what tells the untouched model, and how it is run, from those of other runs; None where that is
            unknown, and it is measured anew.
    """

    task: Task
    data: TaskData
    splits: Mapping[str, Encoded]
    predictions: Mapping[str, np.ndarray]
    checkpoint: str
    checkpoint_name: str
    tokenizer: Any
    max_length: int
    data_root: Path | None
    network: Network | None
    untouched: Callable[[], Network]
    begins_with: Hashable = None

    @property
    def model(self) -> Network:
        """Return the trained model.

        Raises:
            FinetuneBenchError: the analysis said that it needs none.
        """
        if self.network is None:
            raise FinetuneBenchError("An analysis read the model without saying so; set `needs_model = True` in it.")
        return self.network

    def before_training(self, key: Hashable, measure: Callable[[], T]) -> T:
        """Return a measurement of the untouched model, which is made once for all runs of a process that begin with it.

        Args:
            key: all that the result depends on beside the untouched model: the analysis, its parameters, the texts.
            measure: makes it; what it returns is kept, so that nobody may change it.
        """
        if self.begins_with is None:
            return measure()
        whole = (self.begins_with, key)
        if whole not in measured_before:
            measured_before[whole] = measure()
        kept: T = measured_before[whole]
        return kept

    def special_ids(self) -> list[int]:
        """Return the ids of the tokens that come from no text; the one for unknown words is none of them."""
        tokenizer = self.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep", "mask")}
        return sorted(id_ for id_ in set(tokenizer.all_special_ids) if id_ != unknown or id_ in others)

    def encode(self, split: Split) -> Encoded:
        """Tokenise texts as the run's own were."""
        labels_are_numbers = any(isinstance(label, float) for label in split.labels)
        kind = "regression" if labels_are_numbers else "classification"
        return encode(split, self.tokenizer, self.max_length, kind)  # type: ignore[arg-type]


@dataclass_transform(kw_only_default=True)
@dataclass(kw_only=True, eq=False)
class Analysis(ABC):
    """An Analysis measures one thing of a trained model; its fields are parameters, as a method's are.

    Class attributes:
        name: the text that the user types.
        version: raised when the numbers change, so that results of before are measured anew.
        title: the heading of its section in a report.
        about: sentences that tell a reader how to read its numbers.
        needs_model: whether it runs the model; one that doesn't works on the predictions that every run keeps.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    title: ClassVar[str] = ""
    about: ClassVar[str] = ""
    needs_model: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        validate(self)

    def unsupported(self, task: Task) -> str | None:
        """Return why a model that was trained on this task can't be analysed, as the end of a sentence; else None."""
        return None

    def check(self, task: Task, data_root: Path | None, checkpoint: str) -> None:  # noqa: B027 — most read nothing else
        """Check, before any compute, that everything is there that the analysis reads beside the model.

        Args:
            task: what models are trained on.
            data_root: the folder that data sets are read from; None for the hub.
            checkpoint: what they are trained from, as typed.

        Raises:
            DataError: data are missing or malformed; says where they were looked for.
        """

    @abstractmethod
    def measure(self, trained: Trained) -> Findings:
        """Measure a trained model, and leave it as it is."""


def by_length(examples: Encoded) -> Iterator[list[int]]:
    """Yield the positions of all examples in batches, the longest examples first, so that little is padding."""
    order = np.argsort(-examples.lengths(), kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        yield order[start : start + BATCH_SIZE].tolist()


def some_texts(data: TaskData, count: int) -> Split:
    """Return up to so many of a task's texts, the same for every run: those of evaluation first, then of training.

    Where there are more, they are drawn by a hash of their content.
    """
    texts: dict[tuple[str, str], None] = {}
    for split in (*data.evaluation.values(), data.train):
        pairs = split.pairs if split.pairs is not None else [""] * len(split)
        drawn = sorted(zip(split.texts, pairs, strict=True), key=lambda text: hash_of("\x1f".join(text)))
        texts |= dict.fromkeys(drawn[: count - len(texts)])
        if len(texts) >= count:
            break
    firsts, seconds = [first for first, _ in texts], [second for _, second in texts]
    return Split(firsts, None if data.train.pairs is None else seconds, [0] * len(firsts))


def hash_of(text: str) -> str:
    """Return a hash of a text, to draw by: 64 hexadecimal digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
