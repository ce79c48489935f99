"""Gains at equal cost: a method against vanilla that was given as many passes, or as many seconds.

`run --fair-cost` adds vanilla with more steps: as many times its steps as a dearer method's step makes passes over its
batch (R-Drop: 2). At equal seconds vanilla's score is interpolated between its runs of
different length, seed by seed, at the method's measured time ratio; beyond the longest run nothing is said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, Entry, bullets, code, table
from finetune_bench.reports.rows.sections import Column, Row, Section, is_vanilla
from finetune_bench.reports.text import _bold_if_separated, listed
from finetune_bench.reports.topics.contrasts import suite_column
from finetune_bench.reports.topics.cost import Cost, costs
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

STEPS, PASSES, SECONDS = "equal steps", "equal passes", "equal seconds"
_SAME_FACTOR = 0.02  # vanilla's longer run stands for a method whose passes, or seconds, are no further from it


@dataclass(frozen=True)
class FairDifference:
    """A method minus vanilla at equal cost, question (a).

    Attributes:
        basis: what is equal.
        factor: how many times its usual steps vanilla trains.
        estimate: over seeds whose runs share initial head and data; with other lengths the order can't be shared.
    """

    section: str
    column: Column
    method: str
    basis: str
    factor: float
    estimate: Estimate


def fair_differences(section: Section) -> list[FairDifference]:
    """Every method that costs more passes than the baseline; empty where vanilla wasn't given more steps."""
    if section.baseline is None or not section.stretched:
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
                own = [column] if column.task else section.suite
                estimates = [_difference(section, method, one, basis, factor) for one in own]
                estimate = estimates[0] if column.task else stats.suite_mean(estimates)
                result.append(FairDifference(section.title, column, method, basis, factor, estimate))
    return result


def _passes(cost: Cost) -> float:
    return max(cost.forwards_per_step, cost.backwards_per_step)


def _difference(section: Section, method: str, column: Column, basis: str, factor: float) -> Estimate:
    lengths = {1.0: str(section.baseline), **section.stretched}
    if basis == PASSES:
        nearest = min(lengths, key=lambda length: abs(length - factor))
        if abs(nearest - factor) > _SAME_FACTOR * factor:
            return stats.NOTHING
        reference = _shared(section, method, lengths[nearest], column)
    elif math.isnan(factor):
        return stats.NOTHING
    else:
        found = np.stack([_shared(section, method, label, column) for label in lengths.values()])
        longest = max(lengths)
        at = longest if longest < factor <= (1 + _SAME_FACTOR) * longest else factor
        reference = stats.interpolate_budget(list(lengths), found, at)
    return stats.paired_difference(section.scores(method, column), reference)


def _shared(section: Section, method: str, other: str, column: Column) -> np.ndarray:
    """(seeds,) the other's scores where both runs started from the same head on the same data, else NaN."""
    rows = [
        (section.runs.get((method, column.task, s)), section.runs.get((other, column.task, s))) for s in section.seeds
    ]
    same = [_start(own) is not None and _start(own) == _start(theirs) for own, theirs in rows]
    return np.where(same, section.scores(other, column), np.nan)


def _start(row: Row | None) -> tuple[str, str] | None:
    hashes = (row or {}).get("hashes") or {}
    return (hashes["init"], hashes["data"]) if {"init", "data"} <= set(hashes) else None


def _at_equal_cost(section: Section) -> list[Block]:
    found = fair_differences(section)
    if not found:
        return []
    columns = list(dict.fromkeys(one.column for one in found))
    rows: list[list[str | Entry]] = []
    for method, basis, factor in dict.fromkeys((one.method, one.basis, one.factor) for one in found):
        cells = {one.column: one.estimate for one in found if (one.method, one.basis) == (method, basis)}
        entries = [
            Entry(f"{_bold_if_separated(one)} n={one.n}", one.value) if one.n else Entry("—")
            for one in (cells[column] for column in columns)
        ]
        rows.append([code(method), basis, "—" if math.isnan(factor) else f"×{factor:.2f}", *entries])
    notes = [
        "Each method minus vanilla that trained for so many times its steps: as many steps, as many passes over "
        "a batch, or as many seconds. Brackets: t interval over seeds, question (a); bold: "
        "it excludes 0. Runs of different length can't share the order of examples; head and data are shared.",
        "At equal seconds, vanilla's score is interpolated between its runs, "
        f"{listed([f'×{one:g}' for one in (1.0, *section.stretched)])} steps, at the method's measured time "
        "ratio; beyond the longest run there is no number.",
    ]
    header = ["method", "compared at", "vanilla's steps", *(column.title for column in columns)]
    return [table("equal cost", header, rows), *bullets(notes)]
