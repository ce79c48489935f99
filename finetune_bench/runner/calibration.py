"""A calibration times a few small steps of a method with a model, to foretell what its runs will take.

A step costs something whatever it is made on, and something for each token, so small batches tell of large ones. On an
accelerator it runs in a child process, so that the runner keeps no memory of the device while the workers train.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError, MachineError
from finetune_bench.method.stack import Stack
from finetune_bench.model import hub, pretrained
from finetune_bench.runner.inputs import encoded, initial_model, load_data
from finetune_bench.study.attribution import label_of
from finetune_bench.study.grid import Cell
from finetune_bench.task import Batch
from finetune_bench.training import evaluation, loop
from finetune_bench.training.examples import Encoded, training_steps
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.run import TrainingRun

Step = list[list[int]]  # a step's micro-batches of positions of examples

FIRST_TOKENS = 64  # of the smallest step; each following one has twice as many, up to a whole step
LEAST_STEPS = 3  # of a calibration, however long they take: one to warm up, and two sizes
WHOLE_STEPS = 7  # of the run's own, which are timed where there is time for them
SCORED_TOKENS = 128  # of an evaluation split, at least
SCORING_SECONDS = 0.5  # about so long more of it is scored

# The child gets this process's import path, and never imports its main module. What a library prints is no answer.
START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from finetune_bench.runner.calibration import answer
answers.write(answer(sys.stdin.read()))
"""


@dataclass(frozen=True)
class Calibration:
    """A calibration has the times and sizes of a method with a model, from which a forecast is made.

    Attributes:
        step_seconds: seconds of a step, whatever it is made on: those of the optimiser, above all.
        token_seconds: seconds that each token of a step adds.
        setup_seconds: seconds of the method's set-up, without passes over the data.
        setup_token_seconds: seconds of the set-up for each token of the training data; 0 where it doesn't pass over it.
        load_seconds: seconds to load the model.
        scored_token_seconds: seconds for each token that is evaluated.
        peak_bytes: bytes at the peak of training; None where that can't be measured.
        token_bytes: bytes that autograd keeps for each token of a batch.
        measured_tokens: tokens of the largest step that was made.
    """

    step_seconds: float
    token_seconds: float
    setup_seconds: float
    setup_token_seconds: float
    load_seconds: float
    scored_token_seconds: float
    peak_bytes: int | None
    token_bytes: float
    measured_tokens: int

    def seconds_of(self, tokens: float) -> float:
        """Return the seconds of a step of so many tokens."""
        return self.step_seconds + self.token_seconds * tokens


@dataclass(frozen=True)
class Allowance:
    """An allowance is the time that calibrations may take.

    Attributes:
        seconds: seconds for all of them together.
        least: seconds that each takes at least: one for which they are not left is left out. None where all are needed;
            then each makes a few steps even if there is no time for them.
    """

    seconds: float
    least: list[float] | None = None


def calibrate(
    cells: Sequence[Cell],
    root: Path | None,
    device: torch.device,
    plugins: Sequence[str] = (),
    *,
    allowance: Allowance,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Calibration | None]:
    """Calibrate cells one after another; writes nothing.

    Args:
        cells: the cells.
        root: the folder that data sets are read from; None for the hub.
        device: the device to train on.
        plugins: modules and files that register methods or tasks; a child process has to load them.
        allowance: how long it may take.
        tell: is told what is done, before it is.

    Returns:
        A calibration for each cell; None for those that there was no time for.

    Raises:
        MachineError: the child process failed.
    """
    if device.type == "cpu":
        return _calibrate_all(cells, root, device, allowance, tell)
    job = {
        "cells": [cell.to_dict() for cell in cells],
        "root": str(root) if root else None,
        "device": str(device),
        "plugins": list(plugins),
        "allowance": dataclasses.asdict(allowance),
    }
    tell(f"Calibrating on {device}, in a process of its own: {', '.join(map(_name, cells))} ...")
    command = [sys.executable, "-c", START, json.dumps(sys.path)]
    environment = {**os.environ, **hub.environment()}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        (*_, reason) = ["no message", *done.stderr.strip().splitlines()]
        raise MachineError(
            f"The calibration on {device} failed: {reason}. Run without plan and --budget to see how cells end there."
        )
    return [Calibration(**values) if values else None for values in json.loads(done.stdout)]


