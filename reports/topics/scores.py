"""The scores of a section are every method's mean on every column, and over the suite."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.document import Entry, bold, bullets, code, table
from finetune_bench.reports.plots.intervals import draw_intervals, limits, name_lines
from finetune_bench.reports.plots.style import (
    GREY,
    caption,
    left_out_text,
    method_style,
    panel_title,
    panels_across,
    scored_columns,
    short,
    shown_methods,
    tell,
    told_estimate,
)
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.text import FEWEST_SEEDS, interval, listed, points
from finetune_bench.reports.topics.contrasts import cell_ids, complete_block, suite_column
from finetune_bench.reports.topics.likelihood import likelihood_blocks
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Status

# In a panel of more dots none says what it is: thousands of texts would make the page heavy.
_TOLD_DOTS = 200

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A score is one method's mean on one column, or over the suite, with counts of its runs by their end.

    Attributes:
        section: Title of the section.
        column: The score that is averaged.
        method: Label of the method.
        estimate: The mean over seeds in points, with its t interval.
        best: Whether it is the highest mean, and separated from every other method's.
        done: Runs that ended well.
        failed: Runs that failed.
        skipped: Runs that can't be.
        interrupted: Runs that were cut off.
        collapsed: Runs that ended well but count as collapsed.
        unscored: Runs that ended well but left no finite score.
        missing: Tasks without a score, because of which there is no mean over the suite.
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


@cached
def scores(section: Section) -> list[Score]:
    """Return the scores of every method on every column, and over the suite where there are several tasks."""
    result = []
    for column in section.columns:
        best = _best(section, [column])
        for method in section.methods:
            estimate = estimates.t_interval(section.scores(method, column))
            result.append(_score(section, column, method, estimate, best=method == best))
    if len(section.tasks) > 1:
        best = _best(section, section.suite)
        for method in section.methods:
            per_task = [estimates.t_interval(section.scores(method, column)) for column in section.suite]
            missing = tuple(column.task for column, mean in zip(section.suite, per_task, strict=True) if mean.n == 0)
            mean = estimates.suite_mean(per_task)
            score = _score(section, suite_column(section), method, mean, best=method == best)
            result.append(dataclasses.replace(score, missing=missing))
    return result


def _score(section: Section, column: Column, method: str, estimate: Estimate, *, best: bool) -> Score:
    columns = [column] if column.task else list(section.suite)
    statuses = Counter(row["status"] for part in columns for row in section.rows(method, part.task))
    scored = sum(int(np.isfinite(section.scores(method, part)).sum()) for part in columns)
    return Score(
        section=section.title,
        column=column,
        method=method,
        estimate=estimate,
        best=best,
        done=statuses[Status.DONE],
        failed=statuses[Status.FAILED],
        skipped=statuses[Status.SKIPPED],
        interrupted=statuses[Status.INTERRUPTED],
        collapsed=sum(int(section.collapse_mask(method, part.task).sum()) for part in columns),
        unscored=statuses[Status.DONE] - scored,
    )


def _best(section: Section, columns: Sequence[Column]) -> str | None:
    """Return the best method if no other is within the noise; None also where any method lacks a run or collapsed."""
    anchor = section.reference or section.methods[0]
    blocks = [complete_block(section, column, anchor) for column in columns]
    with_runs = [
        method
        for method in section.methods
        if any(section.rows(method, column.task, Status.DONE) for column in columns)
    ]
    complete = [block for block in blocks if block is not None and list(block.methods) == with_runs]
    if len(with_runs) < 2 or len(complete) < len(blocks) or len({block.scores.shape for block in complete}) > 1:
        return None
    mean = np.mean([block.scores for block in complete], axis=0)
    return with_runs[int(mean.mean(axis=1).argmax())] if estimates.best_is_separated(mean) else None


def by_column(scores: Sequence[Score]) -> tuple[list[Column], dict[tuple[Column, str], Score]]:
    """Return the columns of a table of scores, and its scores by column and method."""
    columns = list(dict.fromkeys(score.column for score in scores))
    return columns, {(score.column, score.method): score for score in scores}


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    columns, cells = by_column(scores(section))
    rows: list[list[str | Entry]] = [
        [code(method), *(_entry(section, cells[column, method]) for column in columns)] for method in section.methods
    ]
    notes = [
        "Mean over seeds, in brackets its t interval: question (a), n seeds, df = n − 1. All methods share the "
        "seeds, so two of these intervals may overlap although the difference is clear: differences are below.",
        "Bold: the best mean, where Tukey's honest significant difference over all methods sets it apart from every "
        "other. Nothing is bold inside the noise, or where a run is missing or collapsed.",
        f"Below {FEWEST_SEEDS} seeds there is no interval. *: the interval leaves the metric's range and is cut there.",
    ]
    suite = [cells[columns[-1], method] for method in section.methods] if len(section.tasks) > 1 else []
    if suite:
        degrees = [score.estimate.df for score in suite if score.estimate.df > 0]
        text = "Mean over tasks: question (a), variance Σ s²/n over tasks / T², Welch–Satterthwaite's df"
        text += f" ({_range(degrees)})" if degrees else ""
        notes.append(f"{text}, n = the fewest seeds of any task. A task's splits count as one.")
    return [
        table("scores", ["method", *(column.title for column in columns)], rows),
        *bullets([*_mixed_metrics(section), *_missing_suite(suite)] if suite else [], findings=True),
        *bullets(notes),
        *likelihood_blocks(data, section),
        Drawing("scores", "Scores: every seed as a dot, the mean and its interval", partial(draw_scores, section)),
    ]


def _entry(section: Section, score: Score) -> Entry:
    text = score_text(score, _range_of(section, score.column))
    if score.column.task and score.estimate.n == 2:
        # Two seeds make no interval worth showing; here they are themselves.
        values = section.scores(score.method, score.column)
        text = text.replace(" n=2", f" ({listed([points(value) for value in values if np.isfinite(value)])}) n=2", 1)
    mean, space, rest = text.partition(" n=")
    ids = cell_ids(section, [score.method], score.column)
    return Entry(f"{bold(mean)}{space}{rest}" if score.best else text, score.estimate.value, ids)


def metric_range(metric: str) -> tuple[float, float]:
    """Return the lowest and highest value that a metric can have, in points; infinite for one that isn't known."""
    name = metric.partition("(")[0]
    if name in ("matthews", "pearson", "spearman", "pearson_spearman"):
        return -100, 100
    if name in ("neg_rmse", "neg_mae"):
        return -math.inf, 0
    shares = ("accuracy", "balanced_accuracy", "auc", "f1", "precision", "recall")
    return (0, 100) if name.removesuffix("_macro").removesuffix("_weighted") in shares else (-math.inf, math.inf)


