"""Plots of scores: every seed behind its mean, and the training curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.plots.looks import (
    GREY,
    caption,
    crowd,
    draw_intervals,
    drawn,
    forest,
    grid,
    head,
    legend,
    legend_handle,
    limits,
    look,
    name_lines,
    panels_across,
    short,
    shown,
)
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.topics.differences import differences, noise_floors
from finetune_bench.reports.topics.scores import scores
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate


def draw_scores(data: Data, section: Section) -> Figure | None:
    """One panel per score: a line per method, every seed a dot, the mean a bar with its t interval."""
    columns = drawn(section)
    if not columns:
        return None
    methods = shown(section)
    found = {(score.column, score.method): score.estimate for score in scores(section)}
    names = [short(method) for method in methods]
    across = panels_across(len(columns))
    down = math.ceil(len(columns) / across)
    figure = Figure(
        figsize=(0.075 * max(map(len, names)) + 2.6 * across + 0.4, (0.27 * len(methods) + 0.95) * down + 0.3),
        layout="constrained",
    )
    for place, column in enumerate(columns):
        axes = figure.add_subplot(down, across, place + 1)
        low, high = limits(*_kept(section, column, found), longest=0.75)
        dots: list[tuple[float, float]] = []
        colours: list[str] = []
        for height, method in enumerate(methods):
            colour, _, _ = look(section, method)
            values = section.scores(method, column)
            broken = section.collapsed(method, column.task) & np.isfinite(values)
            fine = values[np.isfinite(values) & ~broken]
            # Seeds a little below the line, so that they don't hide the interval.
            dots += [(value, height + 0.2) for value in fine]
            colours += [colour] * len(fine)
            for value in values[broken]:
                axes.plot([min(max(value, low), high)], [height + 0.2], "x", ms=4.5, mew=1.2, color=colour)
                if not low <= value <= high:
                    at, side = (low, "left") if value < low else (high, "right")
                    axes.text(at, height + 0.22, f"   {value:.1f}   ", ha=side, va="center", fontsize=7, color=colour)
            if not found[column, method].n:
                axes.text(low, height, " no score", va="center", fontsize=7.5, color=GREY)
        if dots:
            x, y = zip(*dots, strict=True)
            axes.scatter(x, y, s=11, c=colours, linewidths=0, alpha=0.6)
        known = [(h, found[column, m], look(section, m)[0]) for h, m in enumerate(methods) if found[column, m].n]
        draw_intervals(axes, known, (low, high))
        head(axes, column.title)
        axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
        axes.set_ylim(len(methods) - 0.4, -0.6)
        name_lines(axes, names, here=place % across == 0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if section.baseline and found[column, section.baseline].n:
            axes.axvline(found[column, section.baseline].value, color="black", lw=0.8, ls=":", zorder=1)
    marks = "dots: seeds (×: collapsed), diamond: mean, bar: 95 % t interval over seeds (arrow: goes on)"
    caption(figure, "score (× 100)", marks, "dotted: baseline", crowd(section))
    return figure


def _kept(
    section: Section, column: Column, found: Mapping[tuple[Column, str], Estimate]
) -> tuple[np.ndarray, list[Estimate]]:
    """What the axis must hold: seeds that didn't collapse, and all means; else one collapsed run flattens the rest."""
    values = []
    for method in shown(section):
        values.append(np.where(section.collapsed(method, column.task), np.nan, section.scores(method, column)))
        values.append(np.array([found[column, method].value]))
    return np.concatenate(values), [found[column, method] for method in shown(section)]


# --- differences ------------------------------------------------------------------------------------------------------


def draw_differences(data: Data, section: Section) -> Figure | None:
    """The forest plot: every method minus the reference, per score and over the suite, on the noise floor."""
    if section.reference is None:
        return None
    floors = noise_floors(section, section.reference)
    by_panel: dict[str, dict[str, Estimate]] = {}
    bands: dict[str, float] = {}
    for one in differences(section, section.reference):
        if one.method in shown(section) and one.estimate.n:
            title = one.column.title + ("" if one.column.task else f" ({one.question})")
            by_panel.setdefault(title, {})[one.method] = one.estimate
            if one.question == "a" and one.column in floors:
                bands[title] = floors[one.column].high
    if not by_panel:
        return None
    methods = [method for method in shown(section) if any(method in found for found in by_panel.values())]
    panels = [
        (title, [(method, found.get(method, stats.NOTHING)) for method in methods], bands.get(title, math.nan))
        for title, found in by_panel.items()
    ]
    label = f"difference to {section.reference} (points)"
    band = "band: what other seeds alone do to a mean of as many" if bands else ""
    return forest(panels, label, band, crowd(section))


# --- curves --------------------------------------------------------------------------------------------------------


def draw_curves(data: Data, section: Section) -> Figure | None:
    """The task's training loss by step, without what methods add to it: mean over seeds, smoothed; a panel per task."""
    methods = shown(section)
    curves = {
        (task, method): found
        for task in section.tasks
        for method in methods
        if (found := list(_losses(data, section, method, task)))
    }
    tasks = [task for task in section.tasks if any(task == key[0] for key in curves)]
    if not tasks:
        return None
    across = panels_across(len(tasks), 2 if len(tasks) == 4 else 3)
    figure, panels = grid(len(tasks), across, 4.3, 3.0)
    for axes, task in zip(panels, tasks, strict=True):
        for method in reversed(methods):  # the baseline on top
            if (task, method) not in curves:
                continue
            colour, _, style = look(section, method)
            losses = curves[task, method]
            steps = min(map(len, losses))
            window = max(1, steps // 20)
            if len(methods) <= 6:
                for loss in losses:
                    smoothed = _smooth(loss, window)
                    axes.plot(_centres(len(loss), window), smoothed, lw=0.6, color=colour, alpha=0.25)
            mean = _smooth(np.mean([loss[:steps] for loss in losses], axis=0), window)
            axes.plot(_centres(steps, window), mean, style, lw=1.8 if method == section.baseline else 1.3, color=colour)
        head(axes, task)
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
    for axes in panels[::across]:
        axes.set_ylabel("training loss of the task")
    legend(figure, [legend_handle(section, method, line=True) for method in methods], crowd(section))
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