def answer(job: str) -> str:
    """Calibrate the cells of a job, in the child process that `calibrate` starts; both are JSON."""
    values = json.loads(job)
    for plugin in values["plugins"]:
        registry.load_plugin(plugin)
    root = Path(values["root"]) if values["root"] else None
    cells = [Cell.from_dict(cell) for cell in values["cells"]]
    device = torch.device(values["device"])
    made = _calibrate_all(cells, root, device, Allowance(**values["allowance"]), lambda text: None)
    return json.dumps([dataclasses.asdict(calibration) if calibration else None for calibration in made])


def clock(device: torch.device) -> float:
    """Return the seconds of a clock: of CPU time on a CPU, else of wall time."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def _now(device: torch.device) -> float:
    """Return the seconds of the clock once the device has done its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return clock(device)


def _name(cell: Cell) -> str:
    return f"{label_of(cell.method)} with {pretrained.label(cell.model)}"


def _calibrate_all(
    cells: Sequence[Cell],
    root: Path | None,
    device: torch.device,
    allowance: Allowance,
    tell: Callable[[str], None],
) -> list[Calibration | None]:
    start = _now(device)
    made: list[Calibration | None] = []
    for index, cell in enumerate(cells):
        left = allowance.seconds - (_now(device) - start)
        if allowance.least is not None and allowance.least[index] > left:
            made.append(None)
            continue
        tell(f"Calibrating {_name(cell)} ...")
        try:
            made.append(_calibrate(cell, root, device, left / (len(cells) - index)))
        except FinetuneBenchError as error:
            if allowance.least is None:
                raise
            tell(f"Warning: {_name(cell)} can't be calibrated: {error}")
            made.append(None)
    return made


