"""What a study will take, before it runs: CPU seconds, memory and disk, from a short calibration on this machine.

Vanilla is timed on a few of the study's own batches of every task, and every method on a few of the first task's. A
step costs what its tokens cost, a method its ratio to vanilla, and a set-up what it costs on the first task. Memory is
the peak of training on the largest batch that is coming.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.model import pretrained
from finetune_bench.runner.inputs import encoded, initial_model, load_data
from finetune_bench.runner.leftovers import foreign_names, is_foreign
from finetune_bench.runner.plan import Plan, comparison_of
from finetune_bench.study.grid import Cell
from finetune_bench.training import evaluation, loop
from finetune_bench.training.examples import Encoded
from finetune_bench.training.run import TrainingRun

if TYPE_CHECKING:
    from finetune_bench.runner.plan import Plan

_WARM, _TIMED = 1, 7  # steps of a calibration: not counted, and counted
_SCORED = 64  # examples of every evaluation split that are timed
_FILES_BYTES = 14_000  # of a cell: specification, row, and what its arrays take beside their numbers


@dataclass(frozen=True)
class Forecast:
    """What the cells of a plan that are to run will take.

    Attributes:
        seconds: by cell id, CPU seconds.
        start_seconds: of each worker before its first cell, CPU seconds.
        memory_bytes: of a worker at its peak: resident on a CPU, allocated on an accelerator; None where it can't be
            measured.
        disk_bytes: of rows and arrays, and of models where they are kept.
        workers: how many there will be.
    """

    seconds: dict[str, float]
    start_seconds: float
    memory_bytes: int | None
    disk_bytes: int
    workers: int

    @property
    def cpu_seconds(self) -> float:
        """Of all workers together."""
        return sum(self.seconds.values()) + self.workers * self.start_seconds

    @property
    def wall_seconds(self) -> float:
        """From start to end, if every worker has a core or a device of its own."""
        return self.start_seconds + max([sum(self.seconds.values()) / self.workers, *self.seconds.values()])


class _Sample(TrainingRun):
    """A run that makes chosen steps only."""

    chosen: Sequence[list[list[int]]] = ()

    def steps(self) -> Iterator[list[list[int]]]:
        return iter(self.chosen)


@dataclass(frozen=True)
class _Measured:
    step_seconds: float  # of a step of average size
    setup_seconds: float
    around_seconds: float  # loading the model, evaluating
    peak_bytes: int | None
    largest: int  # tokens of the largest batch


def forecast(plan: Plan) -> Forecast:
    """Calibrate on this machine and add up. Trains a few steps; writes nothing.

    Args:
        plan: with cells to run, on devices of this machine.
    """
    start = time.process_time()  # so far this process has imported what every worker imports
    root = plan.study.data_root.resolve() if plan.study.data_root else None
    device = torch.device(plan.devices[0])
    vanilla = registry.describe(registry.make_stack(registry.BASELINE), full=True)
    known: dict[tuple[str, str, str], _Measured] = {}
    foreign = foreign_names()

    def measured(cell: Cell, method: str, task: str) -> _Measured:
        key = (cell.model, method, task)
        if key not in known:
            data = next(other.data for other in plan.cells if other.task == task)
            known[key] = _measure(dataclasses.replace(cell, method=method, task=task, data=data), root, device)
        return known[key]

    seconds: dict[str, float] = {}
    peaks, disk = [], 0
    for cell in plan.todo:
        task, data = load_data(cell.task, cell.limit_train, root, cell.held_out)
        home = next(other.task for other in plan.todo if other.model == cell.model)
        own, base, there = (
            measured(cell, *key) for key in ((vanilla, cell.task), (vanilla, home), (cell.method, home))
        )
        steps = round(cell.stretch * cell.recipe.total_steps(len(data.train)))
        ratio = there.step_seconds / base.step_seconds
        setup = there.setup_seconds * own.step_seconds / base.step_seconds
        seconds[cell.id] = (
            own.around_seconds + setup + ratio * own.step_seconds * (steps + 1)
        )  # 1: to count saved bytes
        if is_foreign(cell, foreign):
            seconds[cell.id] += start  # the next cell needs another process
        if own.peak_bytes and base.peak_bytes and there.peak_bytes:
            more = (there.peak_bytes - base.peak_bytes) * max(1.0, own.largest / base.largest)
            peaks.append(own.peak_bytes + int(more))
        examples = sum(map(len, data.evaluation.values()))
        disk += _FILES_BYTES + examples * (4 * task.outputs + 8) + 24 * steps
        disk += _model_bytes(cell) if plan.study.save_model else 0
    return Forecast(seconds, start, max(peaks, default=None), disk, min(len(plan.devices), len(plan.todo)))


def _measure(cell: Cell, root: Path | None, device: torch.device) -> _Measured:
    """Train a few steps of a cell, and score a few examples."""
    devices.prepare(device, threads=max(1, cell.threads), deterministic=cell.recipe.deterministic)
    task, _ = load_data(cell.task, cell.limit_train, root, cell.held_out)
    train, splits = encoded(
        cell.model, cell.task, cell.limit_train, root, cell.recipe.max_length, held_out=cell.held_out
    )
    stack = cell.stack
    initial_model(cell, stack, device)  # the first time reads files that the next ones find in memory
    devices.reset_peak(device)
    begin = time.process_time()
    classifier = initial_model(cell, stack, device)
    pretrained.digest(classifier)
    around = time.process_time() - begin
    run = _Sample(
        classifier, task, train, cell.recipe, seed=cell.seed, device=device, keep_pretrained=stack.reads_pretrained
    )
    coming = list(TrainingRun.steps(run))
    sizes = np.array([_tokens(train, step, cell.recipe.arrangement) for step in coming])
    spread = np.argsort(sizes, kind="stable")[np.linspace(0, len(sizes) - 1, _TIMED + 2).round().astype(int)[1:-1]]
    chosen = [int(sizes.argmax())] * _WARM + [int(index) for index in spread]
    run.chosen = [coming[index] for index in chosen]
    run.total_steps = len(chosen)
    begin = time.process_time()
    try:
        trace = loop.train(run, stack)
        setup = time.process_time() - begin - float(trace.cpu_seconds.sum())
        peak, _ = devices.peak(device)
        begin = time.process_time()
        scale = 1.0
        with stack.evaluating(run):
            for split in splits.values():
                few = _few(split)
                evaluation.predict(run, few)
                scale = max(scale, float(split.lengths().sum() / few.lengths().sum()))
        around += (time.process_time() - begin) * scale
    finally:
        stack.teardown(run)
    per_token = float(np.median(trace.cpu_seconds[_WARM:] / sizes[chosen[_WARM:]]))
    return _Measured(per_token * float(sizes.mean()), setup, around, peak, int(sizes.max()))


def _tokens(examples: Encoded, step: list[list[int]], arrangement: str) -> int:
    """What a step computes on: its tokens, and its padding where there is some."""
    lengths = [[len(examples.columns["input_ids"][index]) for index in part] for part in step]
    return sum(sum(part) if arrangement != "padded" else len(part) * max(part) for part in lengths)


def _few(split: Encoded) -> Encoded:
    """Some examples of a split, evenly spread."""
    places = np.unique(np.linspace(0, len(split) - 1, _SCORED).round().astype(int))
    columns = {name: [column[place] for place in places] for name, column in split.columns.items()}
    return dataclasses.replace(split, columns=columns, labels=split.labels[torch.from_numpy(places)])


def _model_bytes(cell: Cell) -> int:
    skeleton = pretrained.skeleton(pretrained.config(cell.model, registry.task(cell.task).outputs))
    return 4 * sum(weight.numel() for weight in skeleton.parameters()) + 1_000_000


def within_budget(plan: Plan, seconds: float, cost: Mapping[str, float]) -> str:
    """Leave the cells out that a budget has no time for, so that what is done by then is a balanced design.

    Seeds come one after the other, each with all its models and tasks; a block of all methods on a model, task and seed
    is taken as a whole or not at all, and nothing after the first that is left out.

    Args:
        plan: its `todo` is cut.
        seconds: of all workers together.
        cost: by cell id.

    Returns:
        What was left out, for the user.

    Raises:
        UsageError: there is not even time for one block.
    """
    blocks: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in plan.todo:
        blocks.setdefault(comparison_of(cell), []).append(cell)
    order = {seed: place for place, seed in enumerate(plan.study.seeds)}
    taken: list[Cell] = []
    spent = 0.0
    kept = 0
    for block in sorted(blocks, key=lambda block: order[block[2]]):
        spent += sum(cost[cell.id] for cell in blocks[block])
        if spent > seconds:
            break
        taken += blocks[block]
        kept += 1
    if not kept:
        raise UsageError(
            f"--budget: one comparison of all methods on one task and seed takes about {spent:.0f} CPU seconds, which "
            f"is more than all workers have ({seconds:.0f}); give more time, fewer methods or less data."
        )
    left, plan.todo = len(plan.todo) - len(taken), taken
    return f"The budget has time for {kept} of {len(blocks)} comparisons of all methods; {left} cells wait."
