"""Methods of a section are held against each other in pairs of runs, and by the residual variance of a block of them.

The interval of a contrast between methods is built on the residual variance of a complete method × seed block where
there is one, and on the contrast's own seeds where there is not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row, Status

SUITE = "mean over tasks"
# What an interval is built on, as the CSV files say it.
TWO_WAY, PAIRED, WELCH, OVER_TASKS = "two-way", "paired t", "Welch–Satterthwaite", "t over tasks"
# Of the spread over seeds: a difference that varies less is between runs that did nearly the same.
NEAR_TWIN = 0.05


def suite_column(section: Section) -> Column:
    """Return the column of the mean over all tasks of a section."""
    return Column("", (), SUITE, f"mean over {len(section.tasks)} tasks")


def cell_ids(section: Section, methods: Iterable[str], column: Column) -> tuple[str, ...]:
    """Return the ids of the finished runs behind a number: of these methods on the column's task, or on all tasks."""
    task = column.task or None
    return tuple(row["id"] for method in dict.fromkeys(methods) for row in section.rows(method, task, Status.DONE))


def paired_runs(section: Section, method: str) -> list[tuple[Row, Row]]:
    """Return the finished runs of a method, each with the reference's run that it is paired with."""
    if section.reference is None:
        return []
    return [
        (section.runs[method, task, seed], section.runs[section.reference, task, seed])
        for task, seed in itertools.product(section.tasks, section.seeds)
        if section.paired(method, section.reference, task, seed)
    ]


@dataclass(frozen=True)
class CompleteBlock:
    """The methods of a complete block share all seeds of a column; their pairs are proven, and none has collapsed.

    Attributes:
        methods: Their labels.
        scores: (methods, seeds) in points.
        near_twins: Near twins of methods inside, which stay outside, by label: the twin's label, and the near twin's
            (seeds,) scores.
    """

    methods: tuple[str, ...]
    scores: np.ndarray
    near_twins: Mapping[str, tuple[str, np.ndarray]]

    def with_methods(self, labels: Iterable[str]) -> CompleteBlock:
        """Return the block with these methods in it; each near twin among them takes its twin's row if that is free."""
        wanted = list(labels)
        methods, scores = list(self.methods), self.scores.copy()
        for label in wanted:
            if label in self.near_twins:
                twin, values = self.near_twins[label]
                if twin in methods and twin not in wanted:
                    index = methods.index(twin)
                    methods[index], scores[index] = label, values
        return CompleteBlock(tuple(methods), scores, {})


@cached
def complete_block(section: Section, column: Column, anchor: str) -> CompleteBlock | None:
    """Return the complete block around `anchor`.

    A method with a hole or a collapsed run stays outside, so that its scatter doesn't widen everyone's interval; so
    does a near twin of one that is inside, whose lack of scatter against it would narrow everyone's. A contrast of that
    near twin puts it in its twin's place.

    Returns:
        The block; None where fewer than two methods or seeds are left, or the anchor collapsed.
    """
    seeds = np.isfinite(section.paired_scores(anchor, anchor, column))
    if seeds.sum() < 2 or section.collapse_mask(anchor, column.task)[seeds].any():
        return None
    inside: dict[str, np.ndarray] = {}
    near_twins: dict[str, tuple[str, np.ndarray]] = {}
    for method in section.methods:
        values = section.paired_scores(method, anchor, column)[seeds]
        if not np.isfinite(values).all() or section.collapse_mask(method, column.task)[seeds].any():
            continue
        near = _nearly_equal(values, np.stack(list(inside.values()))) if inside else np.zeros(0, dtype=bool)
        if near.any():
            near_twins[method] = (list(inside)[int(near.argmax())], values)
        else:
            inside[method] = values
    return CompleteBlock(tuple(inside), np.stack(list(inside.values())), near_twins) if len(inside) > 1 else None


def _nearly_equal(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return (methods,) whether the difference to each of the others, (methods, seeds), hardly varies over seeds."""
    spread = np.sqrt((scores.var(ddof=1) + others.var(axis=1, ddof=1)) / 2)
    return np.asarray((scores - others).std(axis=1, ddof=1) <= NEAR_TWIN * spread)


def contrast(
    section: Section,
    column: Column,
    weights: Mapping[str, float],
    anchor: str,
    block: CompleteBlock | None,
    *,
    without_collapsed: bool = False,
) -> tuple[Estimate, str]:
    """Return a weighted sum of methods on one column, over seeds at which all of them are paired with `anchor`.

    Args:
        section: Whose runs are compared.
        column: The score, of one task.
        weights: Weights by label, summing to 0.
        anchor: The method that pairs are proven with.
        block: The complete block of `anchor`; None to use the contrast's own seeds.
        without_collapsed: Whether to leave collapsed runs out.

    Returns:
        The estimate, and what its interval is built on.
    """
    if block is not None:
        around = block.with_methods(weights)
        if set(weights) <= set(around.methods):
            vector = [weights.get(method, 0.0) for method in around.methods]
            return estimates.two_way_contrast(around.scores, vector), TWO_WAY
    total = np.zeros(len(section.seeds))
    for method, weight in weights.items():
        values = section.paired_scores(method, anchor, column)
        if without_collapsed:
            values = np.where(section.collapse_mask(method, column.task), np.nan, values)
        total += weight * values
    return estimates.t_interval(total), PAIRED
