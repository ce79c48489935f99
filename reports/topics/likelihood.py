"""Tell NLL, ECE and Brier beside the scores where a method changes the loss, which scores may not show for long."""

from __future__ import annotations

import numpy as np

from finetune_bench.reports.document import Entry, bullets, code, table
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.analysed import measurements
from finetune_bench.reports.topics.topic import TopicBlock

_NUMBERS = ("NLL", "ECE", "Brier")


def changes_losses(section: Section) -> list[str]:
    """Return the labels of the methods that change the losses of single examples."""
    return [method for method in section.methods if any(part.get("changes_losses") for part in section.parts(method))]


def likelihood_blocks(data: Data, section: Section) -> list[TopicBlock]:
    """Return the table of means over seeds; nothing where no method changes the loss, or no task has classes."""
    changing = changes_losses(section)
    if not changing:
        return []
    splits = {column.task: column.splits[0] for column in reversed(section.columns) if column.splits}
    values: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
    for measured in measurements(data, section, "calibration"):
        split, _, number = measured.number.partition(": ")
        if number in _NUMBERS and split == splits.get(measured.task):
            values.setdefault((measured.method, measured.task, number), []).append((measured.value, measured.id))
    tasks = [task for task in section.tasks if any(task == key[1] for key in values)]
    if not tasks:
        return []
    rows: list[list[str | Entry]] = [
        [code(method), *(_entry(values.get((method, task, number), [])) for task in tasks for number in _NUMBERS)]
        for method in section.methods
    ]
    header = ["method", *(f"{task}: {number} ↓" for task in tasks for number in _NUMBERS)]
    note = (
        f"{', '.join(map(code, changing))} change the loss itself, so accuracy may not tell them apart: means over "
        "seeds, lower is better. What trains away from hard labels, as label smoothing does, worsens the NLL of a "
        "confident model by construction. Calibration below has differences and intervals."
    )
    return [table("likelihood", header, rows, in_paper=False), *bullets([note])]


def _entry(values: list[tuple[float, str]]) -> str | Entry:
    known = [(value, run) for value, run in values if np.isfinite(value)]
    if not known:
        return "—"
    mean = float(np.mean([value for value, _ in known]))
    return Entry(f"{mean:.3f} n={len(known)}", mean, tuple(run for _, run in known))
