"""A run's progress is told on stderr while it lasts: by a live view on a terminal, by a line per cell elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from finetune_bench.printable import printable
from finetune_bench.runner.executors.messages import EventStatus, Progress
from finetune_bench.runner.live import View
from finetune_bench.runner.plan import Plan

FRAMES_A_SECOND = 4


@dataclass
class Counts:
    """These numbers say where a run stands: its cells in all, and those done, failed or skipped.

    Attributes:
        total: all cells of the study.
        cached: cells that an earlier run, or another process, had done.
        failed_before: cells that failed in an earlier run and were not tried again.
        done, failed: cells that this run ran.
        skipped: cells that can't run.
        waiting: cells that a budget has no time for.
        started_at: when the run began, in seconds of the steady clock.
    """

    total: int
    cached: int = 0
    failed_before: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    waiting: int = 0
    started_at: float = field(default_factory=time.monotonic)

    def begin(self, plan: Plan) -> None:
        """Take over what is known before the first cell runs, and start the clock."""
        self.cached, self.failed_before, self.skipped = len(plan.cached), len(plan.failed), len(plan.skipped)
        self.waiting = self.total - self.cached - self.failed_before - self.skipped - len(plan.todo)
        self.started_at = time.monotonic()

    @property
    def ended(self) -> int:
        """The cells that don't have to run, or have run."""
        return self.cached + self.done + self.failed + self.failed_before + self.skipped

    @property
    def left(self) -> int:
        """So many cells still have to run."""
        return self.total - self.ended - self.waiting

    def add(self, status: EventStatus) -> None:
        """Count a cell that was done, failed, or found cached."""
        if status == EventStatus.DONE:
            self.done += 1
        elif status == EventStatus.CACHED:
            self.cached += 1
        else:
            self.failed += 1

    def elapsed(self) -> str:
        """Return the time since the run began, as 1:02:03."""
        seconds = int(time.monotonic() - self.started_at)
        return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"

    def time_left(self) -> str:
        """Return the time that is left, reckoned from the cells that ran so far; "" where none did, or none is left."""
        ran = self.done + self.failed
        if not ran or not self.left:
            return ""
        minutes = round((time.monotonic() - self.started_at) / ran * self.left / 60)
        if minutes >= 60:
            return f"about {minutes // 60} h {minutes % 60} min left"
        return f"about {max(1, minutes)} min left"

    def numbers(self) -> str:
        """Return how many cells ended how, without what is none."""
        counts = {
            "cached": self.cached,
            "failed": self.failed,
            "failed before": self.failed_before,
            "skipped": self.skipped,
            "waiting": self.waiting,
        }
        parts = [f"{self.done} done", *(f"{count} {name}" for name, count in counts.items() if count)]
        return ", ".join([*parts, f"{self.left} left"])

    def __str__(self) -> str:
        return ", ".join([self.numbers(), *([self.time_left()] if self.time_left() else [])])


@dataclass(frozen=True)
class Ended:
    """An Ended is told of a cell at its end.

    Attributes:
        id: the cell's.
        name: the cell's, for a person.
        status: done, failed or cached.
        seconds: wall seconds that it took.
        reason: why it failed; None where it didn't.
        log: the file that says more of a failure; None where there is none.
        score: the score of a cell that is done, in points; None of others.
    """

    id: str
    name: str
    status: EventStatus
    seconds: float = 0.0
    reason: str | None = None
    log: Path | None = None
    score: float | None = None

    def __str__(self) -> str:
        if self.reason is None:
            return f"{self.status}: {self.name} in {self.seconds:.1f} s"
        log = f"; log: {self.log}" if self.log else ""
        return f"{self.status}: {self.name} ({self.reason}{log})"


class Reporter:
    """Tells on a console how a run goes on.

    Args:
        counts: the run's; whoever runs the cells keeps them up to date.
        console: the console; a terminal gets a live view.
        workers: the number of workers.
        when_idle: is called once, in a thread of its own, when a worker has no cell left and another still has; None
            for nothing.
    """

    def __init__(
        self, counts: Counts, console: Console, workers: int = 0, when_idle: Callable[[], None] | None = None
    ) -> None:
        self.counts, self.console = counts, console
        self._workers, self._when_idle = workers, when_idle
        self.view = View(console.encoding)
        self._live: Live | None = None

    @property
    def is_live(self) -> bool:
        """Tell whether the view is shown at this moment."""
        return self._live is not None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the view, on a terminal, while inside."""
        if not (self.console.is_interactive and self.console.file.isatty()):
            yield
            return
        self._live = Live(
            get_renderable=self._frame,
            console=self.console,
            refresh_per_second=FRAMES_A_SECOND,
            transient=True,
            vertical_overflow="crop",
        )
        try:
            with self._live:
                yield
        finally:
            self._live = None

    def started(self, cell_id: str, name: str) -> None:
        """Tell that a worker was given a cell."""
        self.view.start(cell_id, name)

    def trains(self, cell_id: str, progress: Progress) -> None:
        """Tell how far a cell has come."""
        self.view.advance(cell_id, progress)

    def released(self, cell_id: str) -> None:
        """Tell that another process runs the cell."""
        self.view.stop(cell_id)

    def ended(self, cell: Ended) -> None:
        """Tell that a cell ended; the counts hold it already."""
        self.view.stop(cell.id)
        if self._when_idle is not None and 0 < self.counts.left < self._workers:
            # No daemon: an interpreter that ends in the middle of an import may crash.
            threading.Thread(target=self._when_idle).start()
            self._when_idle = None
        if self._live is None:
            self.say(f"[{self.counts.ended}/{self.counts.total}] {cell}; {self.counts}")
            return
        result = cell.reason or ("" if cell.score is None else f"{cell.score:.1f}")
        self.view.end(cell.name, f"{cell.status}: {result}" if cell.reason else f"{result} in {cell.seconds:.0f} s")
        if cell.reason is not None:
            self.say(f"[{self.counts.ended}/{self.counts.total}] {cell}")

    def say(self, text: str) -> None:
        """Print one line, as it is."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

    def _frame(self) -> Text:
        """Draw the view as it is now, for the terminal as large as it is now."""
        width, height = self.console.size
        counts = self.counts
        times = ", ".join([counts.elapsed(), *([counts.time_left()] if counts.time_left() else [])])
        # The last line of a terminal is left free, or every frame would scroll it.
        total = counts.total - counts.waiting
        return self.view.draw(counts.ended, total, times, counts.numbers(), width=width, height=height - 1)
