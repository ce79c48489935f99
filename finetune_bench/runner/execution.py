"""Run what a plan has left, and keep the rows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from finetune_bench import registry
from finetune_bench.model import hub
from finetune_bench.runner.cell import remove_checkpoints
from finetune_bench.runner.executors import make_executor
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import EventStatus, WorkerSettings
from finetune_bench.runner.leftovers import foreign_names
from finetune_bench.runner.live import Differences
from finetune_bench.runner.plan import Plan, make_plan
from finetune_bench.runner.progress import Counts, Ended, Reporter
from finetune_bench.runner.row import row_of, score_of
from finetune_bench.spec import short_names
from finetune_bench.store.merge import joined_settings
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.study import grid
from finetune_bench.study.attribution import effect_chain, label_of
from finetune_bench.study.grid import Cell
from finetune_bench.study.search import settings
from finetune_bench.study.study import Study, as_dict

if TYPE_CHECKING:
    import pandas as pd

_UNENDED = (EventStatus.STARTED, EventStatus.TRAINING, EventStatus.BUSY)
ID_DIGITS = 16  # of a cell's id, with which the names of its checkpoints and leases begin


def run(study: Study) -> pd.DataFrame:
    """Run a study and return the rows of its cells; what is done already is not run again.

    Args:
        study: what to compare.

    Returns:
        One line per cell, nested keys joined by dots: `metrics.validation.accuracy`, `cost.train_seconds`.

    Raises:
        UsageError: something in the study is wrong; nothing was run.
        MachineError: the machine lacks what the study needs.
    """
    try:
        plan = make_plan(study)
        execute(plan)
    finally:
        hub.forget()  # whatever else this process has to do with the hub goes on as before
    rows = plan.store.frame()
    return rows[rows["id"].isin([cell.id for cell in plan.cells])].reset_index(drop=True)


def execute(plan: Plan, reporter: Reporter | None = None) -> Counts:
    """Run what a plan has left, keeping each row the moment its cell ends.

    Args:
        plan: the plan.
        reporter: shows what happens; None for silence.

    Returns:
        How many cells ended how; the reporter's counts, if there is one.

    Raises:
        KeyboardInterrupt: passed on, after the workers ended and the cells in flight were marked as interrupted.
    """
    _write_study(plan)
    _write_skipped(plan)
    counts = reporter.counts if reporter else Counts(len(plan.cells))
    counts.begin(plan)
    if reporter:
        _show_scores(plan, reporter)
    executor = make_executor(plan.study, plan.devices, _worker_settings(plan), (plan.store.root / "logs").resolve())
    try:
        for event in executor.run(plan.trainings):
            if event.status in _UNENDED:
                _tell(event, plan, reporter)
            else:
                for each in _of_each(event, plan):
                    _take(each, plan, counts, reporter)
    except (KeyboardInterrupt, GeneratorExit):
        running = [member for cell in executor.running.values() for member in (cell, *cell.companions)]
        _write_interrupted(plan, running)
        raise
    _clear_up(plan)
    return counts


def _of_each(event: Event, plan: Plan) -> Iterator[Event]:
    """Yield what has happened to a cell and to its companions, of which their rows tell; the seconds count once."""
    cell = event.cell
    yield dataclasses.replace(event, cell=dataclasses.replace(cell, companions=()))
    for companion in cell.companions:
        row = None if event.status == EventStatus.DIED else plan.store.row(companion.id)
        if row is not None and row["status"] in (Status.DONE, Status.FAILED):
            yield Event(companion, EventStatus(row["status"]), row["reason"])
        elif event.status == EventStatus.DIED:
            yield dataclasses.replace(event, cell=companion, seconds=0.0)
        else:
            yield Event(companion, EventStatus.DIED, "its worker ended without a row of it")


def _clear_up(plan: Plan) -> None:
    """Remove what processes left that were killed when their cell had its row: its checkpoints and its lease."""
    store = plan.store
    folders = [folder for folder in (store.checkpoints, store.root / "locks") if folder.is_dir()]
    left = {path.name.lstrip(".")[:ID_DIGITS] for folder in folders for path in folder.iterdir()}
    if not left:
        return
    trainings = grid.training_ids(plan.cells)
    # A training that was killed while its rows were written goes on for those that are missing.
    touched = {trainings[cell.id] for cell in plan.cells if left & {cell.id, trainings[cell.id]}}
    members = [cell for cell in plan.cells if trainings[cell.id] in touched]
    unended = {trainings[cell.id] for cell in members if not _is_done(cell, store)}
    ended = [cell.id for cell in members if trainings[cell.id] not in unended]
    for name in dict.fromkeys([*ended, *(touched - unended)]):
        with store.claim(name) as claimed:  # which ends the lease of a process that is gone
            if claimed:
                remove_checkpoints(name, store)


def _is_done(cell: Cell, store: Store) -> bool:
    row = store.row(cell.id)
    return row is not None and row["status"] == Status.DONE


def _write_study(plan: Plan) -> None:
    """Keep what was asked for, for the report; what other commands left in the store about other methods stays."""
    before = plan.store.study()
    plan.store.write_study(
        as_dict(plan.study)
        | {
            "cells": [cell.id for cell in plan.cells],
            "notes": plan.notes,
            "other_shards": plan.other_shards,
            "told": list(dict.fromkeys([*before.get("told", []), *plan.notes])),
            "effects": before.get("effects", {}) | _effects(plan.cells),
            "searched": _searched(plan.study),
            "searched_before": joined_settings(before.get("searched_before") or {}, before.get("searched") or {}),
        }
    )


def _effects(cells: Sequence[Cell]) -> dict[str, list[list[str]]]:
    """Return, by label, each method's effects and the labels of the runs that have them."""
    effects: dict[str, list[list[str]]] = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        chain = effect_chain(registry.make_stack(method))
        if chain:
            effects[label_of(method)] = [[effect, label_of(stack)] for effect, stack in chain]
    return effects


