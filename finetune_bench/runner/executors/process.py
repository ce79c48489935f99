"""This file starts a worker's process, speaks with it, and ends it with everything that it started.

A line counts as the worker's answer where it begins with the word that came with the question. So nothing that a cell
prints into the pipe is taken for an answer, and a child that keeps the pipe open doesn't hide that the worker is gone.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import subprocess
import threading
import time
from contextlib import suppress

import psutil

from finetune_bench.launch import Launched
from finetune_bench.runner.executors.messages import Progress

GRACE_SECONDS = 2.0  # for a late worker: between the order to say where it is, the order to end, and the kill
SEARCHES = 100  # for processes that came of a worker, before one that can't be ended is left
LINE_BYTES = 2**16  # that are read at once of what a cell may print into the pipe


class WorkerProcess:
    """A worker's process is asked by lines, and gives an answer to each.

    Args:
        launched: the process, as it was started.
        settings: the line that it is given at its start.
    """

    def __init__(self, launched: Launched, settings: str) -> None:
        self._mark, self._process, self.is_early = launched.mark, launched.process, launched.is_early
        self._word = ""
        self.progress: Progress | None = None  # of the cell that it was asked to run last
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.ask(settings)

    @property
    def number(self) -> int:
        """The operating system knows the process by this number."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Tell whether the process runs, whatever holds its pipes."""
        return self._process.poll() is None

    @property
    def cause_of_death(self) -> str:
        """Tell how the process ended, as the rest of a sentence that names its cell."""
        exit_code = self._process.wait()
        if exit_code < 0:
            name = signal.Signals(-exit_code).name
            return f"its worker was killed by {name}{' (out of memory, or by hand)' if name == 'SIGKILL' else ''}"
        return f"its worker ended with exit code {exit_code}"

    def ask(self, question: str) -> None:
        """Send a line; a worker that is gone doesn't take it."""
        self._word, self.progress = secrets.token_hex(8), None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{self._word} {question}\n".encode())
            self._process.stdin.flush()

    def answer(self, seconds: float) -> str | None:
        """Wait so long for the answer to the last question, keeping the progress that comes; None where there is none.

        Other lines are passed over.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with suppress(queue.Empty):
                word, _, answer = self._lines.get(timeout=left).partition(" ")
                if word != self._word:
                    continue
                if (progress := Progress.from_line(answer)) is None:
                    return answer
                self.progress = progress
        return None

    def kill(self) -> None:
        """End the process and its group, without waiting until they are gone."""
        with suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def stop(self) -> None:
        """Ask the process where it is, which its log then shows, ask it to end, and end it with all that it started."""
        for order in ("SIGUSR1", "SIGTERM"):
            self._process.send_signal(getattr(signal, order, signal.SIGTERM))
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE_SECONDS)
        self.end()

    def end(self) -> None:
        """End the process and all that came of it: its group, and what left the group but has its environment."""
        assert self._process.stdin is not None
        self.kill()
        self._process.wait()
        with suppress(BrokenPipeError):  # what could not be sent to a dead worker
            self._process.stdin.close()
        # What is killed while it starts another process leaves that one, so they are looked for again.
        for _ in range(SEARCHES):
            relatives = self._relatives()
            if not relatives:
                break
            for relative in relatives:
                with suppress(psutil.Error):
                    relative.kill()
            time.sleep(0.01)
        self._reader.join(GRACE_SECONDS)

    def _relatives(self) -> list[psutil.Process]:
        return [
            process for process in psutil.process_iter(["environ"]) if self._mark in (process.info["environ"] or {})
        ]

    def _read(self) -> None:
        """Put the lines of the pipe into a queue, in a thread of its own, until nothing holds the pipe's other end."""
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while line := pipe.readline(LINE_BYTES):
                self._lines.put(line.decode("utf-8", "replace").rstrip("\n"))
