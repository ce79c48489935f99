"""A stack of two methods has synergy if it gains more than its parts together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.document import Block, Entry, bold, bullets, code, table
from finetune_bench.reports.plots.intervals import Panel, forest
from finetune_bench.reports.plots.style import (
    COLOURS,
    GREY,
    MAX_METHODS,
    caption,
    panel_title,
    panels_across,
    short,
    shown_columns,
    tell,
    told_estimate,
)
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Data, Section, bare
from finetune_bench.reports.rows.twins import run_alone
from finetune_bench.reports.text import difference_text, with_interval
from finetune_bench.reports.topics.contrasts import WELCH, cell_ids, complete_block, contrast, suite_column
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate

# Metrics that are shares, of which a logit can be taken.
_SHARES = ("accuracy", "f1")
_SCALE = LinearSegmentedColormap.from_list("synergy", [COLOURS[1], "#FFFFFF", COLOURS[0]])
_MAX_PAIRS = 12

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Synergy:
    """A synergy is the gain of a stack of two over the sum of its parts.

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the stack.
        first: Label of its outer part, run alone.
        second: Label of its inner part, run alone.
        baseline: Label of the vanilla that they are held against.
        estimate: The synergy in points.
        interval: What the interval is built on.
        logit: The synergy of the log-odds, where the metric is a share; nothing elsewhere. Its interval rests on the
            four runs' own seeds.
        note: Where a part or the baseline is not the exact one.
    """

    section: str
    column: Column
    method: str
    first: str
    second: str
    baseline: str
    estimate: Estimate
    interval: str
    logit: Estimate
    note: str


@dataclass(frozen=True)
class Combination:
    """A combination is a stack of two whose parts were run alone.

    Attributes:
        method: Label of the stack.
        first: Label of its outer part, run alone.
        second: Label of its inner part, run alone.
        baseline: Label of the vanilla that they are held against.
        note: Where a part or the baseline is not the exact one; "" elsewhere.
    """

    method: str
    first: str
    second: str
    baseline: str
    note: str


@cached
def combinations(section: Section) -> tuple[list[Combination], list[str]]:
    """Return the stacks of two whose parts were run alone, and a sentence for each stack without a synergy.

    A part is the single method with the same parameters; where that wasn't run, the method at its defaults, with a
    note. Where stack and parts all realise the same dropout, other than the baseline's, the vanilla control with that
    dropout stands for the baseline: otherwise the change that both parts share would count twice against the stack.
    """
    complete, left_out = [], []
    for method in section.methods:
        parts = section.parts(method)
        if len(parts) < 2:
            continue
        if len(parts) > 2:
            left_out.append(f"{method}: synergy is defined for stacks of two.")
            continue
        labels = [run_alone(section, part) for part in parts]
        lacking = [part["name"] for part, (label, _) in zip(parts, labels, strict=True) if label is None]
        if lacking or section.baseline is None:
            lacking += [] if section.baseline else ["vanilla"]
            left_out.append(f"{method}: needs {' and '.join(lacking)} run alone in the same setting.")
            continue
        (first, first_note), (second, second_note) = labels
        baseline, baseline_note = _baseline(section, method, str(first), str(second), section.baseline)
        note = " ".join(text for text in (first_note, second_note, baseline_note) if text)
        complete.append(Combination(method, str(first), str(second), baseline, note))
    return complete, left_out


def _baseline(section: Section, method: str, first: str, second: str, baseline: str) -> tuple[str, str]:
    """Return the vanilla that a stack is held against, and a note where it is not the exact one."""
    dropouts = {section.dropout(label) for label in (method, first, second)}
    changed = {section.dropout(label) for label in (first, second)} - {section.dropout(baseline), ""}
    if len(dropouts) == 1 and changed:
        control = section.control(method)
        if control is not None:
            return control, ""
    if len(changed) == 1 and section.dropout(first) == section.dropout(second):
        return baseline, "Both parts change the dropout, and no control has it: that change counts twice in the sum."
    return baseline, ""


@cached
def synergies(section: Section) -> list[Synergy]:
    """Return y_AB − y_A − y_B + y_0 of every stack of two with its parts, per column and over the suite."""
    result = []
    for stack in combinations(section)[0]:
        labels = (stack.method, stack.first, stack.second, stack.baseline)
        weights = dict(zip(labels, (1.0, -1.0, -1.0, 1.0), strict=True))
        for column in section.columns:
            value, interval = _synergy(section, column, weights, stack.baseline)
            log_odds = _log_odds(section, column, weights, stack.baseline)
            result.append(Synergy(section.title, column, *labels, value, interval, log_odds, stack.note))
        if len(section.tasks) > 1:
            column = suite_column(section)
            mean = estimates.suite_mean(
                [_synergy(section, of_task, weights, stack.baseline)[0] for of_task in section.suite]
            )
            result.append(Synergy(section.title, column, *labels, mean, WELCH, estimates.NOTHING, stack.note))
    return result


def _synergy(section: Section, column: Column, weights: Mapping[str, float], baseline: str) -> tuple[Estimate, str]:
    return contrast(section, column, weights, baseline, complete_block(section, column, baseline))


def _log_odds(section: Section, column: Column, weights: Mapping[str, float], anchor: str) -> Estimate:
    if column.metric not in _SHARES:
        return estimates.NOTHING
    stacked, first, second, none = (
        estimates.logit(section.paired_scores(label, anchor, column) / 100) for label in weights
    )
    return estimates.synergy(stacked, first, second, none)


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    return [
        *_table(section),
        Drawing("compatibility", "Heat map of the synergies of stacks", partial(draw_compatibility, section)),
        Drawing("synergy", "Synergy of stacks with intervals", partial(draw_synergies, section)),
        Drawing("hype_pairs", "Methods without and with HyPe", partial(draw_hype_pairs, section)),
    ]


def _table(section: Section) -> list[Block]:
    stacks = synergies(section)
    _, left_out = combinations(section)
    result: list[Block] = []
    if stacks:
        rows: list[list[str | Entry]] = [
            [
                f"{code(stack.method)} = {code(stack.first)} + {code(stack.second)}",
                code(stack.baseline),
                stack.column.title,
                Entry(
                    difference_text(stack.estimate),
                    stack.estimate.value,
                    cell_ids(section, [stack.method, stack.first, stack.second, stack.baseline], stack.column),
                ),
                str(stack.estimate.n),
                f"{stack.estimate.df:.1f}".removesuffix(".0") if stack.estimate.df > 0 else "—",
                stack.interval if stack.estimate.df > 0 else "—",
                _log_odds_text(stack.logit),
            ]
            for stack in stacks
        ]
        header = ("stack and its parts", "y₀", "score", "synergy", "n", "df", "interval", "log-odds")
        result.append(table("synergy", header, rows))
    notes = [
        "Synergy: y(A+B) − y(A) − y(B) + y₀ per seed, in points: above 0 the stack gains more than its parts together. "
        "Question (a), n seeds. Its standard error is √2 that of a difference, so it takes about twice the seeds to "
        "see the same effect. Bold: the interval excludes 0.",
        "log-odds: the same on the logit scale, where gains near the ceiling count for more; only for shares. Its t "
        "interval rests on the four runs' own seeds.",
    ]
    exceptions = [
        f"{code(method)}: {note}" for method, note in {stack.method: stack.note for stack in stacks}.items() if note
    ]
    return [*result, *bullets([*exceptions, *left_out], findings=True), *bullets(notes if stacks else [])]


def _log_odds_text(estimate: Estimate) -> str:
    if math.isnan(estimate.value):
        return "—"
    text = f"{round(estimate.value, 2) + 0.0:+.2f}"
    if with_interval(estimate):
        text += f" [{round(estimate.low, 2) + 0.0:+.2f}, {round(estimate.high, 2) + 0.0:+.2f}]"
    text = text.replace("-", "−")
    return bold(text) if estimate.separated and with_interval(estimate) else text


# --- the plots --------------------------------------------------------------------------------------------------------


def draw_synergies(section: Section) -> Figure | None:
    """Draw a line per stack, a panel per score and the mean over tasks; intervals as in the table."""
    rows = [row for row in synergies(section) if row.estimate.n]
    if not rows:
        return None
    stacks = list(dict.fromkeys(row.method for row in rows))
    clearest = sorted(stacks, key=lambda stack: -_clarity(stack, rows))[:MAX_METHODS]
    shown = [stack for stack in stacks if stack in clearest]
    by_stack = {(row.column, row.method): row.estimate for row in rows}
    panels = [
        Panel(column.title, [(stack, by_stack.get((column, stack), estimates.NOTHING)) for stack in shown])
        for column in shown_columns(row.column for row in rows)
    ]
    left_out = f"{len(shown)} of {len(stacks)} stacks, those furthest from 0 for their error"
    return forest(panels, "synergy (points)", left_out if len(stacks) > len(shown) else "", at_most=5)


def _clarity(stack: str, rows: Sequence[Synergy]) -> float:
    """Return how many standard errors a stack's last column (the suite, if any) is from 0."""
    estimate = [row.estimate for row in rows if row.method == stack][-1]
    return abs(estimate.value) / estimate.standard_error if estimate.standard_error > 0 else 0.0


