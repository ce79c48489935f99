"""Whether a method does anything: where its runs depart from vanilla's, and the mark of those that never do."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from finetune_bench.errors import UnknownName
from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.rows import sections as rows_of
from finetune_bench.reports.rows.sections import ANY_ORDER, NO_EFFECT, Data, Section
from finetune_bench.reports.rows.twins import twins
from finetune_bench.store import row_index
from finetune_bench.store.store import Store


def load(store: Store, options: Options = DEFAULT) -> Data:
    """A store's rows in sections, with labels that say what a run did, in every table.

    Stacks of the same methods in another order share a line where their runs are equal; methods of which no run
    departed from its twin are marked.

    Formats that are written one after the other share one reading, as long as the store is the same.

    Raises:
        UsageError: the baseline asked for is no method of this store.
    """
    return _load(store.root, options, tuple(sorted(row_index.stamps(store))), json.dumps(store.study()))


@functools.lru_cache(maxsize=1)
def _load(root: Path, options: Options, stamps: tuple[tuple[str, int, int], ...], study: str) -> Data:
    data = rows_of.load(Store(root))
    twice, any_order = _reordered(data)
    data = _relabelled(data, any_order, ANY_ORDER, twice)
    inert: set[str] = set()
    for section in data.sections:
        equal = Counter(twin.method for twin in twins(data, section))
        for method in section.methods:
            done = section.rows(method, status="done")
            if done and equal[method] == len(done):
                inert |= {row["id"] for row in section.rows(method)}
    data = _relabelled(data, dict.fromkeys(inert, ""), NO_EFFECT, twice)
    if options.baseline is None:
        return dataclasses.replace(data, options=options)
    found = [_referring(section, options.baseline) for section in data.sections]
    if not any(section.reference for section in found):
        known = dict.fromkeys(rows_of.bare(method) for section in found for method in section.methods)
        raise UnknownName("baseline of this report", options.baseline, known)
    return dataclasses.replace(data, options=options, sections=found)


def _referring(section: Section, baseline: str) -> Section:
    """The section with another reference, first among its methods."""
    label = next((method for method in section.methods if rows_of.bare(method) == baseline), None)
    methods = tuple(sorted(section.methods, key=lambda method: method != label))
    return dataclasses.replace(section, reference=label, methods=methods)


def _relabelled(data: Data, labels: Mapping[str, str], mark: str, left_out: Collection[str]) -> Data:
    """With a mark behind the labels of some runs (by id, their new label or ""), and without some runs in sections."""
    if not labels:
        return data
    rows = [
        row | {"method": (labels[row["id"]] or row["method"]) + mark} if row["id"] in labels else row
        for row in data.rows
    ]
    sections = rows_of.sort([row for row in rows if row["id"] not in left_out], data.study)
    return dataclasses.replace(data, rows=rows, sections=sections)


def _reordered(data: Data) -> tuple[set[str], dict[str, str]]:
    """Runs that another order of the same stack has too, and by id the label that the orders share."""
    twice: set[str] = set()
    labels: dict[str, str] = {}
    for section in data.sections:
        groups: dict[str, list[str]] = {}
        for method in section.methods:
            if len(section.parts(method)) > 1:
                parts = sorted(rows_of.canonical(part) for part in section.parts(method))
                groups.setdefault(rows_of.canonical(parts), []).append(method)
        for orders in groups.values():
            if len(orders) > 1 and _same(data, section, orders):
                for task, seed in itertools.product(section.tasks, section.seeds):
                    found = [
                        row["id"] for label in orders if (row := section.runs.get((label, task, seed))) is not None
                    ]
                    labels |= dict.fromkeys(found, orders[0])
                    twice |= set(found[1:])
    return twice, labels


def _same(data: Data, section: Section, orders: Sequence[str]) -> bool:
    """Whether all runs that the orders share are equal at every recorded step; False where they share none."""
    shared = 0
    for task, seed in itertools.product(section.tasks, section.seeds):
        rows = [row for label in orders if (row := section.runs.get((label, task, seed))) is not None]
        digests = {data.digest(row) for row in rows if row["status"] == "done"}
        if len(rows) == len(orders) and {row["status"] for row in rows} == {"done"}:
            shared += 1
        if len(digests) > 1 or None in digests:
            return False
    return shared > 0
