"""Methods have a cost in time and memory, which is held here against their scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.document import Entry, Paragraph, bullets, code, table
from finetune_bench.reports.plots.style import (
    COLOURS,
    GREY,
    caption,
    left_out_text,
    legend,
    legend_handle,
    marks_below,
    method_style,
    panel_title,
    panels_across,
    short,
    shown_columns,
    shown_methods,
    small_multiples,
    tell,
    told_estimate,
)
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.joining import on_cpu
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.rows.shared import OF_THE_TRAINING, is_inseparable, notes_on_shared
from finetune_bench.reports.text import with_interval
from finetune_bench.reports.topics.contrasts import paired_runs
from finetune_bench.reports.topics.optimisers import moments, notes_on_muon
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row, Status

# --- records ----------------------------------------------------------------------------------------------------------

CostName: TypeAlias = Literal[
    "train_seconds",
    "train_cpu_seconds",
    "examples_per_second",
    "forwards_per_step",
    "backwards_per_step",
    "setup_seconds",
    "setup_forwards",
    "setup_backwards",
    "parameters",
    "trainable_parameters",
    "saved_activation_bytes",
    "peak_memory_bytes",
    "energy_joules",
]


@dataclass(frozen=True)
class Ratio:
    """A ratio is a cost divided by the reference's.

    Attributes:
        value: Geometric mean over pairs of runs; NaN without a pair.
        low: The smallest ratio of a pair.
        high: The largest ratio of a pair.
        n: Pairs.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cost:
    """A cost is the time, memory and energy that a method takes.

    Attributes:
        section: Title of the section.
        method: Label of the method.
        runs: Runs that ended well; the figures below are medians over them, NaN where none was measured.
        time: Training seconds relative to the reference's.
        memory: Peak memory relative to the reference's.
        activations: What autograd saves, relative to the reference's.
        energy: The whole device's energy relative to the reference's.
        seconds: Training seconds.
        examples_per_second: Examples of training.
        peak_memory_bytes: Peak memory.
        energy_joules: The whole device's energy over set-up and training.
        forwards_per_step: Forward passes.
        backwards_per_step: Backward passes.
        setup_seconds: Seconds before the first step.
        setup_forwards: Forward passes of the set-up.
        setup_backwards: Backward passes of the set-up.
        trainable_parameters: Parameters that are trained.
        parameters: All parameters.
    """

    section: str
    method: str
    runs: int
    time: Ratio
    memory: Ratio
    activations: Ratio
    energy: Ratio
    seconds: float
    examples_per_second: float
    peak_memory_bytes: float
    energy_joules: float
    forwards_per_step: float
    backwards_per_step: float
    setup_seconds: float
    setup_forwards: float
    setup_backwards: float
    trainable_parameters: float
    parameters: float


@cached
def costs(section: Section) -> list[Cost]:
    """Return what every method costs."""
    return [_cost(section, method) for method in section.methods]


def seconds(row: Row) -> float:
    """Return training seconds: the process's own on a CPU, where others compete for it, else the wall clock's."""
    return number(row, "train_cpu_seconds" if all(on_cpu([row])) else "train_seconds")


def number(row: Row, name: CostName) -> float:
    """Return a figure of a row's cost, NaN where there is none, or others have an unknown part in it."""
    if is_inseparable(row) and name in OF_THE_TRAINING:
        return math.nan
    cost = row.get("cost")
    value = cost.get(name) if cost else None
    return math.nan if value is None else float(value)


