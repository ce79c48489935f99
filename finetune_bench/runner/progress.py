"""A run's progress is told live on stderr: by a bar on a terminal, by a line per cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from finetune_bench.printable import printable
from finetune_bench.runner.executors.messages import EventStatus


@dataclass
class Counts:
    """These numbers say where a run stands: its cells in all, and those done, failed or skipped.

    Attributes:
        total: all cells of the study.
        cached: cells that an earlier run, or another process, had done.
        failed_before: cells that failed in an earlier run and were not tried again.
        done, failed: cells that this run ran.
        skipped: cells that can't run.
        started_at: when the run began, in seconds of the steady clock.
    """

    total: int
    cached: int = 0
    failed_before: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    started_at: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> int:
        """The cells that don't have to run, or have run."""
        return self.cached + self.done + self.failed + self.failed_before + self.skipped

    @property
    def left(self) -> int:
        """So many cells still have to run."""
        return self.total - self.ended

    def add(self, status: EventStatus) -> None:
        """Count a cell that was done, failed, or found cached."""
        if status == EventStatus.DONE:
            self.done += 1
        elif status == EventStatus.CACHED:
            self.cached += 1
        else:
            self.failed += 1

    def time_left(self) -> str:
        """Return the time that is left, reckoned from the cells that ran so far; "" where none did, or none is left."""
        ran = self.done + self.failed
        if not ran or not self.left:
            return ""
        minutes = round((time.monotonic() - self.started_at) / ran * self.left / 60)
        if minutes >= 60:
            return f", about {minutes // 60} h {minutes % 60} min left"
        return f", about {max(1, minutes)} min left"

    def __str__(self) -> str:
        counts = {
            "cached": self.cached,
            "failed": self.failed,
            "failed before": self.failed_before,
            "skipped": self.skipped,
        }
        parts = [f"{self.done} done", *(f"{count} {name}" for name, count in counts.items() if count)]
        return ", ".join([*parts, f"{self.left} left"]) + self.time_left()


class Reporter:
    """Tells on a console how a run goes on.

    Args:
        counts: the run's; whoever runs the cells keeps them up to date.
        console: the console; a terminal gets a bar.
    """

    def __init__(self, counts: Counts, console: Console) -> None:
        self.counts, self.console = counts, console
        self.bar: Progress | None = None

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the bar, on a terminal, while inside."""
        if not self.console.is_terminal:
            yield
            return
        self.bar = Progress(
            BarColumn(), TextColumn("{task.description}", markup=False), console=self.console, transient=True
        )
        self.bar.add_task(str(self.counts), total=self.counts.total, completed=self.counts.ended)
        with self.bar:
            yield

    def ended(self, status: EventStatus, name: str, seconds: float, reason: str | None) -> None:
        """Tell that a cell ended; the counts hold it already."""
        if self.bar is not None:
            self.bar.update(self.bar.tasks[0].id, description=str(self.counts), completed=self.counts.ended)
            if reason is None:
                return
        line = f"[{self.counts.ended}/{self.counts.total}] {status}: {name}"
        line += f" ({reason})" if reason else f" in {seconds:.1f} s"
        self.say(f"{line}; {self.counts}" if self.bar is None else line)

    def say(self, text: str) -> None:
        """Print one line, as it is."""
        self.console.print(printable(text), markup=False, highlight=False, soft_wrap=True)
