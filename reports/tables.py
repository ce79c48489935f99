"""The numbers of a report, as records and DataFrames, before any format: scores, differences, costs, synergies.

Scores and differences are in points (×100). The interval of a contrast between methods is built on the residual
variance of a complete method × seed block where there is one, and on the contrast's own seeds where there is not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from finetune_bench.reports.data import Column, Data, Row, Section, bare, is_vanilla
from finetune_bench.reports.once import once
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

SUITE = "mean over tasks"
TWO_WAY, PAIRED, WELCH, OVER_TASKS = "two-way", "paired t", "Welch–Satterthwaite", "t over tasks"
NEAR_TWIN = 0.05  # of the spread over seeds: a difference that varies less is between runs that did nearly the same
_CLOSED_TO_SHARES = ("accuracy", "f1")  # metrics that are shares, of which a logit can be taken


@dataclass(frozen=True)
class Score:
    """One method's mean on one column, or over the suite.

    Attributes:
        best: the highest mean, and separated from every other method's.
        unscored: runs that ended well but left no finite score.
        missing: of the suite mean, the tasks for which there is no score.
    """

    section: str
    column: Column
    method: str
    estimate: Estimate
    best: bool
    done: int
    failed: int
    skipped: int
    interrupted: int
    collapsed: int
    unscored: int
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A method minus a reference, over pairs.

    Attributes:
        question: "a" for this suite and new seeds, "b" for new tasks.
        interval: what the interval is built on.
        rho: correlation of the two methods across seeds.
        refused: seeds at which both runs ended well but are no pair, since their hashes differ.
        detectable: the true difference that would be found four times in five.
        p: two-sided, on suite means from five seeds on; adjusted by Holm over the section's methods.
    """

    section: str
    column: Column
    method: str
    reference: str
    question: str
    estimate: Estimate
    interval: str
    rho: float = math.nan
    refused: int = 0
    detectable: float = math.nan
    p: float = math.nan


@dataclass(frozen=True)
class Collapsed:
    """A score and a difference with and without collapsed runs."""

    section: str
    column: Column
    method: str
    collapsed: int
    score: Estimate
    score_without: Estimate
    difference: Estimate
    difference_without: Estimate


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of a cost over pairs of runs, relative to the baseline, and the range of the pairs."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cost:
    """What a method costs; ratios are to the baseline, absolute numbers medians over its runs."""

    section: str
    method: str
    runs: int
    time: Ratio
    memory: Ratio
    activations: Ratio
    energy: Ratio
    seconds: float
    examples_per_second: float
    peak_memory_bytes: float
    energy_joules: float
    forwards_per_step: float
    backwards_per_step: float
    setup_seconds: float
    setup_forwards: float
    setup_backwards: float
    trainable_parameters: float
    parameters: float


@dataclass(frozen=True)
class Synergy:
    """What a stack of two gains over the sum of its parts.

    Attributes:
        logit: the same of the log-odds, where the metric is a share; nothing elsewhere. Its interval is of the four
            runs' own seeds.
        note: where a part or the baseline is not the exact one.
    """

    section: str
    column: Column
    method: str
    first: str
    second: str
    baseline: str
    estimate: Estimate
    interval: str
    logit: Estimate
    note: str


# --- scores -----------------------------------------------------------------------------------------------------------


def suite_column(section: Section) -> Column:
    """The column of the mean over all tasks of a section."""
    return Column("", (), SUITE, f"mean over {len(section.tasks)} tasks")


@once
def scores(section: Section) -> list[Score]:
    """Every method on every column, and over the suite where there are several tasks."""
    result = []
    for column in section.columns:
        best = _best(section, [column])
        for method in section.methods:
            estimate = stats.t_interval(section.scores(method, column))
            result.append(_score(section, column, method, estimate, best=method == best))
    if len(section.tasks) > 1:
        best = _best(section, section.suite)
        for method in section.methods:
            estimates = [stats.t_interval(section.scores(method, column)) for column in section.suite]
            missing = tuple(column.task for column, one in zip(section.suite, estimates, strict=True) if one.n == 0)
            mean = stats.suite_mean(estimates)
            score = _score(section, suite_column(section), method, mean, best=method == best)
            result.append(dataclasses.replace(score, missing=missing))
    return result


