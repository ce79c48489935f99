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
from pathlib import Path
from typing import IO, Any

from finetune_bench.runner.executors.base import Event
from finetune_bench.store.row import Retry
from finetune_bench.study.grid import Cell

_BUSY_SECONDS = 1.0  # between two looks at a cell that another process is running
_GRACE_SECONDS = 2.0  # between telling a late worker to say where it is, to end, and to be killed

# The child gets this process's import path, whatever it came from, and never imports the caller's main module.
_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from finetune_bench.runner.executors.worker import main
main()
"""


class LocalExecutor:
    """Worker processes that pull cells from one queue.

    Args:
        devices: one name per worker ("cpu", "cuda:0").
        settings: what a worker needs besides cells and a device; see `worker.Worker`.
        threads: torch threads per worker on a CPU.
        logs: folder for the workers' output.
        timeout: seconds that a cell may take; None for no limit.
    """

    def __init__(
        self, devices: Sequence[str], settings: dict[str, Any], threads: int, logs: Path, timeout: float | None = None
    ) -> None:
        self.devices, self.settings, self.threads, self.logs = list(devices), settings, threads, logs
        self.timeout = timeout
        self.running: dict[int, Cell] = {}  # by worker: the cells in flight, for the caller of an interrupted run
        self._todo: deque[Cell] = deque()
        self._events: queue.Queue[Event | BaseException | None] = queue.Queue()
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
            left = len(threads)
            while left:
                event = self._events.get()
                if event is None:
                    left -= 1
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
        """One worker's life, in a thread of its own; starts another process where one died."""
        log = self.logs / f"worker-{number}.log"
        try:
            while (cell := self._next()) is not None:
                event = self._attempt(number, cell, log)
                if event is None:
                    break
                if event.status == "busy":
                    self._todo.append(cell)
                    time.sleep(_BUSY_SECONDS)
                else:
                    self._events.put(event)
            self._end(number)
            self._events.put(None)
        except BaseException as error:
            self._events.put(error)

    def _next(self) -> Cell | None:
        with self._lock:
            return None if self._stopped or not self._todo else self._todo.popleft()

    def _attempt(self, number: int, cell: Cell, log: Path) -> Event | None:
        """Run one cell on a worker; None where everything is being stopped."""
        fresh = number not in self._workers
        worker = self._start(number, log) if fresh else self._workers[number]
        if worker is None:
            return None
        begin = log.stat().st_size
        self.running[number] = cell
        self._events.put(Event(cell, "started"))
        late = threading.Event()
        try:
            if fresh and not _answers(worker).readline():  # it says when it is ready, so that no cell pays for imports
                raise BrokenPipeError
            _send(worker, cell.to_dict())
            with _stopped_after(self.timeout, worker, late):
                line = _answers(worker).readline()
        except BrokenPipeError:
            line = ""
        if self._stopped:
            return None
        del self.running[number]
        if line:
            answer = json.loads(line)
            if answer.get("last") or late.is_set():  # a device error that spoils later cells, or an end just in time
                self._end(number)
            return Event(cell, answer["status"], answer.get("reason"), answer.get("seconds") or 0.0)
        _release(worker)
        del self._workers[number]
        with open(log, "rb") as file:
            file.seek(begin)
            said = file.read().decode("utf-8", "replace")
        if late.is_set():
            reason = f"took longer than --timeout {self.timeout:g}s and was stopped; its log shows where it was"
            return Event(cell, "died", reason, log=said, retry=Retry.ASKED)
        return Event(cell, "died", _death(worker.returncode), log=said)

    def _start(self, number: int, log: Path) -> subprocess.Popen[str] | None:
        environment = dict(os.environ) | {"TOKENIZERS_PARALLELISM": "false"}
        if self.devices[number] == "cpu":
            environment["OMP_NUM_THREADS"] = str(self.threads)
        with self._lock, open(log, "ab") as errors:
            if self._stopped:
                return None
            worker = subprocess.Popen(  # noqa: S603
                [sys.executable, "-c", _START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the workers
            )
            self._workers[number] = worker
        _send(worker, self.settings | {"device": self.devices[number]})
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
            if answered.wait(_GRACE_SECONDS):
                return

    watch = threading.Thread(target=stop, daemon=True)
    watch.start()
    try:
        yield
    finally:
        answered.set()
        watch.join()


def _send(worker: subprocess.Popen[str], message: dict[str, Any]) -> None:
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(message) + "\n")
    worker.stdin.flush()


def _answers(worker: subprocess.Popen[str]) -> IO[str]:
    assert worker.stdout is not None
    return worker.stdout


def _release(worker: subprocess.Popen[str]) -> None:
    """Close the pipes, at which the worker ends, and wait for it."""
    for pipe in (worker.stdin, worker.stdout):
        with suppress(BrokenPipeError):  # what could not be sent to a dead worker
            assert pipe is not None
            pipe.close()
    worker.wait()


def _death(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its worker was killed by {name}{' (out of memory, or by hand)' if name == 'SIGKILL' else ''}"
    return f"its worker ended with exit code {code}"
