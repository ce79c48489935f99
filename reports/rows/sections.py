"""Sort rows into sections of one setting each, with methods, columns and pairs.

A section holds the runs of one model, learning rate and other setting; nothing is ever compared across sections. Tasks
that each have a recipe of their own are in one section.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from finetune_bench.files import Damaged
from finetune_bench.recipe import FORMER_LAYOUTS, OPTIMIZERS
from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.joining import joined, joined_setting, own_models
from finetune_bench.reports.rows.kinds import (
    covered,
    newest_of,
    others_text,
    shard_text,
    told_apart,
    with_fingerprints,
)
from finetune_bench.store import row_index
from finetune_bench.store.row import MethodEntry, Row, Status
from finetune_bench.store.row_index import Trace
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT

# Stands behind the label of a stack whose orders all did the same.
ANY_ORDER = " (any order)"
# Stands behind the label of a method of which no run differs from its twin.
NO_EFFECT = " (no effect)"
# Runs are compared within one setting: these keys of a row have to be equal. `examples` is set where a task's data
# changed, see `kinds.told_apart`.
SETTING = ("model", "recipe", "limit_train", "device", "threads", "examples")


@dataclass(frozen=True)
class Column:
    """A column is one score that is compared in a table.

    Attributes:
        task: The task's name; "" for the mean over all tasks.
        splits: The evaluation splits; several stand for the mean of their scores, none for a task without a score yet.
        metric: The score's name.
        title: What tables write above it; the split is named only where the task has several.
    """

    task: str
    splits: tuple[str, ...]
    metric: str
    title: str


@dataclass(frozen=True, eq=False)  # Two sections are never equal, so that answers can be kept by section.
class Section:
    """A section holds the runs of one setting; or of several, each with tasks of its own.

    Attributes:
        title: What sets this section apart; "" where there is only one.
        setting: Model, recipe and the other keys of `SETTING`, flat; what differs by task is a text that says so.
        methods: Labels, the baseline first.
        tasks: Names of the tasks.
        seeds: Seeds that any run has, ascending.
        runs: Rows of every status by (method, task, seed).
        baseline: Label of vanilla with its default dropout; None where it wasn't run.
        reference: What differences are to: the baseline, or the method that the reader chose.
        columns: One per task and split.
        suite: One per task; its splits are averaged.
        longer_vanilla: By step factor, the labels of vanilla trained for so many times its steps; they are in `runs`,
            not in `methods`.
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
    longer_vanilla: Mapping[float, str]

    @cached
    def rows(self, method: str, task: str | None = None, status: Status | None = None) -> list[Row]:
        """Return a method's rows, by task and seed."""
        return [
            row
            for name in ([task] if task is not None else self.tasks)
            for seed in self.seeds
            if (row := self.runs.get((method, name, seed))) is not None and status in (None, row["status"])
        ]

    def score(self, method: str, column: Column, seed: int) -> float:
        """Return the score in points (×100), NaN where there is none."""
        row = self.runs.get((method, column.task, seed))
        if row is None or row["status"] != Status.DONE or row["metric"] != column.metric or not column.splits:
            return math.nan
        metrics = row.get("metrics") or {}
        values = [metrics.get(split, {}).get(column.metric) for split in column.splits]
        known = [value for value in values if value is not None]
        return 100 * (sum(known) / len(known)) if len(known) == len(values) else math.nan

    @cached
    def scores(self, method: str, column: Column) -> np.ndarray:
        """Return the (seeds,) scores in points, NaN where there is none."""
        return _read_only([self.score(method, column, seed) for seed in self.seeds])

    @cached
    def collapse_mask(self, method: str, task: str) -> np.ndarray:
        """Return (seeds,) whether the run is done and counts as collapsed."""
        rows = [self.runs.get((method, task, seed)) for seed in self.seeds]
        return _read_only(
            [row is not None and row["status"] == Status.DONE and bool(row.get("collapsed")) for row in rows]
        )

    def paired(self, method: str, other: str, task: str, seed: int) -> bool:
        """Return whether both runs are done and started from the same head, on the same examples in the same order."""
        hashes = self._hashes(method, task)[seed]
        return hashes is not None and hashes == self._hashes(other, task)[seed]

    @cached
    def _hashes(self, method: str, task: str) -> dict[int, tuple[str, str, str] | None]:
        """Return by seed what proves a pair; None where there is no finished run or no proof."""
        rows = {seed: self.runs.get((method, task, seed)) for seed in self.seeds}
        return {
            seed: pairing_hashes(row) if row and row["status"] == Status.DONE else None for seed, row in rows.items()
        }

    @cached
    def paired_scores(self, method: str, reference: str, column: Column) -> np.ndarray:
        """Return the (seeds,) scores of the runs that are paired with the reference's, NaN elsewhere."""
        proven = self.paired_mask(method, reference, column.task)
        return _read_only(np.where(proven, self.scores(method, column), np.nan))

    @cached
    def paired_mask(self, method: str, reference: str, task: str) -> np.ndarray:
        """Return (seeds,) whether both runs are paired, see `paired`."""
        hashes, reference_hashes = self._hashes(method, task), self._hashes(reference, task)
        return _read_only([hashes[seed] is not None and hashes[seed] == reference_hashes[seed] for seed in self.seeds])

    @cached
    def done_mask(self, method: str, task: str) -> np.ndarray:
        """Return (seeds,) whether the run is done."""
        rows = [self.runs.get((method, task, seed)) for seed in self.seeds]
        return _read_only([row is not None and row["status"] == Status.DONE for row in rows])

    @cached
    def parts(self, method: str) -> list[MethodEntry]:
        """Return the stack that a label stands for, outermost method first."""
        return list(self.rows(method)[0].get("methods") or [])

    @cached
    def dropout(self, method: str) -> str:
        """Return the realised dropout as comparable text; "" where it isn't known or runs differ."""
        realised = [row.get("dropout") for row in self.rows(method, status=Status.DONE)]
        distinct = {canonical(dropout) for dropout in realised if dropout is not None}
        return distinct.pop() if len(distinct) == 1 else ""

    @cached
    def controls(self) -> list[str]:
        """Return the labels of vanilla with other than its default dropout."""
        return [label for label in self.methods if label != self.baseline and is_vanilla(self.parts(label))]

    @cached
    def control(self, method: str) -> str | None:
        """Return the control whose realised dropout is this method's, where that isn't the baseline's.

        That is vanilla with another dropout, or dropout's rates alone.
        """
        dropout = self.dropout(method)
        if not dropout or (self.baseline is not None and dropout == self.dropout(self.baseline)):
            return None
        of_rates = [label for label in self.methods if [part["name"] for part in self.parts(label)] == ["dropout"]]
        candidates = [label for label in (*self.controls(), *of_rates) if label != method]
        return next((label for label in candidates if self.dropout(label) == dropout), None)


