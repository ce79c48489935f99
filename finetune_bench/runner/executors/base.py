"""The Executor contract: it takes cells and yields events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from finetune_bench.runner.executors.messages import Answer, EventStatus, Progress
from finetune_bench.store.row import Retry
from finetune_bench.study.grid import Cell


@dataclass(frozen=True)
class Event:
    """An event says that something has happened to a cell.

    Attributes:
        cell: the cell.
        status: what happened to it.
        reason: why it failed or died, a sentence.
        seconds: wall seconds that it took, where it ran.
        log: of a cell that died: what its worker printed.
        retry: of a cell that died: when it is run again.
        progress: of a cell that is training: how far it has come.
    """

    cell: Cell
    status: EventStatus
    reason: str | None = None
    seconds: float = 0.0
    log: str = ""
    retry: Retry = Retry.ALWAYS
    progress: Progress | None = None

    @classmethod
    def from_answer(cls, cell: Cell, answer: Answer) -> Event:
        """Return the event that a worker's answer tells of."""
        return cls(cell, answer.status, answer.reason, answer.seconds)


class Executor(Protocol):
    """An executor takes cells, has them run somewhere, and yields what happens.

    Attributes:
        running: the cells in flight, by the worker's number, for the caller of an interrupted run.
    """

    running: dict[int, Cell]

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker at once."""
        ...