def _cost(section: Section, method: str) -> Cost:
    rows = section.rows(method, status=Status.DONE)
    pairs = paired_runs(section, method)

    def median(name: CostName) -> float:
        return _median([number(row, name) for row in rows])

    return Cost(
        section=section.title,
        method=method,
        runs=len(rows),
        time=_ratio(pairs, seconds),
        memory=_ratio(pairs, lambda row: number(row, "peak_memory_bytes")),
        activations=_ratio(pairs, lambda row: number(row, "saved_activation_bytes")),
        energy=_ratio(pairs, lambda row: number(row, "energy_joules")),
        seconds=_median([seconds(row) for row in rows]),
        examples_per_second=median("examples_per_second"),
        peak_memory_bytes=median("peak_memory_bytes"),
        energy_joules=median("energy_joules"),
        forwards_per_step=median("forwards_per_step"),
        backwards_per_step=median("backwards_per_step"),
        setup_seconds=median("setup_seconds"),
        setup_forwards=median("setup_forwards"),
        setup_backwards=median("setup_backwards"),
        trainable_parameters=median("trainable_parameters"),
        parameters=median("parameters"),
    )


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _ratio(pairs: Sequence[tuple[Row, Row]], cost: Callable[[Row], float]) -> Ratio:
    costs = [(cost(row), cost(reference)) for row, reference in pairs]
    costs = [pair for pair in costs if pair[0] > 0 and pair[1] > 0]
    if not costs:
        return Ratio(math.nan, math.nan, math.nan, 0)
    ratios = [of_method / of_reference for of_method, of_reference in costs]
    value = estimates.geometric_mean_ratio(*zip(*costs, strict=True))
    return Ratio(value, min(ratios), max(ratios), len(costs))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the indices of the points that no cheaper or equally cheap point reaches, the cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step, medians over a method's runs; weights are fp32, the optimiser is AdamW.

    Attributes:
        section: Title of the section.
        method: Label of the method.
        weights: Bytes of all weights.
        gradients: Bytes of the gradients of what is trained.
        optimiser: Bytes of the optimiser's moments.
        activations: What autograd saves for the backward pass.
        peak: Measured peak memory; NaN where it can't be measured.
    """

    section: str
    method: str
    weights: float
    gradients: float
    optimiser: float
    activations: float
    peak: float


def footprints(section: Section) -> list[Footprint]:
    """Return the footprint of every method of which the sizes were measured."""
    result = []
    for cost in costs(section):
        activations = _median(
            [number(row, "saved_activation_bytes") for row in section.rows(cost.method, status=Status.DONE)]
        )
        weights, gradients, peak = 4 * cost.parameters, 4 * cost.trainable_parameters, cost.peak_memory_bytes
        if math.isfinite(weights + gradients + activations):
            kept = 4 * moments(section, cost.method, cost.trainable_parameters)
            result.append(Footprint(section.title, cost.method, weights, gradients, kept, activations, peak))
    return result


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    return [
        *_table(section),
        Drawing("memory", "Peak memory against score, with the Pareto front", partial(draw_memory, section)),
        Drawing("time", "Training time against score, with the Pareto front", partial(draw_time, section)),
        Drawing(
            "footprint",
            "Memory per method: weights, gradients, optimiser and activations",
            partial(draw_footprint, section),
        ),
    ]


def _table(section: Section) -> list[TopicBlock]:
    measured = [cost for cost in costs(section) if cost.runs]
    if not measured:
        return [Paragraph("No run ended well, so nothing was measured.")]
    joules = any(math.isfinite(cost.energy_joules) for cost in measured)
    header = ["method", "time ×", "peak memory ×", "saved activations ×", *(["energy ×"] if joules else [])]
    header += ["train s", "examples/s", "peak MiB", *(["energy kJ"] if joules else [])]
    header += ["passes per step", "set-up s", "set-up passes", "trained parameters", "runs"]
    runs = {cost.method: tuple(row["id"] for row in section.rows(cost.method, None, Status.DONE)) for cost in measured}
    rows: list[list[str | Entry]] = [
        [
            code(cost.method),
            *(
                _ratio_entry(ratio, runs[cost.method])
                for ratio in (cost.time, cost.memory, cost.activations, cost.energy)[: 4 if joules else 3]
            ),
            _figure_entry(cost.seconds, runs[cost.method]),
            _figure_entry(cost.examples_per_second, runs[cost.method]),
            _figure_entry(cost.peak_memory_bytes / 2**20, runs[cost.method]),
            *([_figure_entry(cost.energy_joules / 1000, runs[cost.method])] if joules else []),
            f"{_figure(cost.forwards_per_step)} + {_figure(cost.backwards_per_step)}",
            _figure(cost.setup_seconds),
            f"{_figure(cost.setup_forwards)} + {_figure(cost.setup_backwards)}",
            _trained(cost.trainable_parameters, cost.parameters),
            Entry(str(cost.runs), cost.runs, runs[cost.method]),
        ]
        for cost in measured
    ]
    some, every = on_cpu(section.runs.values())
    clock = "the process's own seconds" if every else "wall-clock seconds" + some * ", on a CPU the process's own,"
    notes = [
        f"×: geometric mean over (task, seed) pairs of the ratio to {code(section.reference or 'vanilla')}, in "
        "brackets the smallest and largest ratio of a pair, which is no interval; n pairs."
        if section.reference
        else "No ratios: vanilla with its default dropout is not in this run.",
        f"Absolute figures are medians over a method's runs, whatever their task. Time is {clock} of training, without "
        "evaluation; on a machine shared with others, trust the ratios of counts rather than of seconds.",
        "Passes: forwards + backwards, per step and for all of the set-up.",
        *(["Energy: the whole device's, by NVML, over set-up and training."] if joules else []),
        *(*notes_on_muon(section), *notes_on_shared(section)),
    ]
    return [table("cost", header, rows), *bullets(notes)]


def _ratio_entry(ratio: Ratio, runs: tuple[str, ...]) -> Entry:
    text = f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] n={ratio.n}" if ratio.n else "—"
    return Entry(text, ratio.value, runs)


def _figure_entry(value: float, runs: tuple[str, ...]) -> Entry:
    return Entry(_figure(value), value, runs)


def _figure(value: float) -> str:
    """Write a number with three digits that count; a dash for NaN."""
    if math.isnan(value) or 0 < value < 0.01:
        return "—" if math.isnan(value) else "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _trained(trainable: float, total: float) -> str:
    return f"{_figure(trainable)} ({100 * trainable / total:.3g} %)" if trainable >= 0 < total else _figure(trainable)


# --- the plots --------------------------------------------------------------------------------------------------------


def draw_memory(section: Section) -> Figure | None:
    """Draw peak memory against score, a panel per score, and over the suite relative to the reference."""
    ratios = {cost.method: cost.memory for cost in costs(section)}
    return _draw(section, lambda row: number(row, "peak_memory_bytes") / 2**20, ratios, "peak memory (MiB)")


def draw_time(section: Section) -> Figure | None:
    """Draw training time against score, a panel per score, and over the suite relative to the reference."""
    ratios = {cost.method: cost.time for cost in costs(section)}
    return _draw(section, seconds, ratios, "training time (s)")


@dataclass(frozen=True)
class _Point:
    """A method's cost, with the range of its runs, and its score."""

    method: str
    cost: float
    least: float
    most: float
    score: Estimate


