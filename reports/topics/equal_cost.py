"""Gains are compared at equal cost: with vanilla that was given as many passes, or as many seconds.

`run --fair-cost` adds vanilla with more steps: as many times its steps as a dearer method's step makes passes over its
batch (R-Drop: 2). At equal seconds vanilla's score is interpolated between its runs of different length, seed by seed,
at the method's measured time ratio; beyond the longest run nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Entry, bullets, code, table
from finetune_bench.reports.rows.sections import Column, Data, Section, is_vanilla
from finetune_bench.reports.text import difference_text, listed
from finetune_bench.reports.topics.contrasts import suite_column
from finetune_bench.reports.topics.cost import Cost, costs
from finetune_bench.reports.topics.topic import Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row

STEPS, PASSES, SECONDS = "equal steps", "equal passes", "equal seconds"
# Vanilla's longer run stands for a method whose passes, or seconds, are no further from it.
_SAME_FACTOR = 0.02


@dataclass(frozen=True)
class FairDifference:
    """A fair difference is a method minus vanilla at equal cost, question (a).

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the method.
        basis: What is equal.
        factor: How many times its usual steps vanilla trains; NaN where the cost wasn't measured.
        estimate: The difference in points, over seeds whose runs share initial head and data; with other lengths the
            order can't be shared.
    """

    section: str
    column: Column
    method: str
    basis: str
    factor: float
    estimate: Estimate


def fair_differences(section: Section) -> list[FairDifference]:
    """Return the differences of all methods with more passes than the baseline.

    There are none where vanilla wasn't given more steps.
    """
    if section.baseline is None or not section.longer_vanilla:
        return []
    cost_of = {cost.method: cost for cost in costs(section)}
    usual = _passes(cost_of[section.baseline])
    columns = [*section.columns, *([suite_column(section)] if len(section.tasks) > 1 else [])]
    result = []
    for method in section.methods:
        passes = _passes(cost_of[method]) / usual
        if is_vanilla(section.parts(method)) or not passes > 1 + _SAME_FACTOR:
            continue
        for basis, factor in ((STEPS, 1.0), (PASSES, passes), (SECONDS, cost_of[method].time.value)):
            for column in columns:
                parts = [column] if column.task else section.suite
                per_part = [_difference(section, method, part, basis, factor) for part in parts]
                estimate = per_part[0] if column.task else estimates.suite_mean(per_part)
                result.append(FairDifference(section.title, column, method, basis, factor, estimate))
    return result


def _passes(cost: Cost) -> float:
    return max(cost.forwards_per_step, cost.backwards_per_step)


def _difference(section: Section, method: str, column: Column, basis: str, factor: float) -> Estimate:
    lengths = {1.0: str(section.baseline), **section.longer_vanilla}
    if basis == PASSES:
        nearest = min(lengths, key=lambda length: abs(length - factor))
        if abs(nearest - factor) > _SAME_FACTOR * factor:
            return estimates.NOTHING
        vanilla = _scores_of_same_start(section, method, lengths[nearest], column)
    elif math.isnan(factor):
        return estimates.NOTHING
    else:
        measured = [_scores_of_same_start(section, method, label, column) for label in lengths.values()]
        longest = max(lengths)
        length = longest if longest < factor <= (1 + _SAME_FACTOR) * longest else factor
        vanilla = estimates.interpolate_budget(list(lengths), np.stack(measured), length)
    return estimates.paired_difference(section.scores(method, column), vanilla)


def _scores_of_same_start(section: Section, method: str, vanilla: str, column: Column) -> np.ndarray:
    """Return vanilla's (seeds,) scores where both runs started from the same head on the same data, else NaN."""
    same = []
    for seed in section.seeds:
        start = _start(section.runs.get((method, column.task, seed)))
        same.append(start is not None and start == _start(section.runs.get((vanilla, column.task, seed))))
    return np.where(same, section.scores(vanilla, column), np.nan)


def _start(row: Row | None) -> tuple[str, str] | None:
    """Return the hashes of the initial head and the data; None where one is missing."""
    hashes = row.get("hashes") if row else None
    return (hashes["init"], hashes["data"]) if hashes and {"init", "data"} <= set(hashes) else None


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    differences = fair_differences(section)
    if not differences:
        return []
    columns = list(dict.fromkeys(line.column for line in differences))
    rows: list[list[str | Entry]] = []
    for method, basis, factor in dict.fromkeys((line.method, line.basis, line.factor) for line in differences):
        cells = {line.column: line.estimate for line in differences if (line.method, line.basis) == (method, basis)}
        entries = [_entry(cells[column]) for column in columns]
        rows.append([code(method), basis, "—" if math.isnan(factor) else f"×{factor:.2f}", *entries])
    notes = [
        "Each method minus vanilla that trained for so many times its steps: as many steps, as many passes over "
        "a batch, or as many seconds. Brackets: t interval over seeds, question (a); bold: "
        "it excludes 0. Runs of different length can't share the order of examples; head and data are shared.",
        "At equal seconds, vanilla's score is interpolated between its runs, "
        f"{listed([f'×{factor:g}' for factor in (1.0, *section.longer_vanilla)])} steps, at the method's measured time "
        "ratio; beyond the longest run there is no number.",
    ]
    header = ["method", "compared at", "vanilla's steps", *(column.title for column in columns)]
    return [table("equal cost", header, rows), *bullets(notes)]


def _entry(estimate: Estimate) -> Entry:
    return Entry(f"{difference_text(estimate)} n={estimate.n}", estimate.value) if estimate.n else Entry("—")


TOPIC = Topic(title="At equal cost", blocks=_blocks)