def draw_compatibility(section: Section) -> Figure | None:
    """Draw heat maps of synergies, the outer method down and the inner across; grey where the interval covers 0."""
    rows = [row for row in synergies(section) if row.estimate.n]
    if len({row.method for row in rows}) < 2:
        return None
    outer = [label for label in section.methods if any(row.first == label for row in rows)]
    inner = [label for label in section.methods if any(row.second == label for row in rows)]
    if min(len(outer), len(inner)) < 2:
        # A single row of numbers is no map; the plot with intervals has them.
        return None
    panels = shown_columns(row.column for row in rows)
    across = panels_across(len(panels), 4 if len(inner) <= 5 else 2)
    down = math.ceil(len(panels) / across)
    cell, names = 0.62, 0.075 * max(len(short(label)) for label in outer + inner)
    size = (names + (cell * len(inner) + 0.4) * across + 1.0, (0.42 * len(outer) + 0.8 * names + 0.5) * down + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    largest = max((abs(row.estimate.value) for row in rows if row.estimate.separated), default=1.0)
    image = None
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(down, across, index + 1)
        values = np.full((len(outer), len(inner)), np.nan)
        for row in rows:
            if row.column == panel:
                i, j = outer.index(row.first), inner.index(row.second)
                values[i, j] = row.estimate.value if row.estimate.separated else np.nan
                _draw_cell(axes, row.estimate, i, j, largest)
        image = axes.imshow(values, cmap=_SCALE, vmin=-largest, vmax=largest, aspect="auto")
        axes.grid(visible=False)
        panel_title(axes, panel.title)
        leftmost = index % across == 0
        axes.set_yticks(range(len(outer)), [short(label) if leftmost else "" for label in outer])
        lowest = index + across >= len(panels)
        axes.set_xticks(range(len(inner)))
        if lowest:
            axes.set_xticklabels([short(label) for label in inner], rotation=40, ha="right")
        axes.tick_params(length=0, labelbottom=lowest)
    if image is not None:
        figure.colorbar(image, ax=figure.axes, shrink=0.6, pad=0.02, label="synergy (points)")
    caption(figure, "down: the outer method, across: the inner", "grey: the 95 % t interval covers 0", "blank: not run")
    return figure


def _draw_cell(axes: Axes, estimate: Estimate, i: int, j: int, largest: float) -> None:
    """Write a synergy into its cell, which is grey where the interval covers 0."""
    if not estimate.separated:
        axes.fill([j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5], color="#E4E4E4", lw=0)
    loud = estimate.separated and abs(estimate.value) > 0.6 * largest
    colour = "white" if loud else "black" if estimate.separated else GREY
    text = f"{estimate.value:+.1f}".replace("-", "−")
    axes.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)