def _score(section: Section, column: Column, method: str, estimate: Estimate, *, best: bool) -> Score:
    columns = [column] if column.task else list(section.suite)
    statuses = Counter(row["status"] for one in columns for row in section.rows(method, one.task))
    scored = sum(int(np.isfinite(section.scores(method, one)).sum()) for one in columns)
    return Score(
        section=section.title,
        column=column,
        method=method,
        estimate=estimate,
        best=best,
        done=statuses["done"],
        failed=statuses["failed"],
        skipped=statuses["skipped"],
        interrupted=statuses["interrupted"],
        collapsed=sum(int(section.collapsed(method, one.task).sum()) for one in columns),
        unscored=statuses["done"] - scored,
    )


def _best(section: Section, columns: Sequence[Column]) -> str | None:
    """The best method, if no other is within the noise; None also where any method lacks a run or collapsed."""
    anchor = section.reference or section.methods[0]
    blocks = [block(section, column, anchor) for column in columns]
    with_runs = [m for m in section.methods if any(section.rows(m, column.task, "done") for column in columns)]
    complete = [one for one in blocks if one is not None and list(one.methods) == with_runs]
    if len(with_runs) < 2 or len(complete) < len(blocks) or len({one.scores.shape for one in complete}) > 1:
        return None
    mean = np.mean([one.scores for one in complete], axis=0)
    return with_runs[int(mean.mean(axis=1).argmax())] if stats.best_is_separated(mean) else None


def labels_of(record: Any) -> list[str]:
    """The methods whose runs a score, difference, effect or synergy rests on."""
    if isinstance(record, Attribution):  # of one step between two runs, not of the whole method
        return [record.run, record.against]
    names = ("method", "reference", "first", "second", "baseline")
    return [getattr(record, name) for name in names if hasattr(record, name)]


def cell_ids(section: Section, methods: Iterable[str], column: Column) -> tuple[str, ...]:
    """Ids of the finished runs behind a number: of these methods on the column's task, or on all tasks."""
    task = column.task or None
    return tuple(row["id"] for method in dict.fromkeys(methods) for row in section.rows(method, task, "done"))


# --- differences ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """Methods that share all seeds of a column, proven pairs, none collapsed.

    Attributes:
        scores: (methods, seeds) in points.
        twins: near twins of methods inside, which stay outside: the twin's label, and its scores.
    """

    methods: tuple[str, ...]
    scores: np.ndarray
    twins: Mapping[str, tuple[str, np.ndarray]]

    def around(self, labels: Iterable[str]) -> Block:
        """The block with these methods in it, each near twin among them in the place of its twin, if that is free."""
        wanted = list(labels)
        methods, scores = list(self.methods), self.scores.copy()
        for label in wanted:
            if label in self.twins:
                twin, values = self.twins[label]
                if twin in methods and twin not in wanted:
                    place = methods.index(twin)
                    methods[place], scores[place] = label, values
        return Block(tuple(methods), scores, {})


@once
def block(section: Section, column: Column, anchor: str) -> Block | None:
    """The complete block around `anchor`; None where fewer than two methods or seeds are left, or the anchor collapsed.

    A method with a hole or a collapsed run stays outside, so that its scatter doesn't widen everyone's interval; so
    does a near twin of one that is inside, whose lack of scatter against it would narrow everyone's. A contrast of that
    near twin puts it in its twin's place.
    """
    seeds = np.isfinite(section.paired_scores(anchor, anchor, column))
    if seeds.sum() < 2 or section.collapsed(anchor, column.task)[seeds].any():
        return None
    inside: dict[str, np.ndarray] = {}
    twins: dict[str, tuple[str, np.ndarray]] = {}
    for method in section.methods:
        values = section.paired_scores(method, anchor, column)[seeds]
        broken = not np.isfinite(values).all() or section.collapsed(method, column.task)[seeds].any()
        if broken:
            continue
        near = _near_twins(values, np.stack(list(inside.values()))) if inside else np.zeros(0, dtype=bool)
        if near.any():
            twins[method] = (list(inside)[int(near.argmax())], values)
        else:
            inside[method] = values
    return Block(tuple(inside), np.stack(list(inside.values())), twins) if len(inside) > 1 else None


def _near_twins(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(methods,) whether the difference to each of the others, (methods, seeds), hardly varies over seeds."""
    spread = np.sqrt((scores.var(ddof=1) + others.var(axis=1, ddof=1)) / 2)
    return np.asarray((scores - others).std(axis=1, ddof=1) <= NEAR_TWIN * spread)


