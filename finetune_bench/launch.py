"""A worker's process is launched here, also ahead of its run: it imports its libraries while the study is checked.

This file imports nothing that takes time, so that a launch can be the first thing that a command does.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# The child gets this process's import path, whatever it came from, and never imports the caller's main module; with -P
# nothing of the current folder is imported before that. What a library prints, from its import on, goes to the log and
# not between the answers, and nothing but the worker reads what it is sent.
START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
commands, answers = os.dup(0), os.dup(1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
from finetune_bench.runner.executors.worker import serve
serve(commands, answers)
"""


@dataclass(frozen=True)
class Launched:
    """A Launched is a process of a worker that has been given no settings yet.

    Attributes:
        process: the process, which is asked through its stdin and answers through its stdout.
        mark: the environment variable that tells every process that comes of it.
        is_early: whether what it prints is lost until its settings name a log.
        command: what it was started with.
        environment: its environment variables, without the mark.
    """

    process: subprocess.Popen[bytes]
    mark: str
    is_early: bool
    command: list[str] = field(repr=False)
    environment: dict[str, str] = field(repr=False)

    def end(self) -> None:
        """End a process that was given nothing."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def environment_of(device: str, threads: int) -> dict[str, str]:
    """Return the environment variables of a worker, beside those of this process.

    Args:
        device: the torch device of the worker, as "cpu" or "cuda:0".
        threads: torch threads of a worker on a CPU.
    """
    return {"TOKENIZERS_PARALLELISM": "false"} | ({"OMP_NUM_THREADS": str(threads)} if device == "cpu" else {})


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(environment: Mapping[str, str], log: Path | None) -> Launched:
    """Start a worker's process.

    Args:
        environment: its environment variables, beside those of this process.
        log: the file that takes what it prints; None where it is launched early, and its settings will name one.
    """
    # Every process that comes of this one inherits the variable, by which it is known.
    mark = f"FINETUNE_BENCH_WORKER_{secrets.token_hex(8)}"
    command, variables = _command(), {**os.environ, **environment}
    with open(os.devnull if log is None else log, "ab") as errors:
        process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**variables, mark: "1"},
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends the workers
        )
    return Launched(process, mark, log is None, command, variables)


def _command() -> list[str]:
    return [sys.executable, "-P", "-c", START, json.dumps(sys.path)]


_early: list[Launched] = []
_lock = threading.Lock()


def launch_early(environment: Mapping[str, str], count: int = 1) -> None:
    """Start processes whose settings are not known yet, inside `early_ended`."""
    with _lock:
        _early.extend(launch(environment, None) for _ in range(count))


def take_early(environment: Mapping[str, str]) -> Launched | None:
    """Return a process that was launched early and is what `launch` would start now; None where there is none.

    Variables that libraries have set meanwhile don't count: the process imports the same libraries.
    """
    command, now = _command(), {**os.environ, **environment}
    with _lock:
        for launched in _early:
            unchanged = all(now.get(name) == value for name, value in launched.environment.items())
            same = unchanged and environment.items() <= launched.environment.items() and launched.command == command
            if same and launched.process.poll() is None:
                _early.remove(launched)
                return launched
    return None


@contextmanager
def early_ended() -> Iterator[None]:
    """End the processes that were launched early inside, and that nobody has taken."""
    try:
        yield
    finally:
        with _lock:
            for launched in _early:
                launched.end()
            _early.clear()
