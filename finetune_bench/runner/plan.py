"""`make_plan` checks a study and finds out what its store lacks, before any cell runs."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from finetune_bench import launch, registry
from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained
from finetune_bench.model.dropout import Rates
from finetune_bench.recipe import OWN_LEARNING_RATES
from finetune_bench.runner import checks, choices
from finetune_bench.runner.inputs import forget, is_dropout_free
from finetune_bench.runner.row import final_row, score_of
from finetune_bench.store.reading import NewerSchema
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study import grid
from finetune_bench.study.blocks import block_name
from finetune_bench.study.grid import Cell
from finetune_bench.study.search import LEARNING_RATES
from finetune_bench.study.sources import with_defaults
from finetune_bench.study.study import Study, run_name


@dataclass
class Plan:
    """A study that was checked, and what is left to do of it.

    Attributes:
        study: the study, with its defaults filled in.
        store: the store of its rows.
        cells: all of its cells.
        todo: the cells that have to run, in the order in which they do.
        cached: ids of the cells that are done already.
        scores: their scores in points, by id.
        failed: rows of cells that failed before and would fail again.
        skipped: cells that can't run, with the reason.
        devices: one torch device per worker, as "cpu" or "cuda:0".
        notes: sentences for the user.
        start_seconds: CPU seconds that this process had taken before it began to plan, when it had imported what every
            worker imports.
        other_shards: ids of the study's cells that are left to other shards; they are in none of the lists above.
    """

    study: Study
    store: Store
    cells: list[Cell]
    todo: list[Cell]
    cached: list[str]
    scores: dict[str, float]
    failed: list[Row]
    skipped: list[tuple[Cell, str]]
    devices: list[str]
    notes: list[str]
    start_seconds: float
    other_shards: list[str] = field(default_factory=list)

    @property
    def trainings(self) -> list[Cell]:
        """Return the cells that have to run as trainings: one of each, with those that share it as its companions.

        There is one for every cell with --no-sharing, and with --save-model: a shared one has no one model to save.
        """
        alone = self.study.save_model or not self.study.sharing
        return self.todo if alone else grid.sharing(self.todo)


def make_plan(study: Study, tell: Callable[[str], None] = lambda text: None) -> Plan:
    """Check a study and compare it with its store; loads data, and runs every checkpoint on three texts.

    Args:
        study: the study as it was asked for.
        tell: is told what is checked, where that takes seconds.

    Raises:
        UsageError, MachineError: the first thing that is wrong.
    """
    start_seconds = time.process_time()
    forget()  # in a long-lived process, files may have changed since the last plan
    for plugin in study.plugins:
        registry.load_plugin(plugin)
    study = with_defaults(study, registry.default_options)
    devices = checks.check_devices(study)
    _refuse_name_of_a_model(study)
    grids = [_check_block(block, tell) for block in study.blocks] if study.blocks else [_check_grid(study, tell)]
    tasks = tuple(dict.fromkeys(task for checked in grids for task in checked.tasks))
    study = dataclasses.replace(study, tasks=tasks)
    notes = list(dict.fromkeys(note for checked in grids for note in checked.notes))
    cells = _without_doubles([cell for checked in grids for cell in checked.cells])
    skipped = list({cell.id: (cell, reason) for checked in grids for cell, reason in checked.skipped}.values())
    notes += choices.check_choices(study, cells)
    whole = cells
    if study.shard is not None:
        cells = grid.in_shard(whole, study.shard)
        notes.append(f"Shard {study.shard[0]} of {study.shard[1]}: {len(cells)} of {len(whole)} runs of the study.")
    here = {cell.id for cell in cells}
    skipped = [(cell, reason) for cell, reason in skipped if cell.id in here]
    impossible = {cell.id for cell, _ in skipped}
    possible = [cell for cell in cells if cell.id not in impossible]
    notes += checks.warnings_of(possible)
    store = _store_of(study)
    todo, scores, failed = remaining(possible, store, study)
    notes += [*_notes_on_damage(todo, store), *_notes_on_analyses(todo, store)]
    notes += checks.check_lengths(todo, study)
    workers = _worker_devices(study, devices)
    others = [cell.id for cell in whole if cell.id not in here]
    return Plan(study, store, cells, todo, list(scores), scores, failed, skipped, workers, notes, start_seconds, others)


def _without_doubles(cells: Sequence[Cell]) -> list[Cell]:
    """Return each cell once, with all of its analyses: two blocks may have one in common, above all of vanilla."""
    by_id: dict[str, Cell] = {}
    for cell in cells:
        before = by_id.setdefault(cell.id, cell)
        if before.analyses != cell.analyses:
            analyses = tuple(dict.fromkeys([*before.analyses, *cell.analyses]))
            by_id[cell.id] = dataclasses.replace(cell, analyses=analyses)
    return list(by_id.values())


@dataclass(frozen=True)
class _Grid:
    """A grid that was checked: its tasks in their one spelling, all of its cells, and those that can't run."""

    tasks: tuple[str, ...]
    cells: list[Cell]
    skipped: list[tuple[Cell, str]]
    notes: list[str]