def _range_of(section: Section, column: Column) -> tuple[float, float]:
    """Return the range of a column's metric; of the suite the mean of its metrics' ranges."""
    ranges = [metric_range(part.metric) for part in ([column] if column.task else section.suite)]
    return float(np.mean([low for low, _ in ranges])), float(np.mean([high for _, high in ranges]))


def score_text(score: Score, within: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Return a score as tables show it: `71.3 [69.9, 72.8] n=3, 1 failed`.

    Args:
        score: The score.
        within: Lowest and highest value of its metric, at which an interval is cut.
    """
    if score.estimate.n == 0:
        return ", ".join(["—", *(_counts(score) or ([] if score.missing else ["not run"]))])
    return ", ".join([f"{interval(score.estimate, within=within)} n={score.estimate.n}", *_counts(score)])


def _counts(score: Score) -> list[str]:
    counts = {
        "failed": score.failed,
        "skipped": score.skipped,
        "interrupted": score.interrupted,
        "collapsed": score.collapsed,
        "without a score": score.unscored,
    }
    return [f"{number} {name}" for name, number in counts.items() if number]


def _mixed_metrics(section: Section) -> list[str]:
    """Return a warning where the mean over tasks averages different metrics."""
    metrics: dict[str, list[str]] = {}
    for column in section.suite:
        metrics.setdefault(column.metric, []).append(column.task)
    if len(metrics) < 2:
        return []
    parts = "; ".join(f"{metric} ({', '.join(tasks)})" for metric, tasks in metrics.items())
    return [f"The mean over tasks averages different metrics, whose points are not worth the same: {parts}."]


def _missing_suite(scores: Iterable[Score]) -> list[str]:
    """Return which methods have no mean over tasks, and why."""
    return [
        f"{score.method} has no mean over tasks: no score on {listed(score.missing)}."
        for score in scores
        if score.missing
    ]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


# --- the plot ---------------------------------------------------------------------------------------------------------


def draw_scores(section: Section) -> Figure | None:
    """Draw a panel per score: a line per method, every seed a dot, the mean a diamond with its t interval."""
    columns = scored_columns(section)
    if not columns:
        return None
    methods = shown_methods(section)
    means = {(score.column, score.method): score.estimate for score in scores(section)}
    names = [short(method) for method in methods]
    across = panels_across(len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(
        figsize=(0.075 * max(map(len, names)) + 2.6 * across + 0.4, (0.27 * len(methods) + 0.95) * down + 0.3)
    )
    for index, column in enumerate(columns):
        axes = figure.add_subplot(down, across, index + 1)
        low, high = limits(*_fixed_values(section, column, means), longest=3)
        _draw_seeds(axes, section, column, (low, high))
        known = [
            (float(height), means[column, method], method_style(section, method)[0])
            for height, method in enumerate(methods)
            if means[column, method].n
        ]
        within = _range_of(section, column)
        known = [(height, _cut(estimate, within), colour) for height, estimate, colour in known]
        told = [
            (method, told_estimate(method, column.title, means[column, method]))
            for method in methods
            if means[column, method].n
        ]
        draw_intervals(axes, known, (low, high), told=told)
        panel_title(axes, column.title)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.set_ylim(len(methods) - 0.4, -0.6)
        name_lines(axes, names, leftmost=index % across == 0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if section.baseline and means[column, section.baseline].n:
            axes.axvline(means[column, section.baseline].value, color="black", lw=0.8, ls=":", zorder=1)
    marks = "dots: seeds (×: collapsed), diamond: mean, bar: 95 % t interval over seeds (arrow: goes on)"
    caption(figure, "score (× 100)", marks, "dotted: baseline", left_out_text(section))
    return figure


def _cut(estimate: Estimate, within: tuple[float, float]) -> Estimate:
    """Return an estimate whose interval ends where the metric does."""
    low, high = max(estimate.low, within[0]), min(estimate.high, within[1])
    return estimate if math.isnan(estimate.low) else dataclasses.replace(estimate, low=low, high=high)


def _draw_seeds(axes: Axes, section: Section, column: Column, ends: tuple[float, float]) -> None:
    """Draw every seed a little below its method's line, so that it doesn't hide the interval."""
    low, high = ends
    dots: list[tuple[float, float]] = []
    colours: list[str] = []
    told: list[tuple[str, str]] = []
    for height, method in enumerate(shown_methods(section)):
        colour, _, _ = method_style(section, method)
        values = section.scores(method, column)
        broken = section.collapse_mask(method, column.task) & np.isfinite(values)
        fine = values[np.isfinite(values) & ~broken]
        dots += [(value, height + 0.2) for value in fine]
        told += [
            (method, f"{method} on {column.title}, seed {seed}: {value:.2f}")
            for seed, value, odd in zip(section.seeds, values, broken, strict=True)
            if np.isfinite(value) and not odd
        ]
        colours += [colour] * len(fine)
        for value in values[broken]:
            axes.plot([min(max(value, low), high)], [height + 0.2], "x", ms=4.5, mew=1.2, color=colour)
            if not low <= value <= high:
                x, side = (low, "left") if value < low else (high, "right")
                axes.text(x, height + 0.22, f"   {value:.1f}   ", ha=side, va="center", fontsize=7, color=colour)
        if not np.isfinite(values).any():
            axes.text(low, height, " no score", va="center", fontsize=7.5, color=GREY)
    if dots:
        xs, ys = zip(*dots, strict=True)
        drawn = axes.scatter(xs, ys, s=11, c=colours, linewidths=0, alpha=0.6)
        if len(told) <= _TOLD_DOTS:
            tell(drawn, *zip(*told, strict=True))


def _fixed_values(
    section: Section, column: Column, means: Mapping[tuple[Column, str], Estimate]
) -> tuple[np.ndarray, list[Estimate]]:
    """Return what the axis must hold: all means, and seeds that didn't collapse; a collapsed run would flatten them."""
    values = []
    for method in shown_methods(section):
        values.append(np.where(section.collapse_mask(method, column.task), np.nan, section.scores(method, column)))
        values.append(np.array([means[column, method].value]))
    return np.concatenate(values), [means[column, method] for method in shown_methods(section)]


TOPIC = Topic(
    title="Scores",
    blocks=_blocks,
    frame=Frame(
        file="comparison",
        record=Score,
        records=lambda data, section: scores(section),
        methods=lambda score: [score.method],
    ),
)