def _draw(section: Section, cost: Callable[[Row], float], ratios: Mapping[str, Ratio], label: str) -> Figure | None:
    means = {(score.column, score.method): score.estimate for score in scores(section)}
    panels = []
    for column in shown_columns(column for column, _ in means):
        points = []
        for method in shown_methods(section):
            if column.task:
                middle, least, most = _range([cost(row) for row in section.rows(method, column.task, Status.DONE)])
            else:
                middle, least, most = ratios[method].value, ratios[method].low, ratios[method].high
            if math.isfinite(middle) and means[column, method].n:
                points.append(_Point(method, middle, least, most, means[column, method]))
        axis = label if column.task else f"{label.partition(' (')[0]} (× {section.reference})"
        if points:
            panels.append((column.title, axis, points))
    if not panels:
        return None
    across = panels_across(len(panels))
    figure, all_axes = small_multiples(len(panels), across, 3.1, 2.9)
    for index, (axes, (title, axis, points)) in enumerate(zip(all_axes, panels, strict=True)):
        _draw_points(axes, section, points)
        panel_title(axes, title)
        axes.set_xlabel(axis)
        if index % across == 0:
            axes.set_ylabel("score (× 100)")
    handles = [legend_handle(section, method, line=False) for method in shown_methods(section)]
    lines = "up: 95 % t interval over seeds (arrow: goes on), across: range of the runs' costs"
    legend(figure, handles, lines, "dotted: Pareto front of the means", left_out_text(section))
    return figure


