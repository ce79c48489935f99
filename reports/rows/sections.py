"""Rows, sorted into what a report compares: sections of one setting each, with methods, columns and pairs.

A section holds the runs of one model, learning rate and other setting; nothing is ever compared across sections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.rows.once import once
from finetune_bench.store import row_index
from finetune_bench.store.row_index import Trace
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT

Row = dict[str, Any]
STATUSES = ("done", "failed", "skipped", "interrupted")
ANY_ORDER = " (any order)"  # stands behind the label of a stack whose orders all did the same
NO_EFFECT = " (no effect)"  # stands behind the label of a method of which no run departed from its twin
SETTING = ("model", "recipe", "limit_train", "device", "threads")


@dataclass(frozen=True)
class Column:
    """One score that a table compares.

    Attributes:
        task: the task's name.
        splits: the evaluation splits; several stand for the mean of their scores, none for a task without a score yet.
        metric: the score's name.
        title: as tables head it; the split is named only where the task has several.
    """

    task: str
    splits: tuple[str, ...]
    metric: str
    title: str


@dataclass(frozen=True, eq=False)  # a section is itself: answers are kept by it
class Section:
    """The runs of one setting.

    Attributes:
        title: what sets this section apart; "" where there is only one.
        setting: model, recipe and the other keys of `SETTING`, flat.
        methods: labels, the baseline first.
        runs: by (method, task, seed), of every status.
        baseline: label of vanilla with its default dropout, None where it wasn't run.
        reference: what differences are to: the baseline, or the method that the reader chose.
        columns: one per task and split.
        suite: one per task; its splits are averaged.
        stretched: by factor, the labels of vanilla trained for more steps; they are in `runs`, not in `methods`.
    """

    title: str
    setting: dict[str, Any]
    methods: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    runs: Mapping[tuple[str, str, int], Row]
    baseline: str | None
    reference: str | None
    columns: tuple[Column, ...]
    suite: tuple[Column, ...]
    stretched: Mapping[float, str]

    @once
    def rows(self, method: str, task: str | None = None, status: str | None = None) -> list[Row]:
        """A method's rows, by task and seed."""
        return [
            row
            for name in ([task] if task is not None else self.tasks)
            for seed in self.seeds
            if (row := self.runs.get((method, name, seed))) is not None and status in (None, row["status"])
        ]

    def score(self, method: str, column: Column, seed: int) -> float:
        """The score in points (×100), NaN where there is none."""
        row = self.runs.get((method, column.task, seed))
        if row is None or row["status"] != "done" or row["metric"] != column.metric or not column.splits:
            return math.nan
        values = [(row.get("metrics") or {}).get(split, {}).get(column.metric) for split in column.splits]
        return math.nan if None in values else 100 * (sum(values) / len(values))

    @once
    def scores(self, method: str, column: Column) -> np.ndarray:
        """(seeds,) scores in points, NaN where there is none."""
        return _shared([self.score(method, column, seed) for seed in self.seeds])

    @once
    def collapsed(self, method: str, task: str) -> np.ndarray:
        """(seeds,) whether the run is done and counts as collapsed."""
        found = [self.runs.get((method, task, seed)) for seed in self.seeds]
        return _shared([row is not None and row["status"] == "done" and bool(row.get("collapsed")) for row in found])

    def paired(self, method: str, other: str, task: str, seed: int) -> bool:
        """Whether both runs are done and started from the same head, on the same examples in the same order."""
        proof = self._proofs(method, task)[seed]
        return proof is not None and proof == self._proofs(other, task)[seed]

    @once
    def _proofs(self, method: str, task: str) -> dict[int, tuple[str, str, str] | None]:
        found = {seed: self.runs.get((method, task, seed)) for seed in self.seeds}
        return {seed: pairing(row) if row and row["status"] == "done" else None for seed, row in found.items()}

    @once
    def paired_scores(self, method: str, reference: str, column: Column) -> np.ndarray:
        """(seeds,) scores of the runs that are paired with the reference's, NaN elsewhere."""
        own, other = self._proofs(method, column.task), self._proofs(reference, column.task)
        proven = [own[seed] is not None and own[seed] == other[seed] for seed in self.seeds]
        return _shared(np.where(proven, self.scores(method, column), np.nan))

    @once
    def parts(self, method: str) -> list[dict[str, Any]]:
        """The stack that a label stands for, outermost first."""
        return list(self.rows(method)[0].get("methods") or [])

    @once
    def dropout(self, method: str) -> str:
        """The realised dropout as comparable text; "" where it isn't known or runs differ."""
        realised = [row.get("dropout") for row in self.rows(method, status="done")]
        found = {canonical(dropout) for dropout in realised if dropout is not None}
        return found.pop() if len(found) == 1 else ""

    @once
    def controls(self) -> list[str]:
        """Vanilla with other than its default dropout."""
        return [label for label in self.methods if label != self.baseline and is_vanilla(self.parts(label))]

    @once
    def control(self, method: str) -> str | None:
        """The vanilla control whose realised dropout is this method's, where that isn't the baseline's."""
        own = self.dropout(method)
        if not own or (self.baseline is not None and own == self.dropout(self.baseline)):
            return None
        return next((label for label in self.controls() if label != method and self.dropout(label) == own), None)


