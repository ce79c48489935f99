"""Some runs fail, collapse, hardly move or do nothing: a report tells of them here, and of the environment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from finetune_bench.reports.document import Block, Paragraph, bold, bullets, code
from finetune_bench.reports.rows.sections import Data, bare, flat
from finetune_bench.reports.rows.twins import Twin, twins
from finetune_bench.reports.text import counted, seeds_text
from finetune_bench.store.row import Row, Status


def health_blocks(data: Data) -> list[Block]:
    """Return what a reader should know of runs that didn't go as they should."""
    blocks = damage_blocks(data)
    for status in (Status.FAILED, Status.SKIPPED, Status.INTERRUPTED):
        rows = [row for row in data.rows if row["status"] == status]
        if rows:
            groups = _by_reason((row, row.get("reason")) for row in rows)
            cells = [f"{counted(count, 'run')}: {reason} — {where}" for reason, where, count in groups]
            blocks += [Paragraph(bold(status.capitalize())), *bullets(cells, findings=True)]
    collapsed = _by_reason((row, row.get("collapsed")) for row in collapsed_runs(data))
    items = [f"Collapsed: {reason} — {where}" for reason, where, _ in collapsed]
    if scoreless := without_score(data):
        items.append(f"Ended, but without a score that is a number, and so in no mean: {_cells(scoreless)}.")
    if moved := hardly_moved(data):
        items.append(f"The training loss hardly moved: {_cells(moved)}.")
    for parts in sorted({row["accumulated"] for row in data.rows if row.get("accumulated")}):
        halved = [row for row in data.rows if row.get("accumulated") == parts]
        items.append(f"Out of memory, so trained with accumulation {parts} (the batch is the same): {_cells(halved)}.")
    for section in data.sections:
        where = f" ({section.title})" if section.title else ""
        items += [f"{text}{where}" for text in _no_effect(twins(data, section))]
    items += _mixed_versions(data)
    if superseded := len(data.stored) - len(data.rows):
        items.append(f"{counted(superseded, 'older row')} of the same runs left out: a newer one is in the store.")
    if data.outdated:
        items.append(
            f"Of these, {len(data.outdated)} are of an older version of a method, of its former defaults, or of "
            f"another source of a plugin: {_cells(data.outdated)}."
        )
    earlier = [row for row in data.stored if row["status"] == Status.DONE and "weights" not in row]
    if earlier:
        items.append(
            f"{counted(len(earlier), 'row')} of an earlier version of finetune-bench, without what was repaired since: "
            f"{_cells(earlier)}. Running the study again runs what now has another id."
        )
    return [*blocks, *bullets(items, findings=True)] or [Paragraph("None.")]


def damage_blocks(data: Data) -> list[Block]:
    """Return what of the store can't be read, with the reasons; nothing where all can be."""
    if not data.damaged:
        return []
    items = [f"{code(name)}: {error.reason}" for name, error in sorted(data.damaged.items())]
    return [Paragraph(bold("Damaged, and so in no number of this report")), *bullets(items, findings=True)]


# --- which runs -------------------------------------------------------------------------------------------------------


def status_counts(data: Data) -> dict[Status, int]:
    """Return the number of cells by status, every status named."""
    counts = Counter(row["status"] for row in data.rows)
    return {status: counts[status] for status in Status}


def hardly_moved(data: Data) -> list[Row]:
    """Return the finished runs whose training loss hardly moved."""
    return [
        row
        for row in data.rows
        if row["status"] == Status.DONE and (training := row.get("training")) and training.get("hardly_moved")
    ]


def without_score(data: Data) -> list[Row]:
    """Return the finished runs whose score is missing, or no number, on a split that others are compared on."""
    rows = {
        row["id"]: row
        for section in data.sections
        for column in section.columns
        for method in section.methods
        for row in section.rows(method, column.task, Status.DONE)
        if column.metric == row["metric"] and math.isnan(section.score(method, column, row["seed"]))
    }
    return list(rows.values())


def collapsed_runs(data: Data) -> list[Row]:
    """Return the finished runs that count as collapsed."""
    return [row for row in data.rows if row["status"] == Status.DONE and row.get("collapsed")]


# --- what they ran with -----------------------------------------------------------------------------------------------


def environment(data: Data) -> dict[str, str]:
    """Return what the finished runs ran on, each entry with all values that occur."""
    return {key: ", ".join(sorted(values)) for key, values in sorted(_environment_values(data, "—").items())}


def _mixed_versions(data: Data) -> list[str]:
    """Return sentences about the entries of the environment in which the rows of one store differ."""
    return [
        f"Rows differ in their environment, {key}: {', '.join(sorted(values))}."
        for key, values in sorted(_environment_values(data, "None").items())
        if len(values) > 1
    ]


def _environment_values(data: Data, nothing: str) -> dict[str, set[str]]:
    """Return the values that occur in the environments of the finished runs, as texts; `nothing` stands for None."""
    done = [row.get("environment") or {} for row in data.rows if row["status"] == Status.DONE]
    values: dict[str, set[str]] = {}
    # Thousands of rows share one environment.
    for environment in {id(environment): environment for environment in done}.values():
        for key, value in flat(environment).items():
            values.setdefault(key, set()).add(nothing if value is None else str(value))
    return values


# --- in words ---------------------------------------------------------------------------------------------------------


def _by_reason(rows: Iterable[tuple[Row, str | None]]) -> list[tuple[str, str, int]]:
    """Return rows by the reason that comes with each: reason, which cells, how many; the most frequent first."""
    groups: dict[str, list[Row]] = {}
    for row, reason in rows:
        groups.setdefault(str(reason or "no reason given"), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(reason, _cells(group), len(group)) for reason, group in ordered]


def _cells(rows: Iterable[Row]) -> str:
    """Write rows as `hype on rte (seeds 1, 2); rdrop on cola (seed 3)`."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["method"], row["task"]), set()).add(row["seed"])
    return "; ".join(f"{method} on {task} ({seeds_text(group)})" for (method, task), group in sorted(seeds.items()))


def _no_effect(twins: Iterable[Twin]) -> list[str]:
    """Return a sentence for each method and the twin that it can't be told from."""
    groups: dict[tuple[str, str], dict[str, set[int]]] = {}
    for twin in twins:
        groups.setdefault((twin.method, twin.twin), {}).setdefault(twin.task, set()).add(twin.seed)
    return [
        f"No effect: {bare(method)} equals {other} at every recorded step, in loss and weights, on "
        + "; ".join(f"{task} ({seeds_text(seeds)})" for task, seeds in sorted(tasks.items()))
        + "."
        for (method, other), tasks in groups.items()
    ]
