"""Live progress of a run on stderr: a bar on a terminal, a line per cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn


@dataclass
class Tally:
    """Cells of a run by what became of them.

    Attributes:
        total: all cells.
        failed_before: of an earlier run, and not tried again.
    """

    total: int
    cached: int = 0
    failed_before: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0
    started_at: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        """Cells that still have to run."""
        return self.total - self.cached - self.done - self.failed - self.failed_before - self.skipped

    def time_left(self) -> str:
        """Reckoned from the cells that ran so far."""
        ran = self.done + self.failed
        if not ran or not self.left:
            return ""
        seconds = (time.monotonic() - self.started_at) / ran * self.left
        minutes = round(seconds / 60)
        return (
            f", about {minutes // 60} h {minutes % 60} min left"
            if minutes >= 60
            else f", about {max(1, minutes)} min left"
        )

    def __str__(self) -> str:
        counts = [f"{self.done} done"]
        counts += [
            f"{number} {name.replace('_', ' ')}"
            for name in ("cached", "failed", "failed_before", "skipped")
            if (number := getattr(self, name))
        ]
        return ", ".join([*counts, f"{self.left} left"]) + self.time_left()


class Reporter:
    """Where progress goes."""

    def __init__(self, tally: Tally, console: Console) -> None:
        self.tally, self.console = tally, console
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
        self.bar.add_task(str(self.tally), total=self.tally.total, completed=self.tally.total - self.tally.left)
        with self.bar:
            yield

    def ended(self, status: str, name: str, seconds: float, reason: str | None) -> None:
        """A cell ended; the tally holds it already."""
        if self.bar is not None:
            task = self.bar.tasks[0].id
            self.bar.update(task, description=str(self.tally), completed=self.tally.total - self.tally.left)
            if reason is None:
                return
        count = self.tally.total - self.tally.left
        line = f"[{count}/{self.tally.total}] {status}: {name}"
        line += f" ({reason})" if reason else f" in {seconds:.1f} s"
        self.say(f"{line}; {self.tally}" if self.bar is None else line)

    def say(self, text: str) -> None:
        """One line of talk."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
