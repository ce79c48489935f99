"""Plots of cost: the Pareto fronts of score against memory and time, and what a method's memory is made of."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.plots.looks import (
    COLOURS,
    GREY,
    caption,
    crowd,
    few,
    grid,
    head,
    legend,
    legend_handle,
    look,
    panels_across,
    short,
    shown,
)
from finetune_bench.reports.rows.sections import Data, Row, Section
from finetune_bench.reports.topics.cost import Cost, Ratio, costs, footprints, number, pareto_front, seconds
from finetune_bench.reports.topics.scores import scores
from finetune_bench.stats.estimates import Estimate


def draw_memory(data: Data, section: Section) -> Figure | None:
    """Peak memory against score, a panel per score, and over the suite relative to the reference."""
    return _draw(section, lambda row: number(row, "peak_memory_bytes") / 2**20, _memory, "peak memory (MiB)")


def draw_time(data: Data, section: Section) -> Figure | None:
    """Training time against score, a panel per score, and over the suite relative to the reference."""
    return _draw(section, seconds, _time, "training time (s)")


def _memory(cost: Cost) -> Ratio:
    return cost.memory


def _time(cost: Cost) -> Ratio:
    return cost.time


Point = tuple[str, float, float, float, Estimate]  # method, its cost with the range of its runs, its score


def _draw(section: Section, cost: Callable[[Row], float], ratio: Callable[[Cost], Ratio], label: str) -> Figure | None:
    estimates = {(score.column, score.method): score.estimate for score in scores(section)}
    ratios = {one.method: ratio(one) for one in costs(section)}
    panels = []
    for column in few(column for column, _ in estimates):
        points: list[Point] = []
        for method in shown(section):
            if column.task:
                found = _range([cost(row) for row in section.rows(method, column.task, "done")])
            else:
                found = (ratios[method].value, ratios[method].low, ratios[method].high)
            if math.isfinite(found[0]) and estimates[column, method].n:
                points.append((method, *found, estimates[column, method]))
        axis = label if column.task else f"{label.partition(' (')[0]} (× {section.reference})"
        panels.append((column.title, axis, points))
    panels = [panel for panel in panels if panel[2]]
    if not panels:
        return None
    across = panels_across(len(panels))
    figure, places = grid(len(panels), across, 3.1, 2.9)
    for place, (axes, (title, axis, points)) in enumerate(zip(places, panels, strict=True)):
        _draw_points(axes, section, points)
        head(axes, title)
        axes.set_xlabel(axis)
        if place % across == 0:
            axes.set_ylabel("score (× 100)")
    handles = [legend_handle(section, method, line=False) for method in shown(section)]
    lines = "up: 95 % t interval over seeds (arrow: goes on), across: range of the runs' costs"
    legend(figure, handles, lines, "dotted: Pareto front of the means", crowd(section))
    return figure


def _range(costs: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest."""
    finite = [value for value in costs if math.isfinite(value)]
    return (float(np.median(finite)), min(finite), max(finite)) if finite else (math.nan, math.nan, math.nan)


def _draw_points(axes: Axes, section: Section, points: list[Point]) -> None:
    values = np.array([estimate.value for *_, estimate in points])
    room = max(2 * float(np.ptp(values)), 1.0)  # few seeds make intervals that would flatten everything
    low, high = float(values.min()) - room, float(values.max()) + room
    for method, middle, least, most, estimate in points:
        colour, marker, _ = look(section, method)
        if math.isfinite(estimate.low):
            ends = [max(estimate.low, low), min(estimate.high, high)]
            axes.plot([middle, middle], ends, "-", lw=0.9, color=colour, alpha=0.45)
            for end, inside, arrow in ((ends[0], estimate.low >= low, "v"), (ends[1], estimate.high <= high, "^")):
                if not inside:
                    axes.plot([middle], [end], arrow, ms=4, mew=0, color=colour, alpha=0.6)
        axes.plot([least, most], [estimate.value] * 2, "-", lw=0.9, color=colour, alpha=0.45)
        size = 10 if marker == "*" else 6.5
        axes.plot([middle], [estimate.value], marker, ms=size, color=colour, mec="white", mew=0.6, zorder=3)
    front = pareto_front([middle for _, middle, *_ in points], list(values))
    axes.step(
        [points[i][1] for i in front], [values[i] for i in front], where="post", color=GREY, lw=1.1, ls=":", zorder=1
    )
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))


# --- what memory is made of -------------------------------------------------------------------------------------------


def draw_footprint(data: Data, section: Section) -> Figure | None:
    """Stacked bars: weights, gradients, optimiser and saved activations; a mark at the measured peak."""
    found = {one.method: one for one in footprints(section)}
    methods = [method for method in shown(section) if method in found]
    if not methods:
        return None
    parts = ("weights", "gradients", "optimiser", "activations")
    names = [short(method) for method in methods]
    figure = Figure(figsize=(0.075 * max(map(len, names)) + 6.2, 0.27 * len(methods) + 1.3), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(methods))
    for place, part in enumerate(parts):
        sizes = np.array([getattr(found[method], part) / 2**20 for method in methods])
        axes.barh(range(len(methods)), sizes, left=left, height=0.62, color=COLOURS[place], label=part)
        left += sizes
    peaks = [found[method].peak / 2**20 for method in methods]
    axes.plot(peaks, range(len(methods)), "D", ms=4.5, color="black", mec="white", ls="", label="measured peak")
    axes.set_yticks(range(len(methods)), names)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("memory (MiB)")
    handles, labels = axes.get_legend_handles_labels()
    order = [*labels[1:], labels[0]] if labels[0] == "measured peak" else labels
    figure.legend([handles[labels.index(name)] for name in order], order, loc="outside upper left", ncols=5, fontsize=8)
    process = "a CPU's peak is the whole process, its libraries too"
    on_cpu = str(section.setting.get("device")).startswith("cpu")
    caption(figure, "medians over runs", process if on_cpu else "", crowd(section))
    return figure