def _check_grid(study: Study, tell: Callable[[str], None]) -> _Grid:
    """Check one grid, and return its cells."""
    notes = _notes_on_methods(study)
    devices = checks.check_devices(study)
    study = dataclasses.replace(study, tasks=checks.check_task_names(study))
    weights = checks.check_models(study, tell)
    data = checks.check_data(study)
    checks.check_schedule(study, data)
    batch_layout, notes_on_layout = checks.choose_batch_layout(study, devices[0])
    notes += notes_on_layout
    fingerprints = {task: examples.fingerprint() for task, examples in data.items()}
    outputs = {registry.task(task).outputs for task in study.tasks}
    dropout_free = [model for model in study.models if all(is_dropout_free(model, number) for number in outputs)]
    cells = grid.cells(study, fingerprints, weights, devices[0].type, batch_layout, dropout_free=dropout_free)
    notes += [f"{task}: {note}" for task, examples in data.items() for note in examples.notes]
    notes += [*checks.notes_on_models(study), *checks.notes_on_muon(cells)]
    notes += [*checks.notes_on_licences(study), *checks.check_analyses(study)]
    # Of the whole grid: what can't run in one shard may in another.
    return _Grid(study.tasks, cells, checks.check_methods(cells), notes)


def _check_block(block: Study, tell: Callable[[str], None]) -> _Grid:
    """Check one of several grids.

    Raises:
        UsageError: something in it is wrong; says in which.
    """
    try:
        return _check_grid(block, tell)
    except UsageError as error:
        raise UsageError(f"{error} This is {block_name(block)}.") from None


def untold(plan: Plan) -> list[str]:
    """Return the notes that are to be told: warnings, damage, and what no run in this folder has told."""
    told = set(plan.store.study().get("told", []))
    return [note for note in plan.notes if note not in told or note.startswith(("Warning", "Damaged"))]


def _notes_on_methods(study: Study) -> list[str]:
    """Return which methods were added, which an attribution leaves as they are, and which need a rate of their own."""
    notes = []
    _, added = grid.stacks(study)
    if added:
        notes.append(f"Added for comparison: {', '.join(added)} (--no-baseline leaves them out).")
    several = [text for text in study.methods if len(registry.make_stack(text).methods) > 1]
    if study.attribution and several:
        notes.append(f"--attribution splits single methods only; left as they are: {', '.join(several)}.")
    notes += _notes_on_dropout(study)
    methods = [method for text in study.methods for method in registry.make_stack(text).methods]
    reasons = {method.name: method.own_learning_rate for method in methods}
    reasons[study.recipe.optimizer] = OWN_LEARNING_RATES.get(study.recipe.optimizer, "")
    tried = _rates_tried(study)
    notes += [
        f"{name} is to be compared at its own learning rate, by --search or several of --lr: {why}.{tried}"
        for name, why in reasons.items()
        if why
    ]
    return notes


def _rates_tried(study: Study) -> str:
    """Return between which learning rates a study searches, as a sentence to follow another; "" where it has one."""
    if study.search is not None:
        low, high = LEARNING_RATES.low, LEARNING_RATES.high
        return f" --search tries {low:g} to {high:g} times --lr."
    return f" --lr gives {min(study.lrs):g} to {max(study.lrs):g}." if len(study.lrs) > 1 else ""


