"""Run cells through SLURM: N jobs that pull cells from the shared store, by way of submitit.

A job takes the next cell that nobody holds, until none is left. Near its time limit it is requeued and goes on with the
same list, and the cell that it was in with its last checkpoint. Every job answers into a file of its own, which the
runner reads; so a runner that is gone costs nothing, and the next one finds the rows. Needs the extra `[slurm]`, and a
store, data and checkpoints on a file system that all nodes see.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_bench.errors import MachineError
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.runner.leftovers import is_foreign
from finetune_bench.study.grid import Cell

WORKERS = 8  # unless --workers says
REQUEUES = 10  # of a job that reaches its time limit
_LOOK_SECONDS = 1.0
_END_SECONDS = 30.0  # for jobs to see that nothing is left, before they are cancelled


@dataclass
class Pull:
    """What a job runs: cells, until none is left.

    Attributes:
        settings: what a worker needs.
        cells: all of the grid that are to run, in order.
        answers: the file that this job writes, one line per cell.
    """

    settings: dict[str, Any]
    cells: list[dict[str, Any]]
    answers: str

    def __call__(self) -> int:
        """Run cells; returns how many this job was the one to run."""
        worker, ran = Worker(self.settings), 0
        foreign = self.settings["foreign"]
        todo, busy = deque(self.cells), 0
        while todo:
            cell = todo.popleft()
            own = not is_foreign(Cell.from_dict(cell), foreign)
            answer = worker.work(cell) if own else self._apart(cell)
            if answer["status"] == "busy":
                todo.append(cell)
                busy += 1
                if busy >= len(todo):  # every cell left is held by somebody, who may yet be lost
                    time.sleep(_LOOK_SECONDS)
                continue
            busy = 0
            ran += answer["status"] != "cached"
            with open(self.answers, "a", encoding="utf-8") as file:
                file.write(json.dumps(answer | {"id": cell["id"]}) + "\n")
            if own and answer.get("last"):
                raise MachineError("this node's device failed; the other jobs go on")
        return ran

    def _apart(self, values: dict[str, Any]) -> dict[str, Any]:
        """Run a cell in a process of its own, which ends with it."""
        cell = Cell.from_dict(values)
        logs = Path(self.answers).with_suffix("")
        (*_, event) = LocalExecutor([self.settings["device"]], self.settings, max(1, cell.threads), logs).run([cell])
        return {"status": event.status, "reason": event.reason, "seconds": event.seconds}

    def checkpoint(self) -> Any:
        """What SLURM is to queue again when the job's time is over."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class SlurmExecutor:
    """Jobs that pull cells.

    Args:
        device: of the cells, "cpu" or "cuda"; a job gets one GPU.
        workers: jobs; None for eight.
        threads: CPU threads of each.
        settings: what a worker needs besides cells and a device.
        logs: folder for the jobs' scripts, output and answers.
        options: of `--slurm`: any parameter of sbatch (partition, time, mem), `cluster=local` for processes of this
            machine in the place of jobs.
    """

    def __init__(
        self,
        device: str,
        *,
        workers: int | None,
        threads: int,
        settings: dict[str, Any],
        logs: Path,
        options: dict[str, str],
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise MachineError("--executor slurm needs submitit: pip install 'finetune-bench[slurm]'.") from None
        rest = dict(options)
        self.cluster = rest.pop("cluster", "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise MachineError(
                "--executor slurm: there is no sbatch on this machine. Start the run where jobs can be submitted, or "
                "give --slurm cluster=local for processes of this machine."
            )
        kind = device.partition(":")[0]
        self.settings = settings | {"device": "cpu" if kind == "cpu" else f"{kind}:0"}
        self.workers, self.logs = workers or WORKERS, logs
        self.running: dict[int, Cell] = {}
        self._executor: Any = submitit.AutoExecutor(
            folder=logs / "jobs", cluster=self.cluster, slurm_max_num_timeout=REQUEUES
        )
        minutes = rest.pop("time", None)
        wanted: dict[str, Any] = {"name": "finetune-bench", "cpus_per_task": threads}
        wanted |= {"gpus_per_node": 1} if kind != "cpu" else {}
        wanted |= {"timeout_min": int(minutes)} if minutes else {}
        wanted |= {"slurm_additional_parameters": rest} if rest and self.cluster == "slurm" else {}
        self._executor.update_parameters(**wanted)

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Submit the jobs and yield what they answer; closing the iterator cancels them."""
        by_id = {cell.id: cell for cell in cells}
        values = [cell.to_dict() for cell in cells]
        folder = self.logs / f"answers-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 10**6:06}"
        folder.mkdir(parents=True)
        files = [folder / f"{number}.jsonl" for number in range(min(self.workers, len(cells)))]
        jobs = [self._executor.submit(Pull(self.settings, values, str(file))) for file in files]
        read = dict.fromkeys(files, 0)
        try:
            over, found = False, set[str]()  # found: done when a job looked; whose work it was, another answer may tell
            while by_id and not over:
                over = self._are_over(jobs)  # before reading, so that nothing is missed
                for answer in [answer for file in files for answer in self._new(file, read)]:
                    if answer["status"] == "cached":
                        found.add(answer["id"])
                    elif (cell := by_id.pop(answer["id"], None)) is not None:
                        yield Event(cell, answer["status"], answer.get("reason"), answer.get("seconds") or 0.0)
                if by_id and not over:
                    time.sleep(_LOOK_SECONDS)
            for cell_id in found & set(by_id):
                yield Event(by_id.pop(cell_id), "cached")
            states = sorted({str(job.state) for job in jobs})
            for cell in by_id.values():
                reason = f"the jobs ended without it, in state {', '.join(states)}; see {self.logs / 'jobs'}"
                yield Event(cell, "died", reason)
            deadline = time.monotonic() + _END_SECONDS
            while time.monotonic() < deadline and not self._are_over(jobs):
                time.sleep(_LOOK_SECONDS)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel(check=False)

    def _are_over(self, jobs: Sequence[Any]) -> bool:
        """Whether no job will run any more; asked of the queue where the cluster keeps no accounts."""
        left = [job for job in jobs if not job.done()]
        if not left or self.cluster != "slurm" or any(job.state != "UNKNOWN" for job in left):
            return not left
        numbers = ",".join(job.job_id for job in left)
        asked = subprocess.run(["squeue", "-h", "-o", "%A", "-j", numbers], capture_output=True, text=True, check=False)  # noqa: S603, S607
        return not asked.stdout.strip()

    def _new(self, file: Path, read: dict[Path, int]) -> list[dict[str, Any]]:
        """The answers in a file that were not there before; half a line is left for the next look."""
        if not file.exists():
            return []
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        fresh, read[file] = content[read[file] : whole], whole
        return [json.loads(line) for line in fresh.decode().splitlines()]
