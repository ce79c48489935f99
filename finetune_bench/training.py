"""The training loop, and the map of the hooks.

    load (init stream) → run.params, run.pretrained → setup* (by phase) → optimizer* → seed the global stream
    per step:
        zero_grad
        per micro-batch:  objective( … perturbing( forward ) … ) · backward of (micro-batch's share) × loss
        unscale (fp16) · clip · gradients* · optimizer.step · scheduler.step · after_step*
        every so many steps: a checkpoint, with the methods' state*
    → evaluating*( predict ) → teardown*          (* = a hook of the Method contract)

Only `TrainingStep.backward` calls `backward`: at the end of the objective, or earlier where a method asks for it. No
tensor's value is read on the host inside a step, so a device is never waited for. Vanilla here equals a plain PyTorch
loop to the last bit; a test holds the two against each other.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune_bench import checkpoint, measure
from finetune_bench import device as devices
from finetune_bench.errors import Diverged, FinetuneBenchError
from finetune_bench.method import Method, Objective, Streams, View
from finetune_bench.model import hidden_states_captured, undecayed
from finetune_bench.packing import make_packing, packed
from finetune_bench.seeds import derive
from finetune_bench.study import Recipe
from finetune_bench.task import Batch, Kind, Output, Split, Task
from finetune_bench.vocabulary import Vocabulary, trimmed

_CHECK_EVERY = 50  # steps between looks at the losses on a device that must not be waited for


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        columns: per model input, the unpadded ids of every example.
        padding: per model input, what fills the end (or the start).
        left: whether padding stands at the start (XLNet).
        labels: (examples,).
    """

    columns: dict[str, list[np.ndarray]]
    padding: dict[str, int]
    left: bool
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Tokens of every example."""
        return np.array([len(ids) for ids in self.columns["input_ids"]])

    def batch(self, indices: Sequence[int], device: torch.device) -> Batch:
        """These examples on the device, padded to the longest of them."""
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
    """Tokenise a split, cut to `max_length` tokens (the longer text of a pair first)."""
    columns = tokenizer(
        list(split.texts),
        None if split.pairs is None else list(split.pairs),
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    fill = {"input_ids": tokenizer.pad_token_id, "token_type_ids": getattr(tokenizer, "pad_token_type_id", 0)}
    labels = torch.tensor(list(split.labels), dtype=torch.float32 if kind == "regression" else torch.int64)
    return Encoded(
        columns={name: [np.asarray(ids) for ids in column] for name, column in columns.items()},
        padding={name: fill.get(name, 0) for name in columns},
        left=tokenizer.padding_side == "left",
        labels=labels,
    )


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


@dataclass
class Trace:
    """What was recorded while training.

    Attributes:
        steps: by name, one value per step: `loss` (what was minimised), `task_loss` (mean of the task's losses among
            it), and whatever the methods log.
        sketch_steps: after which steps the weights were sketched.
        sketches: (sketches, 64).
        examples: per step.
        seconds, cpu_seconds: per step; measurements.
        setup_seconds, setup_forwards, setup_backwards: what the methods' setup took.
        forwards_per_step, backwards_per_step: counted, per micro-batch.
        resumed_at: the step whose checkpoint the run went on from; 0 for a run in one piece.
    """

    steps: dict[str, np.ndarray] = field(default_factory=dict)
    sketch_steps: list[int] = field(default_factory=list)
    sketches: list[np.ndarray] = field(default_factory=list)
    examples: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cpu_seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    setup_seconds: float = 0.0
    setup_forwards: int = 0
    setup_backwards: int = 0
    forwards_per_step: float = 0.0
    backwards_per_step: float = 0.0
    resumed_at: int = 0


def make_optimizer(run: TrainingRun) -> AdamW:
    """Fused AdamW with bias correction; biases and norms don't decay."""
    recipe = run.recipe
    trainable = {name: p for name, p in run.params.items() if p.requires_grad}
    groups = [
        {
            "params": [p for name, p in trainable.items() if name not in run.undecayed],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for name, p in trainable.items() if name in run.undecayed], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.adam_eps, fused=True)


