"""Numbers and lists are written by these functions, in the tables and sentences of every report."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence

from finetune_bench.reports.document import bold
from finetune_bench.stats.estimates import Estimate

# Below so many seeds no interval is shown, but the seeds.
FEWEST_SEEDS = 3
INTERVAL = "Brackets: 95 % t interval for new seeds on these tasks and these examples; n = seeds."


def points(value: float, sign: bool = False, decimals: int = 1) -> str:
    """Write a number of points; a dash for NaN."""
    if math.isnan(value):
        return "—"
    # Zero is added so that no minus stands before a zero.
    value = round(value, decimals) + 0.0
    text = f"{value:{'+' if sign and value else ''}.{decimals}f}"
    return text.replace("-", "−")


def with_interval(estimate: Estimate) -> bool:
    """Return whether an estimate's interval is shown: with fewer seeds it says more of its formula than of a method."""
    return not math.isnan(estimate.low) and estimate.n >= FEWEST_SEEDS


def interval(estimate: Estimate, sign: bool = False, within: tuple[float, float] = (-math.inf, math.inf)) -> str:
    """Write an estimate as `71.3 [69.9, 72.8]`.

    There are no brackets where there is no interval or too few seeds are behind it, and no ends in them where every
    unit is the same. An end beyond `within`, the range of the metric, is cut there and gets an asterisk.
    """
    if not with_interval(estimate):
        return points(estimate.value, sign)
    if estimate.standard_error == 0:
        return f"{points(estimate.value, sign)} [no spread]"
    # An end that excludes zero must not be rounded to it.
    nearest = min(abs(estimate.low), abs(estimate.high))
    decimals = 2 if estimate.separated and nearest < 0.05 else 1
    low, high = (
        points(max(estimate.low, within[0]), sign, decimals),
        points(min(estimate.high, within[1]), sign, decimals),
    )
    low, high = f"{low}{'*' * (estimate.low < within[0])}", f"{high}{'*' * (estimate.high > within[1])}"
    return f"{points(estimate.value, sign)} [{low}, {high}]"


def difference_text(estimate: Estimate) -> str:
    """Write a difference with its sign and interval, bold where the interval excludes 0."""
    text = interval(estimate, sign=True)
    return bold(text) if estimate.separated and with_interval(estimate) else text


def ends(estimate: Estimate) -> str:
    """Write an interval without its middle, `[−1.2, +1.2]`; a dash for none."""
    if not with_interval(estimate):
        return "—"
    return f"[{points(estimate.low, sign=True)}, {points(estimate.high, sign=True)}]"


def p_text(p: float) -> str:
    """Write a p-value with three decimals; a dash for NaN."""
    return "—" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def listed(items: Sequence[str], most: int | None = None) -> str:
    """Join items as `a, b and c`; of more than `most`, the first and how many more there are."""
    if most is not None and len(items) > most:
        items = [*items[:most], f"{len(items) - most} more"]
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def seeds_text(seeds: Collection[int]) -> str:
    """Write `seed 1`, or `seeds 1, 2 and 4`."""
    return f"seed{'' if len(seeds) == 1 else 's'} {listed([str(seed) for seed in sorted(seeds)])}"


def visible(text: str) -> str:
    """Return a text without the characters that turn or hide text."""
    return re.sub("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "", text)
