"""Run cells on a Ray cluster: one actor per worker, warm between cells, a share of a GPU each if asked.

RAY_ADDRESS names the cluster; without it one is made on this machine, which listens to this machine only. What a worker
needs is compared with what the nodes have before anything starts, because Ray waits for ever for what can't be had.
Needs the extra `[ray]`, this package on every node, and a store, data and checkpoints on a file system that all of them
see.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetune_bench.errors import MachineError, UsageError
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.logs import logged_to
from finetune_bench.runner.executors.messages import EventStatus, WorkerSettings
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.store.row import Retry
from finetune_bench.study.grid import Cell

# Times that a cell is tried whose worker is lost: a node may have gone away, or the cell may bring down every worker.
ATTEMPTS = 3
WAIT_SECONDS = 1.0  # for an answer, before cells are looked at that take too long


class RayExecutor:
    """Ray actors are given one cell after another.

    Args:
        device: "cpu" or "cuda"; which GPU it is, Ray decides.
        workers: number of actors; None for as many as the cluster has room for.
        gpus: share of a GPU that each worker takes, as 0.5.
        threads: CPU threads of each worker.
        settings: what workers need beside cells and a device.
        logs: the folder for what Ray logs.
        timeout: seconds that a cell may take; None for no limit.
    """

    def __init__(
        self,
        device: str,
        *,
        workers: int | None,
        gpus: float,
        threads: int,
        settings: WorkerSettings,
        logs: Path,
        timeout: float | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MachineError("--executor ray needs Ray: pip install 'finetune-bench[ray]'.") from None
        self._ray: Any = ray
        kind = device.partition(":")[0]
        self.needs = {"CPU": float(threads)} | ({} if kind == "cpu" else {"GPU": gpus})
        actor = ray.remote(num_cpus=self.needs["CPU"], num_gpus=self.needs.get("GPU", 0), max_restarts=0)
        self._actor_class: Any = actor(Worker)
        self.settings = replace(settings, device="cpu" if kind == "cpu" else f"{kind}:0")
        self.workers, self.logs, self.timeout = workers, logs, timeout
        self.running: dict[int, Cell] = {}
        self._todo: deque[Cell] = deque()
        self._losses = Counter[str]()  # by cell id: how many workers were lost with it
        self._actors: dict[int, Any] = {}  # by number
        self._pending: dict[Any, int] = {}  # by the answer that is waited for: its actor's number
        self._since: dict[int, float] = {}  # by number: when the actor was given its cell, on the steady clock

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker."""
        with logged_to(self.logs / "ray.log", "ray"):
            yield from self._run(cells)

    def _run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        ray = self._ray
        starts_ray = not ray.is_initialized()
        if starts_ray and "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False, job_config=job_config(ray))
        elif starts_ray:
            with loopback_only(ray):
                ray.init(address="local", log_to_driver=False, include_dashboard=False, job_config=job_config(ray))
        try:
            room = capacity([node["Resources"] for node in ray.nodes() if node["Alive"]], self.needs)
            count = check_room(self.workers, room, self.needs)
            self._todo.extend(cells)
            for number in range(min(count, len(cells))):
                self._start(number)
            while self._pending:
                yield from self._take_answers()
                yield from self._stop_late()
        finally:
            for actor in self._actors.values():
                ray.kill(actor)
            if starts_ray:
                ray.shutdown()

    def _start(self, number: int) -> None:
        """Start an actor; it gets its first cell when it is ready, so that no cell's time pays for imports."""
        self._actors[number] = self._actor_class.remote(self.settings)
        self._pending[self._actors[number].__ray_ready__.remote()] = number

    def _give(self, number: int) -> Iterator[Event]:
        """Give an actor its next cell, if one is left."""
        if self._todo:
            cell = self.running[number] = self._todo.popleft()
            self._since[number] = time.monotonic()
            self._pending[self._actors[number].work.remote(cell)] = number
            yield Event(cell, EventStatus.STARTED)

    def _take_answers(self) -> Iterator[Event]:
        """Wait for an answer, or a second; where there is one, give its actor the next cell."""
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=WAIT_SECONDS)
        for reference in ready:
            number = self._pending.pop(reference)
            cell = self.running.pop(number, None)
            try:
                answer = self._ray.get(reference)
            except self._ray.exceptions.RayActorError as error:
                yield from self._lost(cell, str(error))
                if self._todo:
                    self._start(number)
                continue
            if cell is None:  # the actor is ready
                yield from self._give(number)
            elif answer.status == EventStatus.BUSY:
                yield Event.from_answer(cell, answer)
                self._todo.append(cell)
                time.sleep(WAIT_SECONDS)
                yield from self._give(number)
            else:
                yield Event.from_answer(cell, answer)
                if answer.is_last and self._todo:
                    self._ray.kill(self._actors[number])
                    self._start(number)
                else:
                    yield from self._give(number)

    def _lost(self, cell: Cell | None, error: str) -> Iterator[Event]:
        """Put the cell of a lost actor back in the queue; after some such losses it has died.

        Raises:
            MachineError: the actor was lost before it had a cell.
        """
        first_line = error.strip().splitlines()[0] if error.strip() else "no reason given"
        if cell is None:
            raise MachineError(f"--executor ray: a worker could not start: {first_line}")
        self._losses[cell.id] += 1
        if self._losses[cell.id] < ATTEMPTS:
            self._todo.append(cell)
        else:
            yield Event(cell, EventStatus.DIED, f"its worker was lost {ATTEMPTS} times: {first_line}", log=error)

    def _stop_late(self) -> Iterator[Event]:
        """End the actors whose cells take too long, and start others in their place."""
        if self.timeout is None:
            return
        now = time.monotonic()
        for number in [number for number in self.running if now - self._since[number] > self.timeout]:
            cell = self.running.pop(number)
            self._pending = {reference: other for reference, other in self._pending.items() if other != number}
            self._ray.kill(self._actors[number])
            reason = f"took longer than --timeout {self.timeout:g}s and was stopped"
            yield Event(cell, EventStatus.DIED, reason, retry=Retry.ASKED)
            if self._todo:
                self._start(number)


