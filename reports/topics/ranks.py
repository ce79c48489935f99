"""Methods over all tasks: mean ranks, normalised scores, and their plots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetune_bench.reports.document import Entry, bullets, code, table
from finetune_bench.reports.plots.style import (
    GREY,
    caption,
    left_out_text,
    legend,
    legend_handle,
    method_style,
    short,
    shown_methods,
    tell,
)
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.text import listed
from finetune_bench.reports.topics.contrasts import cell_ids, suite_column
from finetune_bench.reports.topics.topic import Drawing, Topic, TopicBlock
from finetune_bench.stats import estimates, robust
from finetune_bench.store.row import Status

# The diagram of ranks has room for so many methods.
_MAX_RANKED = 40
# Over fewer tasks the critical difference is as long as the axis.
_FEWEST_TASKS = 4

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """A ranking compares methods over tasks; each task's score is counted once.

    Attributes:
        methods: Labels of the methods with a score on every task.
        ranks: Ranks of the task means; None below three methods or two tasks.
        normalised: (tasks, seeds) scores by method: 0 is the constant prediction, 1 the best method's mean.
        left_out: Labels of the methods without a score on every task.
        unscaled: Tasks where no method beats the constant prediction; they are in no normalised score.
    """

    methods: tuple[str, ...]
    ranks: robust.Ranks | None
    normalised: dict[str, np.ndarray]
    left_out: tuple[str, ...]
    unscaled: tuple[str, ...]


@cached
def ranking(section: Section) -> Ranking | None:
    """Return ranks and normalised scores; None with one task or one method."""
    means = {
        method: np.array([estimates.t_interval(section.scores(method, column)).value for column in section.suite])
        for method in section.methods
    }
    methods = tuple(method for method, values in means.items() if np.isfinite(values).all())
    if len(methods) < 2 or len(section.suite) < 2:
        return None
    task_means = np.stack([means[method] for method in methods])
    best_means = task_means.max(axis=0)
    scales = {
        column: (constant_score(section, column), float(best))
        for column, best in zip(section.suite, best_means, strict=True)
    }
    usable = [column for column, (worst, best) in scales.items() if best > worst]
    normalised = {
        method: np.stack([robust.normalise(section.scores(method, column), *scales[column]) for column in usable])
        for method in methods
        if usable
    }
    return Ranking(
        methods=methods,
        ranks=robust.rank_test(task_means) if len(methods) > 2 else None,
        normalised=normalised,
        left_out=tuple(method for method in section.methods if method not in methods),
        unscaled=tuple(column.task for column in section.suite if column not in usable),
    )


def constant_score(section: Section, column: Column) -> float:
    """Return the score in points of the constant prediction; NaN where no run tells."""
    for method in section.methods:
        for row in section.rows(method, column.task, Status.DONE):
            majority = row.get("majority") or {}
            scores = [(majority.get(split) or {}).get(column.metric) for split in column.splits]
            values = [score for score in scores if score is not None]
            if values and len(values) == len(column.splits):
                return 100 * float(np.mean(values))
    return math.nan


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    order = ranking(section)
    if order is None:
        return []
    alt = "Performance profiles: share of runs above each normalised score"
    return [
        *_table(section, order),
        Drawing("ranks", "Mean ranks over tasks with the critical difference", partial(draw_ranks, section)),
        Drawing("profile", alt, partial(draw_profile, section)),
    ]


def _table(section: Section, order: Ranking) -> list[TopicBlock]:
    rows: list[list[str | Entry]] = []
    for index, method in enumerate(order.methods):
        normalised = order.normalised.get(method)
        runs = cell_ids(section, [method], suite_column(section))
        place = mean_rank = Entry("—")
        if order.ranks:
            first, last = places(order.ranks)[index]
            place = Entry(f"{first}–{last}" if first < last else str(first), first + last / 1000, runs)
            mean_rank = Entry(f"{order.ranks.mean[index]:.2f}", float(order.ranks.mean[index]), runs)
        values = [] if normalised is None else [robust.interquartile_mean(normalised), float(np.nanmean(normalised))]
        shown = [Entry(f"{value:.3f}", value, runs) for value in values] or [Entry("—")] * 2
        rows.append([code(method), place, mean_rank, *shown])
    notes = []
    if order.ranks:
        notes.append(
            "Place: the best and the worst that the critical difference leaves open; methods that share places are "
            f"tied. Mean rank over {order.ranks.n} tasks, 1 is the best; question (b). Friedman's test that all are "
            f"alike: p {_signed_p(order.ranks.p)}. Mean ranks less than {order.ranks.critical_difference:.2f} apart "
            "do not differ clearly (Nemenyi, 95 % for all pairs). Ranks depend on who else is in the pool."
        )
    notes.append(
        "Normalised: 0 is the constant prediction's score, 1 the best method's mean, per task. The interquartile mean "
        "leaves out the lowest and the highest quarter of all runs."
    )
    left_out = []
    if order.left_out:
        left_out.append(
            f"Without a score on every task, so not here: {listed([code(method) for method in order.left_out])}."
        )
    if order.unscaled:
        left_out.append(
            f"No method beats the constant prediction on {listed(order.unscaled)}; no normalised score has it."
        )
    header = ["method", "place", "mean rank", "interquartile mean", "mean, normalised"]
    return [table("ranks", header, rows), *bullets(left_out, findings=True), *bullets(notes)]


def places(ranks: robust.Ranks) -> list[tuple[int, int]]:
    """Return the first and last place of each method that the critical difference leaves open."""
    mean, difference = ranks.mean, ranks.critical_difference
    return [
        (1 + int((mean < rank - difference).sum()), len(mean) - int((mean > rank + difference).sum())) for rank in mean
    ]


def _signed_p(p: float) -> str:
    """Write a p-value with the sign that stands before it."""
    return "undefined, every task ties" if math.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"


# --- the plots --------------------------------------------------------------------------------------------------------


def draw_ranks(section: Section) -> Figure | None:
    """Draw the critical-difference diagram: methods at their mean rank, bars over those that aren't separated."""
    order = ranking(section)
    if order is None or order.ranks is None or len(order.methods) > _MAX_RANKED or order.ranks.n < _FEWEST_TASKS:
        return None
    ranks = order.ranks
    groups = robust.groups_within(ranks.mean, ranks.critical_difference)
    half = (len(order.methods) + 1) // 2
    start = 0.9 + 0.28 * len(groups)
    names = 0.075 * max(map(len, order.methods)) + 0.5
    height = start + 0.42 * half + 0.5
    figure = Figure(figsize=(2 * names + 4.6, 0.62 * height + 0.5))
    axes = figure.add_subplot()
    first, last = 1.0, float(len(order.methods))
    _draw_rank_axis(axes, first, last, ranks.critical_difference)
    for level, group in enumerate(groups):
        ends = [min(ranks.mean[i] for i in group) - 0.04, max(ranks.mean[i] for i in group) + 0.04]
        axes.plot(ends, [0.45 + 0.28 * level] * 2, "-", color=GREY, lw=3.5, solid_capstyle="round")
    edge = 0.04 * (last - first)
    # The better half of the methods stands on the left, the others on the right, each with a line to its rank.
    for position, i in enumerate(int(i) for i in np.argsort(ranks.mean, kind="stable")):
        left = position < half
        y = start + 0.42 * (position if left else len(order.methods) - 1 - position)
        side = first - edge if left else last + edge
        colour = _colour(section, order.methods[i])
        (line,) = axes.plot([ranks.mean[i], ranks.mean[i], side], [0, y, y], "-", color=colour, lw=0.9)
        tell(line, [order.methods[i]], [f"{order.methods[i]}: mean rank {ranks.mean[i]:.2f}"])
        name, rank = short(order.methods[i]), f"{ranks.mean[i]:.2f}"
        text = f"{name}  {rank}" if left else f"{rank}  {name}"
        axes.text(side, y, f" {text} ", ha="right" if left else "left", va="center", fontsize=8.5)
    axes.set_ylim(height, -1.5)
    axes.set_xlim(first - 2 * edge, last + 2 * edge)
    axes.axis("off")
    caption(figure, f"mean rank over {ranks.n} tasks, 1 is the best", "grey bars: no clear difference (Nemenyi, 95 %)")
    return figure


