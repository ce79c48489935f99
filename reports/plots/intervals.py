"""Draw estimates as diamonds and their intervals as bars: forest plots, and the pieces that other plots use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.plots.style import (
    BAND,
    COLOURS,
    GREY,
    SETTINGS,
    caption,
    panel_title,
    panels_across,
    short,
    tell,
    told_estimate,
)
from finetune_bench.reports.text import with_interval
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
    figure = Figure(figsize=size)
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, index + 1)
        axes.axvline(0, color="black", lw=0.9)
        known = [(float(height), line) for height, (_, line) in enumerate(panel.lines) if line.n]
        values = np.array([estimate.value for _, estimate in known])
        low, high = limits(np.append(values, 0.0), [estimate for _, estimate in known], longest=8)
        low, high = min(low, -0.1 * (high - low)), max(high, 0.1 * (high - low))
        if math.isfinite(panel.band):
            axes.axvspan(max(-panel.band, low), min(panel.band, high), color=BAND, lw=0, zorder=0)
        coloured = [(height, estimate, _colour_of_sign(estimate)) for height, estimate in known]
        told = [(name, told_estimate(name, panel.title, estimate)) for name, estimate in panel.lines if estimate.n]
        draw_intervals(axes, coloured, (low, high), told=told)
        panel_title(axes, panel.title)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.set_ylim(len(names) - 0.4, -0.6)
        name_lines(axes, names, leftmost=index % across == 0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    colours = "blue: above 0, orange: below, grey: no clear difference"
    caption(figure, f"{label}, 95 % t interval (arrow: goes on)", colours, *texts)
    return figure


@dataclass(frozen=True)
class Line:
    """A line is one method of a forest plot with texts beside it.

    Attributes:
        name: What stands at its left.
        estimate: Its mean with its interval.
        colour: Its colour.
        marker: Its mark.
        texts: What stands at its right, as many as the header has.
    """

    name: str
    estimate: Estimate
    colour: str
    marker: str
    texts: tuple[str, ...]


def forest_beside(
    lines: Sequence[Line], header: Sequence[str], ends: tuple[float, float], band: float, label: str
) -> Figure:
    """Draw a line per method with its interval, in the method's colour and mark, and columns of texts beside them.

    Args:
        lines: At least one.
        header: What stands above each column of texts.
        ends: Lowest and highest value that the axis shows; an interval that goes on gets an arrow.
        band: Half the width of a grey band around 0; NaN for none.
        label: What the axis measures.
    """
    names = [short(line.name) for line in lines]
    widths = [
        0.075 * max(map(len, column)) + 0.15 for column in zip(header, *(line.texts for line in lines), strict=True)
    ]
    size = (0.075 * max(map(len, names)) + 3.6 + sum(widths), 0.3 * len(lines) + 1.0)
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.axvline(0, color="black", lw=0.9)
    if math.isfinite(band):
        axes.axvspan(max(-band, ends[0]), min(band, ends[1]), color=BAND, lw=0, zorder=0)
    axes.set_xlim(*ends)
    axes.set_ylim(len(lines) - 0.4, -0.9)
    known = [(float(height), line.estimate, line.colour) for height, line in enumerate(lines)]
    told = [(line.name, ", ".join([told_estimate(line.name, label, line.estimate), *line.texts])) for line in lines]
    draw_intervals(axes, known, ends, [line.marker for line in lines], told)
    name_lines(axes, names, leftmost=True)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for column, title in enumerate(header):
        right = 72 * sum(widths[:column]) + 8
        for height, text in [(-0.75, title), *((float(i), line.texts[column]) for i, line in enumerate(lines))]:
            # Beside the axes, so many points from their right edge.
            axes.annotate(
                text,
                (1.0, height),
                xytext=(right, 0),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
                annotation_clip=False,
            )
    bars = "bar: 95 % interval over seeds" if any(math.isfinite(line.estimate.low) for line in lines) else ""
    caption(figure, label, bars, "band: what other seeds alone do to the baseline" if math.isfinite(band) else "")
    return figure


def _colour_of_sign(estimate: Estimate) -> str:
    if not (estimate.separated and with_interval(estimate)):
        return GREY
    return COLOURS[0] if estimate.value > 0 else COLOURS[1]


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
    ends = [end for interval in intervals if with_interval(interval) for end in (interval.low, interval.high)]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return (low, high) if high > low else (low - room, high + room)


def draw_intervals(
    axes: Axes,
    lines: Sequence[tuple[float, Estimate, str]],
    ends: tuple[float, float],
    markers: Sequence[str] | None = None,
    told: Sequence[tuple[str, str]] = (),
) -> None:
    """Draw marks at the means, bars for the intervals, and arrows where one goes on beyond the axis.

    Args:
        axes: Where to draw.
        lines: Height, estimate with a value, and colour of each.
        ends: Lowest and highest value that the axis shows.
        markers: The mark of each line; None for diamonds.
        told: The method of each line and the text that its mark shows when it is pointed at; nothing for neither.
    """
    low, high = ends
    ranged = [(height, estimate, colour) for height, estimate, colour in lines if with_interval(estimate)]
    at_ends: dict[str, list[tuple[float, float, str]]] = {"|": [], "<": [], ">": []}
    for height, estimate, colour in ranged:
        at_ends["|" if estimate.low >= low else "<"].append((max(estimate.low, low), height, colour))
        at_ends["|" if estimate.high <= high else ">"].append((min(estimate.high, high), height, colour))
    starts = [min(max(estimate.low, low), high) for _, estimate, _ in ranged]
    stops = [min(max(estimate.high, low), high) for _, estimate, _ in ranged]
    bars = axes.hlines([height for height, *_ in ranged], starts, stops, colors=[line[2] for line in ranged], lw=1.6)
    of_line = dict(zip([height for height, *_ in lines], told, strict=False))
    if told and ranged:
        tell(bars, *zip(*(of_line[height] for height, *_ in ranged), strict=True))
    for marker, points in at_ends.items():
        if points:
            x, y, c = zip(*points, strict=True)
            axes.scatter(x, y, s=30, marker=marker, c=c, linewidths=1.3 if marker == "|" else 0)
    marks = markers or ["D"] * len(lines)
    for mark in dict.fromkeys(marks):
        alike = [line for line, other in zip(lines, marks, strict=True) if other == mark]
        values, heights = [estimate.value for _, estimate, _ in alike], [height for height, *_ in alike]
        colours, size = [colour for *_, colour in alike], 70 if mark == "*" else 23
        drawn = axes.scatter(
            values, heights, s=size, marker=mark, c=colours, edgecolors="white", linewidths=0.7, zorder=3
        )
        if told and alike:
            tell(drawn, *zip(*(of_line[height] for height in heights), strict=True))


def name_lines(axes: Axes, names: Sequence[str], *, leftmost: bool) -> None:
    """Name the lines of a panel, unless the panel on its left has the names; call it when the limits are set."""
    # A tick costs more than all else, so only the panels on the left have any.
    axes.set_yticks(range(len(names)) if leftmost else [], names if leftmost else [])
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    colour, width = SETTINGS["grid.color"], SETTINGS["grid.linewidth"]
    axes.hlines(range(len(names)), *axes.get_xlim(), colors=colour, lw=width, zorder=0)