def _calibrate(cell: Cell, root: Path | None, device: torch.device, seconds: float) -> Calibration:
    """Make a few steps of a cell in about so many seconds, and score a few examples."""
    recipe = cell.recipe
    devices.prepare(
        device, threads=max(1, cell.threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    task, _ = load_data(cell.task, cell.limit_train, root, cell.held_out)
    train, splits = encoded(cell.model, cell.task, cell.limit_train, root, recipe.max_length, held_out=cell.held_out)
    stack = cell.make_stack()
    if device.type != "cpu":
        initial_model(cell, stack, device)  # the first time starts the device; on a CPU the plan has tried the model
    devices.reset_peak(device)
    start = _now(device)
    classifier = initial_model(cell, stack, device)
    pretrained.digest(classifier)
    load_seconds = _now(device) - start
    steps = MeasuredSteps(_chosen_steps(cell, train, task.name), train, recipe.batch_layout, seconds, device)
    passed_over = SomeBatches(train, steps[LEAST_STEPS - 1 : LEAST_STEPS + 1], device)
    run = TrainingRun(
        classifier, task, train, recipe, stack, seed=cell.seed, device=device, steps=steps, batches=passed_over
    )
    start = _now(device)
    try:
        trace = loop.train(run)
        step_times = trace.cpu_seconds if device.type == "cpu" else trace.seconds
        other_seconds = _now(device) - start - float(step_times.sum())
        peak, _ = devices.peak(device)
        step_seconds, token_seconds = fitted(steps.sizes[1 : len(step_times)], step_times[1:])
        scored_token_seconds = _time_scoring(run, stack, next(iter(splits.values())), token_seconds)
        saved = saved_activation_bytes(run)
    finally:
        stack.teardown(run)
    return Calibration(
        step_seconds,
        token_seconds,
        setup_seconds=max(0.0, other_seconds - passed_over.seconds),
        setup_token_seconds=passed_over.seconds / max(1, passed_over.tokens),
        load_seconds=load_seconds,
        scored_token_seconds=scored_token_seconds,
        peak_bytes=peak,
        token_bytes=saved / steps.sizes[0],
        measured_tokens=max(steps.sizes[: len(step_times)]),
    )


class MeasuredSteps(list[Step]):
    """These are the steps of a calibration; to iterate over them ends where there is no time for the next one.

    Args:
        steps: the steps, the first of which warms up.
        examples: those that they are made on.
        batch_layout: how their batches are laid out.
        seconds: what they may take; `LEAST_STEPS` are made in any case.
        device: whose clock counts.
    """

    def __init__(
        self, steps: Sequence[Step], examples: Encoded, batch_layout: str, seconds: float, device: torch.device
    ) -> None:
        super().__init__(steps)
        self.sizes = [tokens_of(examples, step, batch_layout) for step in steps]
        self._seconds, self._device = seconds, device

    def __iter__(self) -> Iterator[Step]:
        """Yield steps as long as the next one, by its size and the time of the last, ends in time."""
        begun = before = _now(self._device)
        taken = 0.0
        for index, step in enumerate(super().__iter__()):
            expected = taken * self.sizes[index] / self.sizes[max(0, index - 1)]
            if index >= LEAST_STEPS and before + expected > begun + self._seconds:
                return
            yield step
            now = _now(self._device)
            taken, before = now - before, now


class SomeBatches:
    """This stands for a pass over the training data in a method's set-up, of which it makes a few small batches only.

    Args:
        examples: the training data.
        steps: those whose micro-batches are passed over.
        device: the device that they are put on.
    """

    def __init__(self, examples: Encoded, steps: Sequence[Step], device: torch.device) -> None:
        self.tokens = 0
        self.seconds = 0.0
        self._examples, self._steps, self._device = examples, steps, device

    def __call__(self, order: str) -> Iterator[Batch]:
        """Yield the batches, and count their tokens and the seconds that the method takes for them."""
        for step in self._steps:
            for part in step:
                self.tokens += tokens_of(self._examples, [part], "padded")
                start = _now(self._device)
                yield self._examples.batch(part, self._device)
                self.seconds += _now(self._device) - start


def _chosen_steps(cell: Cell, train: Encoded, task: str) -> list[Step]:
    """Return steps to measure: parts of the largest one, each twice as large as the one before, then whole ones."""
    steps = list(training_steps(len(train), cell.recipe, cell.seed, task))
    layout = cell.recipe.batch_layout
    sizes = np.array([tokens_of(train, step, layout) for step in steps])
    largest = steps[int(sizes.argmax())]
    parts, limit = [], FIRST_TOKENS
    while limit < sizes.max():
        parts.append(_cut(largest, limit, train, layout))
        limit *= 2
    ranks = np.linspace(0, len(sizes) - 1, WHOLE_STEPS + 2).round().astype(int)[1:-1]
    whole = [steps[index] for index in np.argsort(sizes, kind="stable")[ranks]]
    growing = [*parts, largest]
    return [growing[0], *growing, *whole]


def _cut(step: Step, limit: int, examples: Encoded, batch_layout: str) -> Step:
    """Return the beginning of a step: so many of its examples that they have `limit` tokens, but one at least."""
    cut: Step = []
    for part in step:
        cut.append([])
        for index in part:
            longer = [*cut[:-1], [*cut[-1], index]]
            if cut[0] and tokens_of(examples, longer, batch_layout) > limit:
                return [taken for taken in cut if taken]
            cut = longer
    return cut


def fitted(sizes: Sequence[int], seconds: np.ndarray) -> tuple[float, float]:
    """Return the seconds of a step and of each of its tokens, neither below 0, that come nearest to measured steps.

    Args:
        sizes: tokens of each step.
        seconds: what each took, (steps,).
    """
    tokens, taken = np.array(sizes, dtype=float), np.maximum(seconds, 1e-9)
    if tokens.min() < tokens.max():
        slope, constant = np.polyfit(tokens, taken, 1, w=1 / taken)  # relative errors count, not absolute ones
        if slope > 0 and constant >= 0:
            return float(constant), float(slope)
        if slope <= 0:
            return float(np.median(taken)), 0.0
    return 0.0, float(np.median(taken / tokens))


def _time_scoring(run: TrainingRun, stack: Stack, split: Encoded, token_seconds: float) -> float:
    """Return the seconds that it takes to predict one token, from some examples of a split, evenly spread."""
    lengths = split.lengths()
    tokens = max(SCORED_TOKENS, SCORING_SECONDS / token_seconds if token_seconds else 0)
    count = int(np.clip(tokens / lengths.mean(), 1, len(split)))
    indices = np.unique(np.linspace(0, len(split) - 1, count).round().astype(int))
    columns = {name: [column[index] for index in indices] for name, column in split.columns.items()}
    sample = dataclasses.replace(split, columns=columns, labels=split.labels[torch.from_numpy(indices)])
    start = _now(run.device)
    with stack.evaluating(run):
        evaluation.predict(run, sample)
    return (_now(run.device) - start) / (len(indices) * int(lengths[indices].max()))


def tokens_of(examples: Encoded, step: Step, batch_layout: str) -> int:
    """Return the number of tokens that a step computes on, its padding among them where there is some."""
    lengths = [[len(examples.columns["input_ids"][index]) for index in part] for part in step]
    return sum(sum(part) if batch_layout != "padded" else len(part) * max(part) for part in lengths)
