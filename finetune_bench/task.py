"""The Task contract: a data set brings its examples, the loss, the divergence and the metrics to fine-tuning.

A task is one object with a name. `load` reads its examples; everything else works on tensors and arrays. Built-in tasks
and a stranger's are found in the same way: through the entry-point group `finetune_bench.tasks`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_bench.errors import DataError, FinetuneBenchError
from finetune_bench.metrics import METRICS, Kind, compute, named_class

if TYPE_CHECKING:
    from torch import Tensor

# The name of the evaluation split that a search chooses by; no table compares it.
HELD_OUT = "held_out"


@dataclass(frozen=True)
class Output:
    """An output is what one forward pass yields.

    Attributes:
        logits: what the head puts out, (batch, labels), or (batch, 1) for regression.
        hidden: where asked for, what enters the first layer and what leaves every layer, each (batch, seq, dim).
    """

    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch, or a micro-batch, lies on the training device.

    Attributes:
        inputs: the model's keyword arguments, each (batch, seq): input_ids, attention_mask, perhaps token_type_ids.
        labels: the true values, (batch,), int64 for classification, float32 for regression.
        lengths: the real tokens of each sequence, known on the host, where padding stands at the end; else None.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    lengths: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Split:
    """A split holds examples in a fixed order.

    Attributes:
        texts: the texts, one per example.
        pairs: the second texts of a pair task; None where there is one text.
        labels: class ids from 0, or numbers for regression.
        published: the number of rows of the split as published; None where there is no such number.
    """

    texts: Sequence[str]
    pairs: Sequence[str] | None
    labels: Sequence[int] | Sequence[float]
    published: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_subset(self) -> bool:
        """Whether the split holds another number of rows than was published."""
        return self.published is not None and len(self) != self.published

    def take(self, indices: Sequence[int]) -> Split:
        """Return the examples at these positions, in this order."""
        pairs = None if self.pairs is None else [self.pairs[i] for i in indices]
        return Split([self.texts[i] for i in indices], pairs, [self.labels[i] for i in indices])

    def fingerprint(self) -> str:
        """Return a hash of every text, every label and their order: 16 hexadecimal digits."""
        rows = [list(self.texts), None if self.pairs is None else list(self.pairs), list(self.labels)]
        return hashlib.sha256(json.dumps(rows, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class TaskData:
    """A task trains on this, and is scored on it.

    Attributes:
        train: the training examples.
        evaluation: the splits to score, by name; the comparison table shows the first one first.
        notes: sentences that a reader of the report should know about the data.
    """

    train: Split
    evaluation: dict[str, Split]
    notes: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a hash of all splits: 16 hexadecimal digits."""
        parts = [
            self.train.fingerprint(),
            *(f"{name}:{split.fingerprint()}" for name, split in self.evaluation.items()),
        ]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Provenance:
    """A task's examples come from somewhere; this is what `finetune-bench show` tells of it.

    Attributes:
        source: where they come from.
        published: the number of examples by split, where it is known without reading them.
    """

    source: str = "not stated by the task"
    published: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task(ABC):
    """A task is a data set with its loss, divergence and metrics.

    Attributes:
        name: the text that the user types; it is also the column's name in a report.
        kind: "classification" or "regression".
        labels: the names of the classes in the order of their ids; empty for regression.
        metrics: the names of the metrics (see metrics.py); tables compare the first. Higher is better.
        licence: under which licence the data may be used, in a few words; empty where nobody said.
    """

    name: str
    kind: Kind = "classification"
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ("accuracy",)
    licence: str = field(default="", kw_only=True)

    @abstractmethod
    def load(self, data_root: Path | None) -> TaskData:
        """Read the examples.

        Args:
            data_root: a folder in the hub's layout to read from in place of the hub; None for the hub and its cache.

        Raises:
            DataError: the data is missing or malformed; says what was looked for, where, and how to get it.
        """

    def provenance(self) -> Provenance:
        """Return where the examples come from; reads nothing."""
        return Provenance()

    @property
    def outputs(self) -> int:
        """The width of the model's head is the number of classes, or 1 for regression."""
        return len(self.labels) if self.kind == "classification" else 1

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the batch mean of the cross-entropy, or of the squared error; 0-dim, in float32 at least."""
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(output.logits, labels)
        return functional.cross_entropy(output.logits, labels)

    @property
    def is_mean_of_losses(self) -> bool:
        """Say whether `losses` are those of which `loss` is the mean: no task has a loss of its own without them."""
        return type(self).loss is Task.loss or type(self).losses is not Task.losses

    def losses(self, output: Output, labels: Tensor) -> Tensor:
        """Return the loss of every example, (batch,), in float32 at least; `loss` is their mean.

        Args:
            output: the prediction.
            labels: (batch,) ids or numbers, or (batch, classes) probabilities.

        Raises:
            FinetuneBenchError: the task has another loss, and doesn't say its losses.
        """
        from finetune_bench import functional

        if not self.is_mean_of_losses:
            raise FinetuneBenchError(
                f"The task '{self.name}' has a loss of its own; a method that changes labels or losses of single "
                f"examples needs its losses too: define `losses` in {type(self).__name__}."
            )
        if self.kind == "regression":
            return functional.squared_errors(output.logits, labels)
        return functional.cross_entropies(output.logits, labels)

    def divergence(self, p: Output, q: Output) -> Tensor:
        """Return the batch mean of KL(p‖q) + KL(q‖p), or of the squared difference for regression.

        Returns:
            A 0-dim tensor, in float32 at least; gradients flow to both sides.
        """
        from finetune_bench import functional

        if self.kind == "regression":
            return functional.mean_squared_error(p.logits, q.logits)
        return functional.symmetric_kl(p.logits, q.logits)

    def score(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return the task's metrics, in its order, each as the field quotes it before multiplying by 100.

        Args:
            predictions: logits, (examples, outputs), or numbers for regression, (examples, 1).
            labels: the true values, (examples,).
        """
        predicted = predictions.reshape(-1) if self.kind == "regression" else predictions.argmax(axis=1)
        scores = {}
        for metric in self.metrics:
            name, positive = named_class(metric)
            if positive is not None:
                class_id = self.labels.index(positive)
                scores[metric] = compute(name, (predicted == class_id).astype(int), (labels == class_id).astype(int))
            else:
                of_logits = name in METRICS and METRICS[name].of_logits
                scores[metric] = compute(name, predictions if of_logits else predicted, labels)
        return scores