def _notes_on_dropout(study: Study) -> list[str]:
    """Return which stacks have dropout rates of their own, and no run to tell the methods' effect from these rates'."""
    parsed = {text: registry.make_stack(text) for text in study.methods}
    there = {registry.describe(stack, full=True) for stack in parsed.values()}
    notes = []
    for text, stack in parsed.items():
        control = Stack([method for method in stack.methods if Stack([method]).rates != Rates()] or stack.methods)
        if registry.describe(control, full=True) not in there:
            notes.append(
                f"Warning: '{text}': part of its difference to vanilla is that of other dropout rates; with "
                f"'{registry.describe(control)}' among --methods the report tells them apart."
            )
    return notes


def _refuse_name_of_a_model(study: Study) -> None:
    """Refuse a run folder that would lie where a checkpoint from packages or the hub is looked for first."""
    if study.out is None:
        return
    root = study.out.resolve()
    for model in {model for block in study.blocks or [study] for model in block.models}:
        named = pretrained.expanded(model).resolve()
        if root == named or (named in root.parents and not named.exists()):
            raise UsageError(
                f"--out: '{study.out}' makes a folder where --model {model} is looked for first. Give another folder."
            )


def _store_of(study: Study) -> Store:
    store = Store(study.out or Path("runs") / run_name(study))
    nearest = next(path for path in (store.root, *store.root.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UsageError(f"--out: expected a folder, but '{nearest}' is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"--out: '{nearest}' can't be written to; give another folder, or change its permissions.")
    return store


def _notes_on_damage(todo: Sequence[Cell], store: Store) -> list[str]:
    """Return which cells are run again because their files are damaged, and whether the kept study is.

    Raises:
        NewerSchema: a newer version of this program wrote a row, which would be replaced.
    """
    damaged = {cell.id: damage for cell in todo if (damage := store.damage(cell.id)) is not None}
    for damage in damaged.values():
        if isinstance(damage, NewerSchema):
            raise damage
    notes = [f"Damaged, so run again: {cell_id} ({damage.reason})." for cell_id, damage in damaged.items()]
    try:
        store.read_study()
    except Damaged as damage:
        notes.append(f"{damage} It is written anew, without what other commands had left in it.")
    return notes


def _notes_on_analyses(todo: Sequence[Cell], store: Store) -> list[str]:
    """Return how many finished runs are trained again because an analysis needs their models, which are gone."""
    done = [
        cell
        for cell in todo
        if cell.analyses and (row := store.row(cell.id)) is not None and row["status"] == Status.DONE
    ]
    without = [cell for cell in done if not store.has_model(cell.id)]
    if not without:
        return []
    be = "run is" if len(without) == 1 else "runs are"
    return [
        f"{len(without)} finished {be} trained again: --analyses needs their models, which were not kept. With "
        "--save-model a later analysis trains nothing."
    ]


def _worker_devices(study: Study, devices: Sequence[torch.device]) -> list[str]:
    """Return one device per worker: the study's number of them, or what this machine has room for."""
    if study.workers:
        count = study.workers
    elif devices[0].type == "cpu":
        count = max(1, launch.cores() // study.threads)
    else:
        count = int(1 / study.gpus_per_worker + 1e-9) * len(devices)
    return [str(devices[index % len(devices)]) for index in range(count)]


def remaining(cells: Sequence[Cell], store: Store, study: Study) -> tuple[list[Cell], dict[str, float], list[Row]]:
    """Look cells up in their store.

    Returns:
        The cells that have to run, in the order in which they do; of those that are done the scores by id; and the rows
        of those that failed before and would fail again.
    """
    todo: list[Cell] = []
    scores: dict[str, float] = {}
    failed: list[Row] = []
    for cell in cells:
        row = final_row(
            store, cell, save_model=study.save_model, retry_failed=study.retry_failed, analyses=cell.analyses
        )
        if row is None:
            todo.append(cell)
        elif row["status"] == Status.DONE:
            scores[cell.id] = score_of(row)
        else:
            failed.append(row)
    return _in_order(todo), scores, failed


def _in_order(todo: Sequence[Cell]) -> list[Cell]:
    """Sort cells so that whole comparisons come early, and of each the longest cell first."""
    position = {key: index for index, key in enumerate(dict.fromkeys(map(comparison_of, todo)))}
    passes = {method: grid.relative_passes(registry.make_stack(method)) for method in {cell.method for cell in todo}}
    return sorted(todo, key=lambda cell: (position[comparison_of(cell)], -passes[cell.method]))


def comparison_of(cell: Cell) -> tuple[str, str, int]:
    """Return what the cells of one comparison have in common: the model, task and seed that all methods run on."""
    return cell.model, cell.task, cell.seed