def contrast(
    section: Section,
    column: Column,
    weights: Mapping[str, float],
    anchor: str,
    around: Block | None,
    *,
    without_collapsed: bool = False,
) -> tuple[Estimate, str]:
    """A weighted sum of methods on one column, over seeds at which all of them are paired with `anchor`.

    Args:
        weights: by label, summing to 0.
        around: the block of `anchor`.

    Returns:
        The estimate, and what its interval is built on.
    """
    if around is not None and set(weights) <= set((own := around.around(weights)).methods):
        vector = [weights.get(method, 0.0) for method in own.methods]
        return stats.two_way_contrast(own.scores, vector), TWO_WAY
    total = np.zeros(len(section.seeds))
    for method, weight in weights.items():
        values = section.paired_scores(method, anchor, column)
        if without_collapsed:
            values = np.where(section.collapsed(method, column.task), np.nan, values)
        total += weight * values
    return stats.t_interval(total), PAIRED


@once
def differences(section: Section, reference: str, methods: tuple[str, ...] | None = None) -> list[Difference]:
    """Every method minus `reference`: per column, over the suite (question a), and over tasks as units (question b)."""
    compared = [method for method in methods or section.methods if method != reference]
    blocks = {column: block(section, column, reference) for column in {*section.columns, *section.suite}}

    def difference(method: str, column: Column) -> tuple[Estimate, str]:
        return contrast(section, column, {method: 1, reference: -1}, reference, blocks[column])

    result = []
    for method, column in itertools.product(compared, section.columns):
        estimate, interval = difference(method, column)
        own, other = (section.paired_scores(label, reference, column) for label in (method, reference))
        result.append(
            Difference(
                section=section.title,
                column=column,
                method=method,
                reference=reference,
                question="a",
                estimate=estimate,
                interval=interval,
                rho=stats.pairing_correlation(own, other),
                refused=refused(section, method, reference, column.task),
                detectable=stats.minimum_detectable_effect(estimate.standard_error, estimate.df),
            )
        )
    over_suite, over_tasks = [], []
    for method in compared:
        estimates = [difference(method, column)[0] for column in section.suite]
        mean = stats.suite_mean(estimates)
        detectable = stats.minimum_detectable_effect(mean.standard_error, mean.df)
        common = (section.title, suite_column(section), method, reference)
        over_suite.append(Difference(*common, "a", mean, WELCH, detectable=detectable))
        if len(section.tasks) >= 3 and not math.isnan(mean.value):  # two tasks can't speak for others
            tasks = stats.t_interval([estimate.value for estimate in estimates])
            over_tasks.append(Difference(*common, "b", tasks, OVER_TASKS))
    return result + _with_p_values(over_suite) + over_tasks if len(section.tasks) > 1 else _single(result, section)


def _with_p_values(suite: list[Difference]) -> list[Difference]:
    """P-values for the methods with five pairs or more on every task; these are the family that Holm adjusts for."""
    p_values = [one.estimate.p_value if one.estimate.n >= stats.SEEDS_FOR_P else math.nan for one in suite]
    return [dataclasses.replace(one, p=p) for one, p in zip(suite, stats.holm(p_values), strict=True)]


def _single(result: list[Difference], section: Section) -> list[Difference]:
    """With one task and one split, that column is the suite."""
    return _with_p_values(result) if len(section.columns) == 1 else result


def noise_floors(section: Section, reference: str) -> dict[Column, Estimate]:
    """Per column and over the suite: 0 and the interval of a difference between two means of the reference's seeds.

    Question (a). Both means are of as many fresh seeds as the reference has; empty where it has one only.
    """
    floors = {column: stats.noise_floor(section.scores(reference, column)) for column in section.columns}
    suite = stats.suite_mean([stats.noise_floor(section.scores(reference, column)) for column in section.suite])
    floors[suite_column(section)] = suite
    return {} if all(math.isnan(one.high) for one in floors.values()) else floors


def refused(section: Section, method: str, reference: str, task: str) -> int:
    """Seeds at which both runs ended well but are no pair."""
    both = [
        seed
        for seed in section.seeds
        if all(
            (row := section.runs.get((label, task, seed))) is not None and row["status"] == "done"
            for label in (method, reference)
        )
    ]
    return sum(not section.paired(method, reference, task, seed) for seed in both)