def _shared(values: ArrayLike) -> np.ndarray:
    """An array that nobody can change."""
    array = np.array(values)
    array.flags.writeable = False
    return array


@dataclass
class Data:
    """A store's rows as reports read them.

    Attributes:
        stored: all rows, as they are in the store.
        rows: those that count, the newest of each run, with the labels that tables show.
    """

    store: Store
    study: dict[str, Any]
    stored: list[Row]
    rows: list[Row]
    sections: list[Section]
    traces: Mapping[str, Trace]
    options: Options = DEFAULT

    def trace(self, row: Row) -> dict[str, np.ndarray]:
        """The training trace of a run; empty where it has none."""
        return self.traces[row["id"]].arrays()

    def digest(self, row: Row) -> str | None:
        """A hash of the recorded losses and weight sketches: equal for runs that did the same."""
        return self.traces[row["id"]].digest

    def examples(self, row: Row) -> dict[str, int]:
        """Evaluation examples by split."""
        return self.traces[row["id"]].examples


def load(store: Store) -> Data:
    """Read a store and sort its rows into sections."""
    study = store.study()
    found = row_index.read(store)
    rows = [cast(dict[str, Any], row) for row, _ in found]
    current = _current(rows)
    return Data(
        store=store,
        study=study,
        stored=rows,
        rows=current,
        sections=sort(current, study),
        traces={row["id"]: trace for row, trace in found},
    )


def sort(current: list[Row], study: dict[str, Any]) -> list[Section]:
    """The sections of some rows, one per setting; the rows of a search are left to `selection`."""
    current = [row for row in current if not row.get("held_out")]
    groups: dict[str, list[Row]] = {}
    for row in current:
        groups.setdefault(canonical({key: row.get(key) for key in SETTING}), []).append(row)
    settings = {key: by_setting(group) for key, group in groups.items()}
    names = {name for setting in settings.values() for name in setting}
    differing = {name for name in names if len({canonical(setting.get(name)) for setting in settings.values()}) > 1}
    models = _ordered(sorted({str(row.get("model")) for row in current}), study.get("models"))
    order = sorted(groups, key=lambda key: (models.index(str(settings[key].get("model"))), _sortable(settings[key])))

    def title(setting: Mapping[str, Any]) -> str:
        apart = [str(value) if key == "model" else f"{key} {value}" for key, value in setting.items()]
        return ", ".join(text for key, text in zip(setting, apart, strict=True) if key in differing)

    return [section_of(groups[key], settings[key], title(settings[key]), study) for key in order]


def by_setting(rows: list[Row]) -> dict[str, Any]:
    """What the first of some rows of one setting has of `SETTING`, flat."""
    return flat({name: rows[0].get(name) for name in SETTING}) if rows else {}


def canonical(value: Any) -> str:
    """Equal texts for equal values, whatever the order of keys."""
    return json.dumps(value, sort_keys=True)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots; the recipe's keys stand without prefix, as they are typed."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            result.update(flat(item, "" if name == "recipe" else f"{name}."))
        else:
            result[name] = item
    return result


def pairing(row: Row) -> tuple[str, str, str] | None:
    """What proves a pair: the hashes of head, order and data; None where one is missing."""
    hashes = row.get("hashes") or {}
    found = tuple(hashes.get(name) for name in ("init", "order", "data"))
    return None if None in found else found  # type: ignore[return-value]


