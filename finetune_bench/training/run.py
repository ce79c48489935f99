"""This file holds the training run and its steps as methods see them: the contract's `Run` and `Step`."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from finetune_bench import device as devices
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.functional import weigh
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Objective, Streams, View
from finetune_bench.model.attention import Unpadding, make_unpadding
from finetune_bench.model.structure import hidden_states_captured, is_decoder, last_tokens_read, undecayed
from finetune_bench.model.unpadding import unpadded
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.task import Batch, Output, Task
from finetune_bench.training import measure
from finetune_bench.training.examples import Encoded, one_pass, training_steps


class TrainingRun:
    """A TrainingRun is one training run as methods see it: the `Run` of the Method contract.

    Args:
        model: the classifier on the device, fp32, under its dropout policy; no method has touched it.
        task: brings the loss and the divergence.
        examples: the training set; empty where `batches` stands for it.
        recipe: says how to train.
        method: the stack that is trained with.
        seed: the seed of every random stream of the run.
        device: the device that the model is on.
        steps: the steps to make, in place of all those that recipe and seed give.
        batches: makes one pass over the training data, shuffled by the stream of the name it is given, in place of
            passes over `examples`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        examples: Encoded,
        recipe: Recipe,
        method: Stack,
        *,
        seed: int,
        device: torch.device,
        steps: Sequence[list[list[int]]] | None = None,
        batches: Callable[[str], Iterator[Batch]] | None = None,
    ) -> None:
        self.model, self.task, self.examples, self.recipe, self.method = model, task, examples, recipe, method
        self.seed, self.device = seed, device
        self.dtype = devices.DTYPES[recipe.precision]
        self.params: dict[str, Parameter] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.undecayed = undecayed(model)
        self._total_steps = recipe.total_steps(len(examples)) if steps is None else len(steps)
        self.is_length_read = False
        self.weights: Mapping[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}
        self.reanchored: set[str] = set()
        self.counter = measure.Counter()
        self.order = hashlib.sha256()
        self._steps, self._batches = steps, batches
        self._pretrained = {n: p.detach().clone() for n, p in self.params.items()} if method.reads_pretrained else None
        self._generators: dict[str, Generator] = {}
        self._random_blocks: collections.Counter[str] = collections.Counter()
        self._unpadding: tuple[Batch, Unpadding] | None = None
        self._is_decoder = is_decoder(model)

    @property
    def total_steps(self) -> int:
        """Return how many optimiser steps the run has; `is_length_read` tells that somebody asked."""
        self.is_length_read = True
        return self._total_steps

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """Return the weights as loaded, by canonical name."""
        if self._pretrained is None:
            raise FinetuneBenchError(
                "A method read run.pretrained without declaring it; set `reads_pretrained = True` in its class."
            )
        return self._pretrained

    def reanchor(self, names: Iterable[str]) -> None:
        """Let `pretrained` hold these parameters' present values from here on; nothing to do where nobody reads it."""
        self.reanchored |= (anew := set(names))
        if self._pretrained is not None:
            self._pretrained |= {name: self.params[name].detach().clone() for name in anew}

    def generator(self, name: str) -> Generator:
        """Return the stream of that name; the same object at each call."""
        if name not in self._generators:
            self._generators[name] = self._new_generator(name)
        return self._generators[name]

    def _new_generator(self, name: str) -> Generator:
        return torch.Generator(self.device).manual_seed(derive(self.seed, "method", name))

    def streams(self) -> Streams:
        """Return where all random streams stand."""
        methods = {f"method {name}": generator.get_state() for name, generator in self._generators.items()}
        blocks = {f"block {name}": torch.tensor(count) for name, count in self._random_blocks.items()}
        return devices.random_state(self.device) | methods | blocks

    def set_streams(self, streams: Streams) -> None:
        """Put all random streams where `streams` says; those that did not exist then, to their beginning."""
        devices.set_random_state(self.device, streams)
        for key in streams:
            if key.startswith("method "):
                self.generator(key.removeprefix("method "))
        for name, generator in self._generators.items():
            state = streams.get(f"method {name}")
            generator.set_state(self._new_generator(name).get_state() if state is None else state)
        self._random_blocks = collections.Counter(
            {name: int(count) for name, count in _under("block ", streams).items()}
        )

    @contextmanager
    def own_randomness(self, name: str) -> Iterator[None]:
        """Give the global streams to the method inside; each block draws anew."""
        self._random_blocks[name] += 1
        with devices.random_state_kept(self.device):
            torch.manual_seed(derive(self.seed, "method", name, "global", str(self._random_blocks[name])))
            yield

    def state_dict(self) -> dict[str, Any]:
        """Return what changes from step to step: weights, buffers, random streams, and what was counted."""
        return {
            **{f"weight {name}": tensor for name, tensor in self._tensors().items()},
            **{f"stream {name}": state for name, state in self.streams().items()},
            # A method may reanchor after any step.
            **{f"anchor {name}": self.pretrained[name] for name in self.reanchored if self._pretrained is not None},
            "reanchored": sorted(self.reanchored),
            "own_blocks": dict(self._random_blocks),
            "passes": [self.counter.forwards, self.counter.backwards],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; last of all parts, so that nothing draws from the streams after it."""
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                tensor.copy_(state[f"weight {name}"])
        self.counter.forwards, self.counter.backwards = state["passes"]
        self.reanchored = set(state["reanchored"])
        if self._pretrained is not None:
            self._pretrained |= {name: value.to(self.device) for name, value in _under("anchor ", state).items()}
        self.set_streams(_under("stream ", state))
        self._random_blocks = collections.Counter(state["own_blocks"])

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def batches(self, order: str) -> Iterator[Batch]:
        """Yield one pass over the training data in batches, shuffled by the stream `order`."""
        if self._batches is not None:
            yield from self._batches(order)
            return
        stream = Generator().manual_seed(derive(self.seed, "method", order, "order"))
        for indices in one_pass(len(self.examples), self.recipe.batch_size, stream):
            yield self.examples.batch(indices, self.device)

    def steps(self) -> Iterator[list[list[int]]]:
        """Yield every step's micro-batches of positions of examples, and note their order in the hash `order`."""
        for step in self._planned_steps():
            self.order.update(np.array([index for part in step for index in part]).tobytes())
            yield step

    def _planned_steps(self) -> Iterable[list[list[int]]]:
        if self._steps is not None:
            return self._steps
        return training_steps(len(self.examples), self.recipe, self.seed, self.task.name)

    def first_batch(self) -> Batch:
        """Return the first step's first micro-batch."""
        return self.examples.batch(next(iter(self._planned_steps()))[0], self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the recipe's precision inside."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, batch: Batch, view: View | None = None) -> Output:
        """Make one forward pass in the mode the model is in, inside `perturbing` unless the view says no."""
        view = view or View()
        self.counter.forwards += 1
        inputs = batch.inputs
        if view.embeds is not None:
            inputs = {name: ids for name, ids in inputs.items() if name != "input_ids"} | {"inputs_embeds": view.embeds}
        if view.mask is not None:
            inputs = inputs | {"attention_mask": view.mask}
        with ExitStack() as contexts:
            contexts.enter_context(self._using(view.weights or {}))
            unpads = self.recipe.batch_layout != "padded" and self.model.training and view.mask is None
            if unpads and batch.lengths:
                contexts.enter_context(unpadded(self.model, self._unpadding_of(batch, batch.lengths)))
            if self._is_decoder and (mask := inputs.get("attention_mask")) is not None:
                contexts.enter_context(last_tokens_read(self.model, mask))
            if view.perturb:
                contexts.enter_context(self.method.perturbing(self))
            states = contexts.enter_context(hidden_states_captured(self.model)) if view.hidden else []
            contexts.enter_context(self.autocast())
            return Output(self._logits(inputs), tuple(states))

    def _unpadding_of(self, batch: Batch, lengths: tuple[int, ...]) -> Unpadding:
        """Return where a batch's real tokens are, made once for all its passes: each making is copies to the device."""
        if self._unpadding is None or self._unpadding[0] is not batch:
            self._unpadding = batch, make_unpadding(lengths, self.device)
        return self._unpadding[1]

    @contextmanager
    def _using(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        self.weights = weights
        try:
            yield
        finally:
            self.weights = {}

    def _logits(self, inputs: dict[str, Tensor]) -> Tensor:
        if not self.weights:
            logits: Tensor = self.model(**inputs).logits
            return logits
        # By identity: wrapping may have moved the parameters to other names.
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        swapped = {names[id(self.params[name])]: value for name, value in self.weights.items()}
        return torch.func.functional_call(self.model, swapped, (), inputs).logits  # type: ignore[no-any-return]

    def embeds(self, batch: Batch, view: View) -> Tensor:
        """Return the view's raw token embeddings (batch, seq, dim)."""
        if view.embeds is not None:
            return view.embeds
        lookup: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        table = next(lookup.parameters())
        replaced = [value for name, value in (view.weights or {}).items() if self.params[name] is table]
        weights = {"weight": replaced[0]} if replaced else {}
        embedded: Tensor = torch.func.functional_call(lookup, weights, (batch.inputs["input_ids"],))
        return embedded

    def loss(self, batch: Batch, view: View | None = None) -> Tensor:
        """Return the plain task loss of a batch, 0-dim."""
        return self.task.loss(self.forward(batch, view), batch.labels)

    def grad(self, loss: Tensor, weights: Sequence[Tensor], view: View | None = None) -> list[Tensor]:
        """Return the gradients of a loss; a counted backward pass."""
        self.counter.backwards += 1
        retain = view is not None and has_graph(view.embeds)
        return list(torch.autograd.grad(loss, weights, retain_graph=retain, allow_unused=True, materialize_grads=True))


def _under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state has under a prefix, by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def has_graph(embeds: Tensor | None) -> bool:
    """Return whether gradients flow on below a view's embeddings."""
    return embeds is not None and embeds.grad_fn is not None


class TrainingStep:
    """A TrainingStep is one micro-batch of a step: the `Step` of the Method contract.

    Args:
        run: the training run, with the method that it trains with.
        batch: the examples.
        share: how many of the step's examples are in the micro-batch, above 0 and up to 1.
        scaler: scales the losses in fp16.
    """

    def __init__(
        self, run: TrainingRun, batch: Batch, share: float = 1.0, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.run, self.batch = run, batch
        self._share, self._scaler = share, scaler
        # What the running method was given: outside of all methods, the whole loss of a plain pass.
        self._view = View()
        self._weight: float | Tensor = 1.0
        self.task_losses: list[Tensor] = []

    def forward(self, view: View | None = None) -> Output:
        """Make one training forward pass."""
        return self.run.forward(self.batch, view)

    def embeds(self, view: View | None = None) -> Tensor:
        """Return the view's raw token embeddings (batch, seq, dim)."""
        return self.run.embeds(self.batch, view or View())

    def loss(self, output: Output, labels: Tensor) -> Tensor:
        """Return the task's loss of a prediction for these labels, 0-dim."""
        return self.run.task.loss(output, labels)

    def targets(self, view: View | None = None) -> Tensor:
        """Return the view's targets, the batch's labels where it has none, as probabilities of classes or numbers."""
        targets = self.batch.labels if view is None or view.targets is None else view.targets
        if self.run.task.kind == "regression" or targets.is_floating_point():
            return targets
        return F.one_hot(targets, self.run.task.outputs).float()

    def divergence(self, p: Output, q: Output) -> Tensor:
        """Return the task's distance between two predictions."""
        return self.run.task.divergence(p, q)

    def mark(self) -> Streams:
        """Return where all random streams stand."""
        return self.run.streams()

    @contextmanager
    def replay(self, mark: Streams) -> Iterator[None]:
        """Let passes inside draw what they drew from the mark on."""
        present = self.run.streams()
        self.run.set_streams(mark)
        try:
            yield
        finally:
            self.run.set_streams(present)

    @contextmanager
    def within(self, view: View, weight: float | Tensor) -> Iterator[None]:
        """Let `backward` know, inside, the running method's view, and the weight of its loss beside all outer ones."""
        outer = self._view, self._weight
        self._view, self._weight = view, outer[1] * (weight.detach() if isinstance(weight, Tensor) else weight)
        try:
            yield
        finally:
            self._view, self._weight = outer

    def backward(self, part: Tensor) -> Tensor:
        """Add the gradients of a part of the loss, scaled by all that will scale it; return the part, detached."""
        self.run.counter.backwards += 1
        loss = part * (self._weight * self._share)
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        # Embeddings that came from outside have a graph below them that later passes need, too.
        loss.backward(retain_graph=has_graph(self._view.embeds))  # type: ignore[no-untyped-call]
        return part.detach()

    def task_objective(self, view: View, weight: float | Tensor = 1.0) -> Objective:
        """Return the innermost objective: the task's loss of one forward pass, times the weight."""
        output, task = self.forward(view), self.run.task
        if view.targets is None:
            loss = task.loss(output, self.batch.labels)
        else:
            loss = task.losses(output, view.targets).mean()
        self.task_losses.append(loss.detach())
        if self.run.method.changes_losses:
            losses = task.losses(output, self.batch.labels if view.targets is None else view.targets)
            changed = self.run.method.losses(self.run, output, losses)
            # A mean of losses and the task's loss may differ in the last bit: where nothing was changed, it is kept.
            loss = loss if changed is losses else changed.mean()
        return Objective(weigh(loss, weight), output)

    def objective(self) -> Objective:
        """Return the method's objective of this micro-batch."""
        return self.run.method.objective(self, self.task_objective, View())
