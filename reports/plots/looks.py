"""How all plots look: colours, markers, small multiples, legends, intervals, and which methods a crowded plot shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

MOST = 20  # methods in one plot; the tables have them all
_MOST_PANELS = (
    6  # scores beside the mean over tasks; plots of costs and stacks show only that mean where there are more
)
# Okabe and Ito's palette without its yellow, which is too pale for lines on white; black is the baseline's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")
GREY = "#777777"
STYLE: Any = {  # of settings that matplotlib types one by one
    "svg.hashsalt": "finetune-bench",  # ids within an SVG are random without it
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titley": 1.0,  # found by itself, it costs a fifth of the time
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "xtick.color": "#444444",
    "ytick.color": "#222222",
    "pdf.fonttype": 42,
    "figure.dpi": 72,  # that of SVG and PDF, so that texts keep the sizes that the layout was found with
    "text.parse_math": False,
}


def look(section: Section, method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method: no two methods of up to 18 share colour and line."""
    if method == section.baseline:
        return "black", "*", "-"
    place = [label for label in shown(section) if label != section.baseline].index(method)
    return (
        COLOURS[place % len(COLOURS)],
        MARKERS[(place + 2 * (place // len(COLOURS))) % len(MARKERS)],
        LINES[place // len(COLOURS) % len(LINES)],
    )


def grid(panels: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples."""
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(panels)]


def panels_across(panels: int, most: int = 4) -> int:
    """Panels in a row, so that the last row isn't left nearly empty."""
    return math.ceil(panels / math.ceil(panels / most))


def legend(figure: Figure, handles: Sequence[Line2D], *texts: str) -> None:
    """A legend below all panels, headed by what the marks mean; the figure grows by its height."""
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(width / (0.062 * longest + 0.6))))
    title = _lines(texts, width)
    lines = math.ceil(len(handles) / across) + title.count("\n") + bool(title)
    figure.set_size_inches(width, height + 0.25 + 0.18 * lines)
    found = figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=across,
        fontsize=8,
        handlelength=2.6,
        title=title or None,
        title_fontsize=8,
    )
    found.get_title().set_color("#444444")


@once
def shown(section: Section) -> tuple[str, ...]:
    """The methods that a plot has room for: all, or the reference, vanilla and those of the highest mean."""
    if len(section.methods) <= MOST:
        return section.methods
    columns = drawn(section)
    means = {
        method: float(np.mean([stats.t_interval(section.scores(method, column)).value for column in columns]))
        for method in section.methods
        if columns
    }
    fixed = [label for label in (section.reference, section.baseline, *section.controls()) if label is not None]
    ordered = sorted(section.methods, key=lambda method: -np.nan_to_num(means.get(method, math.nan), nan=-math.inf))
    chosen = list(dict.fromkeys([*fixed, *ordered]))[:MOST]
    return tuple(method for method in section.methods if method in chosen)


def crowd(section: Section) -> str:
    """What a plot says of the methods that it leaves out; "" where it shows all."""
    methods = shown(section)
    if len(methods) == len(section.methods):
        return ""
    return f"{len(methods)} of {len(section.methods)} methods: vanilla and those of the highest mean; tables have all"


def few(columns: Iterable[Column]) -> list[Column]:
    """The columns that a plot of costs or stacks shows: all, or of many only the mean over tasks."""
    found = list(dict.fromkeys(columns))
    means = [column for column in found if not column.task]
    return means if means and len(found) > _MOST_PANELS + 1 else found


@once
def drawn(section: Section) -> tuple[Column, ...]:
    """The columns in which any run has a score."""
    return tuple(
        column
        for column in section.columns
        if any(np.isfinite(section.scores(method, column)).any() for method in section.methods)
    )


def legend_handle(section: Section, method: str, *, line: bool) -> Line2D:
    colour, marker, style = look(section, method)
    if line:
        return Line2D([], [], color=colour, ls=style, lw=1.8, label=short(method))
    size = 9 if marker == "*" else 6
    return Line2D([], [], color=colour, ls="", marker=marker, ms=size, mec="white", label=short(method))


def limits(values: np.ndarray, estimates: Sequence[Estimate], longest: float) -> tuple[float, float]:
    """Room for every value, and for intervals as far as they don't squeeze the values: two seeds make very long ones.

    Args:
        longest: how far an interval may reach beyond the values, in units of their range.
    """
    finite = values[np.isfinite(values)]
    low, high = float(finite.min()), float(finite.max())
    room = max(longest * (high - low), 0.5)
    ends = [end for one in estimates if not math.isnan(one.low) for end in (one.low, one.high)]
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    return (low, high) if high > low else (low - room, high + room)


def draw_intervals(axes: Axes, found: Sequence[tuple[float, Estimate, str]], limits: tuple[float, float]) -> None:
    """Diamonds at the means, bars for the intervals, arrows where one goes on beyond the axis.

    Args:
        found: height, estimate with a value, and colour of each.
    """
    low, high = limits
    heights, values, colours = [at for at, _, _ in found], [one.value for _, one, _ in found], [c for *_, c in found]
    ranged = [(at, one, colour) for at, one, colour in found if not math.isnan(one.low)]
    ends: dict[str, list[tuple[float, float, str]]] = {"|": [], "<": [], ">": []}
    for at, one, colour in ranged:
        ends["|" if one.low >= low else "<"].append((max(one.low, low), at, colour))
        ends["|" if one.high <= high else ">"].append((min(one.high, high), at, colour))
    starts, stops = ([min(max(end, low), high) for end in found] for found in _ends([one for _, one, _ in ranged]))
    axes.hlines([at for at, *_ in ranged], starts, stops, colors=[c for *_, c in ranged], lw=1.6)
    for marker, marks in ends.items():
        if marks:
            x, y, c = zip(*marks, strict=True)
            axes.scatter(x, y, s=30, marker=marker, c=c, linewidths=1.3 if marker == "|" else 0)
    axes.scatter(values, heights, s=23, marker="D", c=colours, edgecolors="white", linewidths=0.7, zorder=3)


def _ends(estimates: Sequence[Estimate]) -> tuple[list[float], list[float]]:
    return [one.low for one in estimates], [one.high for one in estimates]


def caption(figure: Figure, *texts: str) -> None:
    """What the marks mean, below all panels of a figure without a `legend`."""
    figure.supxlabel(_lines(texts, figure.get_size_inches()[0]), fontsize=8, color="#444444")


def head(axes: Axes, title: str, most: int = 36) -> None:
    """The title of a panel, short enough to stay above its own panel."""
    axes.set_title(short(title, most))


def short(name: str, most: int = 48) -> str:
    """A name; of a long one the middle is left out, so that the plot has room for what it shows."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _lines(texts: Sequence[str], width: float) -> str:
    """The texts that aren't empty; a figure that is too narrow breaks between them."""
    lines: list[str] = []
    for text in filter(None, texts):
        if lines and 0.062 * len(f"{lines[-1]}   ·   {text}") < width:
            lines[-1] += f"   ·   {text}"
        else:
            lines.append(text)
    return "\n".join(lines)


def name_lines(axes: Axes, names: Sequence[str], *, here: bool) -> None:
    """The names of the lines of a panel, unless the panel on its left has them; call it when the limits are set."""
    axes.set_yticks(range(len(names)) if here else [], names if here else [])  # a tick costs more than all else
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.hlines(range(len(names)), *axes.get_xlim(), colors=STYLE["grid.color"], lw=STYLE["grid.linewidth"], zorder=0)


def _sign(estimate: Estimate) -> str:
    return GREY if not estimate.separated else COLOURS[0] if estimate.value > 0 else COLOURS[1]


Line = tuple[str, Estimate]  # a label and its estimate


def forest(panels: Sequence[tuple[str, Sequence[Line], float]], label: str, *texts: str, most: int = 4) -> Figure:
    """Small multiples of lines with intervals around 0: blue above, orange below, grey where the interval covers it.

    Args:
        panels: title, lines (every panel has the same labels, some maybe without an estimate), and half the width of
            a grey band around 0; NaN for none.
        label: of the axis.
        texts: what else to say below.
    """
    names = [short(name) for name, _ in panels[0][1]]
    across = panels_across(len(panels), most)
    down = math.ceil(len(panels) / across)
    size = (0.075 * max(map(len, names)) + 2.3 * across + 0.4, (0.3 * len(names) + 0.95) * down + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    for place, (title, lines, band) in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1)
        axes.axvline(0, color="black", lw=0.9)
        values = np.array([one.value for _, one in lines if one.n])
        low, high = limits(np.append(values, 0.0), [one for _, one in lines if one.n], longest=4)
        low, high = min(low, -0.1 * (high - low)), max(high, 0.1 * (high - low))
        if math.isfinite(band):
            axes.axvspan(max(-band, low), min(band, high), color="#E8E8E8", lw=0, zorder=0)
        known = [(float(height), one, _sign(one)) for height, (_, one) in enumerate(lines) if one.n]
        draw_intervals(axes, known, (low, high))
        head(axes, title)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.set_ylim(len(names) - 0.4, -0.6)
        name_lines(axes, names, here=place % across == 0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    colours = "blue: above 0, orange: below, grey: not separated from 0"
    caption(figure, f"{label}, 95 % t interval (arrow: goes on)", colours, *texts)
    return figure