def _read_only(values: ArrayLike) -> np.ndarray:
    """Return an array that nobody can change, since answers are shared."""
    array = np.array(values)
    array.flags.writeable = False
    return array


@dataclass
class Data:
    """A report reads a store's rows in this form.

    Attributes:
        store: Where they were read from.
        study: The study that the store was made for.
        stored: All rows that the report covers, as they are in the store.
        rows: Those that count, the newest of each run, with the labels that tables show.
        sections: The rows by setting.
        traces: What was recorded while training, by id of the row.
        options: What the reader asked for.
        outdated: Rows that are left out for an older version of a method, its former defaults, or another source.
        notes: Sentences about what the report covers, and about names that stand for several things.
        damaged: What the store has but can't be read, by name of its folder or file.
    """

    store: Store
    study: dict[str, Any]
    stored: list[Row]
    rows: list[Row]
    sections: list[Section]
    traces: Mapping[str, Trace]
    options: Options = DEFAULT
    outdated: Sequence[Row] = ()
    notes: Sequence[str] = ()
    damaged: Mapping[str, Damaged] = field(default_factory=dict)

    def trace(self, row: Row) -> dict[str, np.ndarray]:
        """Return the training trace of a run; empty where it has none."""
        return self.traces[row["id"]].arrays()

    def digest(self, row: Row) -> str | None:
        """Return a hash of the recorded losses and weight sketches: equal for runs that did the same."""
        return self.traces[row["id"]].digest

    def examples(self, row: Row) -> dict[str, int]:
        """Return the number of evaluation examples by split."""
        return self.traces[row["id"]].examples


