"""Collapsed runs can move scores and differences, so each is told with and without them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import bullets, code, table
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.text import counted, interval
from finetune_bench.reports.topics.contrasts import contrast
from finetune_bench.reports.topics.topic import Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Status


@dataclass(frozen=True)
class CollapseEffect:
    """An effect of collapses is a score and a difference with and without the collapsed runs, in points.

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the method.
        collapsed: The method's runs that collapsed.
        score: Mean over all runs that ended well.
        score_without: Mean over those that didn't collapse.
        difference: The method minus the reference.
        difference_without: The same over pairs of which neither run collapsed.
    """

    section: str
    column: Column
    method: str
    collapsed: int
    score: Estimate
    score_without: Estimate
    difference: Estimate
    difference_without: Estimate


def collapse_effects(section: Section) -> list[CollapseEffect]:
    """Return the effect on every score where the method or the reference has collapsed runs."""
    result = []
    reference = section.reference
    for column, method in itertools.product(section.columns, section.methods):
        mask = section.collapse_mask(method, column.task)
        reference_mask = section.collapse_mask(reference, column.task) if reference else np.zeros_like(mask)
        if not (mask.any() or reference_mask.any()):
            continue
        values = section.scores(method, column)
        difference = without = estimates.NOTHING
        if reference is not None and method != reference:
            weights = {method: 1.0, reference: -1.0}
            difference = contrast(section, column, weights, reference, None)[0]
            without = contrast(section, column, weights, reference, None, without_collapsed=True)[0]
        result.append(
            CollapseEffect(
                section=section.title,
                column=column,
                method=method,
                collapsed=int(mask.sum()),
                score=estimates.t_interval(values),
                score_without=estimates.t_interval(np.where(mask, np.nan, values)),
                difference=difference,
                difference_without=without,
            )
        )
    return result


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    effects = collapse_effects(section)
    if not effects:
        return []
    rows = [
        [
            effect.column.title,
            code(effect.method),
            str(effect.collapsed),
            f"{interval(effect.score)} n={effect.score.n}",
            f"{interval(effect.score_without)} n={effect.score_without.n}",
            _with_n(effect.difference),
            _with_n(effect.difference_without),
        ]
        for effect in effects
    ]
    rates = []
    for method in section.methods:
        runs = len(section.rows(method, status=Status.DONE))
        number = sum(int(section.collapse_mask(method, task).sum()) for task in section.tasks)
        if number:
            low, high = estimates.clopper_pearson(number, runs)
            rates.append(
                f"{code(method)}: {number} of {counted(runs, 'run')} collapsed, {100 * number / runs:.0f} % "
                f"[{100 * low:.0f}, {100 * high:.0f}] (Clopper–Pearson, n={runs}, taking tasks and seeds as alike)."
            )
    header = ("score", "method", "collapsed", "mean, all", "mean without", "difference, all", "difference without")
    note = (
        "Question (a), t intervals on the method's own seeds, df = n − 1; a difference without collapsed runs "
        "leaves out each pair in which either run collapsed. Leaving runs out after seeing them answers what "
        "happens if training works, not what to expect."
    )
    return [table("collapsed", header, rows, in_paper=False), *bullets([note, *rates])]


def _with_n(estimate: Estimate) -> str:
    return "—" if estimate.n == 0 else f"{interval(estimate, sign=True)} n={estimate.n}"


TOPIC = Topic(
    title="With and without collapsed runs",
    blocks=_blocks,
    frame=Frame(
        file="collapsed",
        record=CollapseEffect,
        records=lambda data, section: collapse_effects(section),
    ),
)
