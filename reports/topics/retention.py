"""Losses of pre-training are told here, before and after training, also against the gain on the task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.plots.style import (
    GREY,
    left_out_text,
    legend,
    legend_handle,
    method_style,
    panel_title,
    panels_across,
    shown_methods,
    small_multiples,
    tell,
)
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.text import with_interval
from finetune_bench.reports.topics.analysed import analysis_blocks, measurements
from finetune_bench.reports.topics.topic import Drawing, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate

NAME = "retention"
_CHANGE = ": change"


@dataclass(frozen=True)
class Place:
    """A method has this place in the plane of gain and retention.

    Attributes:
        method: Its label.
        panel: The task, and what was kept or not.
        gain: The paired difference of the task's score to the reference, in points.
        kept: The paired difference of what is kept; above 0 is more than the reference keeps.
    """

    method: str
    panel: str
    gain: Estimate
    kept: Estimate


def places(data: Data, section: Section) -> list[Place]:
    """Return where every method stands beside the reference, by task and by what was measured."""
    if section.reference is None:
        return []
    lines = measurements(data, section, NAME)
    kept = {(line.method, line.task, line.seed, line.number): line for line in lines}
    numbers = dict.fromkeys(line.number for line in lines if line.number.endswith(_CHANGE))
    found = []
    for column in section.suite:
        for number in numbers:
            for method in section.methods:
                if method == section.reference:
                    continue
                differences = []
                for seed in section.seeds:
                    own = kept.get((method, column.task, seed, number))
                    other = kept.get((section.reference, column.task, seed, number))
                    if own and other and section.paired(method, section.reference, column.task, seed):
                        differences.append((own.value - other.value) * (-1 if own.better == "lower" else 1))
                scores = section.paired_scores(method, section.reference, column)
                gain = estimates.paired_difference(scores, section.scores(section.reference, column))
                estimate = estimates.t_interval(differences)
                if estimate.n and gain.n:
                    found.append(Place(method, f"{column.task}: {number.removesuffix(_CHANGE)}", gain, estimate))
    return found


def draw_plane(data: Data, section: Section) -> Figure | None:
    """Draw gain against retention, with intervals on both axes and the reference at the origin."""
    shown = shown_methods(section)
    drawn = [place for place in places(data, section) if place.method in shown]
    panels = list(dict.fromkeys(place.panel for place in drawn))[:6]
    if not panels:
        return None
    across = panels_across(len(panels), 3)
    figure, axes_of = small_multiples(len(panels), across, 4.0, 3.2)
    for axes, panel in zip(axes_of, panels, strict=True):
        axes.axhline(0, color=GREY, lw=0.8)
        axes.axvline(0, color=GREY, lw=0.8)
        for place in drawn:
            if place.panel != panel:
                continue
            colour, marker, _ = method_style(section, place.method)
            for estimate, along in ((place.gain, True), (place.kept, False)):
                if with_interval(estimate):
                    ends, at = [estimate.low, estimate.high], place.kept.value if along else place.gain.value
                    (line,) = axes.plot(*((ends, [at, at]) if along else ([at, at], ends)), lw=1.2, color=colour)
                    tell(line, [place.method])
            (mark,) = axes.plot([place.gain.value], [place.kept.value], marker, ms=6, color=colour, mec="white")
            values = f"{place.gain.value:.2f} points, {place.kept.value:.3g} kept".replace("-", "−")
            tell(mark, [place.method], [f"{place.method}, {panel}: {values}"])
        panel_title(axes, panel)
        axes.set_xlabel("gain on the task (points)")
    for axes in axes_of[::across]:
        axes.set_ylabel("kept, against the reference")
    handles = [legend_handle(section, method, line=False) for method in shown if method != section.reference]
    legend(figure, handles, "lines: 95 % t intervals over seeds", left_out_text(section))
    return figure


def ahead_in_both(place: Place) -> bool:
    """Return whether a method's intervals both lie above 0."""
    both = (place.gain, place.kept)
    return all(with_interval(estimate) and estimate.standard_error > 0 and estimate.low > 0 for estimate in both)


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    blocks = analysis_blocks(NAME, data, section)
    if any(np.isfinite([place.gain.value, place.kept.value]).all() for place in places(data, section)):
        alt = "Gain on the task against what is kept of pre-training, each against the reference, with 95 % intervals"
        blocks.append(Drawing("gain-retention", alt, partial(draw_plane, data, section)))
    return blocks


TOPIC = Topic(title="What is kept of pre-training", blocks=_blocks)
