"""Drawing. Everything that is drawn was computed in `tables`; the only arithmetic here is smoothing a line.

Figures are made without pyplot, so nothing global is touched; files are the same to the last byte for the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports import tables
from finetune_bench.reports.data import Column, Data, Row, Section
from finetune_bench.stats import Estimate

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
    "savefig.dpi": 130,
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Plot:
    """One plot of one section, as PNG and SVG.

    Attributes:
        kind: scores, memory, time, curves or synergy.
        section: the section's position.
        link: the PNG, relative to the report's folder.
        alt: what it shows, for who can't see it.
    """

    kind: str
    section: int
    files: tuple[Path, Path]
    link: str
    alt: str


Drawing = Callable[[Data, Section], Figure | None]


def draw(data: Data, folder: Path) -> list[Plot]:
    """Draw whatever the rows allow, into `folder`."""
    kinds: dict[str, tuple[Drawing, str]] = {
        "scores": (draw_scores, "Scores: every seed as a dot, the mean and its interval"),
        "memory": (draw_memory, "Peak memory against score"),
        "time": (draw_time, "Training time against score"),
        "curves": (draw_curves, "Training loss of the task by step: mean over seeds, smoothed"),
        "synergy": (draw_synergies, "Synergy of stacks with intervals"),
    }
    plots = []
    with matplotlib.rc_context(STYLE):
        for number, section in enumerate(data.sections):
            for kind, (drawing, text) in kinds.items():
                figure = drawing(data, section)
                if figure is None:
                    continue
                name = kind if len(data.sections) == 1 else f"{kind}-{number + 1}"
                alt = f"{text}, {section.title}" if section.title else text
                files = _save(figure, folder, name)
                plots.append(Plot(kind, number, files, f"{folder.name}/{name}.png", alt))
    return plots


def _save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # everything has its place now; finding it again is slow
    figure.savefig(svg, metadata={"Date": None})
    return png, svg


# --- looks ------------------------------------------------------------------------------------------------------------


def _look(section: Section, method: str) -> tuple[str, str, str]:
    """Colour, marker and line of a method: no two methods of up to 18 share colour and line."""
    if method == section.baseline:
        return "black", "*", "-"
    place = [label for label in section.methods if label != section.baseline].index(method)
    return (
        COLOURS[place % len(COLOURS)],
        MARKERS[(place + 2 * (place // len(COLOURS))) % len(MARKERS)],
        LINES[place // len(COLOURS) % len(LINES)],
    )


def _grid(panels: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of small multiples."""
    down = math.ceil(panels / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    return figure, [figure.add_subplot(down, across, i + 1) for i in range(panels)]


def _across(panels: int, most: int = 4) -> int:
    """Panels in a row, so that the last row isn't left nearly empty."""
    return math.ceil(panels / math.ceil(panels / most))


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend below all panels; the figure grows by its height."""
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    across = max(1, min(len(handles), int(width / (0.062 * longest + 0.6))))
    figure.set_size_inches(width, height + 0.25 + 0.18 * math.ceil(len(handles) / across))
    figure.legend(handles=list(handles), loc="outside lower center", ncols=across, fontsize=8, handlelength=2.6)


def _drawn(section: Section) -> list[Column]:
    """The columns in which any run has a score."""
    return [
        column
        for column in section.columns
        if any(np.isfinite(section.scores(method, column)).any() for method in section.methods)
    ]


# --- scores -----------------------------------------------------------------------------------------------------------


def draw_scores(data: Data, section: Section) -> Figure | None:
    """One panel per score: a line per method, every seed a dot, the mean a bar with its t interval."""
    columns = _drawn(section)
    if not columns:
        return None
    found = {(score.column, score.method): score.estimate for score in tables.scores(section)}
    names = max(len(method) for method in section.methods)
    across = _across(len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(
        figsize=(0.075 * names + 2.6 * across + 0.4, (0.27 * len(section.methods) + 0.95) * down + 0.3),
        layout="constrained",
    )
    first: list[Axes] = []
    for place, column in enumerate(columns):
        axes = figure.add_subplot(down, across, place + 1)
        first.append(axes)
        low, high = _limits(*_kept(section, column, found), longest=0.75)
        for height, method in enumerate(section.methods):
            colour, _, _ = _look(section, method)
            scores = section.scores(method, column)
            broken = section.collapsed(method, column.task) & np.isfinite(scores)
            fine = scores[np.isfinite(scores) & ~broken]
            # Seeds a little below the line, so that they don't hide the interval.
            axes.plot(fine, np.full(len(fine), height + 0.2), "o", ms=3.4, mew=0, color=colour, alpha=0.6)
            for value in scores[broken]:
                axes.plot([min(max(value, low), high)], [height + 0.2], "x", ms=4.5, mew=1.2, color=colour)
                if not low <= value <= high:
                    at, side = (low, "left") if value < low else (high, "right")
                    axes.text(at, height + 0.22, f"   {value:.1f}   ", ha=side, va="center", fontsize=7, color=colour)
            estimate = found[column, method]
            if estimate.n:
                _draw_interval(axes, estimate, height, colour, (low, high))
            else:
                axes.text(low, height, " no score", va="center", fontsize=7.5, color=GREY)
        axes.set_title(column.title)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.set_ylim(len(section.methods) - 0.4, -0.6)
        labels = section.methods if place % across == 0 else [""] * len(section.methods)
        axes.set_yticks(range(len(section.methods)), labels)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if section.baseline and found[column, section.baseline].n:
            axes.axvline(found[column, section.baseline].value, color="black", lw=0.8, ls=":", zorder=1)
    figure.supxlabel(
        "score (× 100)   ·   dots: seeds (×: collapsed), diamond: mean, bar: 95 % t interval over seeds "
        "(arrow: goes on), dotted: baseline",
        fontsize=8,
        color="#444444",
    )
    return figure


def _kept(
    section: Section, column: Column, found: Mapping[tuple[Column, str], Estimate]
) -> tuple[np.ndarray, list[Estimate]]:
    """What the axis must hold: seeds that didn't collapse, and all means; else one collapsed run flattens the rest."""
    values = []
    for method in section.methods:
        values.append(np.where(section.collapsed(method, column.task), np.nan, section.scores(method, column)))
        values.append(np.array([found[column, method].value]))
    return np.concatenate(values), [found[column, method] for method in section.methods]


def _limits(values: np.ndarray, estimates: Sequence[Estimate], longest: float) -> tuple[float, float]:
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


def _draw_interval(axes: Axes, estimate: Estimate, height: int, colour: str, limits: tuple[float, float]) -> None:
    """A diamond at the mean, a bar for the interval; an arrow where it goes on beyond the axis."""
    low, high = limits
    if not math.isnan(estimate.low):
        start, end = max(estimate.low, low), min(estimate.high, high)
        axes.plot([start, end], [height] * 2, "-", lw=1.6, color=colour)
        for at, inside, arrow in ((start, estimate.low >= low, "<"), (end, estimate.high <= high, ">")):
            axes.plot([at], [height], "|" if inside else arrow, ms=5.5, mew=1.3 if inside else 0, color=colour)
    axes.plot([estimate.value], [height], "D", ms=4.8, color=colour, mec="white", mew=0.7)


# --- cost against score -----------------------------------------------------------------------------------------------


def draw_memory(data: Data, section: Section) -> Figure | None:
    """Peak memory against score, a panel per score."""
    return _draw_cost(section, lambda row: tables.number(row, "peak_memory_bytes") / 2**20, "peak memory (MiB)")


def draw_time(data: Data, section: Section) -> Figure | None:
    """Training time against score, a panel per score."""
    return _draw_cost(section, tables.seconds, "training time (s)")


def _draw_cost(section: Section, cost: Callable[[Row], float], label: str) -> Figure | None:
    columns = [
        column
        for column in _drawn(section)
        if any(_costs_of(section, method, column, cost) for method in section.methods)
    ]
    if not columns:
        return None
    across = _across(len(columns))
    figure, panels = _grid(len(columns), across, 3.1, 2.9)
    for axes, column in zip(panels, columns, strict=True):
        for method in section.methods:
            colour, marker, _ = _look(section, method)
            costs = _costs_of(section, method, column, cost)
            scores = section.scores(method, column)
            if not costs or not np.isfinite(scores).any():
                continue
            x, y = float(np.median(costs)), float(np.nanmean(scores))
            usual = scores[np.isfinite(scores) & ~section.collapsed(method, column.task)]
            if len(usual):
                axes.plot([x, x], [usual.min(), usual.max()], "-", lw=0.9, color=colour, alpha=0.5)
            axes.plot([min(costs), max(costs)], [y, y], "-", lw=0.9, color=colour, alpha=0.5)
            axes.plot([x], [y], marker, ms=10 if marker == "*" else 6.5, color=colour, mec="white", mew=0.6, zorder=3)
        axes.set_title(column.title)
        axes.set_xlabel(label)
        axes.margins(0.08)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in panels[::across]:
        axes.set_ylabel("score (× 100)")
    handles = [_handle(section, method, line=False) for method in section.methods]
    handles.append(Line2D([], [], color=GREY, lw=0.9, label="range of the seeds (none collapsed)"))
    _legend(figure, handles)
    return figure


def _costs_of(section: Section, method: str, column: Column, cost: Callable[[Row], float]) -> list[float]:
    return [value for row in section.rows(method, column.task, "done") if math.isfinite(value := cost(row))]


def _handle(section: Section, method: str, *, line: bool) -> Line2D:
    colour, marker, style = _look(section, method)
    if line:
        return Line2D([], [], color=colour, ls=style, lw=1.8, label=method)
    return Line2D([], [], color=colour, ls="", marker=marker, ms=9 if marker == "*" else 6, mec="white", label=method)


# --- curves -----------------------------------------------------------------------------------------------------------


def draw_curves(data: Data, section: Section) -> Figure | None:
    """The task's training loss by step, without what methods add to it: mean over seeds, smoothed; a panel per task."""
    curves = {
        (task, method): found
        for task in section.tasks
        for method in section.methods
        if (found := list(_losses(data, section, method, task)))
    }
    tasks = [task for task in section.tasks if any(task == key[0] for key in curves)]
    if not tasks:
        return None
    across = _across(len(tasks), 2 if len(tasks) == 4 else 3)
    figure, panels = _grid(len(tasks), across, 4.3, 3.0)
    for axes, task in zip(panels, tasks, strict=True):
        for method in reversed(section.methods):  # the baseline on top
            if (task, method) not in curves:
                continue
            colour, _, style = _look(section, method)
            losses = curves[task, method]
            steps = min(map(len, losses))
            window = max(1, steps // 20)
            if len(section.methods) <= 6:
                for loss in losses:
                    smoothed = _smooth(loss, window)
                    axes.plot(_centres(len(loss), window), smoothed, lw=0.6, color=colour, alpha=0.25)
            mean = _smooth(np.mean([loss[:steps] for loss in losses], axis=0), window)
            axes.plot(_centres(steps, window), mean, style, lw=1.8 if method == section.baseline else 1.3, color=colour)
        axes.set_title(task)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    for axes in panels[::across]:
        axes.set_ylabel("training loss of the task")
    _legend(figure, [_handle(section, method, line=True) for method in section.methods])
    return figure


def _losses(data: Data, section: Section, method: str, task: str) -> Iterator[np.ndarray]:
    for row in section.rows(method, task, "done"):
        trace = data.trace(row)
        loss = np.asarray(trace.get("task_loss", trace.get("loss", ())), dtype=np.float64)
        if loss.ndim == 1 and len(loss):
            yield loss


def _smooth(values: np.ndarray, window: int) -> np.ndarray:
    return np.convolve(values, np.full(window, 1 / window), mode="valid")


def _centres(steps: int, window: int) -> np.ndarray:
    return np.arange(steps - window + 1) + (window + 1) / 2


# --- compatibility ----------------------------------------------------------------------------------------------------


def draw_synergies(data: Data, section: Section) -> Figure | None:
    """A line per stack, a panel per score and the mean over tasks; intervals as in the table."""
    found = [one for one in tables.synergies(section) if one.estimate.n]
    if not found:
        return None
    columns = list(dict.fromkeys(one.column for one in found))
    stacks = list(dict.fromkeys(one.method for one in found))
    across = _across(len(columns), 5)
    down = math.ceil(len(columns) / across)
    names = max(map(len, stacks))
    figure = Figure(
        figsize=(0.075 * names + 2.2 * across + 0.4, (0.34 * len(stacks) + 0.95) * down + 0.35), layout="constrained"
    )
    for place, column in enumerate(columns):
        axes = figure.add_subplot(down, across, place + 1)
        axes.axvline(0, color="black", lw=0.9)
        own = [one for one in found if one.column == column]
        values = np.array([one.estimate.value for one in own])
        low, high = _limits(np.append(values, 0.0), [one.estimate for one in own], longest=4)
        low, high = min(low, -0.1 * (high - low)), max(high, 0.1 * (high - low))
        for one in own:
            height = stacks.index(one.method)
            colour = GREY if not one.estimate.separated else COLOURS[0] if one.estimate.value > 0 else COLOURS[1]
            _draw_interval(axes, one.estimate, height, colour, (low, high))
        axes.set_title(column.title)
        axes.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        axes.set_ylim(len(stacks) - 0.4, -0.6)
        axes.set_yticks(range(len(stacks)), stacks if place % across == 0 else [""] * len(stacks))
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    figure.supxlabel(
        "synergy (points), 95 % t interval (arrow: goes on)   ·   blue: more than the parts together, orange: less, "
        "grey: not separated from 0",
        fontsize=8,
        color="#444444",
    )
    return figure
