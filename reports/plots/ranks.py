"""Plots over all tasks: mean ranks with their critical difference, and performance profiles."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.plots.looks import GREY, caption, crowd, legend, legend_handle, look, short, shown
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.tests import ranking
from finetune_bench.stats import robust

_MOST_RANKED = 40


def draw_ranks(data: Data, section: Section) -> Figure | None:
    """The critical-difference diagram: methods at their mean rank, bars over those that aren't separated."""
    found = ranking(section)
    if found is None or found.ranks is None or len(found.methods) > _MOST_RANKED:
        return None
    ranks = found.ranks
    order = [int(i) for i in np.argsort(ranks.mean, kind="stable")]
    groups = robust.groups_within(ranks.mean, ranks.critical_difference)
    half = (len(order) + 1) // 2
    start = 0.9 + 0.28 * len(groups)
    names = 0.075 * max(map(len, found.methods)) + 0.5
    height = start + 0.42 * half + 0.5
    figure = Figure(figsize=(2 * names + 4.6, 0.62 * height + 0.5), layout="constrained")
    axes = figure.add_subplot()
    first, last = 1.0, float(len(order))
    axes.plot([first, last], [0, 0], "-", color="black", lw=1.0)
    step = max(1, round((last - first) / 8))
    for rank in np.arange(first, last + 1e-9, step):
        axes.plot([rank, rank], [-0.12, 0], "-", color="black", lw=1.0)
        axes.text(rank, -0.22, f"{rank:g}", ha="center", va="bottom", fontsize=8)
    width = min(ranks.critical_difference, last - first)
    axes.plot([first, first + width], [-0.95, -0.95], "|-", color="black", lw=1.2)
    whole = "" if width == ranks.critical_difference else ", beyond the axis"
    axes.text(first, -1.1, f"critical difference {ranks.critical_difference:.2f}{whole}", fontsize=8, va="bottom")
    for level, group in enumerate(groups):
        ends = [min(ranks.mean[i] for i in group) - 0.04, max(ranks.mean[i] for i in group) + 0.04]
        axes.plot(ends, [0.45 + 0.28 * level] * 2, "-", color=GREY, lw=3.5, solid_capstyle="round")
    edge = 0.04 * (last - first)
    for place, i in enumerate(order):
        left = place < half
        y = start + 0.42 * (place if left else len(order) - 1 - place)
        side = first - edge if left else last + edge
        colour = "black" if found.methods[i] == section.baseline else look_or_grey(section, found.methods[i])
        axes.plot([ranks.mean[i], ranks.mean[i], side], [0, y, y], "-", color=colour, lw=0.9)
        name, rank = short(found.methods[i]), f"{ranks.mean[i]:.2f}"
        text = f"{name}  {rank}" if left else f"{rank}  {name}"
        axes.text(side, y, f" {text} ", ha="right" if left else "left", va="center", fontsize=8.5)
    axes.set_ylim(height, -1.5)
    axes.set_xlim(first - 2 * edge, last + 2 * edge)
    axes.axis("off")
    caption(figure, f"mean rank over {ranks.n} tasks, 1 is the best", "grey bars: not separated (Nemenyi, 95 %)")
    return figure


def look_or_grey(section: Section, method: str) -> str:
    """A method's colour; grey for one that other plots leave out."""
    return look(section, method)[0] if method in shown(section) else GREY


def draw_profile(data: Data, section: Section) -> Figure | None:
    """Performance profiles: the share of runs above each normalised score, tasks weighted alike."""
    found = ranking(section)
    if found is None or not found.normalised:
        return None
    methods = [method for method in shown(section) if method in found.normalised]
    values = np.concatenate([found.normalised[method].ravel() for method in methods])
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = np.quantile(values, 0.005), values.max()
    thresholds = np.linspace(low - 0.02 * (high - low), high + 0.02 * (high - low), 400)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for method in reversed(methods):
        colour, _, style = look(section, method)
        profile = robust.performance_profile(found.normalised[method], thresholds)
        axes.plot(thresholds, profile, style, color=colour, lw=1.8 if method == section.baseline else 1.3)
    axes.set_xlabel("normalised score: 0 the constant prediction, 1 the best mean of a task")
    axes.set_ylabel("share of runs above it")
    axes.set_ylim(-0.02, 1.02)
    legend(figure, [legend_handle(section, method, line=True) for method in methods], crowd(section))
    return figure
