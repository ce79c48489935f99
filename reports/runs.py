"""Two runs held against each other, cell by cell: the same method, task, seed and setting in both."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tabulate import tabulate

from finetune_bench.reports.rows import sections as rows_of
from finetune_bench.reports.rows.sections import SETTING, Row, flat, pairing
from finetune_bench.reports.text import counted, interval
from finetune_bench.stats import estimates as stats
from finetune_bench.store.store import Store


@dataclass(frozen=True)
class Compared:
    """What two runs have of one method on one task.

    Attributes:
        both: cells that are done in both.
        equal: of these, cells with the same scores to the last bit.
        difference: second minus first in points, over seeds that started alike; question (a).
        unpaired: cells that are done in both but started from another head, order or data.
    """

    method: str
    task: str
    both: int
    equal: int
    difference: stats.Estimate
    unpaired: int


def compare(first: Store, second: Store) -> tuple[list[Compared], list[str]]:
    """Every method and task that is done in both runs, and sentences about what isn't, and about their environments."""
    runs = [rows_of.load(store).rows for store in (first, second)]
    found = [{_key(row): row for row in rows if row["status"] == "done"} for rows in runs]
    shared = [key for key in found[0] if key in found[1]]
    groups: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for key in shared:
        own, other = found[0][key], found[1][key]
        groups.setdefault((own["method"], own["task"]), []).append((own, other))
    lines = []
    for (method, task), rows in sorted(groups.items()):
        pairs = [(a, b) for a, b in rows if pairing(a) is not None and pairing(a) == pairing(b)]
        differences = [_score(b) - _score(a) for a, b in pairs]
        equal = sum(a["metrics"] == b["metrics"] for a, b in rows)
        estimate = stats.t_interval(differences)
        lines.append(Compared(method, task, len(rows), equal, estimate, len(rows) - len(pairs)))
    notes = [
        f"In '{store.root}' only: {counted(len(own) - len(shared), 'finished cell')}."
        for own, store in zip(found, (first, second), strict=True)
        if len(own) > len(shared)
    ]
    return lines, notes + _environments([found[0][key] for key in shared], [found[1][key] for key in shared])


def as_text(lines: list[Compared], notes: list[str]) -> str:
    """As the terminal shows it."""
    rows = [
        [
            one.method,
            one.task,
            one.both,
            one.equal,
            f"{interval(one.difference, sign=True)} n={one.difference.n}",
            one.unpaired or "",
        ]
        for one in lines
    ]
    header = ["method", "task", "cells in both", "equal to the bit", "second − first (points)", "no pairs"]
    if not rows:
        return "\n".join(["No cell is done in both runs.", *notes])
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    told = "Brackets: 95 % t interval over seeds that started from the same head, data and order (question (a))."
    return "\n".join([table, "", told, *notes])


def _key(row: Row) -> str:
    names = ("method", "task", "seed", "held_out", "stretch", *SETTING)
    usual = {"held_out": 0.0, "stretch": 1.0}
    return rows_of.canonical([usual.get(name) if row.get(name) is None else row[name] for name in names])


def _score(row: Row) -> float:
    values = [scores[row["metric"]] for split, scores in row["metrics"].items() if row["metric"] in scores]
    return 100 * values[0] if values and values[0] is not None else math.nan


def _environments(first: list[Row], second: list[Row]) -> list[str]:
    def values(rows: list[Row]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in rows:
            for key, value in flat(row.get("environment") or {}).items():
                found.setdefault(key, set()).add(str(value))
        return found

    own, other = values(first), values(second)
    return [
        f"Environment, {key}: {', '.join(sorted(own.get(key, {'—'})))} in the first, "
        f"{', '.join(sorted(other.get(key, {'—'})))} in the second."
        for key in sorted({*own, *other})
        if own.get(key) != other.get(key)
    ]
