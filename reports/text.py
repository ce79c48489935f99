"""Numbers and lists are written by these functions, in the tables and sentences of every report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_bench.reports.document import bold
from finetune_bench.stats.estimates import Estimate

INTERVAL = "Brackets: 95 % t interval for new seeds on these tasks and these examples; n = seeds."


def points(value: float, sign: bool = False, decimals: int = 1) -> str:
    """Write a number of points; a dash for NaN."""
    if math.isnan(value):
        return "—"
    # Zero is added so that no minus stands before a zero.
    value = round(value, decimals) + 0.0
    text = f"{value:{'+' if sign and value else ''}.{decimals}f}"
    return text.replace("-", "−")


def interval(estimate: Estimate, sign: bool = False) -> str:
    """Write an estimate as `71.3 [69.9, 72.8]`.

    There are no brackets where there is no interval, and no ends in them where every unit is the same.
    """
    if math.isnan(estimate.low):
        return points(estimate.value, sign)
    if estimate.standard_error == 0:
        return f"{points(estimate.value, sign)} [no spread]"
    # An end that excludes zero must not be rounded to it.
    nearest = min(abs(estimate.low), abs(estimate.high))
    decimals = 2 if estimate.separated and nearest < 0.05 else 1
    low, high = points(estimate.low, sign, decimals), points(estimate.high, sign, decimals)
    return f"{points(estimate.value, sign)} [{low}, {high}]"


def difference_text(estimate: Estimate) -> str:
    """Write a difference with its sign and interval, bold where the interval excludes 0."""
    text = interval(estimate, sign=True)
    return bold(text) if estimate.separated else text


def ends(estimate: Estimate) -> str:
    """Write an interval without its middle, `[−1.2, +1.2]`; a dash for none."""
    if math.isnan(estimate.high):
        return "—"
    return f"[{points(estimate.low, sign=True)}, {points(estimate.high, sign=True)}]"


def p_text(p: float) -> str:
    """Write a p-value with three decimals; a dash for NaN."""
    return "—" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def listed(items: Sequence[str]) -> str:
    """Join items as `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    """Write a number with its noun: `1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
