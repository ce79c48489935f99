"""This is the training loop, and its docstring the map of the hooks.

    load (init stream) → run.params, run.pretrained → setup* (by phase) → optimizer*, schedule* → seed the global stream
    per step:
        zero_grad
        per micro-batch:  objective( … perturbing( forward ) · losses* … ) · backward of (micro-batch's share) × loss
        unscale (fp16) · clip · gradients* · optimizer.step · scheduler.step · after_step*
        every so many steps: a checkpoint, with the methods' state*
    → evaluating*( predict ) → teardown*          (* = a hook of the Method contract)

Only `TrainingStep.backward` calls `backward`: at the end of the objective, or earlier where a method asks for it. No
tensor's value is read on the host inside a step, so a device is never waited for. Vanilla here equals a plain PyTorch
loop to the last bit; a test holds the two against each other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from finetune_bench import device as devices
from finetune_bench.errors import Diverged, FinetuneBenchError
from finetune_bench.recipe import Recipe, rate_factor
from finetune_bench.seeds import derive
from finetune_bench.training import measure
from finetune_bench.training.checkpoint import Checkpoints, Loop, restore, save
from finetune_bench.training.optimizer import Lion, MuonAndAdamW, muon_matrices
from finetune_bench.training.record import GRAD_NORM, Record, TrainingResult
from finetune_bench.training.run import TrainingRun, TrainingStep
from finetune_bench.training.vocabulary import Vocabulary, trimmed

# Steps between looks at the losses on a device that must not be waited for.
_CHECK_EVERY = 50


def make_optimizer(run: TrainingRun) -> Optimizer:
    """Make the recipe's optimiser of all weights that train; biases and norms don't decay.

    AdamW is fused, with bias correction.

    Raises:
        FinetuneBenchError: it is Muon, and no matrix of the layers trains.
    """
    recipe = run.recipe
    trainable = {name: p for name, p in run.params.items() if p.requires_grad}
    groups: list[dict[str, Any]] = [
        {
            "params": [p for name, p in trainable.items() if name not in run.undecayed],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for name, p in trainable.items() if name in run.undecayed], "weight_decay": 0.0},
    ]
    betas = (recipe.beta1, recipe.beta2)
    if recipe.optimizer == "lion":
        return Lion(groups, lr=recipe.lr, betas=betas)
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.lr, betas=betas, eps=recipe.adam_eps, fused=True)
    matrices = muon_weights(run)
    if not matrices:
        raise FinetuneBenchError(
            "--optimizer muon: no matrix of the layers trains, so that it would be AdamW alone; use --optimizer adamw."
        )
    chosen = set(matrices)
    groups[0]["params"] = [weight for weight in groups[0]["params"] if weight not in chosen]
    return MuonAndAdamW(
        matrices, groups, lr=recipe.lr, weight_decay=recipe.weight_decay, betas=betas, eps=recipe.adam_eps
    )


def muon_weights(run: TrainingRun) -> list[Parameter]:
    """Return the weights of a run that Muon is for, in its present state: after `setup`, those that train."""
    return muon_matrices(run.model, [run.params[name] for name in run.undecayed if name in run.params])


def make_scheduler(
    optimizer: Optimizer, recipe: Recipe, total_steps: int, schedule: Callable[[int], float] | None = None
) -> LambdaLR:
    """Make the schedule: linear warm-up from 0 to the peak, then linear decay to 0 at the end.

    Args:
        optimizer: whose learning rates follow it.
        recipe: says how long the warm-up is.
        total_steps: how many steps there will be.
        schedule: the factor at each step from 0, in the place of the recipe's.

    Raises:
        FinetuneBenchError: a factor of that schedule is below 0 or not finite; names the step.
    """
    if schedule is not None:
        factors = [float(schedule(step)) for step in range(total_steps)]
        for step, value in enumerate(factors):
            if not 0 <= value < math.inf:
                raise FinetuneBenchError(
                    f"A method's schedule must give finite factors from 0; at step {step} of {total_steps} it gave "
                    f"{value:g}."
                )
        # The scheduler asks for one step more than there are.
        return LambdaLR(optimizer, lambda step: factors[min(step, total_steps - 1)])
    warmup = recipe.warmup_steps(total_steps)
    return LambdaLR(optimizer, lambda step: rate_factor(step, total_steps, warmup))


def train(
    run: TrainingRun, checkpoints: Checkpoints | None = None, tell: Callable[[int, float], None] | None = None
) -> TrainingResult:
    """Train `run.model` with the run's method, from `setup` to the last step; the caller owes `teardown`.

    Args:
        run: a run that nothing was trained with yet.
        checkpoints: says where the state is kept every so many steps. One that is there already is gone on from: the
            end is the same to the last bit.
        tell: is told the last step and its loss whenever losses are read, which on a device that must not be waited for
            is rarely.

    Raises:
        Diverged: a loss was not finite; names the first such step, counted from 1.
    """
    clock = devices.StepClock(run.device)
    with clock.step():
        run.method.setup(run)
    setup_seconds = float(clock.seconds()[0][0])
    setup_forwards, setup_backwards = run.counter.forwards, run.counter.backwards
    with trimmed(run) if run.recipe.batch_layout == "unpadded_trimmed" else nullcontext() as vocabulary:
        record, resumed_at = _train_steps(run, checkpoints, vocabulary, Record(tell=tell))
    # The last sketch is of the whole model, with the table of embeddings that is whole again.
    record.add_sketch(run.total_steps, measure.sketch(run.params.values()))
    return TrainingResult(
        steps=record.numbers(),
        sketch_steps=record.sketch_steps,
        sketches=record.sketches,
        examples=np.array(record.examples),
        seconds=record.seconds,
        cpu_seconds=record.cpu_seconds,
        setup_seconds=setup_seconds,
        setup_forwards=setup_forwards,
        setup_backwards=setup_backwards,
        forwards_per_step=(run.counter.forwards - setup_forwards) / record.micro_batches,
        backwards_per_step=(run.counter.backwards - setup_backwards) / record.micro_batches,
        resumed_at=resumed_at,
    )


def _train_steps(
    run: TrainingRun, checkpoints: Checkpoints | None, vocabulary: Vocabulary | None, record: Record
) -> tuple[Record, int]:
    """Make the optimiser steps of a run that is set up; return its record, and the step that it went on from."""
    optimizer = run.method.optimizer(make_optimizer(run), run)
    scheduler = make_scheduler(optimizer, run.recipe, run.total_steps, run.method.schedule(run))
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)

    torch.manual_seed(derive(run.seed, "dropout"))
    run.model.train()
    clock = devices.StepClock(run.device)
    loop = Loop(run, optimizer, scheduler, scaler, vocabulary, record)
    resumed_at = restore(checkpoints, loop) if checkpoints else 0
    # The last sketch is the caller's.
    sketch_steps = measure.sketch_steps(run.total_steps)[:-1]
    for step, parts in enumerate(run.steps(), start=1):
        if step <= resumed_at:
            continue
        with clock.step():
            logs = _train_step(loop, parts)
        record.add_step(logs, len(parts), sum(map(len, parts)))
        _check_finite(record, step, run)
        if step in sketch_steps:
            record.add_sketch(step, measure.sketch(run.params.values()))
        if checkpoints and checkpoints.due(step, run.total_steps):
            record.add_times(*clock.seconds())
            clock = devices.StepClock(run.device)
            save(checkpoints, loop, step)
    record.add_times(*clock.seconds())
    return record, resumed_at


def _train_step(loop: Loop, parts: list[list[int]]) -> dict[str, Tensor | float]:
    """Make one optimiser step; return its logs, means over the examples that had them, and the gradient's norm."""
    run, optimizer = loop.run, loop.optimizer
    optimizer.zero_grad()
    examples = sum(map(len, parts))
    logs: dict[str, Tensor | float] = {}
    logged: Counter[str] = Counter()
    for part in parts:
        share = len(part) / examples
        for name, value in _train_micro_batch(run, part, share, loop.scaler).items():
            logs[name] = logs.get(name, 0.0) + value * share
            logged[name] += len(part)
    logs |= {name: logs[name] * examples / count for name, count in logged.items() if count < examples}
    loop.scaler.unscale_(optimizer)
    logs[GRAD_NORM] = nn.utils.clip_grad_norm_(run.params.values(), run.recipe.clip).detach()
    run.method.gradients(run)
    if loop.vocabulary:
        loop.vocabulary.before_step(optimizer)
    loop.scaler.step(optimizer)
    loop.scaler.update()
    loop.scheduler.step()
    run.method.after_step(run)
    return logs


