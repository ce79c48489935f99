"""The training run and its steps, as methods see them: the `Run` and the `Step` of the Method contract."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter

from finetune_bench import device as devices
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Method
from finetune_bench.method.step import Objective, Streams, View
from finetune_bench.model.packing import make_packing, packed
from finetune_bench.model.structure import hidden_states_captured, undecayed
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.task import Batch, Output, Task
from finetune_bench.training import measure
from finetune_bench.training.examples import Encoded


class TrainingRun:
    """One training run as methods see it: the `Run` of the Method contract.

    Args:
        model: on the device, fp32, under its dropout policy; no method has touched it.
        task: brings loss and divergence.
        examples: the training set.
        recipe: how to train.
        seed: of every stream.
        device: where.
        keep_pretrained: whether some method reads `pretrained`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        examples: Encoded,
        recipe: Recipe,
        *,
        seed: int,
        device: torch.device,
        keep_pretrained: bool = False,
    ) -> None:
        self.model, self.task, self.examples, self.recipe = model, task, examples, recipe
        self.seed, self.device = seed, device
        self.dtype = devices.DTYPES[recipe.precision]
        self.params: dict[str, Parameter] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.undecayed = undecayed(model)
        self.total_steps = recipe.total_steps(len(examples))
        self.method = Method()  # `train` puts the real one here
        self.weights: Mapping[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}
        self.counter = measure.Counter()
        self.order = hashlib.sha256()
        self._pretrained = {name: p.detach().clone() for name, p in self.params.items()} if keep_pretrained else None
        self._generators: dict[str, Generator] = {}
        self.own_blocks: collections.Counter[str] = collections.Counter()

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """The weights as loaded, by canonical name."""
        if self._pretrained is None:
            raise FinetuneBenchError(
                "A method read run.pretrained without declaring it; set `reads_pretrained = True` in its class."
            )
        return self._pretrained

    def reanchor(self, names: Iterable[str]) -> None:
        """From here on `pretrained` holds these parameters' present values; nothing to do where nobody reads it."""
        if self._pretrained is not None:
            self._pretrained |= {name: self.params[name].detach().clone() for name in names}

    def generator(self, name: str) -> Generator:
        """The stream of that name; the same object at each call."""
        if name not in self._generators:
            self._generators[name] = self._fresh(name)
        return self._generators[name]

    def _fresh(self, name: str) -> Generator:
        return torch.Generator(self.device).manual_seed(derive(self.seed, "method", name))

    def streams(self) -> Streams:
        """Where all random streams stand."""
        own = {f"method {name}": generator.get_state() for name, generator in self._generators.items()}
        return devices.random_state(self.device) | own

    def set_streams(self, streams: Streams) -> None:
        """Put all random streams there; those that did not exist yet, to their beginning."""
        devices.set_random_state(self.device, streams)
        for key in streams:
            if key.startswith("method "):
                self.generator(key.removeprefix("method "))
        for name, generator in self._generators.items():
            state = streams.get(f"method {name}")
            generator.set_state(self._fresh(name).get_state() if state is None else state)

    @contextmanager
    def own_randomness(self, name: str) -> Iterator[None]:
        """Inside, the global streams belong to the method; each block draws anew."""
        self.own_blocks[name] += 1
        with devices.random_state_kept(self.device):
            torch.manual_seed(derive(self.seed, "method", name, "global", str(self.own_blocks[name])))
            yield

    def epoch(self, generator: Generator) -> list[list[int]]:
        """The batches of one pass over the training data, in the order that the stream gives."""
        order = torch.randperm(len(self.examples), generator=generator).tolist()
        size = self.recipe.batch_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def batches(self, order: str) -> Iterator[Batch]:
        """One pass over the training data."""
        stream = Generator().manual_seed(derive(self.seed, "method", order, "order"))
        for indices in self.epoch(stream):
            yield self.examples.batch(indices, self.device)

    def steps(self) -> Iterator[list[list[int]]]:
        """Every step's micro-batches of example positions."""
        stream = Generator().manual_seed(derive(self.seed, "order", self.task.name))
        micro, done = self.recipe.batch_size // self.recipe.accumulation, 0
        while done < self.total_steps:
            for indices in self.epoch(stream)[: self.total_steps - done]:
                self.order.update(np.array(indices).tobytes())
                yield [indices[start : start + micro] for start in range(0, len(indices), micro)]
                done += 1

    def autocast(self) -> AbstractContextManager[Any]:
        """The arithmetic of the recipe's precision."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def forward(self, batch: Batch, view: View | None = None) -> Output:
        """One forward pass in the mode the model is in, inside the stack's `perturbing` unless the view says no."""
        view = view or View()
        self.counter.forwards += 1
        inputs = batch.inputs
        if view.embeds is not None:
            inputs = {name: ids for name, ids in inputs.items() if name != "input_ids"} | {"inputs_embeds": view.embeds}
        with ExitStack() as contexts:
            contexts.enter_context(self._using(view.weights or {}))
            if self.recipe.arrangement != "padded" and self.model.training and batch.lengths:
                contexts.enter_context(packed(self.model, make_packing(batch.lengths, self.device)))
            if view.perturb:
                contexts.enter_context(self.method.perturbing(self))
            states = contexts.enter_context(hidden_states_captured(self.model)) if view.hidden else []
            contexts.enter_context(self.autocast())
            return Output(self._logits(inputs), tuple(states))

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
        names = {id(weight): name for name, weight in self.model.named_parameters()}  # wrapping may have moved them
        swapped = {names[id(self.params[name])]: value for name, value in self.weights.items()}
        return torch.func.functional_call(self.model, swapped, (), inputs).logits  # type: ignore[no-any-return]

    def embeds(self, batch: Batch, view: View) -> Tensor:
        """The view's raw token embeddings (batch, seq, dim)."""
        if view.embeds is not None:
            return view.embeds
        lookup: nn.Module = self.model.get_input_embeddings()  # type: ignore[operator]
        table = next(lookup.parameters())
        others = [value for name, value in (view.weights or {}).items() if self.params[name] is table]
        embedded: Tensor = torch.func.functional_call(
            lookup, dict(zip(["weight"], others, strict=False)), (batch.inputs["input_ids"],)
        )
        return embedded

    def loss(self, batch: Batch, view: View | None = None) -> Tensor:
        """The plain task loss of a batch."""
        return self.task.loss(self.forward(batch, view), batch.labels)

    def grad(self, loss: Tensor, weights: Sequence[Tensor], view: View | None = None) -> list[Tensor]:
        """Gradients of a loss; a counted backward pass."""
        self.counter.backwards += 1
        retain = view is not None and has_graph(view.embeds)
        return list(torch.autograd.grad(loss, weights, retain_graph=retain, allow_unused=True, materialize_grads=True))