@once
def control_differences(section: Section) -> list[Difference]:
    """Every method minus the vanilla control that has its dropout, where that isn't the baseline itself."""
    by_control: dict[str, list[str]] = {}
    for method in section.methods:
        control = section.control(method)
        if control is not None:
            by_control.setdefault(control, []).append(method)
    # Another family than that of the baseline: without p-values, for a second family would need its own declaration.
    return [
        dataclasses.replace(one, p=math.nan)
        for control, methods in by_control.items()
        for one in differences(section, control, tuple(methods))
    ]


def collapsed(section: Section) -> list[Collapsed]:
    """Where a method or the baseline has collapsed runs: its score and difference with and without them."""
    result = []
    reference = section.reference
    for column, method in itertools.product(section.columns, section.methods):
        own = section.collapsed(method, column.task)
        others = section.collapsed(reference, column.task) if reference else np.zeros_like(own)
        if not (own.any() or others.any()):
            continue
        values = section.scores(method, column)
        difference = without = stats.NOTHING
        if reference is not None and method != reference:
            weights = {method: 1.0, reference: -1.0}
            difference = contrast(section, column, weights, reference, None)[0]
            without = contrast(section, column, weights, reference, None, without_collapsed=True)[0]
        result.append(
            Collapsed(
                section.title,
                column,
                method,
                int(own.sum()),
                stats.t_interval(values),
                stats.t_interval(np.where(own, np.nan, values)),
                difference,
                without,
            )
        )
    return result


# --- where a gain comes from ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attribution:
    """One effect of a method: the run that has it minus the run with all before it; the total is against vanilla."""

    section: str
    column: Column
    method: str
    effect: str
    run: str
    against: str
    estimate: Estimate
    interval: str


TOTAL = "total"


def attributions(data: Data, section: Section) -> list[Attribution]:
    """The effects of every method with two or more, all of whose runs are in the section, and their total."""
    chains: Mapping[str, Sequence[Sequence[str]]] = data.study.get("effects") or {}
    within = {label for chain in chains.values() for _, label in chain[:-1]}  # twins of others are no methods
    shown = {bare(label): label for label in section.methods}
    columns = [*section.columns, *([suite_column(section)] if len(section.tasks) > 1 else [])]
    result = []
    for method, chain in chains.items():
        labels = [label for _, label in chain]
        if section.baseline is None or method in within or len(chain) < 2 or not set(labels) <= set(shown):
            continue
        before = section.baseline
        for effect, label in [*chain, (TOTAL, labels[-1])]:
            run, against = shown[label], section.baseline if effect == TOTAL else before
            for column in columns:
                estimate, interval = _gap(section, column, run, against)
                result.append(
                    Attribution(section.title, column, shown[method], effect, run, against, estimate, interval)
                )
            before = run
    return result


def _gap(section: Section, column: Column, run: str, against: str) -> tuple[Estimate, str]:
    """The paired difference of two runs, on their own spread: that of near twins is not that of other methods."""

    def single(one: Column) -> tuple[Estimate, str]:
        return contrast(section, one, {run: 1, against: -1}, section.baseline or against, None)

    if column.task:
        return single(column)
    return stats.suite_mean([single(one)[0] for one in section.suite]), WELCH


# --- cost -------------------------------------------------------------------------------------------------------------


@once
def costs(section: Section) -> list[Cost]:
    """What every method costs."""
    return [_cost(section, method) for method in section.methods]


def seconds(row: Row) -> float:
    """Training seconds: of the process on a CPU, where other processes compete for it, else of the wall clock."""
    name = "train_cpu_seconds" if str(row.get("device")).startswith("cpu") else "train_seconds"
    return number(row, name)


def number(row: Row, name: str) -> float:
    """A figure of a row's cost, NaN where there is none."""
    value = (row.get("cost") or {}).get(name)
    return math.nan if value is None else float(value)


def _cost(section: Section, method: str) -> Cost:
    rows = section.rows(method, status="done")

    def median(name: str) -> float:
        return _median([number(row, name) for row in rows])

    return Cost(
        section=section.title,
        method=method,
        runs=len(rows),
        time=_ratio(section, method, seconds),
        memory=_ratio(section, method, lambda row: number(row, "peak_memory_bytes")),
        activations=_ratio(section, method, lambda row: number(row, "saved_activation_bytes")),
        energy=_ratio(section, method, lambda row: number(row, "energy_joules")),
        seconds=_median([seconds(row) for row in rows]),
        **{name: median(name) for name in _MEDIANS},
    )