def on_both_sides(held_out: Sequence[bool], labels: Sequence[Hashable], order: Sequence[Any]) -> list[bool]:
    """Change a cut of examples in two, only where a class has no example on one side.

    Examples of one rank in the order stay together. Of a class that would be held out as a whole, the last in the
    order is trained on; of one that would be trained on as a whole, the first is held out, unless a class would then
    not be trained on. What is the only one of its class is trained on.

    Args:
        held_out: whether each example is held out, (examples,).
        labels: the class of each example, (examples,).
        order: the rank of each example, (examples,); the smaller, the sooner it is held out.

    Returns:
        Whether each example is held out after that, (examples,).
    """
    side = dict(zip(order, held_out, strict=True))
    ranks_of: dict[Any, set[Any]] = defaultdict(set)
    classes_of: dict[Any, set[Any]] = defaultdict(set)
    for rank, label in zip(order, labels, strict=True):
        ranks_of[label].add(rank)
        classes_of[rank].add(label)
    for ranks in ranks_of.values():
        if all(side[rank] for rank in ranks):
            side[max(ranks)] = False
    trained = {label: sum(not side[rank] for rank in ranks) for label, ranks in ranks_of.items()}
    for label in sorted(ranks_of):
        if trained[label] == len(ranks_of[label]) > 1:
            movable = (r for r in sorted(ranks_of[label]) if all(trained[other] > 1 for other in classes_of[r]))
            first = next(movable, None)
            if first is not None:
                side[first] = True
                for other in classes_of[first]:
                    trained[other] -= 1
    return [side[rank] for rank in order]


def hold_out(data: TaskData, share: float, name: str) -> TaskData:
    """Hold a share of the training examples out, as one more evaluation split, the last.

    Which examples these are depends on their position and the task's name only: the same for every method and seed.
    Where a class would have no example on one side, one of its examples changes sides.

    Args:
        data: the data to split.
        share: the share of the training examples, rounded, and more where a class needs it; at least one is held out
            and one is left.
        name: the task's name.

    Raises:
        DataError: fewer than two training examples.
    """
    total = len(data.train)
    if total < 2:
        raise DataError(f"'{name}' has {total} training examples; holding some out for a search needs two at least.")
    drawn = sorted(range(total), key=lambda i: hashlib.sha256(f"{HELD_OUT}:{name}:{i}".encode()).digest())
    count = min(max(1, round(share * total)), total - 1)
    rank_of = {position: rank for rank, position in enumerate(drawn)}
    order = [rank_of[position] for position in range(total)]
    is_held_out = [rank < count for rank in order]
    if all(isinstance(label, int) for label in data.train.labels):  # class ids
        balanced = on_both_sides(is_held_out, data.train.labels, order)
        is_held_out = balanced if any(balanced) else is_held_out
    train, held_out = (
        data.train.take([i for i in range(total) if is_held_out[i] == wanted]) for wanted in (False, True)
    )
    return dataclasses.replace(data, train=train, evaluation=data.evaluation | {HELD_OUT: held_out})


def limit(split: Split, count: int, name: str) -> Split:
    """Draw the same `count` examples of a split for every method and seed; those of a smaller count are among them.

    The order of drawing is by a hash of the position and the task's name; the examples keep their order.

    Raises:
        DataError: the split has fewer examples.
    """
    if count > len(split):
        raise DataError(
            f"--limit-train {count} was asked for, but the training split of '{name}' has {len(split)} examples; "
            f"give a number up to {len(split)} or leave the option out."
        )
    drawn = sorted(range(len(split)), key=lambda i: hashlib.sha256(f"limit:{name}:{i}".encode()).digest())[:count]
    return split.take(sorted(drawn))
