"""Draw the bars within a page's tables: intervals on an axis that all rows share, as wide as their column.

Places are percentages, so the drawing grows and shrinks with the page while marks and texts keep their size. Colours
that aren't a method's own come from the page's style, which has them for light and dark.
"""

from __future__ import annotations

import math

from matplotlib.ticker import MaxNLocator

from finetune_bench.reports.document import Bar
from finetune_bench.reports.text import points

# Each of matplotlib's markers that plots use, as a path around 0, 0.
SHAPES = {
    "o": "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "s": "M-4-4H4V4H-4z",
    "^": "M0-5L5 4H-5z",
    "v": "M0 5L5-4H-5z",
    "<": "M-5 0L4-5V5z",
    ">": "M5 0L-4-5V5z",
    "D": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "d": "M0-5.5L3.3 0L0 5.5L-3.3 0z",
    "p": "M0-5L4.8-1.5L2.9 4H-2.9L-4.8-1.5z",
    "h": "M0-5L4.3-2.5V2.5L0 5L-4.3 2.5V-2.5z",
    "P": "M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7z",
    "X": "M-4.5-2.2L-2.2-4.5L0-2.2L2.2-4.5L4.5-2.2L2.2 0L4.5 2.2L2.2 4.5L0 2.2L-2.2 4.5L-4.5 2.2L-2.2 0z",
    "*": "M0-6L1.5-2H6L2.4 .8L3.7 5L0 2.4L-3.7 5L-2.4 .8L-6-2H-1.5z",
}


def draw_bar(bar: Bar) -> str:
    """Return a bar as SVG: the band, the line at 0, and the interval with its mark; or the numbers of the axis."""

    def at(value: float) -> str:
        share = (min(max(value, bar.first), bar.last) - bar.first) / (bar.last - bar.first)
        return f"{100 * share:.2f}%"

    parts = []
    if math.isfinite(bar.band):
        low, high = max(-bar.band, bar.first), min(bar.band, bar.last)
        width = 100 * (high - low) / (bar.last - bar.first)
        parts.append(f'<rect class="band" x="{at(low)}" y="0" width="{width:.2f}%" height="100%"/>')
    parts.append(f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="100%"/>')
    if bar.colour:
        parts += _interval(bar, at(bar.low), at(bar.high)) if math.isfinite(bar.low) else []
        if math.isfinite(bar.value):
            parts.append(_mark(at(bar.value), bar.marker, bar.colour))
    else:
        ticks = [tick for tick in MaxNLocator(5).tick_values(bar.first, bar.last) if bar.first <= tick <= bar.last]
        decimals = 0 if all(float(tick).is_integer() for tick in ticks) else 1
        farthest = max(ticks, key=abs, default=0.0)
        for tick in ticks:
            # A narrow screen has room for two numbers.
            between = "" if tick in (0.0, farthest) else ' class="between"'
            parts.append(f'<text{between} x="{at(tick)}" y="75%">{points(float(tick), True, decimals)}</text>')
    return f'<svg class="bar" aria-hidden="true">{"".join(parts)}</svg>'


def _interval(bar: Bar, low: str, high: str) -> list[str]:
    """Return the line of an interval, with an arrow at an end that the axis doesn't reach."""
    parts = [f'<line class="range" x1="{low}" x2="{high}" y1="50%" y2="50%" stroke="{_paint(bar.colour)}"/>']
    if bar.low < bar.first:
        parts.append(_mark(low, "<", bar.colour))
    if bar.high > bar.last:
        parts.append(_mark(high, ">", bar.colour))
    return parts


def _mark(x: str, marker: str, colour: str) -> str:
    path = f'<path d="{SHAPES[marker]}" fill="{_paint(colour)}"/>'
    return f'<svg class="mark" x="{x}" y="50%" width="1" height="1" overflow="visible">{path}</svg>'


def _paint(colour: str) -> str:
    """Return a colour for the page, where the baseline's black is that of the text."""
    return "var(--ink)" if colour == "black" else colour
