"""Run cells on a Ray cluster: one actor per worker, warm between cells, a share of a GPU each if asked.

`ray.init()` decides where: a cluster named by RAY_ADDRESS, or one that is made on this machine. What a worker needs is
compared with what the nodes have before anything starts, because Ray waits for ever for what can't be had. Needs the
extra `[ray]`, this package on every node, and a store, data and checkpoints on a file system that all of them see.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

from finetune_bench.errors import MachineError, UsageError
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.store.row import Retry
from finetune_bench.study.grid import Cell

ATTEMPTS = 3  # of a cell whose worker is lost, by a node that goes away as well as by one that the cell brings down
_LOOK_SECONDS = 1.0


class RayExecutor:
    """Ray actors that are given one cell after another.

    Args:
        device: of the cells, "cpu" or "cuda"; which GPU it is, Ray decides.
        workers: how many; None for as many as the cluster has room for.
        gpus: that each worker takes, as 0.5.
        threads: CPU threads of each worker.
        settings: what a worker needs besides cells and a device.
        timeout: seconds that a cell may take; None for no limit.
    """

    def __init__(
        self,
        device: str,
        *,
        workers: int | None,
        gpus: float,
        threads: int,
        settings: dict[str, Any],
        timeout: float | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise MachineError("--executor ray needs Ray: pip install 'finetune-bench[ray]'.") from None
        self._ray: Any = ray
        kind = device.partition(":")[0]
        self.needs = {"CPU": float(threads)} | ({} if kind == "cpu" else {"GPU": gpus})
        self.settings = settings | {"device": "cpu" if kind == "cpu" else f"{kind}:0"}
        self.workers, self.timeout = workers, timeout
        self.running: dict[int, Cell] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker."""
        ray = self._ray
        ours = not ray.is_initialized()
        if ours:
            ray.init(log_to_driver=False, include_dashboard=False)
        actors: dict[int, Any] = {}
        try:
            room = capacity([node["Resources"] for node in ray.nodes() if node["Alive"]], self.needs)
            count = check_room(self.workers, room, self.needs)
            yield from self._serve(cells, actors, min(count, len(cells)))
        finally:
            for actor in actors.values():
                ray.kill(actor)
            if ours:
                ray.shutdown()

    def _serve(self, cells: Sequence[Cell], actors: dict[int, Any], count: int) -> Iterator[Event]:
        ray, todo, lost = self._ray, deque(cells), Counter[str]()
        make = ray.remote(num_cpus=self.needs["CPU"], num_gpus=self.needs.get("GPU", 0), max_restarts=0)(Worker)
        pending: dict[Any, int] = {}  # by answer that is waited for: the worker
        since: dict[int, float] = {}

        def give(number: int) -> Iterator[Event]:
            if todo:
                cell = self.running[number] = todo.popleft()
                since[number] = time.monotonic()
                pending[actors[number].work.remote(cell.to_dict())] = number
                yield Event(cell, "started")

        def start(number: int) -> None:
            actors[number] = make.remote(self.settings)
            pending[actors[number].__ray_ready__.remote()] = number  # so that no cell's time pays for imports

        for number in range(count):
            start(number)
        while pending:
            ready, _ = ray.wait(list(pending), num_returns=1, timeout=_LOOK_SECONDS)
            for answer in ready:
                number = pending.pop(answer)
                cell = self.running.pop(number, None)
                try:
                    found = ray.get(answer)
                except ray.exceptions.RayActorError as error:
                    event, again = self._lost(cell, lost, str(error))
                    todo.extend(again)
                    if event:
                        yield event
                    if todo:
                        start(number)
                    continue
                if cell is not None and found["status"] == "busy":
                    todo.append(cell)
                    time.sleep(_LOOK_SECONDS)
                elif cell is not None:
                    yield Event(cell, found["status"], found.get("reason"), found.get("seconds") or 0.0)
                    if found.get("last") and todo:
                        ray.kill(actors[number])
                        start(number)
                        continue
                yield from give(number)
            for number in self._late(since):
                cell = self.running.pop(number)
                pending = {answer: other for answer, other in pending.items() if other != number}
                ray.kill(actors[number])
                reason = f"took longer than --timeout {self.timeout:g}s and was stopped"
                yield Event(cell, "died", reason, retry=Retry.ASKED)
                if todo:
                    start(number)

    def _late(self, since: dict[int, float]) -> list[int]:
        now = time.monotonic()
        return [n for n in self.running if self.timeout is not None and now - since[n] > self.timeout]

    def _lost(self, cell: Cell | None, lost: Counter[str], said: str) -> tuple[Event | None, list[Cell]]:
        """What to say of a cell whose worker was lost, and the cells to try again."""
        what = said.strip().splitlines()[0] if said.strip() else "no reason given"
        if cell is None:
            raise MachineError(f"--executor ray: a worker could not start: {what}")
        lost[cell.id] += 1
        if lost[cell.id] < ATTEMPTS:
            return None, [cell]
        return Event(cell, "died", f"its worker was lost {ATTEMPTS} times: {what}", log=said), []


def capacity(nodes: Sequence[dict[str, float]], needs: dict[str, float]) -> int:
    """How many workers the nodes have room for; a worker never spans two of them."""
    return sum(
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in needs.items() if amount > 0) for node in nodes
    )


def check_room(workers: int | None, room: int, needs: dict[str, float]) -> int:
    """The number of workers.

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
