"""What a study will take, before it runs: seconds, memory and disk, from a short calibration on this machine.

Vanilla is timed on a few of the study's own batches of every task, and every method on a few of the first task's. A
step costs what its tokens cost, a method its ratio to vanilla, and a set-up what it costs on the first task. Memory is
the peak of training on the largest batch that is coming. Seconds are CPU time on a CPU, and the device's otherwise.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.model import pretrained
from finetune_bench.recipe import Recipe
from finetune_bench.runner.calibration import Calibration
from finetune_bench.runner.calibration_cache import calibrations_of
from finetune_bench.runner.inputs import load_data
from finetune_bench.runner.leftovers import foreign_names, is_foreign
from finetune_bench.runner.plan import Plan, comparison_of
from finetune_bench.study.grid import Cell

FILE_BYTES = 14_000  # of a cell: specification, row, and what its arrays take beside their numbers


@dataclass(frozen=True)
class Forecast:
    """What the cells of a plan that are to run will take.

    Attributes:
        seconds: seconds of each cell, by its id.
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


def forecast(plan: Plan) -> Forecast:
    """Calibrate on this machine and add up; trains a few steps, and writes nothing but the cache of calibrations.

    Args:
        plan: a plan with cells to run, on devices of this machine.
    """
    start_seconds = time.process_time()  # so far this process has imported what every worker imports
    seconds: dict[str, float] = {}
    peaks, disk_bytes = [], 0
    for cells in _settings(plan.todo):
        of_cells, peaks_of_cells, bytes_of_cells = _of_setting(plan, cells, start_seconds)
        seconds |= of_cells
        peaks += peaks_of_cells
        disk_bytes += bytes_of_cells
    workers = min(len(plan.devices), len(plan.todo))
    return Forecast(seconds, start_seconds, max(peaks, default=None), disk_bytes, workers)


def _settings(todo: Sequence[Cell]) -> list[list[Cell]]:
    """Return the cells by what their steps depend on beside model, method and task: several blocks have several."""
    settings: dict[tuple[Recipe, int | None, float], list[Cell]] = {}
    for cell in todo:
        recipe = dataclasses.replace(cell.recipe, lr=Recipe.lr)
        settings.setdefault((recipe, cell.limit_train, cell.held_out), []).append(cell)
    return list(settings.values())


def _of_setting(plan: Plan, todo: Sequence[Cell], start_seconds: float) -> tuple[dict[str, float], list[int], int]:
    """Return the seconds of cells of one setting, by id; their peaks in bytes; and the bytes that they leave."""
    root = plan.study.data_root.resolve() if plan.study.data_root else None
    foreign = foreign_names()
    calibrations = _calibrations(plan, todo, root)
    seconds: dict[str, float] = {}
    peaks, disk_bytes = [], 0
    for cell in todo:
        task, data = load_data(cell.task, cell.limit_train, root, cell.held_out)
        first_task = next(other.task for other in todo if other.model == cell.model)
        vanilla_here = calibrations[cell.model, _vanilla(), cell.task]
        vanilla_first = calibrations[cell.model, _vanilla(), first_task]
        method_first = calibrations[cell.model, cell.method, first_task]
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
    return seconds, peaks, disk_bytes


def _calibrations(plan: Plan, todo: Sequence[Cell], root: Path | None) -> dict[tuple[str, str, str], Calibration]:
    """Calibrate what cells of one setting are foretold from: by model, method and task."""
    data = {cell.task: cell.data for cell in reversed(todo)}
    first_tasks = {cell.model: cell.task for cell in reversed(todo)}
    wanted: dict[tuple[str, str, str], Cell] = {}
    for cell in todo:
        first = first_tasks[cell.model]
        for method, task in ((_vanilla(), cell.task), (_vanilla(), first), (cell.method, first)):
            key = (cell.model, method, task)
            wanted.setdefault(key, dataclasses.replace(cell, method=method, task=task, data=data[task]))
    device = torch.device(plan.devices[0])
    made = calibrations_of(list(wanted.values()), root, device, plan.study.plugins)
    return dict(zip(wanted, made, strict=True))


def _vanilla() -> str:
    return registry.describe(registry.make_stack(registry.BASELINE), full=True)


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