def bare(label: str) -> str:
    """A label as the run was called, without the marks that a report puts behind it."""
    return label.removesuffix(NO_EFFECT).removesuffix(ANY_ORDER)


def is_vanilla(parts: list[dict[str, Any]]) -> bool:
    """Whether a stack is fine-tuning without any method."""
    return [part["name"] for part in parts] == ["vanilla"]


def _current(rows: list[Row]) -> list[Row]:
    """One row per run: those of the newest method versions, and of these the one that finished last."""

    def label(row: Row) -> str:
        return canonical([row.get(key) for key in ("method", *SETTING)])

    def versions(row: Row) -> list[int]:
        return [part.get("version") or 0 for part in row.get("methods") or []]

    labels = [label(row) for row in rows]
    newest: dict[str, list[int]] = {}
    for name, row in zip(labels, rows, strict=True):
        newest[name] = max(newest.get(name, []), versions(row))
    latest: dict[tuple[str, str, int], Row] = {}
    for name, row in zip(labels, rows, strict=True):
        key = (name, row["task"], row["seed"])
        if versions(row) == newest[name]:
            other = latest.get(key)
            if other is None or str(row.get("finished") or "") >= str(other.get("finished") or ""):
                latest[key] = row
    return list(latest.values())


def section_of(rows: list[Row], setting: dict[str, Any], title: str, study: Mapping[str, Any]) -> Section:
    """A section of rows of one setting."""
    stretched = {float(row["stretch"]): str(row["method"]) for row in rows if row.get("stretch", 1) != 1}
    parts = {row["method"]: list(row.get("methods") or []) for row in rows if row.get("stretch", 1) == 1}
    plain = [label for label in sorted(parts) if is_vanilla(parts[label]) and _keeps_dropout(parts[label])]
    baseline = plain[0] if plain else None
    methods = _ordered(sorted(parts, key=lambda label: (len(parts[label]), label)), study.get("methods"))
    methods.sort(key=lambda label: (label != baseline, not is_vanilla(parts[label])))  # the baseline, then its controls
    tasks = _ordered(sorted({row["task"] for row in rows}), study.get("tasks"))
    columns = [column for task in tasks for column in _columns(task, [row for row in rows if row["task"] == task])]
    suite = []
    for task in tasks:
        own = [column for column in columns if column.task == task]
        splits = tuple(split for column in own if column.metric == own[0].metric for split in column.splits)
        suite.append(Column(task, splits, own[0].metric, task))
    return Section(
        title=title,
        setting=setting,
        methods=tuple(methods),
        tasks=tuple(tasks),
        seeds=tuple(sorted({row["seed"] for row in rows})),
        runs={(row["method"], row["task"], row["seed"]): row for row in rows},
        baseline=baseline,
        reference=baseline,
        columns=tuple(columns),
        suite=tuple(suite),
        stretched=dict(sorted(stretched.items())),
    )


def _columns(task: str, rows: list[Row]) -> Iterator[Column]:
    found = sorted(
        {
            (row["metric"], split)
            for row in rows
            if row["status"] == "done"
            for split, metrics in (row.get("metrics") or {}).items()
            if row["metric"] in metrics and split != HELD_OUT
        }
    )
    if not found:
        metric = str(rows[0].get("metric") or "")
        yield Column(task, (), metric, f"{task} {metric}".strip())
    for metric, split in found:
        several = len({other for _, other in found}) > 1
        named = f"{task} {split.removeprefix('validation_')}" if several else task
        yield Column(task, (split,), metric, f"{named} {metric}")


def _keeps_dropout(parts: list[dict[str, Any]]) -> bool:
    return str((parts[0].get("parameters") or {}).get("dropout", "keep")) == "keep"


def _ordered(names: list[str], asked: Any) -> list[str]:
    """The names, those that were asked for first and in that order."""
    marked = {bare(name): name for name in names}
    wanted = [marked[name] for name in asked or () if name in marked]
    return wanted + [name for name in names if name not in wanted]


def _sortable(setting: Mapping[str, Any]) -> list[tuple[bool, float, str]]:
    """Numbers in their order, texts in theirs."""
    return [
        (not isinstance(value, int | float), float(value) if isinstance(value, int | float) else 0.0, str(value))
        for _, value in sorted(setting.items())
    ]