def read_data(store: Store, options: Options = DEFAULT) -> Data:
    """Read what a report covers of a store, and sort its rows into sections."""
    study = store.study()
    indexed, damaged = row_index.read(store)
    rows, others = covered([row for row, _ in indexed], study, options)
    distinct, notes = told_apart([with_fingerprints(store, row) for row in rows])
    newest, outdated = newest_of(distinct, _settings(distinct), [_chosen_among(row) for row in distinct])
    return Data(
        store=store,
        study=study,
        stored=rows,
        rows=newest,
        sections=into_sections(newest, study),
        traces={row["id"]: trace for row, trace in indexed},
        options=options,
        outdated=outdated,
        notes=[*shard_text(rows, study), *others_text(others), *notes],
        damaged=damaged,
    )


def into_sections(rows: list[Row], study: dict[str, Any]) -> list[Section]:
    """Return the sections of some rows, one per setting, or for several that have no task in common.

    The rows of a search are left to `topics.search`.
    """
    rows = [row for row in rows if not row.get("held_out")]
    by_setting: dict[str, list[Row]] = {}
    for row, setting in zip(rows, _settings(rows), strict=True):
        by_setting.setdefault(setting, []).append(row)
    models = _ordered(sorted({str(row.get("model")) for row in rows}), study.get("models"))

    def tasks_of(group: list[Row]) -> list[str]:
        return _ordered(sorted({row["task"] for row in group}), study.get("tasks"))

    found = []
    for group in joined(list(by_setting.values())):
        parts = sorted(((setting_of(part), tasks_of(part)) for part in group), key=lambda part: _sortable(part[0]))
        found.append((joined_setting(parts), [row for part in group for row in part]))
    found.sort(key=lambda each: (models.index(str(each[0].get("model"))), _sortable(each[0])))
    titles = titles_of([setting for setting, _ in found])
    return [section_of(of, setting, title, study) for (setting, of), title in zip(found, titles, strict=True)]


