"""The scores of a section."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, Entry, bold, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.reports.text import counted, interval, listed
from finetune_bench.reports.topics.contrasts import block, cell_ids, contrast, suite_column
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate


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


def mixed_metrics(section: Section) -> str | None:
    """A warning where the mean over tasks averages different metrics."""
    metrics: dict[str, list[str]] = {}
    for column in section.suite:
        metrics.setdefault(column.metric, []).append(column.task)
    if len(metrics) < 2:
        return None
    parts = [f"{metric} ({', '.join(tasks)})" for metric, tasks in metrics.items()]
    return f"The mean over tasks averages different metrics, whose points are not worth the same: {'; '.join(parts)}."


def missing_suite(scores: Iterable[Score]) -> list[str]:
    """Methods without a mean over tasks, and why."""
    return [
        f"{score.method} has no mean over tasks: no score on {listed(score.missing)}."
        for score in scores
        if score.missing
    ]


def by_column(scores: Sequence[Score]) -> tuple[list[Column], dict[tuple[Column, str], Score]]:
    """The columns of a table of scores, and its scores by column and method."""
    columns = list(dict.fromkeys(score.column for score in scores))
    return columns, {(score.column, score.method): score for score in scores}


def _counts(score: Score) -> list[str]:
    counts = {
        "failed": score.failed,
        "skipped": score.skipped,
        "interrupted": score.interrupted,
        "collapsed": score.collapsed,
        "without a score": score.unscored,
    }
    return [f"{number} {name}" for name, number in counts.items() if number]


def score_text(score: Score) -> str:
    """`71.3 [69.9, 72.8] n=3, 1 failed`."""
    if score.estimate.n == 0:
        return ", ".join(["—", *(_counts(score) or ([] if score.missing else ["not run"]))])
    return ", ".join([f"{interval(score.estimate)} n={score.estimate.n}", *_counts(score)])


def _scores(section: Section) -> list[Block]:
    columns, cells = by_column(scores(section))

    def entry(score: Score) -> Entry:
        text = score_text(score)
        mean, space, rest = text.partition(" n=")
        ids = cell_ids(section, [score.method], score.column)
        return Entry(f"{bold(mean)}{space}{rest}" if score.best else text, score.estimate.value, ids)

    rows: list[list[str | Entry]] = [
        [code(method), *(entry(cells[column, method]) for column in columns)] for method in section.methods
    ]
    notes = [
        "Mean over seeds, in brackets its t interval: question (a), n seeds, df = n − 1. All methods share the "
        "seeds, so two of these intervals may overlap although the difference is clear: differences are below.",
        "Bold: the best mean, where Tukey's honest significant difference over all methods sets it apart from every "
        "other. Nothing is bold inside the noise, or where a run is missing or collapsed.",
    ]
    suite = [cells[columns[-1], method] for method in section.methods] if len(section.tasks) > 1 else []
    if suite:
        degrees = [score.estimate.df for score in suite if score.estimate.df > 0]
        text = "Mean over tasks: question (a), variance Σ s²/n over tasks / T², Welch–Satterthwaite's df"
        text += f" ({_range(degrees)})" if degrees else ""
        notes.append(f"{text}, n = the fewest seeds of any task. A task's splits count as one.")
        if mixed := mixed_metrics(section):
            notes.append(mixed)
        notes += missing_suite(suite)
    return [table("scores", ["method", *(column.title for column in columns)], rows), *bullets(notes)]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


def _collapsed(section: Section) -> list[Block]:
    found = collapsed(section)
    if not found:
        return []
    rows = [
        [
            one.column.title,
            code(one.method),
            str(one.collapsed),
            f"{interval(one.score)} n={one.score.n}",
            f"{interval(one.score_without)} n={one.score_without.n}",
            _with_n(one.difference),
            _with_n(one.difference_without),
        ]
        for one in found
    ]
    rates = []
    for method in section.methods:
        runs = len(section.rows(method, status="done"))
        number = sum(int(section.collapsed(method, task).sum()) for task in section.tasks)
        if number:
            low, high = stats.clopper_pearson(number, runs)
            rates.append(
                f"{code(method)}: {number} of {counted(runs, 'run')} collapsed, {100 * number / runs:.0f} % "
                f"[{100 * low:.0f}, {100 * high:.0f}] (Clopper–Pearson, n={runs}, taking tasks and seeds as alike)."
            )
    header = ("score", "method", "collapsed", "mean, all", "mean without", "difference, all", "difference without")
    note = (
        "Question (a), t intervals on the method's own seeds, df = n − 1; a difference without collapsed runs "
        "leaves out each pair in which either run collapsed. Leaving runs out after seeing them answers what "
        "happens if training works, not what to expect."
    )
    return [table("collapsed", header, rows), *bullets([note, *rates])]


def _with_n(estimate: stats.Estimate) -> str:
    return "—" if estimate.n == 0 else f"{interval(estimate, sign=True)} n={estimate.n}"
