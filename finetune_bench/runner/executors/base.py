"""The Executor contract: it takes cells and yields events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from finetune_bench.store.row import Retry

if TYPE_CHECKING:
    from finetune_bench.study.grid import Cell


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell: started, done, cached, failed, or died (with its worker)."""

    cell: Cell
    status: str
    reason: str | None = None
    seconds: float = 0.0
    log: str = ""
    retry: Retry = Retry.ALWAYS  # of a cell that died


class Executor(Protocol):
    """Runs cells somewhere."""

    running: dict[int, Cell]  # by worker: the cells in flight, for the caller of an interrupted run

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker at once."""
        ...