def _searched(study: Study) -> dict[str, list[list[Any]]]:
    """Return, by the label of its default, the labels and learning rates that are tried of each method."""
    if study.search is not None:
        tried = {method: settings(method, study.search, study.lrs[0]) for method in grid.stacks(study)[0]}
        return {label_of(method): [[label_of(stack), lr] for stack, lr in pairs] for method, pairs in tried.items()}
    rates: dict[str, dict[float, None]] = {}
    for block in study.blocks or (study,):
        for method in grid.stacks(block)[0] if block.hold_out else ():
            rates.setdefault(label_of(method), {}).update(dict.fromkeys(block.lrs or (block.recipe.lr,)))
    return {label: [[label, lr] for lr in of_method] for label, of_method in rates.items()}


def _write_skipped(plan: Plan) -> None:
    for cell, reason in plan.skipped:
        before, row = plan.store.row(cell.id), row_of(cell, Status.SKIPPED, reason)
        if before is None or before["reason"] != row["reason"]:
            plan.store.write_unfinished(cell.to_dict(), row)


def _write_interrupted(plan: Plan, cells: Iterable[Cell]) -> None:
    for cell in cells:
        plan.store.write_unfinished(cell.to_dict(), row_of(cell, Status.INTERRUPTED, "the run was interrupted"))


def _worker_settings(plan: Plan) -> WorkerSettings:
    study = plan.study
    return WorkerSettings(
        out=str(plan.store.root.resolve()),
        data_root=str(study.data_root.resolve()) if study.data_root else None,
        save_model=study.save_model,
        checkpoint_every=study.checkpoint_every,
        retry_failed=study.retry_failed,
        plugins=tuple(study.plugins),
        foreign=foreign_names(),
        trust_plugins=study.trust_plugins,
        shares_device=len(set(plan.devices)) < len(plan.devices),
    )


def _take(event: Event, plan: Plan, counts: Counts, reporter: Reporter | None) -> None:
    """Count a cell that ended, and report it; one that died with its worker gets its row here.

    A worker may have died after it had written the row and before it could say so: then the row counts.
    """
    status, reason = event.status, event.reason
    if status == EventStatus.DIED:
        row = row_of(event.cell, Status.FAILED, reason)
        row["retry"] = event.retry
        is_done = plan.store.write_unfinished(event.cell.to_dict(), row, event.log)["status"] == Status.DONE
        status, reason = (EventStatus.DONE, None) if is_done else (EventStatus.FAILED, reason)
    counts.add(status)
    if reporter:
        reporter.ended(_ended(event, status, reason, plan, reporter))


def _tell(event: Event, plan: Plan, reporter: Reporter | None) -> None:
    """Report a cell that is running, or that another process has."""
    if reporter is None:
        return
    if event.status == EventStatus.STARTED:
        reporter.started(event.cell.id, cell_name(event.cell, plan.study, short=True))
    elif event.progress is not None:
        reporter.trains(event.cell.id, event.progress)
    else:
        reporter.released(event.cell.id)


def _ended(event: Event, status: EventStatus, reason: str | None, plan: Plan, reporter: Reporter) -> Ended:
    """Return what is told of a cell that ended; its score joins the differences."""
    cell, score = event.cell, None
    if status != EventStatus.FAILED and (row := plan.store.row(cell.id)) is not None and row["status"] == Status.DONE:
        score = score_of(row)
        _show_score(cell, score, reporter)
    log = plan.store.folder(cell.id) / "log.txt"
    name = cell_name(cell, plan.study, short=reporter.is_live)
    is_told = status == EventStatus.FAILED and log.is_file()
    return Ended(cell.id, name, status, event.seconds, reason, log if is_told else None, score)


def _show_scores(plan: Plan, reporter: Reporter) -> None:
    """Show the differences that the cells make which are done already; a search has no one method to compare."""
    baseline = label_of(registry.describe(registry.make_stack(registry.BASELINE), full=True))
    if plan.study.search is None and any(cell.label == baseline for cell in plan.cells):
        reporter.view.differences = Differences(baseline)
    for cell in plan.cells:
        if cell.id in plan.scores:
            _show_score(cell, plan.scores[cell.id], reporter)


def _show_score(cell: Cell, score: float, reporter: Reporter) -> None:
    if math.isfinite(score):
        reporter.view.score(cell.label, (cell.model, cell.task, cell.seed, cell.recipe, cell.limit_train), score)


def cell_name(cell: Cell, study: Study, *, short: bool = False) -> str:
    """Return a cell's name for a person: its method, task and seed, and whatever else varies in the study.

    Args:
        cell: the cell.
        study: the study that it is of.
        short: whether a long task, as a file with its options, goes by its short name.
    """
    task = short_names(study.tasks).get(cell.task, cell.task) if short else cell.task
    parts = [cell.label, task, f"seed {cell.seed}"]
    if len(study.models) > 1:
        parts.append(cell.model)
    if len(study.lrs) > 1 or study.search:
        parts.append(f"lr {cell.recipe.lr:g}")
    recipes = [block.recipe.to_dict() for block in study.blocks]
    for key, value in cell.recipe.to_dict().items():
        if key != "lr" and len({str(recipe.get(key)) for recipe in recipes}) > 1:
            parts.append(f"{key} {value}")
    return " · ".join(parts)
