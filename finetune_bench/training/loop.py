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

from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune_bench.errors import Diverged, FinetuneBenchError
from finetune_bench.method.base import Method
from finetune_bench.method.step import View
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.training import checkpoint, measure
from finetune_bench.training.run import TrainingRun, TrainingStep
from finetune_bench.training.vocabulary import Vocabulary, trimmed

_CHECK_EVERY = 50  # steps between looks at the losses on a device that must not be waited for


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