def _range(costs: list[float]) -> tuple[float, float, float]:
    """Return median, smallest and largest."""
    finite = [value for value in costs if math.isfinite(value)]
    return (float(np.median(finite)), min(finite), max(finite)) if finite else (math.nan, math.nan, math.nan)


def _draw_points(axes: Axes, section: Section, points: Sequence[_Point]) -> None:
    values = np.array([point.score.value for point in points])
    # Few seeds make intervals that would flatten everything, so there is room for a part of them only.
    room = max(4 * float(np.ptp(values)), 1.0)
    low, high = float(values.min()) - room, float(values.max()) + room
    under = marks_below([(point.cost, point.score.value) for point in points])
    for point, below in zip(points, under, strict=True):
        colour, marker, _ = method_style(section, point.method)
        score = point.score
        if with_interval(score):
            ends = [max(score.low, low), min(score.high, high)]
            axes.plot([point.cost, point.cost], ends, "-", lw=0.9, color=colour, alpha=0.45)
            for end, inside, arrow in ((ends[0], score.low >= low, "v"), (ends[1], score.high <= high, "^")):
                if not inside:
                    axes.plot([point.cost], [end], arrow, ms=4, mew=0, color=colour, alpha=0.6)
        axes.plot([point.least, point.most], [score.value] * 2, "-", lw=0.9, color=colour, alpha=0.45)
        size = 10 if marker == "*" else 6.5
        # A mark that lies on another one becomes a ring around it, so that both are seen.
        (mark,) = axes.plot([point.cost], [score.value], marker, ms=size + 5 * below, color=colour, zorder=3)
        mark.set(mfc="none" if below else colour, mec=colour if below else "white", mew=1.4 if below else 0.6)
        tell(mark, [point.method], [f"{told_estimate(point.method, 'score', score)}, cost {point.cost:.3g}"])
    front = pareto_front([point.cost for point in points], list(values))
    xs, ys = [points[i].cost for i in front], [values[i] for i in front]
    axes.step(xs, ys, where="post", color=GREY, lw=1.1, ls=":", zorder=1)
    axes.margins(0.08)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def draw_footprint(section: Section) -> Figure | None:
    """Draw stacked bars of weights, gradients, optimiser and saved activations; a mark at the measured peak."""
    by_method = {footprint.method: footprint for footprint in footprints(section)}
    methods = [method for method in shown_methods(section) if method in by_method]
    if not methods:
        return None
    parts = ("weights", "gradients", "optimiser", "activations")
    names = [short(method) for method in methods]
    figure = Figure(figsize=(0.075 * max(map(len, names)) + 6.2, 0.27 * len(methods) + 1.3))
    axes = figure.add_subplot()
    left = np.zeros(len(methods))
    for part, colour in zip(parts, COLOURS, strict=False):
        sizes = np.array([getattr(by_method[method], part) / 2**20 for method in methods])
        drawn = axes.barh(range(len(methods)), sizes, left=left, height=0.62, color=colour, label=part)
        for patch, method, size in zip(drawn, methods, sizes, strict=True):
            tell(patch, [method], [f"{method}: {part} {size:,.0f} MiB"])
        left += sizes
    some_on_cpu, _ = on_cpu(section.runs.values())
    if not some_on_cpu:
        # On a CPU the peak is the whole process with its libraries, which is no sum of these parts.
        peaks = [by_method[method].peak / 2**20 for method in methods]
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
    left_out = "without the peak, which on a CPU is the whole process" if some_on_cpu else ""
    caption(figure, "medians over runs", left_out, left_out_text(section))
    return figure


TOPIC = Topic(
    title="Cost",
    blocks=_blocks,
    frame=Frame(file="cost", record=Cost, records=lambda data, section: costs(section)),
)
