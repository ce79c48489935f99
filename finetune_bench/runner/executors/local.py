"""Run cells on this machine: warm worker processes, one per device or per core."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from finetune_bench import launch
from finetune_bench.model import hub
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.memory import MemoryLimit, MemoryWatch
from finetune_bench.runner.executors.messages import Answer, EventStatus, WorkerSettings
from finetune_bench.runner.executors.process import WorkerProcess
from finetune_bench.store.row import Retry, Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell

BUSY_SECONDS = 1.0  # before a cell that another process is running is tried again
TICK_SECONDS = 0.5  # between two looks at a worker that has not answered


class LocalExecutor:
    """Worker processes take their cells from one queue, each served by a thread of this process.

    Args:
        devices: one torch device per worker, as "cpu" or "cuda:0".
        settings: what workers need beside cells and a device.
        threads: torch threads per worker on a CPU.
        logs: the folder for the workers' output.
        timeout: seconds that a cell may take; None for no limit.
        memory: bytes that a worker may hold; None for its share of the machine's, and only while that is short of it.
    """

    def __init__(
        self,
        devices: Sequence[str],
        settings: WorkerSettings,
        threads: int,
        logs: Path,
        *,
        timeout: float | None = None,
        memory: int | None = None,
    ) -> None:
        self.devices, self.settings, self.threads, self.logs = list(devices), settings, threads, logs
        self.timeout, self.memory = timeout, MemoryLimit.of(memory, len(devices))
        self.running: dict[int, Cell] = {}
        self._todo: deque[Cell] = deque()
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()  # None: a worker's thread has ended
        self._workers: dict[int, WorkerProcess] = {}
        self._store = Store(settings.out)
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker at once."""
        self._todo.extend(cells)
        self.logs.mkdir(parents=True, exist_ok=True)
        numbers = range(min(len(self.devices), len(cells)))
        threads = [threading.Thread(target=self._serve, args=(number,), daemon=True) for number in numbers]
        for thread in threads:
            thread.start()
        try:
            serving = len(threads)
            while serving:
                event = self._events.get()
                if event is None:
                    serving -= 1
                elif isinstance(event, Event):
                    yield event
                else:
                    raise event
        finally:
            self._stop()
            for thread in threads:
                thread.join()
            for worker in self._workers.values():
                worker.end()

    def _stop(self) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._workers.values():
                worker.kill()

    def _serve(self, number: int) -> None:
        """Give cells to one worker until none is left, in a thread of its own; start another process where one died."""
        log = self.logs / f"worker-{number}.log"
        try:
            while (cell := self._next()) is not None:
                event = self._run_cell(number, cell, log)
                if event is None:
                    break
                if event.status == EventStatus.BUSY:
                    self._events.put(event)
                    self._todo.append(cell)
                    time.sleep(BUSY_SECONDS)
                else:
                    self._events.put(event)
            self._end(number)
            self._events.put(None)
        except BaseException as error:
            self._events.put(error)

    def _next(self) -> Cell | None:
        with self._lock:
            return None if self._stopped or not self._todo else self._todo.popleft()

    def _run_cell(self, number: int, cell: Cell, log: Path) -> Event | None:
        """Run one cell on a worker; None where everything is being stopped.

        What came of it is what the store has: a worker may die, or lose its pipe, between the row and the answer.
        """
        is_new = number not in self._workers
        worker = self._start(number, log) if is_new else self._workers[number]
        if worker is None:
            return None
        log_start = log.stat().st_size
        self.running[number] = cell
        self._events.put(Event(cell, EventStatus.STARTED))
        row_before = self._store.row(cell.id)
        if is_new and (worker := self._when_ready(worker, number, log)) is None:
            return None
        worker.ask(json.dumps(cell.to_message()))
        answer, ended = self._wait(worker, cell)
        if self._stopped:
            return None
        del self.running[number]
        if answer is not None and answer.status == EventStatus.BUSY:
            return Event.from_answer(cell, answer)
        row = self._store.row(cell.id)
        has_come = row is not None and row["status"] in (Status.DONE, Status.FAILED) and (answer or row != row_before)
        if answer is None or answer.is_last or not has_come:
            self._end(number)
        if row is not None and has_come:
            return _event(cell, row, is_cached=answer is not None and answer.status == EventStatus.CACHED)
        if ended is None and answer is not None:
            ended = f"its worker said that it was {answer.status}, and its row is not in the store", Retry.ALWAYS
        reason, retry = ended or (worker.cause_of_death, Retry.ALWAYS)
        with open(log, "rb") as file:
            file.seek(log_start)
            printed = file.read().decode("utf-8", "replace")
        return Event(cell, EventStatus.DIED, reason, log=printed, retry=retry)

    def _wait(self, worker: WorkerProcess, cell: Cell) -> tuple[Answer | None, tuple[str, Retry] | None]:
        """Wait until a worker has answered, is gone, or was stopped because it took too long or too much memory.

        Meanwhile its progress is passed on.

        Returns:
            The answer; and why it was stopped, with when its cell is to be run again. Each None where there is none.
        """
        started, memory = time.monotonic(), MemoryWatch(self.memory, worker.number)
        while worker.is_running:
            before = worker.progress
            if line := worker.answer(TICK_SECONDS):
                return Answer.from_json(line), None
            if worker.progress is not before:
                self._events.put(Event(cell, EventStatus.TRAINING, progress=worker.progress))
            if self.timeout is not None and time.monotonic() - started > self.timeout:
                worker.stop()
                reason = f"took longer than --timeout {self.timeout:g}s and was stopped; its log shows where it was"
                return None, (reason, Retry.ASKED)
            if (excess := memory.excess()) is not None:
                worker.end()
                return None, (excess, Retry.ALWAYS)
        return None, None

    def _start(self, number: int, log: Path) -> WorkerProcess | None:
        """Start a worker's process and give it its settings; None where everything is being stopped."""
        device = self.devices[number]
        environment = {**launch.environment_of(device, self.threads), **hub.environment()}
        with self._lock:
            if self._stopped:
                return None
            launched = launch.take_early(environment) or launch.launch(environment, log)
            log.touch()
            settings = replace(self.settings, device=device, log=str(log) if launched.is_early else None)
            self._workers[number] = WorkerProcess(launched, settings.to_json())
            return self._workers[number]

    def _when_ready(self, worker: WorkerProcess, number: int, log: Path) -> WorkerProcess | None:
        """Return a new worker when it says that it is ready or has ended, so that no cell pays for imports.

        One that was launched early and has ended is replaced: its log doesn't say why. None where everything is being
        stopped.
        """
        while True:
            while worker.is_running and worker.answer(TICK_SECONDS) is None:
                pass
            if worker.is_running or not worker.is_early:
                return worker
            self._end(number)
            if (another := self._start(number, log)) is None:
                return None
            worker = another

    def _end(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            worker.end()


def _event(cell: Cell, row: Row, *, is_cached: bool) -> Event:
    """Return the event that a row tells of."""
    if row["status"] == Status.DONE and is_cached:
        return Event(cell, EventStatus.CACHED)
    return Event(cell, EventStatus(row["status"]), row["reason"], row.get("seconds", 0.0))