def titles_of(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each setting what sets it apart from the others; "" where there is only one.

    Where each has a model of its own, its name does.
    """
    if models := own_models(settings):
        return models
    names = {name for setting in settings for name in setting}
    differing = {name for name in names if len({canonical(setting.get(name)) for setting in settings}) > 1}
    return [
        ", ".join(
            str(value) if key == "model" else f"{key} {value}" for key, value in setting.items() if key in differing
        )
        for setting in settings
    ]


def _settings(rows: Sequence[Row]) -> list[str]:
    """Return what each row has of `SETTING`, as comparable text."""
    # Rows of one store share their recipes, and a text is made once for ten thousand of them.
    texts: dict[tuple[object, ...], str] = {}
    settings = []
    for row in rows:
        values = [row.get(key) for key in SETTING]
        met = tuple(value if isinstance(value, str | None) else id(value) for value in values)
        if met not in texts:
            texts[met] = canonical(values)
        settings.append(texts[met])
    return settings


def setting_of(rows: list[Row]) -> dict[str, Any]:
    """Return what the first of some rows of one setting has of `SETTING`, flat; empty without rows."""
    setting = flat({name: rows[0].get(name) for name in SETTING}) if rows else {}
    if "lr" in setting:
        setting = {"optimizer": OPTIMIZERS[0]} | setting  # which recipes leave out
    words = {"arrangement": ("batch_layout", FORMER_LAYOUTS.get(str(setting.get("arrangement"))))}
    return dict(words.get(key, (key, value)) for key, value in setting.items())


def canonical(value: Any) -> str:
    """Return a text that is equal for equal values, whatever the order of their keys."""
    return json.dumps(value, sort_keys=True)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a mapping with nested keys joined by dots; the recipe's keys stand without prefix, as they are typed."""
    result: dict[str, Any] = {}
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            result.update(flat(item, "" if name == "recipe" else f"{name}."))
        else:
            result[name] = item
    return result


def pairing_hashes(row: Row) -> tuple[str, str, str] | None:
    """Return what proves a pair: the hashes of head, order and data; None where one is missing."""
    hashes = row.get("hashes")
    if not hashes:
        return None
    init, order, data = hashes.get("init"), hashes.get("order"), hashes.get("data")
    return None if init is None or order is None or data is None else (init, order, data)


def bare(label: str) -> str:
    """Return a name as it was typed, without the marks that a report puts behind it."""
    return re.sub(r" \[[^][]*\]$", "", label.removesuffix(NO_EFFECT).removesuffix(ANY_ORDER))


def is_vanilla(parts: list[MethodEntry]) -> bool:
    """Return whether a stack is fine-tuning without any method."""
    return [part["name"] for part in parts] == ["vanilla"]


def is_baseline(parts: list[MethodEntry]) -> bool:
    """Return whether a stack is fine-tuning without any method and with the model's own dropout."""
    return is_vanilla(parts) and str((parts[0].get("parameters") or {}).get("dropout", "keep")) == "keep"


def referring(section: Section, baseline: str) -> Section:
    """Return the section with another reference, first among its methods; without one where it lacks that method."""
    label = next((method for method in section.methods if bare(method) == baseline), None)
    methods = tuple(sorted(section.methods, key=lambda method: method != label))
    return dataclasses.replace(section, reference=label, methods=methods)


def _chosen_among(row: Row) -> str:
    """Return the setting that the settings to choose among have in common; "" for a row that nothing is chosen by."""
    return canonical([row["held_out"], *(without_rate(row, key) for key in SETTING)]) if row.get("held_out") else ""


def without_rate(row: Row, key: str) -> Any:
    """Return what a row has of a key of `SETTING`; of the recipe all but the learning rate."""
    return {**row["recipe"], "lr": None} if key == "recipe" else row.get(key)


def section_of(rows: list[Row], setting: dict[str, Any], title: str, study: Mapping[str, Any]) -> Section:
    """Return the section of some rows of one setting."""
    longer = {float(row["stretch"]): str(row["method"]) for row in rows if row.get("stretch", 1) != 1}
    parts = {row["method"]: list(row.get("methods") or []) for row in rows if row.get("stretch", 1) == 1}
    plain = [label for label in sorted(parts) if is_baseline(parts[label])]
    baseline = plain[0] if plain else None
    methods = _ordered(sorted(parts, key=lambda label: (len(parts[label]), label)), study.get("methods"))
    # The baseline first, then its controls.
    methods.sort(key=lambda label: (label != baseline, not is_vanilla(parts[label])))
    tasks = _ordered(sorted({row["task"] for row in rows}), study.get("tasks"))
    columns = [column for task in tasks for column in _columns(task, [row for row in rows if row["task"] == task])]
    suite = []
    for task in tasks:
        of_task = [column for column in columns if column.task == task]
        metric = of_task[0].metric
        splits = tuple(split for column in of_task if column.metric == metric for split in column.splits)
        suite.append(Column(task, splits, metric, task))
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
        longer_vanilla=dict(sorted(longer.items())),
    )


def _columns(task: str, rows: list[Row]) -> Iterator[Column]:
    scored = sorted(
        {
            (row["metric"], split)
            for row in rows
            if row["status"] == Status.DONE
            for split, metrics in (row.get("metrics") or {}).items()
            if row["metric"] in metrics and split != HELD_OUT
        }
    )
    if not scored:
        metric = str(rows[0].get("metric") or "")
        yield Column(task, (), metric, f"{task} {metric}".strip())
    for metric, split in scored:
        several = len({other for _, other in scored}) > 1
        named = f"{task} {split.removeprefix('validation_')}" if several else task
        yield Column(task, (split,), metric, f"{named} {metric}")


def _ordered(names: list[str], asked: Any) -> list[str]:
    """Return the names, those that were asked for first and in that order."""
    wanted = list(asked or ())

    def position(name: str) -> int:
        return next((wanted.index(text) for text in (name, bare(name)) if text in wanted), len(wanted))

    return sorted(names, key=position)


def _sortable(setting: Mapping[str, Any]) -> list[tuple[bool, float, str]]:
    """Return a key that sorts numbers by size and texts by letters."""
    return [
        (not isinstance(value, int | float), float(value) if isinstance(value, int | float) else 0.0, str(value))
        for _, value in sorted(setting.items())
    ]