def _draw_rank_axis(axes: Axes, first: float, last: float, critical_difference: float) -> None:
    """Draw the axis of the ranks, and above it a bar as long as the critical difference."""
    axes.plot([first, last], [0, 0], "-", color="black", lw=1.0)
    step = max(1, round((last - first) / 8))
    for rank in np.arange(first, last + 1e-9, step):
        axes.plot([rank, rank], [-0.12, 0], "-", color="black", lw=1.0)
        axes.text(rank, -0.22, f"{rank:g}", ha="center", va="bottom", fontsize=8)
    width = min(critical_difference, last - first)
    axes.plot([first, first + width], [-0.95, -0.95], "|-", color="black", lw=1.2)
    whole = "" if width == critical_difference else ", beyond the axis"
    axes.text(first, -1.1, f"critical difference {critical_difference:.2f}{whole}", fontsize=8, va="bottom")


def _colour(section: Section, method: str) -> str:
    """Return a method's colour; grey for a method that other plots leave out."""
    return method_style(section, method)[0] if method in shown_methods(section) else GREY


def draw_profile(section: Section) -> Figure | None:
    """Draw performance profiles: the share of runs above each normalised score, tasks weighted alike."""
    order = ranking(section)
    if order is None or not order.normalised:
        return None
    methods = [method for method in shown_methods(section) if method in order.normalised]
    values = np.concatenate([order.normalised[method].ravel() for method in methods])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, 0.005), values.max()
    thresholds = np.linspace(low - 0.02 * (high - low), high + 0.02 * (high - low), 400)
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_subplot()
    for index, method in enumerate(reversed(methods)):
        colour, _, style = method_style(section, method)
        profile = robust.performance_profile(order.normalised[method], thresholds)
        # What is drawn first is broader, so that it is seen on both sides of a line that lies on it.
        width = 2.8 - 1.6 * index / max(1, len(methods) - 1)
        (line,) = axes.plot(thresholds, profile, style, color=colour, lw=width)
        tell(line, [method], [method])
    axes.set_xlabel("normalised score: 0 the constant prediction, 1 the best mean of a task")
    axes.set_ylabel("share of runs above it")
    axes.set_ylim(-0.02, 1.02)
    legend(figure, [legend_handle(section, method, line=True) for method in methods], left_out_text(section))
    return figure


TOPIC = Topic(title="Over all tasks", blocks=_blocks)