def _train_micro_batch(
    run: TrainingRun, part: list[int], share: float, scaler: torch.amp.GradScaler
) -> dict[str, Tensor | float]:
    """Add the gradients of one micro-batch; return its logs, detached."""
    step = TrainingStep(run, run.examples.batch(part, run.device), share, scaler)
    objective = step.objective()
    step.backward(objective.loss)
    if taken := sorted({"loss", "task_loss", GRAD_NORM, "sketch", "sketch_steps"} & set(objective.logs)):
        raise FinetuneBenchError(f"A method logs '{taken[0]}', which is the name of the run's own record; rename it.")
    task_loss = torch.stack(step.task_losses).mean()
    logs = {name: value.detach() if isinstance(value, Tensor) else value for name, value in objective.logs.items()}
    return {"loss": objective.loss.detach(), "task_loss": task_loss, **logs}


def _check_finite(record: Record, step: int, run: TrainingRun) -> None:
    """Raise `Diverged` where a loss that was not looked at before is not finite.

    To read a loss is to wait for the device, so there it is done rarely; the first bad step is found all the same.
    """
    unchecked = 1 if run.device.type == "cpu" else step % _CHECK_EVERY or _CHECK_EVERY
    if run.device.type != "cpu" and unchecked < _CHECK_EVERY and step < run.total_steps:
        return
    record.read()
    finite = np.isfinite(record.logs["loss"][-unchecked:])
    if not finite.all():
        raise Diverged(step - len(finite) + 1 + int(np.argmin(finite)))
