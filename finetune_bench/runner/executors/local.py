"""Run cells on this machine: warm worker processes, one per device or per core."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import Answer, EventStatus, WorkerSettings
from finetune_bench.store.row import Retry
from finetune_bench.study.grid import Cell

BUSY_SECONDS = 1.0  # before a cell that another process is running is tried again
GRACE_SECONDS = 2.0  # for a late worker: between the order to say where it is, the order to end, and the kill

# The child gets this process's import path, whatever it came from, and never imports the caller's main module. What a
# library prints, from its import on, goes to the log and not between the answers.
START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answers = os.dup(1)
os.dup2(2, 1)
from finetune_bench.runner.executors.worker import serve
serve(answers)
"""


class LocalExecutor:
    """Worker processes take their cells from one queue, each served by a thread of this process.

    Args:
        devices: one torch device per worker, as "cpu" or "cuda:0".
        settings: what workers need beside cells and a device.
        threads: torch threads per worker on a CPU.
        logs: the folder for the workers' output.
        timeout: seconds that a cell may take; None for no limit.
    """

    def __init__(
        self, devices: Sequence[str], settings: WorkerSettings, threads: int, logs: Path, timeout: float | None = None
    ) -> None:
        self.devices, self.settings, self.threads, self.logs = list(devices), settings, threads, logs
        self.timeout = timeout
        self.running: dict[int, Cell] = {}
        self._todo: deque[Cell] = deque()
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()  # None: a worker's thread has ended
        self._workers: dict[int, subprocess.Popen[str]] = {}
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
                _release(worker)

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
        """Run one cell on a worker; None where everything is being stopped."""
        is_new = number not in self._workers
        worker = self._start(number, log) if is_new else self._workers[number]
        if worker is None:
            return None
        log_start = log.stat().st_size
        self.running[number] = cell
        self._events.put(Event(cell, EventStatus.STARTED))
        late = threading.Event()
        try:
            # A new worker says when it is ready, so that no cell pays for imports.
            if is_new and not _answers(worker).readline():
                raise BrokenPipeError
            _send(worker, json.dumps(cell.to_dict()))
            with _stopped_after(self.timeout, worker, late):
                line = _answers(worker).readline()
        except BrokenPipeError:
            line = ""
        if self._stopped:
            return None
        del self.running[number]
        if line:
            answer = Answer.from_json(line)
            if answer.broken or late.is_set():  # late: it ended just in time, and may have been told to end
                self._end(number)
            return Event.from_answer(cell, answer)
        self._end(number)
        with open(log, "rb") as file:
            file.seek(log_start)
            printed = file.read().decode("utf-8", "replace")
        if late.is_set():
            reason = f"took longer than --timeout {self.timeout:g}s and was stopped; its log shows where it was"
            return Event(cell, EventStatus.DIED, reason, log=printed, retry=Retry.ASKED)
        return Event(cell, EventStatus.DIED, _cause_of_death(worker.returncode), log=printed)

    def _start(self, number: int, log: Path) -> subprocess.Popen[str] | None:
        """Start a worker's process and give it its settings; None where everything is being stopped."""
        environment = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
        if self.devices[number] == "cpu":
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with self._lock, open(log, "ab") as errors:
            if self._stopped:
                return None
            worker = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the workers
            )
            self._workers[number] = worker
        _send(worker, replace(self.settings, device=self.devices[number]).to_json())
        return worker

    def _end(self, number: int) -> None:
        worker = self._workers.pop(number, None)
        if worker is not None:
            _release(worker)


@contextmanager
def _stopped_after(seconds: float | None, worker: subprocess.Popen[str], late: threading.Event) -> Iterator[None]:
    """Inside, a worker that takes too long is asked where it is, asked to end, and killed; `late` is set."""
    if seconds is None:
        yield
        return
    answered = threading.Event()

    def stop() -> None:
        if answered.wait(seconds):
            return
        late.set()
        for order in ("SIGUSR1", "SIGTERM", "SIGKILL"):
            worker.send_signal(getattr(signal, order, signal.SIGTERM))
            if answered.wait(GRACE_SECONDS):
                return

    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    try:
        yield
    finally:
        answered.set()
        watch.join()


def _send(worker: subprocess.Popen[str], line: str) -> None:
    assert worker.stdin is not None
    worker.stdin.write(line + "\n")
    worker.stdin.flush()


def _answers(worker: subprocess.Popen[str]) -> IO[str]:
    assert worker.stdout is not None
    return worker.stdout


def _release(worker: subprocess.Popen[str]) -> None:
    """Close the pipes, at which the worker ends, and wait for it."""
    for pipe in (worker.stdin, worker.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):  # what could not be sent to a dead worker
            pipe.close()
    worker.wait()


def _cause_of_death(exit_code: int) -> str:
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        return f"its worker was killed by {name}{' (out of memory, or by hand)' if name == 'SIGKILL' else ''}"
    return f"its worker ended with exit code {exit_code}"
