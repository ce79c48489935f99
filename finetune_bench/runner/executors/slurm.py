"""Run cells through SLURM: N jobs that take cells from one list, by way of submitit.

A job takes the next cell that no other holds, until none is left. Near its time limit it is requeued and goes on with
the same list, and with the last checkpoint of the cell that it was in. Every job answers into a file of its own, which
the runner reads; so a runner that is gone costs nothing, and the next one finds the rows. Needs the extra `[slurm]`,
and a store, data and checkpoints on a file system that all nodes see.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_bench.errors import MachineError
from finetune_bench.runner.cell import PROCESS_ENDS
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.logs import logged_to
from finetune_bench.runner.executors.messages import Answer, EventStatus, WorkerSettings
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.runner.leftovers import is_foreign
from finetune_bench.study.grid import Cell
from finetune_bench.study.readers import job_minutes

LOCAL_TIME = "7-00"  # for processes of this machine in the place of jobs, where no time is given
WORKERS = 8  # unless --workers says
REQUEUES = 10  # of a job that reaches its time limit
WAIT_SECONDS = 1.0  # before answers are read again, and before cells that others hold are tried again
END_SECONDS = 30.0  # for jobs to see that nothing is left, before they are cancelled


@dataclass(frozen=True)
class Job:
    """A SLURM job takes one cell after another, until none is left.

    Attributes:
        settings: what its worker needs beside cells.
        cells: all cells of the grid that are to run, in order.
        answers: the file that this job writes, one line per cell.
    """

    settings: WorkerSettings
    cells: tuple[Cell, ...]
    answers: Path

    def __call__(self) -> int:
        """Run cells; return how many this job was the one to run."""
        worker, ran = Worker(self.settings), 0
        todo, busy = deque(self.cells), 0
        while todo:
            cell = todo.popleft()
            is_apart = is_foreign(cell, self.settings.foreign) and not self.settings.trust_plugins
            answer = self._apart(cell) if is_apart else worker.work(cell)
            if answer.status == EventStatus.BUSY:
                todo.append(cell)
                busy += 1
                if busy >= len(todo):  # every cell left is held by another process, which may yet be lost
                    time.sleep(WAIT_SECONDS)
                continue
            busy = 0
            ran += answer.status != EventStatus.CACHED
            with open(self.answers, "a", encoding="utf-8") as file:
                file.write(answer.to_json() + "\n")
            if answer.broken:
                raise MachineError("this node's device failed; the other jobs go on")
        return ran

    def _apart(self, cell: Cell) -> Answer:
        """Run a cell in a process that ends with it."""
        logs = self.answers.with_suffix("")
        (*_, event) = LocalExecutor([self.settings.device], self.settings, max(1, cell.threads), logs).run([cell])
        return Answer(cell.id, event.status, event.reason, event.seconds)

    def checkpoint(self) -> Any:
        """Return what SLURM queues again when the job's time is over: the whole list; the store knows what is done.

        Submitit calls it in a signal's handler, which then ends the process by an exception, wherever the cell is.
        """
        from submitit.helpers import DelayedSubmission

        PROCESS_ENDS.set()
        return DelayedSubmission(self)


class SlurmExecutor:
    """SLURM jobs take their cells from one list.

    Args:
        device: "cpu" or "cuda"; a job gets one GPU.
        workers: number of jobs; None for eight.
        threads: CPU threads of each job.
        settings: what workers need beside cells and a device.
        logs: the folder for the jobs' scripts, output and answers.
        options: the options of `--slurm`: any parameter of sbatch (partition, time, mem), and `cluster=local` for
            processes of this machine in the place of jobs, which need no `time`.
    """

    def __init__(
        self,
        device: str,
        *,
        workers: int | None,
        threads: int,
        settings: WorkerSettings,
        logs: Path,
        options: dict[str, str],
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise MachineError("--executor slurm needs submitit: pip install 'finetune-bench[slurm]'.") from None
        sbatch_options = dict(options)
        self.cluster = sbatch_options.pop("cluster", "slurm")
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise MachineError(
                "--executor slurm: there is no sbatch on this machine. Start the run where jobs can be submitted, or "
                "give --slurm cluster=local for processes of this machine."
            )
        kind = device.partition(":")[0]
        self.settings = replace(settings, device="cpu" if kind == "cpu" else f"{kind}:0")
        self.workers, self.logs = workers or WORKERS, logs
        self.running: dict[int, Cell] = {}
        # With -P a job imports nothing of the folder that the run was started in.
        python = f"{shlex.quote(sys.executable)} -P"
        self._executor: Any = submitit.AutoExecutor(
            folder=logs / "jobs",
            cluster=self.cluster,
            slurm_max_num_timeout=REQUEUES,
            slurm_python=python,
            local_python=python,
        )
        minutes = job_minutes(sbatch_options.pop("time", LOCAL_TIME))
        parameters: dict[str, Any] = {"name": "finetune-bench", "cpus_per_task": threads, "timeout_min": minutes}
        if kind != "cpu":
            parameters["gpus_per_node"] = 1
        if sbatch_options and self.cluster == "slurm":
            parameters["slurm_additional_parameters"] = sbatch_options
        self._executor.update_parameters(**parameters)

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Submit the jobs and yield what they answer; closing the iterator cancels them."""
        with logged_to(self.logs / "submitit.log", "submitit"):
            yield from self._run(cells)

    def _run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        unanswered = {cell.id: cell for cell in cells}
        folder = self.logs / f"answers-{time.strftime('%Y%m%dT%H%M%S')}-{time.monotonic_ns() % 10**6:06}"
        folder.mkdir(parents=True)
        files = [folder / f"{number}.jsonl" for number in range(min(self.workers, len(cells)))]
        jobs = [self._executor.submit(Job(self.settings, tuple(cells), file)) for file in files]
        try:
            yield from self._read_answers(jobs, files, unanswered)
            states = sorted({str(job.state) for job in jobs})
            for cell in unanswered.values():
                reason = f"the jobs ended without it, in state {', '.join(states)}; see {self.logs / 'jobs'}"
                yield Event(cell, EventStatus.DIED, reason)
            deadline = time.monotonic() + END_SECONDS
            while time.monotonic() < deadline and not self._are_over(jobs):
                time.sleep(WAIT_SECONDS)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel(check=False)

    def _read_answers(self, jobs: Sequence[Any], files: Sequence[Path], unanswered: dict[str, Cell]) -> Iterator[Event]:
        """Yield what the jobs answer, and take each cell out of `unanswered`, until none is left or no job runs."""
        read = dict.fromkeys(files, 0)  # bytes of each file
        # Cells that were done when a job came to them: another job's answer may yet tell that it ran them.
        cached: set[str] = set()
        over = False
        while unanswered and not over:
            over = self._are_over(jobs)  # before reading, so that nothing is missed
            for answer in [answer for file in files for answer in _new_answers(file, read)]:
                if answer.status == EventStatus.CACHED:
                    cached.add(answer.id)
                elif (cell := unanswered.pop(answer.id, None)) is not None:
                    yield Event.from_answer(cell, answer)
            if unanswered and not over:
                time.sleep(WAIT_SECONDS)
        for cell_id in cached & set(unanswered):
            yield Event(unanswered.pop(cell_id), EventStatus.CACHED)

    def _are_over(self, jobs: Sequence[Any]) -> bool:
        """Return whether no job will run any more; the queue is asked where the cluster keeps no accounts."""
        unfinished = [job for job in jobs if not job.done()]
        if not unfinished or self.cluster != "slurm" or any(job.state != "UNKNOWN" for job in unfinished):
            return not unfinished
        command = ["squeue", "-h", "-o", "%A", "-j", ",".join(job.job_id for job in unfinished)]
        return not subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603


def _new_answers(file: Path, read: dict[Path, int]) -> list[Answer]:
    """Return the answers in a file that were not there before; half a line is left for the next time."""
    if not file.exists():
        return []
    content = file.read_bytes()
    end = content.rfind(b"\n") + 1
    lines, read[file] = content[read[file] : end], end
    return [Answer.from_json(line) for line in lines.decode().splitlines()]
