"""Computes for the command `power`, from a pilot run, what each number of seeds finds, and the seeds to run."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from tabulate import tabulate

from finetune_bench.errors import UsageError
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.reports.topics.contrasts import suite_column
from finetune_bench.reports.topics.search import all_sections
from finetune_bench.stats import estimates
from finetune_bench.store.store import Store

SEEDS = (3, 5, 10, 20)


@dataclass(frozen=True)
class Power:
    """It takes so many seeds to find one method's difference to the baseline.

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the method.
        sd: Standard deviation of the paired differences over the pilot's seeds, in points; over the suite, of the
            mean over tasks per seed.
        n: Pairs in the pilot.
        detectable: The true difference that is found with the power asked for, in points, by number of seeds.
        seeds: How many seeds the difference asked for takes.
    """

    section: str
    column: Column
    method: str
    sd: float
    n: int
    detectable: dict[int, float]
    seeds: int


def power_lines(store: Store, difference: float, power: float) -> list[Power]:
    """Return one line per method and score, and over the suite.

    Args:
        store: The pilot run.
        difference: The true difference to be found, in points.
        power: The probability of finding it.

    Raises:
        UsageError: No method has two pairs with the baseline.
    """
    lines = []
    for section in all_sections(load(store)):
        if section.reference is None:
            continue
        columns = [*section.columns, *([suite_column(section)] if len(section.tasks) > 1 else [])]
        for column in columns:
            for method in section.methods:
                if method != section.reference:
                    pairs = _differences(section, method, column)
                    lines += _line(
                        section, method, column, pairs[np.isfinite(pairs)], difference=difference, power=power
                    )
    if not lines:
        raise UsageError(
            f"'{store.root}': no method has two seeds that are paired with vanilla, so the noise can't be estimated; "
            "run two seeds or more."
        )
    return lines


def _differences(section: Section, method: str, column: Column) -> np.ndarray:
    """Return the (seeds,) paired differences to the reference in points, NaN where there is no pair."""
    columns = [column] if column.task else list(section.suite)
    reference = str(section.reference)
    per_column = [
        section.paired_scores(method, reference, part) - section.paired_scores(reference, reference, part)
        for part in columns
    ]
    return np.asarray(np.mean(per_column, axis=0))


def _line(
    section: Section, method: str, column: Column, pairs: np.ndarray, *, difference: float, power: float
) -> list[Power]:
    sd = float(pairs.std(ddof=1)) if len(pairs) > 1 else math.nan
    if not sd > 0:
        return []
    detectable = {seeds: estimates.detectable_with(seeds, sd, power) for seeds in SEEDS}
    seeds = estimates.seeds_for(difference, sd, power)
    return [Power(section.title, column, method, sd, len(pairs), detectable, seeds)]


def as_text(lines: list[Power], difference: float, power: float) -> str:
    """Return the lines as the terminal shows them."""
    several = len({line.section for line in lines}) > 1
    rows = [
        [
            *([line.section] if several else []),
            line.method,
            line.column.title,
            f"{line.sd:.2f}",
            line.n,
            *(f"{value:.1f}" for value in line.detectable.values()),
            line.seeds,
        ]
        for line in lines
    ]
    header = ["method", "score", "sd of differences", "pairs", *(f"{n} seeds find" for n in SEEDS)]
    header = [*(["setting"] if several else []), *header, f"seeds for {difference:g}"]
    note = (
        f"Points (score × 100); two-sided paired t test at 5 %, power {power:g}. A standard deviation from few pairs "
        "is rough: from three, the true one may be half or six times as large."
    )
    return f"{tabulate(rows, header, tablefmt='simple', disable_numparse=True)}\n\n{note}"