@contextmanager
def loopback_only(ray: Any) -> Iterator[None]:
    """Inside, a cluster that Ray starts listens on the loopback address only; by default it does on every network.

    Ray has a switch for that, which it reads from the environment when it is imported; it may have been.
    """
    constants, name = ray._private.ray_constants, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    before, in_environment = constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before
        del os.environ[name]
        if in_environment is not None:
            os.environ[name] = in_environment


def job_config(ray: Any) -> Any:
    """Return Ray's configuration of a job whose workers import nothing of the current folder.

    Ray would put that folder first on their import path, as it does for all jobs but those of its client. Where this
    process imports from there too, it stays.
    """
    return ray.job_config.JobConfig(_client_job=str(Path.cwd()) not in map(os.path.abspath, sys.path))


def capacity(nodes: Sequence[dict[str, float]], needs: dict[str, float]) -> int:
    """Return how many workers the nodes have room for; a worker spans neither two nodes nor two GPUs.

    Args:
        nodes: what each node has, by resource ("CPU", "GPU").
        needs: what a worker takes, by resource.
    """
    return sum(
        min(_times(node.get(name, 0.0), amount) for name, amount in needs.items() if amount > 0) for node in nodes
    )


def _times(available: float, amount: float) -> int:
    """Return how often an amount of a resource can be had; a share is one of a whole, as of a GPU."""
    if amount < 1:
        return int(available + 1e-9) * int(1 / amount + 1e-9)
    return int(available / amount + 1e-9)


def check_room(workers: int | None, room: int, needs: dict[str, float]) -> int:
    """Return the number of workers.

    Args:
        workers: how many are asked for; None for as many as there is room for.
        room: how many the cluster has room for.
        needs: what a worker takes, by resource.

    Raises:
        MachineError: no node has room for a single one.
        UsageError: more are asked for than there is room for.
    """
    each = " and ".join(f"{amount:g} {name}" for name, amount in needs.items())
    if room < 1:
        raise MachineError(f"--executor ray: a worker needs {each}, and no node of the cluster has that.")
    if workers is not None and workers > room:
        raise UsageError(
            f"--workers {workers}: the cluster has room for {room} workers of {each}; give --workers {room}."
        )
    return workers or room
