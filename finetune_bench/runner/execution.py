"""Run what a plan has left, and keep the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finetune_bench import registry
from finetune_bench.runner import executors
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.leftovers import foreign_names
from finetune_bench.runner.plan import Plan, make_plan
from finetune_bench.runner.progress import Reporter, Tally
from finetune_bench.study import grid
from finetune_bench.study.attribution import effect_chain, label_of
from finetune_bench.study.grid import Cell
from finetune_bench.study.search import settings
from finetune_bench.study.study import Study, as_dict

if TYPE_CHECKING:
    import pandas as pd


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
    plan = make_plan(study)
    execute(plan)
    rows = plan.store.frame()
    return rows[rows["id"].isin([cell.id for cell in plan.cells])].reset_index(drop=True)


def execute(plan: Plan, reporter: Reporter | None = None) -> Tally:
    """Run what a plan has left, keeping each row the moment its cell ends.

    Raises:
        KeyboardInterrupt: passed on, after the workers ended and the cells in flight were marked as interrupted.
    """
    from finetune_bench.runner.row import row_of

    store = plan.store
    effects = store.study().get("effects", {}) | _effects(plan.cells)  # other commands may have left other methods here
    searched = store.study().get("searched", {}) | _searched(plan.study)
    found = {"cells": [cell.id for cell in plan.cells], "notes": plan.notes, "effects": effects, "searched": searched}
    store.write_study(as_dict(plan.study) | found)
    tally = reporter.tally if reporter else Tally(len(plan.cells))
    tally.cached, tally.failed_before, tally.skipped = len(plan.cached), len(plan.failed), len(plan.skipped)
    for cell, reason in plan.skipped:
        if (store.row(cell.id) or {}).get("reason") != reason:
            store.write(cell.to_dict(), row_of(cell, "skipped", reason=reason))
    settings = {
        "out": str(store.root.resolve()),
        "data_root": str(plan.study.data_root.resolve()) if plan.study.data_root else None,
        "save_model": plan.study.save_model,
        "checkpoint_every": plan.study.checkpoint_every,
        "retry_failed": plan.study.retry_failed,
        "plugins": list(plan.study.plugins),
        "foreign": foreign_names(),
    }
    executor = executors.make(plan.study, plan.devices, settings, (store.root / "logs").resolve())
    try:
        for event in executor.run(plan.todo):
            _take(event, plan, tally, reporter)
    except (KeyboardInterrupt, GeneratorExit):
        for cell in executor.running.values():
            if (store.row(cell.id) or {}).get("status") != "done":
                store.write(cell.to_dict(), row_of(cell, "interrupted", reason="the run was interrupted"))
        raise
    return tally


def _effects(cells: Sequence[Cell]) -> dict[str, list[list[str]]]:
    """By label, each method's effects and the labels of the runs that have them, for the report."""
    found: dict[str, list[list[str]]] = {}
    for method in dict.fromkeys(cell.method for cell in cells):
        chain = effect_chain(registry.make_stack(method))
        if chain:
            found[label_of(method)] = [[effect, label_of(run)] for effect, run in chain]
    return found


def _searched(study: Study) -> dict[str, list[list[Any]]]:
    """By the label of its default, the labels and learning rates that a search tries of each method."""
    if study.search is None:
        return {}
    tried = {method: settings(method, study.search, study.lrs[0]) for method in grid.stacks(study)[0]}
    return {label_of(method): [[label_of(full), lr] for full, lr in found] for method, found in tried.items()}


def _take(event: Event, plan: Plan, tally: Tally, reporter: Reporter | None) -> None:
    from finetune_bench.runner.row import row_of

    if event.status == "started":
        return
    status, reason = event.status, event.reason
    if status == "died":
        status = "failed"
        row = row_of(event.cell, "failed", reason=reason, retry=event.retry)
        plan.store.write(event.cell.to_dict(), row, log=event.log)
    setattr(tally, status, getattr(tally, status) + 1)
    if reporter:
        reporter.ended(status, cell_name(event.cell, plan.study), event.seconds, reason)


def cell_name(cell: Cell, study: Study) -> str:
    """A cell in a few words: its method, task and seed, and whatever else varies in the study."""
    words = [cell.label, cell.task, f"seed {cell.seed}"]
    words += [cell.model] if len(study.models) > 1 else []
    words += [f"lr {cell.recipe.lr:g}"] if len(study.lrs) > 1 or study.search else []
    return " · ".join(words)