_MEDIANS = (
    "energy_joules",
    "examples_per_second",
    "peak_memory_bytes",
    "forwards_per_step",
    "backwards_per_step",
    "setup_seconds",
    "setup_forwards",
    "setup_backwards",
    "trainable_parameters",
    "parameters",
)


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _ratio(section: Section, method: str, cost: Callable[[Row], float]) -> Ratio:
    if section.reference is None:
        return Ratio(math.nan, math.nan, math.nan, 0)
    pairs = [
        (cost(section.runs[method, task, seed]), cost(section.runs[section.reference, task, seed]))
        for task, seed in itertools.product(section.tasks, section.seeds)
        if section.paired(method, section.reference, task, seed)
    ]
    pairs = [pair for pair in pairs if pair[0] > 0 and pair[1] > 0]
    if not pairs:
        return Ratio(math.nan, math.nan, math.nan, 0)
    ratios = [own / other for own, other in pairs]
    value = stats.geometric_mean_ratio([own for own, _ in pairs], [other for _, other in pairs])
    return Ratio(value, min(ratios), max(ratios), len(pairs))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Positions of the points that no cheaper or equally cheap one reaches, cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step, medians over a method's runs; weights are fp32, the optimiser is AdamW.

    Attributes:
        activations: what autograd saves for the backward pass.
        peak: as measured; NaN where it can't be.
    """

    section: str
    method: str
    weights: float
    gradients: float
    optimiser: float
    activations: float
    peak: float


def footprints(section: Section) -> list[Footprint]:
    """Of every method with a run."""
    found = []
    for method in section.methods:
        rows = section.rows(method, status="done")
        sizes = {
            name: _median([number(row, name) for row in rows])
            for name in ("parameters", "trainable_parameters", "saved_activation_bytes", "peak_memory_bytes")
        }
        weights, gradients = 4 * sizes["parameters"], 4 * sizes["trainable_parameters"]
        if math.isfinite(weights + gradients + sizes["saved_activation_bytes"]):
            activations, peak = sizes["saved_activation_bytes"], sizes["peak_memory_bytes"]
            found.append(Footprint(section.title, method, weights, gradients, 2 * gradients, activations, peak))
    return found


# --- compatibility ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """A stack of two, the labels of its parts run alone, the vanilla that it is held against, and what is inexact."""

    method: str
    first: str
    second: str
    baseline: str
    note: str


@once
def combinations(section: Section) -> tuple[list[Combination], list[str]]:
    """The stacks of two whose parts were run alone, and a sentence for each stack without a synergy.

    A part is the single method with the same parameters; where that wasn't run, the method at its defaults, with a
    note. Where stack and parts all realise the same dropout, other than the baseline's, the vanilla control with that
    dropout stands for the baseline: otherwise the change that both parts share would count twice against the stack.
    """
    found, left_out = [], []
    for method in section.methods:
        parts = section.parts(method)
        if len(parts) < 2:
            continue
        if len(parts) > 2:
            left_out.append(f"{method}: synergy is defined for stacks of two.")
            continue
        labels = [_alone(section, part) for part in parts]
        lacking = [part["name"] for part, (label, _) in zip(parts, labels, strict=True) if label is None]
        if lacking or section.baseline is None:
            lacking += [] if section.baseline else ["vanilla"]
            left_out.append(f"{method}: needs {' and '.join(lacking)} run alone in the same setting.")
            continue
        (first, one), (second, other) = labels
        baseline, inexact = _ground(section, method, str(first), str(second), section.baseline)
        note = " ".join(text for text in (one, other, inexact) if text)
        found.append(Combination(method, str(first), str(second), baseline, note))
    return found, left_out


def _alone(section: Section, part: Mapping[str, Any]) -> tuple[str | None, str]:
    def same(label: str) -> bool:
        (other,) = section.parts(label)
        return other["name"] == part["name"] and other.get("parameters") == part.get("parameters")

    singles = [label for label in section.methods if len(section.parts(label)) == 1]
    for label in singles:
        if same(label):
            return label, ""
    if part["name"] in singles:  # a bare name is the label of the defaults
        return part["name"], f"The part {part['name']} was run alone at its default parameters only."
    return None, ""


def _ground(section: Section, method: str, first: str, second: str, baseline: str) -> tuple[str, str]:
    dropouts = {section.dropout(label) for label in (method, first, second)}
    changed = {section.dropout(label) for label in (first, second)} - {section.dropout(baseline), ""}
    if len(dropouts) == 1 and changed:
        control = section.control(method)
        if control is not None:
            return control, ""
    if len(changed) == 1 and section.dropout(first) == section.dropout(second):
        return baseline, "Both parts change the dropout, and no control has it: that change counts twice in the sum."
    return baseline, ""


@once
def synergies(section: Section) -> list[Synergy]:
    """Of every stack of two with its parts: y_AB − y_A − y_B + y_0 per column, and over the suite."""
    result = []
    for one in combinations(section)[0]:
        weights = {one.method: 1.0, one.first: -1.0, one.second: -1.0, one.baseline: 1.0}
        common = (one.method, one.first, one.second, one.baseline)
        for column in section.columns:
            value, interval = _synergy(section, column, weights, one.baseline)
            log_odds = _log_odds(section, column, weights, one.baseline)
            result.append(Synergy(section.title, column, *common, value, interval, log_odds, one.note))
        if len(section.tasks) > 1:
            mean = stats.suite_mean([_synergy(section, column, weights, one.baseline)[0] for column in section.suite])
            result.append(Synergy(section.title, suite_column(section), *common, mean, WELCH, stats.NOTHING, one.note))
    return result


def _synergy(section: Section, column: Column, weights: Mapping[str, float], baseline: str) -> tuple[Estimate, str]:
    return contrast(section, column, weights, baseline, block(section, column, baseline))


def _log_odds(section: Section, column: Column, weights: Mapping[str, float], anchor: str) -> Estimate:
    if column.metric not in _CLOSED_TO_SHARES:
        return stats.NOTHING
    stacked, first, second, none = (
        stats.logit(section.paired_scores(label, anchor, column) / 100) for label in weights
    )
    return stats.synergy(stacked, first, second, none)


# --- what is odd about runs -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """A run that equals another one at every recorded step: whatever tells them apart did nothing."""

    section: str
    method: str
    twin: str
    task: str
    seed: int


def twins(data: Data, section: Section) -> list[Twin]:
    """Runs whose losses and weight sketches are those of vanilla, or of a part of their stack, to the last bit."""
    result = []
    for task, seed in itertools.product(section.tasks, section.seeds):
        digests: dict[str, str] = {}
        for method in section.methods:
            row = section.runs.get((method, task, seed))
            if row is not None and row["status"] == "done" and (found := data.digest(row)) is not None:
                digests[method] = found
        for method, own in digests.items():
            for other in _effect_off(section, method):
                if digests.get(other) == own and section.paired(method, other, task, seed):
                    result.append(Twin(section.title, method, other, task, seed))
                    break
    return result


@once
def _effect_off(section: Section, method: str) -> list[str]:
    """Runs that a method should differ from: vanilla with each dropout, and the parts of a stack."""
    parts = section.parts(method)
    vanilla = [label for label in section.methods if is_vanilla(section.parts(label))]
    if method in vanilla:  # a control is held against those before it, so that a pair is reported once
        return vanilla[: vanilla.index(method)]
    alone = [label for part in parts if len(parts) > 1 and (label := _alone(section, part)[0]) is not None]
    return vanilla + alone


# --- DataFrames -------------------------------------------------------------------------------------------------------

_ESTIMATE = ("value", "low", "high", "n", "df", "standard_error")
_RATIO = ("value", "low", "high", "n")


def as_frame(kind: type[Any], records: Sequence[Any]) -> pd.DataFrame:
    """Records of one kind as a table; estimates and ratios are spread over several columns, named by what they hold."""
    return pd.DataFrame([_spread(record) for record in records], columns=_header(kind))


def _header(kind: type[Any]) -> list[str]:
    names: list[str] = []
    for field in dataclasses.fields(kind):
        if field.type == "Column":
            names += ["task", "split", "metric"]
        elif field.type == "Estimate":
            names += [_prefix(field.name) + name for name in _ESTIMATE]
        elif field.type == "Ratio":
            names += [f"{field.name}_ratio_{name}" for name in _RATIO]
        else:
            names.append(field.name)
    return names


def _spread(record: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Column):
            result |= {"task": value.task or "(suite)", "split": "+".join(value.splits), "metric": value.metric}
        elif isinstance(value, Estimate):
            result |= {_prefix(field.name) + name: getattr(value, name) for name in _ESTIMATE}
        elif isinstance(value, Ratio):
            result |= {f"{field.name}_ratio_{name}": getattr(value, name) for name in _RATIO}
        elif isinstance(value, tuple):
            result[field.name] = "; ".join(value)
        else:
            result[field.name] = value
    return result


def _prefix(name: str) -> str:
    return "" if name == "estimate" else f"{name}_"