def make_scheduler(optimizer: Optimizer, recipe: Recipe, total_steps: int) -> LambdaLR:
    """Linear warm-up from 0 to the peak, then linear decay to 0 at the end."""
    warmup = recipe.warmup_steps(total_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

    return LambdaLR(optimizer, factor)


def train(run: TrainingRun, method: Method, checkpoints: checkpoint.Checkpoints | None = None) -> Trace:
    """Train `run.model` with a method, from `setup` to the last step; the caller owes `teardown`.

    Args:
        run: that nothing was trained with yet.
        method: a stack, or one method.
        checkpoints: where the state is kept every so many steps. One that is there already is gone on from: the end is
            the same to the last bit.

    Raises:
        Diverged: a loss was not finite; names the first such step, counted from 1.
    """
    trace = Trace()
    clock = measure.StepClock(run.device)
    run.method = method
    with clock.step():
        method.setup(run)
    trace.setup_seconds = float(clock.seconds()[0][0])
    trace.setup_forwards, trace.setup_backwards = run.counter.forwards, run.counter.backwards
    with trimmed(run) if run.recipe.arrangement == "trimmed" else nullcontext() as vocabulary:
        record = _steps(run, method, trace, checkpoints, vocabulary)
    record.sketch_steps.append(run.total_steps)
    record.sketches.append(measure.sketch(run.params.values()))
    trace.steps, trace.examples = record.numbers(), np.array(record.examples)
    trace.sketch_steps, trace.sketches = record.sketch_steps, record.sketches
    trace.seconds, trace.cpu_seconds = record.seconds, record.cpu_seconds
    trace.forwards_per_step = (run.counter.forwards - trace.setup_forwards) / record.micro_batches
    trace.backwards_per_step = (run.counter.backwards - trace.setup_backwards) / record.micro_batches
    return trace


def _steps(
    run: TrainingRun,
    method: Method,
    trace: Trace,
    checkpoints: checkpoint.Checkpoints | None,
    vocabulary: Vocabulary | None,
) -> checkpoint.Record:
    """The optimiser steps of a run that is set up."""
    optimizer = method.optimizer(make_optimizer(run), run)
    scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    torch.manual_seed(derive(run.seed, "dropout"))
    run.model.train()
    clock = measure.StepClock(run.device)
    record = checkpoint.Record()
    loop = checkpoint.Loop(run, optimizer, scheduler, scaler, vocabulary, record)
    if checkpoints:
        trace.resumed_at = checkpoint.restore(checkpoints.path, loop)
    sketched = measure.sketch_steps(run.total_steps)[:-1]  # the last one is of the whole model, by the caller
    for step, parts in enumerate(run.steps(), start=1):
        if step <= trace.resumed_at:
            continue
        with clock.step():
            optimizer.zero_grad()
            logs: dict[str, Tensor | float] = {}
            examples = sum(len(part) for part in parts)
            for part in parts:
                share = len(part) / examples
                for name, value in _micro_step(run, part, share, scaler).items():
                    logs[name] = logs.get(name, 0.0) + value * share
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(run.params.values(), run.recipe.clip)
            method.gradients(run)
            if vocabulary:
                vocabulary.before_step(optimizer)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
            method.after_step(run)
        record.micro_batches += len(parts)
        record.examples.append(examples)
        for name, value in logs.items():
            record.logs.setdefault(name, []).append(value)
        # Reading a loss waits for the device, so there it is done rarely; the first bad step is found all the same.
        unchecked = 1 if run.device.type == "cpu" else step % _CHECK_EVERY or _CHECK_EVERY
        if run.device.type == "cpu" or unchecked == _CHECK_EVERY or step == run.total_steps:
            _check_finite(record.logs["loss"][-unchecked:], step)
        if step in sketched:
            record.sketch_steps.append(step)
            record.sketches.append(measure.sketch(run.params.values()))
        if checkpoints and checkpoints.due(step, run.total_steps):
            record.add_times(*clock.seconds())
            clock = measure.StepClock(run.device)
            checkpoint.save(checkpoints.path, loop, step)
    record.add_times(*clock.seconds())
    return record


def _micro_step(
    run: TrainingRun, part: list[int], share: float, scaler: torch.amp.GradScaler
) -> dict[str, Tensor | float]:
    step = TrainingStep(run, run.examples.batch(part, run.device), share, scaler)
    objective = step.objective()
    step.backward(objective.loss, View())
    if own := sorted({"loss", "task_loss", "sketch", "sketch_steps"} & set(objective.logs)):
        raise FinetuneBenchError(f"A method logs '{own[0]}', which is the name of the run's own record; rename it.")
    task_loss = torch.stack(step.task_losses).mean()
    kept = {name: v.detach() if isinstance(v, Tensor) else v for name, v in objective.logs.items()}
    return {"loss": objective.loss.detach(), "task_loss": task_loss, **kept}


def _check_finite(losses: list[Tensor | float], step: int) -> None:
    finite = np.isfinite([float(loss) for loss in losses])
    if not finite.all():
        raise Diverged(step - len(losses) + 1 + int(np.argmin(finite)))


def saved_activation_bytes(run: TrainingRun) -> int:
    """Bytes that autograd keeps for one objective on the run's first micro-batch.

    One extra evaluation of it, outside the timed steps; weights, gradients and the global random streams are left
    as they were. The methods' own streams move on: call it after the last step.
    """
    first = TrainingRun(run.model, run.task, run.examples, run.recipe, seed=run.seed, device=run.device)
    batch = run.examples.batch(next(first.steps())[0], run.device)
    counted = (run.counter.forwards, run.counter.backwards)
    meter = measure.SavedActivations(list(run.params.values()))
    with devices.random_state_kept(run.device):
        run.model.train()
        with meter.counting():
            loss = TrainingStep(run, batch).objective().loss
            if run.recipe.gradient_checkpointing:  # what is computed again is saved again
                loss.backward()  # type: ignore[no-untyped-call]
    for parameter in run.params.values():
        parameter.grad = None
    run.counter.forwards, run.counter.backwards = counted
    return meter.peak_bytes
