"""All plots have one look: colours and markers, small multiples, legends, captions, what a crowded plot leaves out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.stats import estimates

# A plot shows at most so many methods; the tables have them all.
MAX_METHODS = 20
# Scores beside the mean over tasks; where there are more, plots of costs and stacks show only that mean.
_MAX_PANELS = 6
# Okabe and Ito's palette without its yellow, which is too pale for lines on white; black is the baseline's.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", ":")
GREY = "#777777"
# matplotlib types its settings one by one, so the dictionary as a whole is Any.
SETTINGS: Any = {
    # Ids within an SVG are random without a salt.
    "svg.hashsalt": "finetune-bench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    # Without a number, matplotlib looks for the title's height, which costs a fifth of the time.
    "axes.titley": 1.0,
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
    # That of SVG and PDF, so that texts keep the sizes that the layout was computed with.
    "figure.dpi": 72,
    "text.parse_math": False,
}


def method_style(section: Section, method: str) -> tuple[str, str, str]:
    """Return colour, marker and line of a method: no two methods of up to 18 share colour and line."""
    if method == section.baseline:
        return "black", "*", "-"
    index = [label for label in shown_methods(section) if label != section.baseline].index(method)
    return (
        COLOURS[index % len(COLOURS)],
        MARKERS[(index + 2 * (index // len(COLOURS))) % len(MARKERS)],
        LINES[index // len(COLOURS) % len(LINES)],
    )


# --- what a crowded plot leaves out -----------------------------------------------------------------------------------


@cached
def shown_methods(section: Section) -> tuple[str, ...]:
    """Return the methods that a plot has room for: all, or the reference, vanilla and those of the highest mean."""
    if len(section.methods) <= MAX_METHODS:
        return section.methods
    columns = scored_columns(section)
    means = {
        method: float(np.mean([estimates.t_interval(section.scores(method, column)).value for column in columns]))
        for method in section.methods
        if columns
    }
    fixed = [label for label in (section.reference, section.baseline, *section.controls()) if label is not None]
    ordered = sorted(section.methods, key=lambda method: -np.nan_to_num(means.get(method, math.nan), nan=-math.inf))
    chosen = list(dict.fromkeys([*fixed, *ordered]))[:MAX_METHODS]
    return tuple(method for method in section.methods if method in chosen)


def left_out_text(section: Section) -> str:
    """Return what a plot says of the methods that it leaves out; "" where it shows all."""
    methods = shown_methods(section)
    if len(methods) == len(section.methods):
        return ""
    return f"{len(methods)} of {len(section.methods)} methods: vanilla and those of the highest mean; tables have all"


def shown_columns(columns: Iterable[Column]) -> list[Column]:
    """Return the columns that a plot of costs or stacks shows: all, or of many only the mean over tasks."""
    distinct = list(dict.fromkeys(columns))
    means = [column for column in distinct if not column.task]
    return means if means and len(distinct) > _MAX_PANELS + 1 else distinct


@cached
def scored_columns(section: Section) -> tuple[Column, ...]:
    """Return the columns in which any run has a score."""
    return tuple(
        column
        for column in section.columns
        if any(np.isfinite(section.scores(method, column)).any() for method in section.methods)
    )


def short(name: str, longest: int = 48) -> str:
    """Return a name; of a long one the middle is left out, so that the plot has room for what it shows."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


# --- small multiples --------------------------------------------------------------------------------------------------


def small_multiples(panels: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels and their axes; width and height are a panel's, in inches."""
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(panels)]


def panels_across(panels: int, at_most: int = 4) -> int:
    """Return how many panels stand in a row, so that the last row isn't left nearly empty."""
    return math.ceil(panels / math.ceil(panels / at_most))


def panel_title(axes: Axes, title: str, longest: int = 36) -> None:
    """Set the title of a panel, short enough to stay above its own panel."""
    axes.set_title(short(title, longest))


# --- legends and captions ---------------------------------------------------------------------------------------------


def legend_handle(section: Section, method: str, *, line: bool) -> Line2D:
    """Return the mark of a method in a legend: its line, or its marker."""
    colour, marker, style = method_style(section, method)
    if line:
        return Line2D([], [], color=colour, ls=style, lw=1.8, label=short(method))
    size = 9 if marker == "*" else 6
    return Line2D([], [], color=colour, ls="", marker=marker, ms=size, mec="white", label=short(method))


def legend(figure: Figure, handles: Sequence[Line2D], *texts: str) -> None:
    """Draw a legend below all panels, headed by what the marks mean; the figure grows by its height."""
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(width / (0.062 * longest + 0.6))))
    title = _lines(texts, width)
    lines = math.ceil(len(handles) / across) + title.count("\n") + bool(title)
    figure.set_size_inches(width, height + 0.25 + 0.18 * lines)
    drawn = figure.legend(
        handles=list(handles),
        loc="outside lower center",
        ncols=across,
        fontsize=8,
        handlelength=2.6,
        title=title or None,
        title_fontsize=8,
    )
    drawn.get_title().set_color("#444444")


def caption(figure: Figure, *texts: str) -> None:
    """Write what the marks mean below all panels of a figure without a `legend`."""
    figure.supxlabel(_lines(texts, figure.get_size_inches()[0]), fontsize=8, color="#444444")


def _lines(texts: Sequence[str], width: float) -> str:
    """Join the texts that aren't empty; a figure that is too narrow breaks between them."""
    lines: list[str] = []
    for text in filter(None, texts):
        if lines and 0.062 * len(f"{lines[-1]}   ·   {text}") < width:
            lines[-1] += f"   ·   {text}"
        else:
            lines.append(text)
    return "\n".join(lines)
