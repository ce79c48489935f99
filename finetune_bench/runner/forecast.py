"""What a study will take, before it runs: CPU seconds, memory and disk, from a short calibration on this machine.

Vanilla is timed on a few of the study's own batches of every task, and every method on a few of the first task's. A
step costs what its tokens cost, a method its ratio to vanilla, and a set-up what it costs on the first task. Memory is
the peak of training on the largest batch that is coming.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained
from finetune_bench.runner.inputs import encoded, initial_model, load_data
from finetune_bench.runner.leftovers import foreign_names, is_foreign
from finetune_bench.runner.plan import Plan, comparison_of
from finetune_bench.study.grid import Cell
from finetune_bench.training import evaluation, loop
from finetune_bench.training.examples import Encoded, training_steps
from finetune_bench.training.run import TrainingRun

WARMUP_STEPS = 1  # of a calibration, which are not timed
TIMED_STEPS = 7
SCORED_EXAMPLES = 64  # of every evaluation split, which are timed
FILE_BYTES = 14_000  # of a cell: specification, row, and what its arrays take beside their numbers


@dataclass(frozen=True)
class Forecast:
    """What the cells of a plan that are to run will take.

    Attributes:
        seconds: CPU seconds of each cell, by its id.
        start_seconds: CPU seconds of each worker before its first cell.
        memory_bytes: bytes of a worker at its peak: resident on a CPU, allocated on an accelerator; None where that
            can't be measured.
        disk_bytes: bytes of rows and arrays, and of models where they are kept.
        workers: how many workers there will be.
    """

    seconds: dict[str, float]
    start_seconds: float
    memory_bytes: int | None
    disk_bytes: int
    workers: int

    @property
    def cpu_seconds(self) -> float:
        """This is the CPU time of all workers together, in seconds."""
        return sum(self.seconds.values()) + self.workers * self.start_seconds

    @property
    def wall_seconds(self) -> float:
        """The seconds from start to end, if every worker has a core or a device of its own."""
        return self.start_seconds + max([sum(self.seconds.values()) / self.workers, *self.seconds.values()])


@dataclass(frozen=True)
class _Calibration:
    """What a method took on a task, on the way to a forecast.

    Attributes:
        step_seconds: CPU seconds of a step of average size.
        setup_seconds: CPU seconds of the method's setup.
        other_seconds: CPU seconds to load the model and to evaluate.
        peak_bytes: bytes at the peak of training; None where that can't be measured.
        largest_batch: tokens of the largest batch.
    """

    step_seconds: float
    setup_seconds: float
    other_seconds: float
    peak_bytes: int | None
    largest_batch: int


def forecast(plan: Plan) -> Forecast:
    """Calibrate on this machine and add up; trains a few steps, and writes nothing.

    Args:
        plan: a plan with cells to run, on devices of this machine.
    """
    start_seconds = time.process_time()  # so far this process has imported what every worker imports
    root = plan.study.data_root.resolve() if plan.study.data_root else None
    device = torch.device(plan.devices[0])
    vanilla = registry.describe(registry.make_stack(registry.BASELINE), full=True)
    calibrations: dict[tuple[str, str, str], _Calibration] = {}
    foreign = foreign_names()

    def calibration(cell: Cell, method: str, task: str) -> _Calibration:
        key = (cell.model, method, task)
        if key not in calibrations:
            data = next(other.data for other in plan.cells if other.task == task)
            calibrations[key] = _calibrate(dataclasses.replace(cell, method=method, task=task, data=data), root, device)
        return calibrations[key]

    seconds: dict[str, float] = {}
    peaks, disk_bytes = [], 0
    for cell in plan.todo:
        task, data = load_data(cell.task, cell.limit_train, root, cell.held_out)
        first_task = next(other.task for other in plan.todo if other.model == cell.model)
        vanilla_here = calibration(cell, vanilla, cell.task)
        vanilla_first = calibration(cell, vanilla, first_task)
        method_first = calibration(cell, cell.method, first_task)
        steps = round(cell.step_factor * cell.recipe.total_steps(len(data.train)))
        step_ratio = method_first.step_seconds / vanilla_first.step_seconds
        setup = method_first.setup_seconds * vanilla_here.step_seconds / vanilla_first.step_seconds
        # One step more is taken to count saved bytes.
        training = step_ratio * vanilla_here.step_seconds * (steps + 1)
        seconds[cell.id] = vanilla_here.other_seconds + setup + training
        if is_foreign(cell, foreign):
            seconds[cell.id] += start_seconds  # the next cell needs another process
        if vanilla_here.peak_bytes and vanilla_first.peak_bytes and method_first.peak_bytes:
            batch_ratio = max(1.0, vanilla_here.largest_batch / vanilla_first.largest_batch)
            method_bytes = (method_first.peak_bytes - vanilla_first.peak_bytes) * batch_ratio
            peaks.append(vanilla_here.peak_bytes + int(method_bytes))
        examples = sum(map(len, data.evaluation.values()))
        disk_bytes += FILE_BYTES + examples * (4 * task.outputs + 8) + 24 * steps
        disk_bytes += _model_bytes(cell) if plan.study.save_model else 0
    workers = min(len(plan.devices), len(plan.todo))
    return Forecast(seconds, start_seconds, max(peaks, default=None), disk_bytes, workers)


def _calibrate(cell: Cell, root: Path | None, device: torch.device) -> _Calibration:
    """Train a few steps of a cell, and score a few examples."""
    recipe = cell.recipe
    devices.prepare(
        device, threads=max(1, cell.threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    task, _ = load_data(cell.task, cell.limit_train, root, cell.held_out)
    train, splits = encoded(
        cell.model, cell.task, cell.limit_train, root, cell.recipe.max_length, held_out=cell.held_out
    )
    stack = cell.make_stack()
    initial_model(cell, stack, device)  # the first time reads files that the next ones find in memory
    devices.reset_peak(device)
    start = time.process_time()
    classifier = initial_model(cell, stack, device)
    pretrained.digest(classifier)
    load_seconds = time.process_time() - start
    steps = list(training_steps(len(train), cell.recipe, cell.seed, task.name))
    sizes = np.array([_tokens(train, step, cell.recipe.batch_layout) for step in steps])
    chosen = _choose_steps(sizes)
    run = TrainingRun(
        classifier,
        task,
        train,
        cell.recipe,
        stack,
        seed=cell.seed,
        device=device,
        steps=[steps[index] for index in chosen],
    )
    start = time.process_time()
    try:
        trace = loop.train(run)
        setup_seconds = time.process_time() - start - float(trace.cpu_seconds.sum())
        peak, _ = devices.peak(device)
        scoring_seconds = _time_scoring(run, stack, splits)
    finally:
        stack.teardown(run)
    seconds_per_token = float(np.median(trace.cpu_seconds[WARMUP_STEPS:] / sizes[chosen[WARMUP_STEPS:]]))
    step_seconds = seconds_per_token * float(sizes.mean())
    return _Calibration(step_seconds, setup_seconds, load_seconds + scoring_seconds, peak, int(sizes.max()))


def _choose_steps(sizes: np.ndarray) -> list[int]:
    """Return the steps to calibrate on: the largest to warm up, then steps evenly spread over the sizes, (steps,)."""
    ranks = np.linspace(0, len(sizes) - 1, TIMED_STEPS + 2).round().astype(int)[1:-1]
    spread = np.argsort(sizes, kind="stable")[ranks]
    return [int(sizes.argmax())] * WARMUP_STEPS + [int(index) for index in spread]


def _time_scoring(run: TrainingRun, stack: Stack, splits: Mapping[str, Encoded]) -> float:
    """Return the CPU seconds that it takes to predict all splits, from a sample of each."""
    start = time.process_time()
    scale = 1.0
    with stack.evaluating(run):
        for split in splits.values():
            sample = _sample(split)
            evaluation.predict(run, sample)
            scale = max(scale, float(split.lengths().sum() / sample.lengths().sum()))
    return (time.process_time() - start) * scale


def _tokens(examples: Encoded, step: list[list[int]], batch_layout: str) -> int:
    """Return the number of tokens that a step computes on, its padding among them where there is some."""
    lengths = [[len(examples.columns["input_ids"][index]) for index in part] for part in step]
    return sum(sum(part) if batch_layout != "padded" else len(part) * max(part) for part in lengths)


def _sample(split: Encoded) -> Encoded:
    """Return some examples of a split, evenly spread."""
    indices = np.unique(np.linspace(0, len(split) - 1, SCORED_EXAMPLES).round().astype(int))
    columns = {name: [column[index] for index in indices] for name, column in split.columns.items()}
    return dataclasses.replace(split, columns=columns, labels=split.labels[torch.from_numpy(indices)])


def _model_bytes(cell: Cell) -> int:
    skeleton = pretrained.skeleton(pretrained.config(cell.model, registry.task(cell.task).outputs))
    return 4 * sum(weight.numel() for weight in skeleton.parameters()) + 1_000_000


def within_budget(plan: Plan, seconds: float, cost: Mapping[str, float]) -> str:
    """Leave the cells out that a budget has no time for, so that what is done by then is a balanced design.

    Seeds come one after the other, each with all its models and tasks; a block of all methods on a model, task and seed
    is taken as a whole or not at all, and nothing after the first that is left out.

    Args:
        plan: the plan, whose `todo` is cut.
        seconds: CPU seconds that all workers have together.
        cost: CPU seconds of each cell, by its id.

    Returns:
        A sentence for the user about what was left out.

    Raises:
        UsageError: there is not even time for one block.
    """
    blocks: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in plan.todo:
        blocks.setdefault(comparison_of(cell), []).append(cell)
    order = {seed: index for index, seed in enumerate(plan.study.seeds)}
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
