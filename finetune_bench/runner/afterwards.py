"""Finished runs are analysed here, from the predictions and the models that were kept; nothing is trained.

All that can be wrong is told before any compute: an analysis that is unknown, data that are missing, a checkpoint that
changed, models that were not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune_bench import registry
from finetune_bench.analysis import Analysis
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.model import pretrained
from finetune_bench.printable import brief
from finetune_bench.runner import analysing
from finetune_bench.runner.inputs import load_data
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell


@dataclass(frozen=True)
class Later:
    """Later lists measurements to make of a store: it has every run with the analyses to make.

    Attributes:
        store: the store.
        todo: each run with the analyses that it lacks.
        present: how many results are there already.
        without_model: ids of the runs whose model was not kept, though an analysis needs it.
        notes: sentences for the user.
    """

    store: Store
    todo: list[tuple[Cell, list[Analysis]]]
    present: int
    without_model: list[str]
    notes: list[str]


def prepare(store: Store, texts: Sequence[str], data_root: Path | None) -> Later:
    """Find out what finished runs lack of some analyses, and check all that measuring it takes.

    Args:
        store: the store.
        texts: the analyses, as typed.
        data_root: the folder that data sets are read from; None for the hub.

    Raises:
        UsageError: an analysis is unknown or wrong, no run can have it, or data or checkpoints are missing.
    """
    analyses = [registry.make_analysis(text) for text in texts]
    doubled = sorted({a.name for a in analyses if sum(a.name == other.name for other in analyses) > 1})
    if doubled:
        raise UsageError(f"--with: '{doubled[0]}' is given twice, and a run has one result of it; give it once.")
    done = [row for row in store.rows() if row["status"] == Status.DONE]
    if not done:
        raise UsageError(f"Expected finished runs in '{store.root}', but it has none; train some with 'run' first.")
    todo: list[tuple[Cell, list[Analysis]]] = []
    without_model: list[str] = []
    reasons: dict[tuple[str, str], str] = {}
    present = 0
    for row in done:
        task = registry.task(row["task"])
        lacking: list[Analysis] = []
        for analysis in analyses:
            if (reason := analysis.unsupported(task)) is not None:
                reasons[analysis.name, row["task"]] = reason
            elif analysing.is_there(store, row["id"], analysis):
                present += 1
            else:
                lacking.append(analysis)
        if any(analysis.needs_model for analysis in lacking) and not store.has_model(row["id"]):
            without_model.append(row["id"])
            lacking = [analysis for analysis in lacking if not analysis.needs_model]
        if lacking:
            todo.append((analysing.cell_of(store, row["id"]), lacking))
    notes = [f"{name} is left out for {task}: {reason}." for (name, task), reason in reasons.items()]
    _refuse_nothing(todo, present, without_model, notes, len(done))
    _check(todo, data_root)
    return Later(store, todo, present, without_model, notes)


def measure(later: Later, device: torch.device, data_root: Path | None) -> Iterator[tuple[Cell, str, str | None]]:
    """Measure what a store's runs lack; yield each run with an analysis' name and why it failed, None where it didn't.

    A run that another process works on at this moment is passed over, with that as the reason.
    """
    for cell, analyses in later.todo:
        with later.store.claim(cell.id) as claimed:
            if not claimed:
                yield from ((cell, analysis.name, "another process has the run now") for analysis in analyses)
                continue
            try:
                made = analysing.of_kept_model(cell, later.store, analyses, device=device, data_root=data_root)
            except FinetuneBenchError as error:
                yield from ((cell, analysis.name, brief(error, 500)) for analysis in analyses)
                continue
        yield from ((cell, result["analysis"], result["reason"]) for result in made)


def _refuse_nothing(
    todo: Sequence[object], present: int, without_model: Sequence[str], notes: Sequence[str], done: int
) -> None:
    """Check that there is anything to measure, or was.

    Raises:
        UsageError: there is not, and why.
    """
    if todo or present:
        return
    if without_model:
        raise UsageError(
            f"analyse: none of the {done} finished runs kept its model, which the analysis needs; give --save-model to "
            "'run', or measure while training: run --analyses LIST."
        )
    raise UsageError(f"analyse: there is nothing to measure. {' '.join(notes)}")


def _check(todo: Sequence[tuple[Cell, list[Analysis]]], data_root: Path | None) -> None:
    """Check the data and the checkpoints that the analyses read.

    Raises:
        UsageError: they are missing, or not those that the runs began with.
    """
    checked: set[tuple[str, ...]] = set()
    for cell, analyses in todo:
        key = ("data", cell.task, str(cell.limit_train), str(cell.held_out))
        if key not in checked:
            checked.add(key)
            _, data = load_data(cell.task, cell.limit_train, data_root, cell.held_out)
            if data.fingerprint() != cell.data:
                raise UsageError(
                    f"The data of '{cell.task}' are not those that the runs were trained on; give the --data-root that "
                    "they had."
                )
        for analysis in analyses:
            if (analysis.name, cell.task, cell.model) not in checked:
                checked.add((analysis.name, cell.task, cell.model))
                analysis.check(registry.task(cell.task), data_root, cell.model)
        if any(analysis.needs_model for analysis in analyses) and ("model", cell.model) not in checked:
            checked.add(("model", cell.model))
            if pretrained.fingerprint(cell.model) != cell.weights.partition("-")[0]:
                raise UsageError(
                    f"The checkpoint '{cell.model}' is not the one that the runs began with: its files changed. Put it "
                    "back, so that trained models are held against what they were."
                )
