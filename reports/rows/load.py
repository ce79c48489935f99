"""Read a store for its reports: rows in sections, with labels that say what a run did."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from finetune_bench.errors import UnknownName
from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.rows.sections import (
    ANY_ORDER,
    NO_EFFECT,
    Data,
    Section,
    bare,
    canonical,
    into_sections,
    read_data,
    referring,
)
from finetune_bench.reports.rows.twins import twins
from finetune_bench.store import row_index
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store


def load(store: Store, options: Options = DEFAULT) -> Data:
    """Return a store's rows in sections, with labels that say what a run did, in every table.

    Stacks of the same methods in another order share a line where their runs are equal; methods of which no run
    differs from its twin are marked.

    Formats that are written one after the other share one reading, as long as the store is the same.

    Raises:
        UsageError: The baseline asked for is no method of this store.
    """
    return _load(store, options, tuple(row_index.stamps(store)), json.dumps(store.study()))


@functools.lru_cache(maxsize=1)
def _load(store: Store, options: Options, stamps: tuple[tuple[str | int, ...], ...], study: str) -> Data:
    data = read_data(store, options)
    duplicates, any_order = _reordered(data)
    data = _relabelled(data, any_order, ANY_ORDER, duplicates)
    data = _relabelled(data, dict.fromkeys(_without_effect(data), ""), NO_EFFECT, duplicates)
    if options.baseline is None:
        return data
    sections = [referring(section, options.baseline) for section in data.sections]
    searched = dict.fromkeys(bare(row["method"]) for row in data.rows if row.get("held_out"))
    if options.baseline not in searched and not any(section.reference for section in sections):
        known = dict.fromkeys(bare(method) for section in sections for method in section.methods) | searched
        raise UnknownName("baseline of this report", options.baseline, known)
    return dataclasses.replace(data, sections=sections)


def _without_effect(data: Data) -> set[str]:
    """Return the ids of the runs of methods of which every finished run equals its twin."""
    ids: set[str] = set()
    for section in data.sections:
        equal = Counter(twin.method for twin in twins(data, section))
        for method in section.methods:
            done = section.rows(method, status=Status.DONE)
            if done and equal[method] == len(done):
                ids |= {row["id"] for row in section.rows(method)}
    return ids


def _relabelled(data: Data, labels: Mapping[str, str], mark: str, left_out: Collection[str]) -> Data:
    """Return the data with a mark behind some labels, and without some runs in its sections.

    Args:
        data: What was read.
        labels: New labels by id of the run; "" to keep the run's label.
        mark: What to put behind them.
        left_out: Ids of the runs that no section is to hold.
    """
    if not labels:
        return data
    rows = [
        row | {"method": (labels[row["id"]] or row["method"]) + mark} if row["id"] in labels else row
        for row in data.rows
    ]
    sections = into_sections([row for row in rows if row["id"] not in left_out], data.study)
    return dataclasses.replace(data, rows=rows, sections=sections)


def _reordered(data: Data) -> tuple[set[str], dict[str, str]]:
    """Return the ids of runs that another order of their stack has too, and by id the label that the orders share."""
    duplicates: set[str] = set()
    labels: dict[str, str] = {}
    for section in data.sections:
        groups: dict[str, list[str]] = {}
        for method in section.methods:
            if len(section.parts(method)) > 1:
                parts = sorted(canonical(part) for part in section.parts(method))
                groups.setdefault(canonical(parts), []).append(method)
        for orders in groups.values():
            if len(orders) > 1 and _same(data, section, orders):
                for task, seed in itertools.product(section.tasks, section.seeds):
                    ids = [row["id"] for label in orders if (row := section.runs.get((label, task, seed))) is not None]
                    labels |= dict.fromkeys(ids, orders[0])
                    duplicates |= set(ids[1:])
    return duplicates, labels


def _same(data: Data, section: Section, orders: Sequence[str]) -> bool:
    """Return whether all runs that the orders share are equal at every recorded step; False where they share none."""
    shared = 0
    for task, seed in itertools.product(section.tasks, section.seeds):
        rows = [row for label in orders if (row := section.runs.get((label, task, seed))) is not None]
        digests = {data.digest(row) for row in rows if row["status"] == Status.DONE}
        if len(rows) == len(orders) and {row["status"] for row in rows} == {Status.DONE}:
            shared += 1
        if len(digests) > 1 or None in digests:
            return False
    return shared > 0