def draw_hype_pairs(section: Section) -> Figure | None:
    """Draw each method without and with HyPe, the pairs of Figure 2 of the HyPe paper, as dots with intervals."""
    shown = _hype_pairs(section)
    if not shown or section.baseline is None:
        return None
    means = {(score.column, score.method): score.estimate for score in scores(section)}
    columns = [
        column
        for column in shown_columns(column for column, _ in means)
        if any(means[column, label].n for labels in shown for label in labels)
    ]
    if not columns:
        return None
    across = panels_across(len(columns))
    down = math.ceil(len(columns) / across)
    width = max(0.9 * len(shown) + 0.7, 2.6)
    figure = Figure(figsize=(width * across + 0.4, 2.9 * down + 0.8))
    kinds = {"vanilla": "black", "HyPe": COLOURS[4], "the method": COLOURS[5], "the method with HyPe": COLOURS[0]}
    for index, column in enumerate(columns):
        axes = figure.add_subplot(down, across, index + 1)
        values = []
        for group, (hype, other, stack) in enumerate(shown):
            labels = (section.baseline, hype, other, stack)
            for bar, (label, colour) in enumerate(zip(labels, kinds.values(), strict=True)):
                estimate = means[column, label]
                if not estimate.n:
                    continue
                x = group + 0.21 * (bar - 1.5)
                (mark,) = axes.plot([x], [estimate.value], "o", ms=6, color=colour, mec="white", mew=0.6, zorder=3)
                tell(mark, [label], [told_estimate(label, column.title, estimate)])
                values.append(estimate.value)
                if with_interval(estimate):
                    axes.plot([x, x], [estimate.low, estimate.high], "-", lw=1.0, color=GREY)
        panel_title(axes, column.title)
        room = max(2.5 * (max(values) - min(values)), 1.0)
        axes.set_ylim(min(values) - room, max(values) + room)
        axes.set_xticks(range(len(shown)), [short(other, 24) for _, other, _ in shown], rotation=25, ha="right")
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="x")
        axes.tick_params(axis="x", length=0)
    patches = [
        Line2D([], [], ls="", marker="o", ms=6, color=colour, mec="white", label=text) for text, colour in kinds.items()
    ]
    figure.legend(handles=patches, loc="outside upper left", ncols=4, fontsize=8)
    caption(figure, "score (× 100)", "line: 95 % t interval over seeds")
    return figure


def _hype_pairs(section: Section) -> list[tuple[str, str, str]]:
    """Return the labels of HyPe, of another method, and of their stack; the first stack of each other method."""
    pairs: dict[str, tuple[str, str, str]] = {}
    for stack in combinations(section)[0]:
        parts = {bare(label).partition("(")[0]: label for label in (stack.first, stack.second)}
        if "hype" in parts and len(parts) == 2:
            (other,) = (label for name, label in parts.items() if name != "hype")
            pairs.setdefault(other, (parts["hype"], other, stack.method))
    return list(pairs.values())[:_MAX_PAIRS]


TOPIC = Topic(
    title="Compatibility",
    blocks=_blocks,
    frame=Frame(
        file="synergy",
        record=Synergy,
        records=lambda data, section: synergies(section),
        methods=lambda stack: [stack.method, stack.first, stack.second, stack.baseline],
    ),
)