def has_graph(embeds: Tensor | None) -> bool:
    """Whether gradients flow on below a view's embeddings."""
    return embeds is not None and embeds.grad_fn is not None


class TrainingStep:
    """One micro-batch: the `Step` of the Method contract.

    Args:
        run: the training run, with the method that it trains.
        batch: the examples.
        share: of the step's examples that are in it.
        scaler: of the losses, in fp16.
    """

    def __init__(
        self, run: TrainingRun, batch: Batch, share: float = 1.0, scaler: torch.amp.GradScaler | None = None
    ) -> None:
        self.run, self.batch = run, batch
        self._share, self._scaler = share, scaler
        self.task_losses: list[Tensor] = []

    def forward(self, view: View | None = None) -> Output:
        """One training forward pass."""
        return self.run.forward(self.batch, view)

    def embeds(self, view: View | None = None) -> Tensor:
        """The view's raw token embeddings (batch, seq, dim)."""
        return self.run.embeds(self.batch, view or View())

    def divergence(self, p: Output, q: Output) -> Tensor:
        """The task's distance between two predictions."""
        return self.run.task.divergence(p, q)

    def mark(self) -> Streams:
        """Where all random streams stand."""
        return self.run.streams()

    @contextmanager
    def replay(self, mark: Streams) -> Iterator[None]:
        """Inside, passes draw what they drew from the mark on."""
        present = self.run.streams()
        self.run.set_streams(mark)
        try:
            yield
        finally:
            self.run.set_streams(present)

    def backward(self, part: Tensor, view: View) -> Tensor:
        """Add a part's gradients, scaled by all that will scale it."""
        self.run.counter.backwards += 1
        loss = part * (view.weight * self._share)
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        # Embeddings that came from outside have a graph below them that later passes need, too.
        loss.backward(retain_graph=has_graph(view.embeds))  # type: ignore[no-untyped-call]
        return part.detach()

    def task_objective(self, view: View) -> Objective:
        """The innermost objective: one forward pass and the task's loss."""
        output = self.forward(view)
        loss = self.run.task.loss(output, self.batch.labels)
        self.task_losses.append(loss.detach())
        return Objective(loss, output)

    def objective(self) -> Objective:
        """The method's objective of this micro-batch."""
        return self.run.method.objective(self, self.task_objective, View())
