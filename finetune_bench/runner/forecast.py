"""What a study will take, before it runs: seconds, memory and disk, from a short calibration on this machine.

Vanilla is timed on a few small steps with every model; with the smallest model every method is, as long as there is
time for it. A step costs what its tokens cost, a method its ratio to vanilla with the model that it was timed with, or
else its passes. Memory is vanilla's peak of training, on the largest batch that is coming, and what methods declare
that they keep. Seconds are CPU time on a CPU, and the device's otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch

from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.method.cost import SIZES, Memory
from finetune_bench.method.observing import Observed, is_observer
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained
from finetune_bench.recipe import Recipe
from finetune_bench.runner.calibration import LEAST_STEPS, Allowance, Calibration, clock, tokens_of
from finetune_bench.runner.calibration_cache import calibrations_of
from finetune_bench.runner.inputs import encoded, load_data
from finetune_bench.runner.leftovers import foreign_names, is_foreign
from finetune_bench.runner.plan import Plan, comparison_of
from finetune_bench.study import grid
from finetune_bench.study.grid import Cell
from finetune_bench.training.examples import training_steps
from finetune_bench.training.memory import expected_bytes

FILE_BYTES = 14_000  # of a cell: specification, row, and what its arrays take beside their numbers
CALIBRATION_SECONDS = 20.0  # for all calibrations, and at most so much of what the study itself takes:
CALIBRATION_SHARE = 0.1
SMALL_STEP = 128  # tokens of the steps that a calibration makes at least

# What a step of a token takes depends on these: model, precision, batch layout, gradient checkpointing, optimiser.
Setting = tuple[str, str, str, bool, str]
# Model, task, step factor, recipe without its learning rate, number of training examples, held-out share.
LoadKey = tuple[str, str, float, Recipe, int | None, float]


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
        timed_with: the checkpoint that each method was timed with, by their names; methods that are not in it are
            foretold from their passes.
    """

    seconds: dict[str, float]
    start_seconds: float
    memory_bytes: int | None
    disk_bytes: int
    workers: int
    timed_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def cpu_seconds(self) -> float:
        """This is the CPU time of all workers together, in seconds."""
        return sum(self.seconds.values()) + self.workers * self.start_seconds

    @property
    def wall_seconds(self) -> float:
        """The seconds from start to end, if every worker has a core or a device of its own."""
        return self.start_seconds + max([sum(self.seconds.values()) / self.workers, *self.seconds.values()])


@dataclass(frozen=True)
class Load:
    """A load has the sizes of a cell's data with its model.

    Attributes:
        steps: optimiser steps.
        mean_tokens, largest_tokens: tokens of a step.
        train_tokens, scored_tokens: tokens of the training data, and of all evaluation splits.
        disk_bytes: bytes of a row and its arrays.
    """

    steps: int
    mean_tokens: float
    largest_tokens: int
    train_tokens: int
    scored_tokens: int
    disk_bytes: int


def forecast(plan: Plan, tell: Callable[[str], None] = lambda text: None) -> Forecast:
    """Calibrate on this machine and add up; trains a few steps, and writes nothing but the cache of calibrations.

    Args:
        plan: a plan with cells to run, on devices of this machine.
        tell: is told what is calibrated, before it is.
    """
    _parameters.cache_clear()  # in a long-lived process, files may have changed since the last plan
    root = plan.study.data_root.resolve() if plan.study.data_root else None
    device = torch.device(plan.devices[0])
    loads = _loads(plan, root)
    start = clock(device)
    firsts: dict[Setting, Cell] = {}
    for cell in plan.todo:
        firsts.setdefault(_setting(cell), cell)
    # Half of the time at most, so that some is left for the methods.
    made = calibrations_of(
        [_calibrated(cell, _vanilla()) for cell in firsts.values()],
        root,
        device,
        plan.study.plugins,
        allowance=Allowance(CALIBRATION_SECONDS / 2),
        tell=tell,
    )
    vanilla = {setting: calibration for setting, calibration in zip(firsts, made, strict=True) if calibration}
    from_passes = _foretell(plan, loads, vanilla, {})
    seconds = min(CALIBRATION_SECONDS, CALIBRATION_SHARE * from_passes.wall_seconds) - (clock(device) - start)
    smallest = _smallest_settings(plan)
    wanted = {method: setting for method, setting in smallest.items() if method != _vanilla()}
    least = [_least_seconds(method, vanilla[setting]) for method, setting in wanted.items()]
    made = calibrations_of(
        [_calibrated(firsts[setting], method) for method, setting in wanted.items()],
        root,
        device,
        plan.study.plugins,
        allowance=Allowance(seconds, least),
        tell=tell,
    )
    timed = {
        method: (wanted[method], calibration) for method, calibration in zip(wanted, made, strict=True) if calibration
    }
    return _foretell(plan, loads, vanilla, timed)


