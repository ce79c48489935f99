"""How numbers and lists are written in a report's sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_bench.reports.document import bold
from finetune_bench.stats import estimates as stats

INTERVAL = "Brackets: 95 % t interval for new seeds on these tasks and these examples; n = seeds."


def points(value: float, sign: bool = False, decimals: int = 1) -> str:
    """A number of points; a dash for none."""
    if math.isnan(value):
        return "—"
    value = round(value, decimals) + 0.0  # no minus before a zero
    text = f"{value:{'+' if sign and value else ''}.{decimals}f}"
    return text.replace("-", "−")


def interval(estimate: stats.Estimate, sign: bool = False) -> str:
    """`71.3 [69.9, 72.8]`; without brackets where there is no interval, and no ends where every unit is the same."""
    if math.isnan(estimate.low):
        return points(estimate.value, sign)
    if estimate.standard_error == 0:
        return f"{points(estimate.value, sign)} [no spread]"
    # An end that excludes zero must not be rounded to it.
    nearest = min(abs(estimate.low), abs(estimate.high))
    decimals = 2 if estimate.separated and nearest < 0.05 else 1
    low, high = points(estimate.low, sign, decimals), points(estimate.high, sign, decimals)
    return f"{points(estimate.value, sign)} [{low}, {high}]"


def ends(estimate: stats.Estimate) -> str:
    """`[−1.2, +1.2]`: an interval without its middle; a dash for none."""
    if math.isnan(estimate.high):
        return "—"
    return f"[{points(estimate.low, sign=True)}, {points(estimate.high, sign=True)}]"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _p_text(value: float) -> str:
    return "—" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _bold_if_separated(estimate: stats.Estimate) -> str:
    text = interval(estimate, sign=True)
    return bold(text) if estimate.separated else text
