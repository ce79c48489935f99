"""An executor without processes, for tests of what is made of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import EventStatus, WorkerSettings
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.study.grid import Cell


class InThisProcess:
    """The worker of every executor runs cells in this process, one after another."""

    def __init__(self, devices: Sequence[str], settings: WorkerSettings, *_: Any, **__: Any) -> None:
        self.worker = Worker(replace(settings, device=devices[0]))
        self.running: dict[int, Cell] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        for cell in cells:
            yield Event(cell, EventStatus.STARTED)
            yield Event.from_answer(cell, self.worker.work(cell))
