"""A worker that takes too much memory is ended, before the machine swaps or the kernel chooses what to end.

What is watched is the memory that a worker's processes hold, not the addresses that they reserve: CUDA reserves far
more than it uses. Memory of a GPU doesn't count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import psutil

SCARCE = 0.05  # share of the machine's memory: when less is available, a worker above its share is ended
USABLE = 0.9  # share of what is available at the start of a run that its workers may take in all
RELATIVES_LOOKS = 10  # looks at a worker from one search for its children to the next, which takes milliseconds


@dataclass(frozen=True)
class MemoryLimit:
    """A limit of memory is the same for each worker of a run.

    Attributes:
        asked: bytes that a worker may hold, by --memory; None where it isn't given.
        share: bytes that a worker may hold while the machine is short of memory, where none are asked for.
        workers: the number of workers.
    """

    asked: int | None
    share: int
    workers: int

    @classmethod
    def of(cls, asked: int | None, workers: int) -> Self:
        """Return the limit for a run that begins now with so many workers."""
        return cls(asked, int(USABLE * psutil.virtual_memory().available / workers), workers)

    @property
    def most(self) -> int:
        """A worker that holds no more bytes than this is left alone."""
        return self.share if self.asked is None else self.asked

    def reason(self, used: int) -> str | None:
        """Return why a worker that holds so many bytes, above `most`, is ended; None where it may go on."""
        if self.asked is not None:
            return f"used {_text(used)} of memory, more than --memory {_text(self.asked)}, and was stopped"
        machine = psutil.virtual_memory()
        if machine.available >= SCARCE * machine.total:
            return None
        return (
            f"used {_text(used)} of memory while the machine had {_text(machine.available)} left, more than the "
            f"{_text(self.share)} that each of {self.workers} workers may use then, and was stopped; "
            "give fewer --workers"
        )


class MemoryWatch:
    """A watch says when one worker has too much memory, with the processes it started.

    Args:
        limit: how much it may hold.
        process: the number of its process.
    """

    def __init__(self, limit: MemoryLimit, process: int) -> None:
        self._limit, self._process = limit, process
        self._family: list[psutil.Process] = []
        self._looks = 0

    def excess(self) -> str | None:
        """Return why the worker is to be ended; None where it may go on.

        Memory that processes share counts once where the system tells it. To ask that takes long, so their sizes are
        added first.
        """
        if self._looks % RELATIVES_LOOKS == 0:
            self._family = _family(self._process)
        self._looks += 1
        if sum(map(_size, self._family)) <= self._limit.most:
            return None
        used = sum(map(_size_without_shares, _family(self._process)))
        return self._limit.reason(used) if used > self._limit.most else None


def _family(number: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(number)
        return [process, *process.children(recursive=True)]
    except psutil.Error:  # it has ended
        return []


def _size(process: psutil.Process) -> int:
    """Return the bytes that a process holds, those that it shares with others included."""
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _size_without_shares(process: psutil.Process) -> int:
    """Return the bytes that a process holds, of those that it shares its part; where none can be told, all."""
    try:
        sizes = process.memory_full_info()
    except psutil.Error:
        return _size(process)
    return int(getattr(sizes, "pss", sizes.uss))


def _text(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
