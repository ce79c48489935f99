"""Draw estimates as diamonds and their intervals as bars: forest plots, and the pieces that other plots use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.plots.style import COLOURS, GREY, SETTINGS, caption, panel_title, panels_across, short
from finetune_bench.stats.estimates import Estimate


@dataclass(frozen=True)
class Panel:
    """A panel is one part of a forest plot, with a title of its own.

    Attributes:
        title: The text above it.
        lines: Labels with their estimates; all panels of a plot have the same labels, an estimate may have n = 0.
        band: Half the width of a grey band around 0; NaN for none.
    """

    title: str
    lines: Sequence[tuple[str, Estimate]]
    band: float = math.nan


def forest(panels: Sequence[Panel], label: str, *texts: str, at_most: int = 4) -> Figure:
    """Draw panels of lines with intervals around 0: blue above, orange below, grey where the interval covers it.

    Args:
        panels: At least one.
        label: What the axis measures.
        texts: What else to say below.
        at_most: The most panels in a row.
    """
    names = [short(name) for name, _ in panels[0].lines]
    across = panels_across(len(panels), at_most)
    down = math.ceil(len(panels) / across)
    size = (0.075 * max(map(len, names)) + 2.3 * across + 0.4, (0.3 * len(names) + 0.95) * down + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, index + 1)
        axes.axvline(0, color="black", lw=0.9)
        known = [(float(height), line) for height, (_, line) in enumerate(panel.lines) if line.n]
        values = np.array([estimate.value for _, estimate in known])
        low, high = limits(np.append(values, 0.0), [estimate for _, estimate in known], longest=4)
        low, high = min(low, -0.1 * (high - low)), max(high, 0.1 * (high - low))
        if math.isfinite(panel.band):
            axes.axvspan(max(-panel.band, low), min(panel.band, high), color="#E8E8E8", lw=0, zorder=0)
        coloured = [(height, estimate, _colour_of_sign(estimate)) for height, estimate in known]
        draw_intervals(axes, coloured, (low, high))
        panel_title(axes, panel.title)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.set_ylim(len(names) - 0.4, -0.6)
        name_lines(axes, names, leftmost=index % across == 0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    colours = "blue: above 0, orange: below, grey: not separated from 0"
    caption(figure, f"{label}, 95 % t interval (arrow: goes on)", colours, *texts)
    return figure


def _colour_of_sign(estimate: Estimate) -> str:
    return GREY if not estimate.separated else COLOURS[0] if estimate.value > 0 else COLOURS[1]


def limits(values: np.ndarray, intervals: Sequence[Estimate], longest: float) -> tuple[float, float]:
    """Return the ends of an axis that shows every value, and intervals as far as they don't squeeze the values.

    Args:
        values: (values,) of which at least one is finite.
        intervals: Estimates; those of two seeds make very long intervals.
        longest: How far an interval may reach beyond the values, in units of their range.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    room = max(longest * (high - low), 0.5)
    ends = [end for interval in intervals if not math.isnan(interval.low) for end in (interval.low, interval.high)]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return (low, high) if high > low else (low - room, high + room)


def draw_intervals(axes: Axes, lines: Sequence[tuple[float, Estimate, str]], ends: tuple[float, float]) -> None:
    """Draw diamonds at the means, bars for the intervals, and arrows where one goes on beyond the axis.

    Args:
        axes: Where to draw.
        lines: Height, estimate with a value, and colour of each.
        ends: Lowest and highest value that the axis shows.
    """
    low, high = ends
    ranged = [(height, estimate, colour) for height, estimate, colour in lines if not math.isnan(estimate.low)]
    marks: dict[str, list[tuple[float, float, str]]] = {"|": [], "<": [], ">": []}
    for height, estimate, colour in ranged:
        marks["|" if estimate.low >= low else "<"].append((max(estimate.low, low), height, colour))
        marks["|" if estimate.high <= high else ">"].append((min(estimate.high, high), height, colour))
    starts = [min(max(estimate.low, low), high) for _, estimate, _ in ranged]
    stops = [min(max(estimate.high, low), high) for _, estimate, _ in ranged]
    axes.hlines([height for height, *_ in ranged], starts, stops, colors=[colour for *_, colour in ranged], lw=1.6)
    for marker, points in marks.items():
        if points:
            x, y, c = zip(*points, strict=True)
            axes.scatter(x, y, s=30, marker=marker, c=c, linewidths=1.3 if marker == "|" else 0)
    heights, values = [height for height, *_ in lines], [estimate.value for _, estimate, _ in lines]
    colours = [colour for *_, colour in lines]
    axes.scatter(values, heights, s=23, marker="D", c=colours, edgecolors="white", linewidths=0.7, zorder=3)


def name_lines(axes: Axes, names: Sequence[str], *, leftmost: bool) -> None:
    """Name the lines of a panel, unless the panel on its left has the names; call it when the limits are set."""
    # A tick costs more than all else, so only the panels on the left have any.
    axes.set_yticks(range(len(names)) if leftmost else [], names if leftmost else [])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    colour, width = SETTINGS["grid.color"], SETTINGS["grid.linewidth"]
    axes.hlines(range(len(names)), *axes.get_xlim(), colors=colour, lw=width, zorder=0)
