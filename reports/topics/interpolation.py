"""A line from the pre-trained to the fine-tuned weights is told here: score and likelihood against the share α."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finetune_bench.reports.document import Entry, bullets, table
from finetune_bench.reports.plots.style import COLOURS, MARKERS, legend, panel_title, panels_across, small_multiples
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section, bare
from finetune_bench.reports.text import with_interval
from finetune_bench.reports.topics.analysed import measurements
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats.estimates import t_interval
from finetune_bench.store.row import MethodEntry, Status

INTERPOLATES = "wise_ft"
_SCORE, _NLL = "score", "NLL"


@dataclass(frozen=True)
class InterpolationPoint:
    """A point of a line has the weights of one α.

    Attributes:
        section: Title of the section.
        line: What is interpolated: the rest of the stack, and what of the head is.
        method: Label of the run.
        alpha: Share of the fine-tuned weights; 1 is the rest of the stack alone.
        task: The task.
        quantity: "score", in points, or "NLL", in nats.
        value: Mean over seeds.
        low: Lower end of the 95 % t interval.
        high: Upper end.
        n: Seeds.
    """

    section: str
    line: str
    method: str
    alpha: float
    task: str
    quantity: str
    value: float
    low: float
    high: float
    n: int


@cached
def interpolation_points(data: Data, section: Section) -> list[InterpolationPoint]:
    """Return the points of every line of three α at least, its end at 1 among them where that was run."""
    likelihoods: dict[tuple[str, str], list[float]] = {}
    for measured in measurements(data, section, "calibration"):
        # The first split of a task that has one; names are as `validation: NLL`.
        first = next((column.splits[0] for column in section.columns if column.task == measured.task), "")
        if measured.number == f"{first}: NLL":
            likelihoods.setdefault((measured.method, measured.task), []).append(measured.value)
    points: list[InterpolationPoint] = []
    for line, methods in _lines(section).items():
        for alpha, method in methods:
            for task in section.tasks:
                column = next(column for column in section.columns if column.task == task)
                estimates = {_SCORE: t_interval(section.scores(method, column))}
                estimates[_NLL] = t_interval(likelihoods.get((method, task), []))
                for quantity, estimate in estimates.items():
                    low, high = (estimate.low, estimate.high) if with_interval(estimate) else (math.nan, math.nan)
                    if estimate.n:
                        place = (section.title, line, method, alpha, task, quantity)
                        points.append(InterpolationPoint(*place, estimate.value, low, high, estimate.n))
    return points


def _lines(section: Section) -> dict[str, list[tuple[float, str]]]:
    """Return by the name of each line its (α, label), by α."""
    beneath = {_key(section.parts(label)): label for label in section.methods if label != section.baseline}
    lines: dict[str, list[tuple[float, str]]] = {}
    for label in section.methods:
        parts = section.parts(label)
        parameters = [part["parameters"] for part in parts if part["name"] == INTERPOLATES]
        if len(parameters) != 1 or parameters[0].get("dropout") != "keep":
            continue
        rest = [part for part in parts if part["name"] != INTERPOLATES]
        # The label without its part, which has no brackets within its own.
        stack = re.sub(rf"\+?\b{INTERPOLATES}(\([^()]*\))?", "", bare(label)).lstrip("+")
        points = lines.setdefault(f"{stack or 'vanilla'}, head {parameters[0]['head']}", [])
        points.append((float(parameters[0]["alpha"]), label))
        end = beneath.get(_key(rest)) if rest else section.baseline
        if end is not None and (1.0, end) not in points:
            points.append((1.0, end))
    return {name: sorted(points) for name, points in lines.items() if len({alpha for alpha, _ in points}) > 2}


def _key(parts: Sequence[MethodEntry]) -> str:
    return json.dumps([[part["name"], part.get("parameters")] for part in parts], sort_keys=True)


# --- the table and the plot -------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    points = interpolation_points(data, section)
    if not points:
        return []
    by_place: dict[tuple[str, float], dict[tuple[str, str], InterpolationPoint]] = {}
    for point in points:
        by_place.setdefault((point.line, point.alpha), {})[point.task, point.quantity] = point
    columns = list(dict.fromkeys((point.task, point.quantity) for point in points))
    rows: list[list[str | Entry]] = [
        [line, f"{alpha:g}", *(_entry(section, of_place.get(column)) for column in columns)]
        for (line, alpha), of_place in by_place.items()
    ]
    header = ["line", "α", *(f"{task}: {quantity}" for task, quantity in columns)]
    note = (
        "Weights between the checkpoint's (α = 0) and those after training (α = 1): means over seeds; scores ×100, NLL "
        "in nats, lower is better. On every such line some point is the best by chance alone: read its course, or "
        "choose α by a search, on data that was set aside."
    )
    alt = "Score and NLL against the share α of the fine-tuned weights, means over seeds with 95 % t intervals"
    plot = Drawing("interpolation", alt, partial(draw_interpolation, data, section))
    return [plot, table("interpolation", header, rows, in_paper=False), *bullets([note])]


def _entry(section: Section, point: InterpolationPoint | None) -> str | Entry:
    if point is None:
        return "—"
    runs = tuple(row["id"] for row in section.rows(point.method, point.task, Status.DONE))
    return Entry(f"{point.value:.1f}" if point.quantity == _SCORE else f"{point.value:.3f}", point.value, runs)


def draw_interpolation(data: Data, section: Section) -> Figure | None:
    """Draw score and NLL against α, a panel for each of them on every task."""
    points = interpolation_points(data, section)
    panels = list(dict.fromkeys((point.task, point.quantity) for point in points))
    if not panels:
        return None
    names = list(dict.fromkeys(point.line for point in points))[: len(COLOURS)]
    across = panels_across(len(panels), 2 if len(panels) % 2 == 0 else 3)
    figure, all_axes = small_multiples(len(panels), across, 3.8, 2.8)
    for axes, (task, quantity) in zip(all_axes, panels, strict=True):
        for index, name in enumerate(names):
            drawn = [p for p in points if (p.line, p.task, p.quantity) == (name, task, quantity)]
            alphas, colour = [point.alpha for point in drawn], COLOURS[index]
            axes.plot(alphas, [point.value for point in drawn], marker=MARKERS[index], ms=4.5, lw=1.3, color=colour)
            for point in drawn:
                if math.isfinite(point.low):
                    axes.plot([point.alpha] * 2, [point.low, point.high], lw=0.9, color=colour, alpha=0.5)
        panel_title(axes, task)
        axes.set_xlabel("α, share of the fine-tuned weights")
        axes.set_ylabel("score (× 100)" if quantity == _SCORE else "NLL (nats)")
    handles = [
        Line2D([], [], color=COLOURS[index], marker=MARKERS[index], lw=1.3, label=name)
        for index, name in enumerate(names)
    ]
    legend(figure, handles, "means over seeds; bars: 95 % t intervals")
    return figure


TOPIC = Topic(
    title="Between pre-trained and fine-tuned",
    blocks=_blocks,
    frame=Frame(file="interpolation", record=InterpolationPoint, records=interpolation_points),
)
