"""Time two trainings against each other: they take turns, step by step, so that whatever else runs falls on both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binom

WARM = 2  # pairs at the start that don't count


@dataclass(frozen=True)
class Line:
    """A line of the table has a figure with its interval, and the bound that it is held against."""

    figure: str
    median: float
    low: float
    high: float
    goal: str = "—"
    met: str = "—"

    def __str__(self) -> str:
        """Return the row in markdown."""
        interval = f"{self.low:.3g} – {self.high:.3g}" if self.low != self.high else "—"
        return f"| {self.figure} | {self.median:.3g} | {interval} | {self.goal} | {self.met} |"


def line(figure: str, ratios: Sequence[float], goal: str = "—") -> Line:
    """Return a figure from its pairs; the goal is a text such as `≥ 5` or `≤ 1.02`."""
    ordered = sorted(ratios)
    # The sign test leaves out this many from either end.
    rank = int(binom.ppf(0.025, len(ordered), 0.5))
    low, high = ordered[max(rank - 1, 0)], ordered[min(len(ordered) - rank, len(ordered) - 1)]
    met = "—"
    if goal != "—":
        bound = float(goal[1:])
        met = "yes" if (high >= bound if goal.startswith("≥") else low <= bound) else "no"
    return Line(figure, float(np.median(ordered)), low, high, goal, met)


class Turns:
    """Two loops take turns in two threads; each passes on after each of its steps.

    Attributes:
        seconds: the CPU seconds of each step, of the first loop and of the second.
    """

    def __init__(self) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self._mine = (threading.Semaphore(1), threading.Semaphore(0))
        self._over = [False, False]
        self._start = 0.0

    def begin(self, who: int) -> None:
        """Wait for the first turn."""
        self._mine[who].acquire()
        self._start = time.process_time()

    def pass_on(self, who: int) -> None:
        """End a step: let the other loop make one, and wait."""
        self.seconds[who].append(time.process_time() - self._start)
        self._mine[1 - who].release()
        if not self._over[1 - who]:
            self._mine[who].acquire()
        self._start = time.process_time()

    def end(self, who: int) -> None:
        """End this loop; the other one makes its remaining steps alone."""
        self._over[who] = True
        self._mine[1 - who].release()

    def ratios(self) -> list[float]:
        """Return the first loop's seconds over the second's, pair by pair, without the first pairs."""
        return [a / b for a, b in list(zip(*self.seconds, strict=False))[WARM:]]


def race(first: Callable[[Callable[[], None]], Any], second: Callable[[Callable[[], None]], Any]) -> list[float]:
    """Return the ratios of the first loop's steps to the second's; each calls what it is given after every step."""
    turns = Turns()
    errors: list[BaseException] = []

    def go(who: int, loop: Callable[[Callable[[], None]], Any]) -> None:
        turns.begin(who)
        try:
            loop(lambda: turns.pass_on(who))
        except BaseException as error:
            errors.append(error)
        finally:
            turns.end(who)

    threads = [threading.Thread(target=go, args=(who, loop)) for who, loop in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return turns.ratios()


def few(figure: str, values: Sequence[float], goal: str) -> Line:
    """Return a figure of so few pairs that their range takes the interval's place."""
    bound = float(goal[1:])
    met = max(values) >= bound if goal.startswith("≥") else min(values) <= bound
    return Line(figure, float(np.median(values)), min(values), max(values), goal, "yes" if met else "no")
