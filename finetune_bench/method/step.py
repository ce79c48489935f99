"""A method is given the training run, one step of it, and a view: how a forward pass is to be made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from finetune_bench.recipe import Recipe
from finetune_bench.task import Batch, Output, Task


@dataclass(frozen=True)
class View:
    """A View says how one forward pass is to be made.

    Attributes:
        embeds: (batch, seq, dim); they replace the raw token embeddings, before position embeddings, norm and dropout.
        weights: tensors by canonical name; they replace the parameters in this pass, and gradients flow to them.
        perturb: False turns every method's `perturbing` off for this pass.
        hidden: also return the states between the layers, as `Output.hidden`.
        targets: what the task's loss of this pass is taken against in the place of the batch's labels: (batch,) ids or
            numbers, or (batch, classes) probabilities.
        mask: (batch, seq), 1 for tokens that are seen; it replaces the batch's attention mask, and such a pass is made
            with padding in every batch layout.
    """

    embeds: Tensor | None = None
    weights: Mapping[str, Tensor] | None = None
    perturb: bool = True
    hidden: bool = False
    targets: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Objective:
    """An Objective is what one evaluation of the training loss yields.

    Attributes:
        loss: the micro-batch's loss, 0-dim; its graph reaches the weights.
        output: the output of a forward pass whose graph was not freed: the first, unless the method says otherwise.
        logs: named 0-dim tensors or numbers, kept per step in the training trace.
    """

    loss: Tensor
    output: Output
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


class Inner(Protocol):
    """An Inner evaluates the objective of the methods to the right, at last the task's loss."""

    def __call__(self, view: View, weight: float | Tensor = 1.0) -> Objective:
        """Return the objective of passes made as the view says.

        Args:
            view: how the passes are made.
            weight: the factor of its loss, a number or a 0-dim tensor: the loss comes multiplied by it. A factor that
                is applied later would miss the gradients of methods that run backward passes early.
        """
        ...


class Step(Protocol):
    """A Step is one micro-batch: the only door from a method to the training step."""

    @property
    def batch(self) -> Batch:
        """Return the examples."""
        ...

    @property
    def run(self) -> Run:
        """Return the training run that the step is of."""
        ...

    def forward(self, view: View = ...) -> Output:
        """Make one training forward pass inside the stack's `perturbing` (unless the view says no); it is counted."""
        ...

    def embeds(self, view: View = ...) -> Tensor:
        """Return the view's raw token embeddings (batch, seq, dim), before position embeddings, norm and dropout."""
        ...

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the task's loss (0-dim, batch mean) of a prediction, for these labels; it is in no trace."""
        ...

    def targets(self, view: View = ...) -> Tensor:
        """Return the view's targets as what can be mixed: (batch, classes) probabilities, or (batch,) numbers."""
        ...

    def divergence(self, p: Output, q: Output) -> Tensor:
        """Return the task's distance between two predictions, batch mean: symmetric KL, or MSE for regression."""
        ...

    def mark(self) -> Streams:
        """Return where all random streams stand: dropout's, and every method's."""
        ...

    def replay(self, mark: Streams) -> AbstractContextManager[None]:
        """Let passes inside draw what they drew from the mark on: the same masks and noise, for equal shapes.

        After it the streams stand where they stood before. What a method draws for itself it therefore draws outside:
        inside it would draw the same at every step.
        """
        ...

    def backward(self, part: Tensor) -> Tensor:
        """Add the gradients of a part (0-dim) of this method's loss now, and free its graph.

        Whatever outer methods and the training loop will multiply the returned loss by is applied here.

        Args:
            part: a summand of the loss that this method will return.

        Returns:
            The part, detached, to be added to the loss that is returned.
        """
        ...

    def within(self, view: View, weight: float | Tensor) -> AbstractContextManager[None]:
        """Let `backward` know, inside, what the running method was given; a stack calls it, methods need not."""
        ...


# States of random streams, by name.
Streams = Mapping[str, Tensor]

# What a method has to keep, by name: tensors, and what JSON can hold.
State = Mapping[str, Any]


class Run(Protocol):
    """A Run is what `setup` and the other hooks may use of the training run.

    Attributes:
        model: the classifier, on `device`.
        params: the parameters by canonical name, fixed at build; the objects stay the same under wrapping. A method
            that brings parameters puts them here in `setup` and takes them out in `teardown`.
        undecayed: names of the parameters that the recipe's weight decay leaves out: biases and norms.
        weights: while a pass runs, what it uses in the place of the parameters of these names.
        trained: masks of the entries that train, for parameters of which a method fixed the others.
        reanchored: names of the parameters that a method drew anew, so that `pretrained` isn't the checkpoint's.
        task: the task, with its loss and divergence.
        recipe: how the run is trained.
        device: the device that the model is on.
        dtype: the dtype of the arithmetic: float32, or autocast's.
    """

    model: nn.Module
    params: dict[str, Parameter]
    undecayed: set[str]
    weights: Mapping[str, Tensor]
    trained: dict[str, Tensor]
    reanchored: set[str]
    task: Task
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype

    @property
    def total_steps(self) -> int:
        """Return how many optimiser steps the run has."""
        ...

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """Return the weights as loaded, by canonical name, before any method touched them; needs `reads_pretrained`."""
        ...

    def reanchor(self, names: Iterable[str]) -> None:
        """Let `pretrained` hold these parameters' present values from here on: for surgery that discards the old."""
        ...

    def generator(self, name: str) -> Generator:
        """Return the method's own random stream of that name, on `device`; the same object at each call."""
        ...

    def batches(self, order: str) -> Iterator[Batch]:
        """Yield one pass over the training data in batches of the recipe's size, shuffled by the stream `order`."""
        ...

    def loss(self, batch: Batch, view: View = ...) -> Tensor:
        """Return the plain task loss of a batch (0-dim, batch mean), the model in the mode it is in."""
        ...

    def grad(self, loss: Tensor, weights: Sequence[Tensor], view: View = ...) -> list[Tensor]:
        """Return gradients of a loss, zero for weights it doesn't depend on; counted, and `.grad` is left alone.

        The loss's graph is freed; with the view that its passes were made from, what lies below its embeddings is not.
        """
        ...

    def own_randomness(self, name: str) -> AbstractContextManager[None]:
        """Give the global random streams (dropout) to the method inside; after it they are as they were."""
        ...
