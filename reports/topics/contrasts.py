"""How two methods of a section are held against each other: pairs of runs, and the residual variance of a block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

SUITE = "mean over tasks"


TWO_WAY, PAIRED, WELCH, OVER_TASKS = "two-way", "paired t", "Welch–Satterthwaite", "t over tasks"


NEAR_TWIN = 0.05  # of the spread over seeds: a difference that varies less is between runs that did nearly the same


def suite_column(section: Section) -> Column:
    """The column of the mean over all tasks of a section."""
    return Column("", (), SUITE, f"mean over {len(section.tasks)} tasks")


def cell_ids(section: Section, methods: Iterable[str], column: Column) -> tuple[str, ...]:
    """Ids of the finished runs behind a number: of these methods on the column's task, or on all tasks."""
    task = column.task or None
    return tuple(row["id"] for method in dict.fromkeys(methods) for row in section.rows(method, task, "done"))


@dataclass(frozen=True)
class Block:
    """Methods that share all seeds of a column, proven pairs, none collapsed.

    Attributes:
        scores: (methods, seeds) in points.
        twins: near twins of methods inside, which stay outside: the twin's label, and its scores.
    """

    methods: tuple[str, ...]
    scores: np.ndarray
    twins: Mapping[str, tuple[str, np.ndarray]]

    def around(self, labels: Iterable[str]) -> Block:
        """The block with these methods in it, each near twin among them in the place of its twin, if that is free."""
        wanted = list(labels)
        methods, scores = list(self.methods), self.scores.copy()
        for label in wanted:
            if label in self.twins:
                twin, values = self.twins[label]
                if twin in methods and twin not in wanted:
                    place = methods.index(twin)
                    methods[place], scores[place] = label, values
        return Block(tuple(methods), scores, {})


@once
def block(section: Section, column: Column, anchor: str) -> Block | None:
    """The complete block around `anchor`; None where fewer than two methods or seeds are left, or the anchor collapsed.

    A method with a hole or a collapsed run stays outside, so that its scatter doesn't widen everyone's interval; so
    does a near twin of one that is inside, whose lack of scatter against it would narrow everyone's. A contrast of that
    near twin puts it in its twin's place.
    """
    seeds = np.isfinite(section.paired_scores(anchor, anchor, column))
    if seeds.sum() < 2 or section.collapsed(anchor, column.task)[seeds].any():
        return None
    inside: dict[str, np.ndarray] = {}
    twins: dict[str, tuple[str, np.ndarray]] = {}
    for method in section.methods:
        values = section.paired_scores(method, anchor, column)[seeds]
        broken = not np.isfinite(values).all() or section.collapsed(method, column.task)[seeds].any()
        if broken:
            continue
        near = _near_twins(values, np.stack(list(inside.values()))) if inside else np.zeros(0, dtype=bool)
        if near.any():
            twins[method] = (list(inside)[int(near.argmax())], values)
        else:
            inside[method] = values
    return Block(tuple(inside), np.stack(list(inside.values())), twins) if len(inside) > 1 else None


def _near_twins(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(methods,) whether the difference to each of the others, (methods, seeds), hardly varies over seeds."""
    spread = np.sqrt((scores.var(ddof=1) + others.var(axis=1, ddof=1)) / 2)
    return np.asarray((scores - others).std(axis=1, ddof=1) <= NEAR_TWIN * spread)


def contrast(
    section: Section,
    column: Column,
    weights: Mapping[str, float],
    anchor: str,
    around: Block | None,
    *,
    without_collapsed: bool = False,
) -> tuple[Estimate, str]:
    """A weighted sum of methods on one column, over seeds at which all of them are paired with `anchor`.

    Args:
        weights: by label, summing to 0.
        around: the block of `anchor`.

    Returns:
        The estimate, and what its interval is built on.
    """
    if around is not None and set(weights) <= set((own := around.around(weights)).methods):
        vector = [weights.get(method, 0.0) for method in own.methods]
        return stats.two_way_contrast(own.scores, vector), TWO_WAY
    total = np.zeros(len(section.seeds))
    for method, weight in weights.items():
        values = section.paired_scores(method, anchor, column)
        if without_collapsed:
            values = np.where(section.collapsed(method, column.task), np.nan, values)
        total += weight * values
    return stats.t_interval(total), PAIRED
