"""All plots have one look: colours and markers, small multiples, legends, captions, what a crowded plot leaves out."""

from __future__ import annotations

import hashlib
import json
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_bench.reports.document import clean
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Section, bare
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate

# A plot shows at most so many methods; the tables have them all.
MAX_METHODS = 20
# Scores beside the mean over tasks; where there are more, plots of costs and stacks show only that mean.
_MAX_PANELS = 6
# Okabe and Ito's palette without its yellow, which is too pale for lines on white; black is the baseline's. The last
# two are of Paul Tol's muted palette.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999933", "#AA4499")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "p", "d", "h")
LINES = ("-", "--", ":", "-.")
# With this salt the names of the built-in methods all come to different styles; a test tries them.
_SALT = "91208"
GREY = "#777777"
# The noise floor, behind all else.
BAND = "#E8E8E8"
# matplotlib types its settings one by one, so the dictionary as a whole is Any.
SETTINGS: Any = {
    # Ids within an SVG are random without a salt.
    "svg.hashsalt": "finetune-bench",
    "svg.fonttype": "none",
    # Texts stay texts, and a reader without the first font gets another one without serifs.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
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


@cached
def _styles(section: Section) -> dict[str, tuple[str, str, str]]:
    """Return colour, marker and line of all methods of a section, by their names."""
    styles = {section.baseline: ("black", "*", "-")} if section.baseline else {}
    taken: set[tuple[int, int]] = set()
    for method in sorted(method for method in section.methods if method != section.baseline):
        colour, marker = name_style(bare(method))
        # Two names that come to the same style: the second in the alphabet takes the next marker that is free.
        tries = [(colour, (marker + step) % len(MARKERS)) for step in range(len(MARKERS))]
        colour, marker = next((style for style in tries if style not in taken), tries[0])
        taken.add((colour, marker))
        styles[method] = (COLOURS[colour], MARKERS[marker], LINES[marker % len(LINES)])
    return styles


def name_style(name: str) -> tuple[int, int]:
    """Return the indices of a method's colour and marker, which depend on its name alone and not on its company."""
    digest = hashlib.sha256(f"{_SALT}{name}".encode()).digest()
    number = int.from_bytes(digest[:4], "big") % (len(COLOURS) * len(MARKERS))
    return number % len(COLOURS), number // len(COLOURS)


def method_style(section: Section, method: str) -> tuple[str, str, str]:
    """Return colour, marker and line of a method: the same in every plot, and in every report with the same methods."""
    return _styles(section)[method]


def tell(artist: Artist, methods: Sequence[str], texts: Sequence[str] = ()) -> None:
    """Say what the shapes of an artist are; the page shows it when one is pointed at, and links what is one method's.

    Args:
        artist: A line, a patch or a collection.
        methods: The label of each shape, or the one label of all.
        texts: The text of each shape, or the one text of all; nothing for none.
    """
    artist.set_gid(json.dumps({"methods": [*map(clean, methods)], "texts": [*map(clean, texts)]}))


def told_estimate(method: str, where: str, estimate: Estimate, unit: str = "points") -> str:
    """Return what a mark says of an estimate: method, place, value, interval and number of seeds."""
    brackets = f" [{estimate.low:.2f}, {estimate.high:.2f}]" if math.isfinite(estimate.low) else ""
    return f"{method}, {where}: {estimate.value:.2f}{brackets} {unit}, n = {estimate.n}".replace("-", "−")


def marks_below(places: Sequence[tuple[float, float]], share: float = 0.02) -> list[int]:
    """Return for each mark how many of those before it lie under it, within a share of what all of them span."""
    across, up = (share * float(np.ptp(values)) for values in zip(*places, strict=True))
    return [
        sum(abs(x - other_x) <= across and abs(y - other_y) <= up for other_x, other_y in places[:index])
        for index, (x, y) in enumerate(places)
    ]


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
    # No control characters, which are no XML.
    name = clean(name)
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


# --- small multiples --------------------------------------------------------------------------------------------------


def small_multiples(panels: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels and their axes; width and height are a panel's, in inches."""
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down))
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
    """Join the texts that aren't empty; a figure that is too narrow breaks between them, then within."""
    lines: list[str] = []
    longest = max(20, int(width / 0.062))
    for text in filter(None, texts):
        if lines and len(f"{lines[-1]}   ·   {text}") < longest:
            lines[-1] += f"   ·   {text}"
        else:
            lines += textwrap.wrap(text, longest)
    return "\n".join(lines)