def _foretell(
    plan: Plan,
    loads: Mapping[LoadKey, Load],
    vanilla: Mapping[Setting, Calibration],
    timed: Mapping[str, tuple[Setting, Calibration]],
) -> Forecast:
    """Add up what the cells take.

    Args:
        plan: the plan.
        loads: what `_loads` returned.
        vanilla: vanilla's calibration in every setting.
        timed: the calibrations of methods, each with the setting that it was made in.
    """
    foreign = foreign_names()
    seconds: dict[str, float] = {}
    peaks, disk_bytes = [], 0
    companions = {companion.id for cell in plan.trainings for companion in cell.companions}
    for cell in plan.todo:
        load, base = loads[_load_key(cell)], vanilla[_setting(cell)]
        step, setup = base.seconds_of(load.mean_tokens), base.setup_seconds
        if cell.method == _vanilla():
            pass
        elif cell.method in timed:
            setting, calibration = timed[cell.method]
            step *= calibration.seconds_of(load.mean_tokens) / vanilla[setting].seconds_of(load.mean_tokens)
            slower = base.seconds_of(load.mean_tokens) / vanilla[setting].seconds_of(load.mean_tokens)
            setup = slower * (calibration.setup_seconds + calibration.setup_token_seconds * load.train_tokens)
        else:
            step = base.step_seconds + _passes(cell.method) * base.token_seconds * load.mean_tokens
        # One step more is taken to count saved bytes.
        training = setup + step * (load.steps + 1)
        seconds[cell.id] = base.scored_token_seconds * load.scored_tokens
        if cell.id not in companions:  # which are scored from a training that another cell pays for
            seconds[cell.id] += base.load_seconds + training
        if is_foreign(cell, foreign):
            seconds[cell.id] += plan.start_seconds  # the next cell needs another process
        disk_bytes += load.disk_bytes
        disk_bytes += 4 * _parameters(cell.model, registry.task(cell.task).outputs) if plan.study.save_model else 0
    for cell in plan.trainings:
        base = vanilla[_setting(cell)]
        if base.peak_bytes is not None:
            peaks.append(_peak_bytes(cell, base, loads[_load_key(cell)].largest_tokens))
    workers = min(len(plan.devices), len(plan.trainings))
    names = {_vanilla(): ", ".join(dict.fromkeys(pretrained.label(setting[0]) for setting in vanilla))}
    names |= {method: pretrained.label(setting[0]) for method, (setting, _) in timed.items()}
    return Forecast(seconds, plan.start_seconds, max(peaks, default=None), disk_bytes, workers, names)


def _setting(cell: Cell) -> Setting:
    recipe = cell.recipe
    return cell.model, recipe.precision, recipe.batch_layout, recipe.gradient_checkpointing, recipe.optimizer


def _load_key(cell: Cell) -> LoadKey:
    recipe = dataclasses.replace(cell.recipe, lr=Recipe.lr)
    return cell.model, cell.task, cell.step_factor, recipe, cell.limit_train, cell.held_out


def _loads(plan: Plan, root: Path | None) -> dict[LoadKey, Load]:
    """Return what the data of every task, tokenised for every model, amount to."""
    loads: dict[LoadKey, Load] = {}
    for cell in plan.todo:
        if _load_key(cell) in loads:
            continue
        task, data = load_data(cell.task, cell.limit_train, root, cell.held_out)
        train, splits = encoded(
            cell.model, cell.task, cell.limit_train, root, cell.recipe.max_length, held_out=cell.held_out
        )
        planned = training_steps(len(train), cell.recipe, cell.seed, task.name)
        sizes = np.array([tokens_of(train, step, cell.recipe.batch_layout) for step in planned])
        steps = round(cell.step_factor * cell.recipe.total_steps(len(data.train)))
        examples = sum(map(len, data.evaluation.values()))
        loads[_load_key(cell)] = Load(
            steps,
            float(sizes.mean()),
            int(sizes.max()),
            int(train.lengths().sum()),
            sum(int(split.lengths().sum()) for split in splits.values()),
            FILE_BYTES + examples * (4 * task.outputs + 8) + 24 * steps,
        )
    return loads


def _calibrated(cell: Cell, method: str) -> Cell:
    """Return the cell that a method is calibrated on: one of the plan, with its method exchanged."""
    versions = tuple(part.version for part in registry.make_stack(method).methods)
    return dataclasses.replace(cell, method=method, versions=versions, sources=grid.sources_of(method, cell.task))


def _smallest_settings(plan: Plan) -> dict[str, Setting]:
    """Return for every method the one of its settings that has the smallest model."""
    settings: dict[str, dict[Setting, None]] = {}
    for cell in plan.todo:
        settings.setdefault(cell.method, {})[_setting(cell)] = None
    return {method: min(of, key=lambda setting: _parameters(setting[0], 2)) for method, of in settings.items()}


def _least_seconds(method: str, vanilla: Calibration) -> float:
    """Return about how long a calibration of a method takes at least, by its passes."""
    step = vanilla.step_seconds + _passes(method) * vanilla.token_seconds * SMALL_STEP
    return vanilla.load_seconds + (LEAST_STEPS + 1) * step


def _passes(method: str) -> float:
    return grid.relative_passes(registry.make_stack(method))


def _peak_bytes(cell: Cell, vanilla: Calibration, tokens: int) -> int:
    """Return the bytes at the peak: vanilla's on so many tokens, and what the methods declare that they keep beside.

    Observers that share the training keep theirs at the same time; of the pre-trained weights there is one copy.
    """
    observed = Observed({member.id: member.make_trained_stack() for member in (cell, *cell.companions)})
    readers = [method for method in observed.methods if is_observer(method) and method.reads_pretrained]
    stack = Stack([method for method in observed.methods if method not in readers[1:]])
    weights = 4 * _parameters(cell.model, registry.task(cell.task).outputs)
    sizes = {name: weights if name.startswith("P") else 0 for name in SIZES}
    sizes |= {"P_head": 0, "P_frozen": 0, "F": int(vanilla.token_bytes * tokens)}
    more = sum(expected_bytes(stack.memory(Memory()), sizes)) - sum(expected_bytes(Memory(), sizes))
    later = vanilla.token_bytes * max(0, tokens - vanilla.measured_tokens)
    return int((vanilla.peak_bytes or 0) + later + max(0.0, more))


def _vanilla() -> str:
    return registry.describe(registry.make_stack(registry.BASELINE), full=True)


@cache
def _parameters(model: str, outputs: int) -> int:
    """Return how many weights a classifier has."""
    return sum(weight.numel() for weight in pretrained.skeleton(pretrained.config(model, outputs)).parameters())


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
