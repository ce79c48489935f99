"""Plots of combinations: synergies, their heat map, what HyPe adds to other methods, and where a gain comes from."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.plots.looks import COLOURS, GREY, MOST, caption, few, forest, head, panels_across, short
from finetune_bench.reports.rows.sections import Column, Data, Section, bare
from finetune_bench.reports.topics import attribution, scores, synergy
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

_SCALE = LinearSegmentedColormap.from_list("synergy", [COLOURS[1], "#FFFFFF", COLOURS[0]])
_MOST_PAIRS = 12


def draw_synergies(data: Data, section: Section) -> Figure | None:
    """A line per stack, a panel per score and the mean over tasks; intervals as in the table."""
    found = [one for one in synergy.synergies(section) if one.estimate.n]
    if not found:
        return None
    stacks = list(dict.fromkeys(one.method for one in found))
    kept = sorted(stacks, key=lambda stack: -_clearest(stack, found))[:MOST]
    stacks = [stack for stack in stacks if stack in kept] if len(stacks) > MOST else stacks
    estimates = {(one.column, one.method): one.estimate for one in found}
    panels = [
        (column.title, [(stack, estimates.get((column, stack), stats.NOTHING)) for stack in stacks], math.nan)
        for column in few(one.column for one in found)
    ]
    every = len({one.method for one in found})
    crowded = f"{len(stacks)} of {every} stacks, those furthest from 0 for their error" if every > len(stacks) else ""
    return forest(panels, "synergy (points)", crowded, most=5)


def _clearest(stack: str, found: list[synergy.Synergy]) -> float:
    """How many standard errors the last column (the suite, if any) is from 0."""
    estimate = [one.estimate for one in found if one.method == stack][-1]
    return abs(estimate.value) / estimate.standard_error if estimate.standard_error > 0 else 0.0


def draw_compatibility(data: Data, section: Section) -> Figure | None:
    """Heat maps of synergies, the outer method down and the inner one across; grey where the interval covers 0."""
    found = [one for one in synergy.synergies(section) if one.estimate.n]
    if len({one.method for one in found}) < 2:
        return None
    rows = [label for label in section.methods if any(one.first == label for one in found)]
    columns = [label for label in section.methods if any(one.second == label for one in found)]
    panels = few(one.column for one in found)
    across = panels_across(len(panels), 4 if len(columns) <= 5 else 2)
    down = math.ceil(len(panels) / across)
    cell, names = 0.62, 0.075 * max(len(short(label)) for label in rows + columns)
    size = (names + (cell * len(columns) + 0.4) * across + 1.0, (0.42 * len(rows) + 0.8 * names + 0.5) * down + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    largest = max((abs(one.estimate.value) for one in found if one.estimate.separated), default=1.0)
    image = None
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, place + 1)
        block = np.full((len(rows), len(columns)), np.nan)
        for one in found:
            if one.column != panel:
                continue
            i, j = rows.index(one.first), columns.index(one.second)
            if one.estimate.separated:
                block[i, j] = one.estimate.value
            else:
                axes.fill(
                    [j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5], color="#E4E4E4", lw=0
                )
            loud = one.estimate.separated and abs(one.estimate.value) > 0.6 * largest
            colour = "white" if loud else "black" if one.estimate.separated else GREY
            text = f"{one.estimate.value:+.1f}".replace("-", "−")
            axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)
        image = axes.imshow(block, cmap=_SCALE, vmin=-largest, vmax=largest, aspect="auto")
        axes.grid(visible=False)
        head(axes, panel.title)
        here = place % across == 0
        axes.set_yticks(range(len(rows)), [short(row) if here else "" for row in rows])
        below = place + across >= len(panels)
        axes.set_xticks(range(len(columns)))
        if below:
            axes.set_xticklabels([short(column) for column in columns], rotation=40, ha="right")
        axes.tick_params(length=0, labelbottom=below)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, shrink=0.6, pad=0.02, label="synergy (points)")
    caption(figure, "down: the outer method, across: the inner", "grey: the 95 % t interval covers 0", "blank: not run")
    return figure


def draw_hype_pairs(data: Data, section: Section) -> Figure | None:
    """Bars of each method without and with HyPe, as Figure 2 of the HyPe paper has them, and intervals."""
    pairs: dict[str, tuple[str, str, str]] = {}
    for one in synergy.combinations(section)[0]:
        parts = {bare(one.first).partition("(")[0]: one.first, bare(one.second).partition("(")[0]: one.second}
        if "hype" in parts and len(parts) == 2:
            (other,) = (label for name, label in parts.items() if name != "hype")
            pairs.setdefault(other, (parts["hype"], other, one.method))
    shown = list(pairs.values())[:_MOST_PAIRS]
    if not shown or section.baseline is None:
        return None
    found = {(score.column, score.method): score.estimate for score in scores.scores(section)}
    columns = [column for column in few(column for column, _ in found) if _any(found, column, shown)]
    if not columns:
        return None
    across = panels_across(len(columns))
    down = math.ceil(len(columns) / across)
    width = max(0.9 * len(shown) + 0.7, 2.6)
    figure = Figure(figsize=(width * across + 0.4, 2.9 * down + 0.8), layout="constrained")
    kinds = {"vanilla": "black", "HyPe": COLOURS[4], "the method": COLOURS[5], "the method with HyPe": COLOURS[0]}
    for place, column in enumerate(columns):
        axes = figure.add_subplot(down, across, place + 1)
        values = []
        for group, (hype, other, stack) in enumerate(shown):
            labels = (section.baseline, hype, other, stack)
            for bar, (label, colour) in enumerate(zip(labels, kinds.values(), strict=True)):
                estimate = found[column, label]
                if not estimate.n:
                    continue
                x = group + 0.21 * (bar - 1.5)
                axes.bar(x, estimate.value, width=0.19, color=colour)
                values.append(estimate.value)
                if math.isfinite(estimate.low):
                    axes.plot([x, x], [estimate.low, estimate.high], "-", lw=1.0, color=GREY)
        head(axes, column.title)
        room = max(2.5 * (max(values) - min(values)), 1.0)
        axes.set_ylim(min(values) - room, max(values) + room)
        axes.set_xticks(range(len(shown)), [short(other, 24) for _, other, _ in shown], rotation=25, ha="right")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
    patches = [Patch(color=colour, label=text) for text, colour in kinds.items()]
    figure.legend(handles=patches, loc="outside upper left", ncols=4, fontsize=8)
    caption(figure, "score (× 100); the axis doesn't begin at 0", "line: 95 % t interval over seeds")
    return figure


def _any(found: dict[tuple[Column, str], Estimate], column: Column, shown: list[tuple[str, str, str]]) -> bool:
    return any(found[column, label].n for labels in shown for label in labels)


def draw_attribution(data: Data, section: Section) -> Figure | None:
    """Every effect of a method as a line: the run that has it minus the run with all before it."""
    found = attribution.attributions(data, section)
    lines = list(dict.fromkeys((one.method, one.effect) for one in found))
    estimates = {(one.column, one.method, one.effect): one.estimate for one in found}
    if not any(estimate.n for estimate in estimates.values()):
        return None
    panels = []
    for column in dict.fromkeys(one.column for one in found):
        own = [(f"{method}: {effect}", estimates[column, method, effect]) for method, effect in lines]
        panels.append((column.title, own, math.nan))
    return forest(panels, "difference (points)")
