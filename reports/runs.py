"""Holds two runs against each other, cell by cell, for the command `compare`.

Cells are the same whose method, task, seed and setting are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from finetune_bench.files import Damaged
from finetune_bench.reports.rows.sections import SETTING, canonical, flat, pairing_hashes, read_data
from finetune_bench.reports.text import counted, interval
from finetune_bench.stats.estimates import Estimate, t_interval
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store


@dataclass(frozen=True)
class Compared:
    """A method was run on a task in both of two runs, and this is how they compare.

    Attributes:
        method: Label of the method.
        task: The task.
        both: Cells that are done in both.
        equal: Cells among them with the same scores to the last bit.
        difference: Second minus first in points, over seeds that started alike; question (a).
        unpaired: Cells that are done in both but started from another head, order or data.
    """

    method: str
    task: str
    both: int
    equal: int
    difference: Estimate
    unpaired: int


@dataclass(frozen=True)
class Comparison:
    """A Comparison holds what two runs have in common, and what they have not.

    Attributes:
        lines: Every method and task that is done in both.
        notes: Sentences about what isn't, and about environments.
        damaged: Of each run, what can't be read, by name of its folder or file.
    """

    lines: list[Compared]
    notes: list[str]
    damaged: tuple[Mapping[str, Damaged], Mapping[str, Damaged]]


def compare(first: Store, second: Store) -> Comparison:
    """Return how two runs compare."""
    data = read_data(first), read_data(second)
    done = [{_key(row): row for row in part.rows if row["status"] == Status.DONE} for part in data]
    shared = [key for key in done[0] if key in done[1]]
    groups: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for key in shared:
        row, other = done[0][key], done[1][key]
        groups.setdefault((row["method"], row["task"]), []).append((row, other))
    lines = []
    for (method, task), rows in sorted(groups.items()):
        pairs = [(a, b) for a, b in rows if pairing_hashes(a) is not None and pairing_hashes(a) == pairing_hashes(b)]
        difference = t_interval([_score(b) - _score(a) for a, b in pairs])
        equal = sum(a.get("metrics") == b.get("metrics") for a, b in rows)
        lines.append(Compared(method, task, len(rows), equal, difference, len(rows) - len(pairs)))
    notes = [
        f"In '{store.root}' only: {counted(len(rows_of_store) - len(shared), 'finished cell')}."
        for rows_of_store, store in zip(done, (first, second), strict=True)
        if len(rows_of_store) > len(shared)
    ]
    notes += [
        f"'{store.root}': {note}" for part, store in zip(data, (first, second), strict=True) for note in part.notes
    ]
    notes += _environments([done[0][key] for key in shared], [done[1][key] for key in shared])
    return Comparison(lines, notes, (data[0].damaged, data[1].damaged))


def as_text(lines: list[Compared], notes: list[str]) -> str:
    """Return the lines and notes as the terminal shows them."""
    rows = [
        [
            line.method,
            line.task,
            line.both,
            line.equal,
            f"{interval(line.difference, sign=True)} n={line.difference.n}",
            line.unpaired or "",
        ]
        for line in lines
    ]
    header = ["method", "task", "cells in both", "equal to the bit", "second − first (points)", "no pairs"]
    if not rows:
        return "\n".join(["Nothing is done in both runs.", *notes])
    table = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    brackets = "Brackets: 95 % t interval over seeds that started from the same head, data and order (question (a))."
    return "\n".join([table, "", brackets, *notes])


def _key(row: Row) -> str:
    """Return what tells a run's cell from all others of the run."""
    names = ("method", "task", "seed", "held_out", "stretch", *SETTING)
    usual = {"held_out": 0.0, "stretch": 1.0}
    return canonical([usual.get(name) if row.get(name) is None else row.get(name) for name in names])


def _score(row: Row) -> float:
    """Return the score on the first split in points, NaN where there is none."""
    values = [scores[row["metric"]] for scores in (row.get("metrics") or {}).values() if row["metric"] in scores]
    return 100 * values[0] if values and values[0] is not None else math.nan


def _environments(first: list[Row], second: list[Row]) -> list[str]:
    """Return sentences about the entries of the environment in which two runs differ."""
    here, there = _environment_values(first), _environment_values(second)
    return [
        f"Environment, {key}: {', '.join(sorted(here.get(key, {'—'})))} in the first, "
        f"{', '.join(sorted(there.get(key, {'—'})))} in the second."
        for key in sorted({*here, *there})
        if here.get(key) != there.get(key)
    ]


def _environment_values(rows: list[Row]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in flat(row.get("environment") or {}).items():
            values.setdefault(key, set()).add(str(value))
    return values
