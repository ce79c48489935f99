"""Where cells run: `local` (processes of this machine), `ray` and `slurm` (many machines). All share one kind of store.

An executor takes cells and yields events. What it leaves undone, whatever happened, the next run finds missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from finetune_bench.grid import Cell
    from finetune_bench.study import Study

NAMES = ("local", "ray", "slurm")
DEFAULT = NAMES[0]


@dataclass(frozen=True)
class Event:
    """Something that happened to a cell: started, done, cached, failed, or died (with its worker)."""

    cell: Cell
    status: str
    reason: str | None = None
    seconds: float = 0.0
    log: str = ""
    retry: str = "always"  # of a cell that died: whether the next run tries it again by itself, or only when asked


class Executor(Protocol):
    """Runs cells somewhere."""

    running: dict[int, Cell]  # by worker: the cells in flight, for the caller of an interrupted run

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        """Run cells and yield what happens; closing the iterator ends every worker at once."""
        ...


def make(study: Study, devices: Sequence[str], settings: dict[str, Any], logs: Path) -> Executor:
    """The executor that a study asks for.

    Args:
        study: names it, with its options.
        devices: one name per worker ("cpu", "cuda:0") on this machine.
        settings: what a worker needs besides cells and a device.
        logs: folder for the workers' output.

    Raises:
        MachineError: its library is not installed, or what it would run on isn't there.
    """
    if study.executor == "ray":
        from finetune_bench.executors.ray import RayExecutor

        return RayExecutor(
            devices[0],
            workers=study.workers,
            gpus=study.gpus_per_worker,
            threads=study.threads,
            settings=settings,
            timeout=study.timeout,
        )
    if study.executor == "slurm":
        from finetune_bench.executors.slurm import SlurmExecutor

        return SlurmExecutor(
            devices[0],
            workers=study.workers,
            threads=study.threads,
            settings=settings,
            logs=logs,
            options=dict(study.slurm),
        )
    from finetune_bench.executors.local import LocalExecutor

    return LocalExecutor(devices, settings, study.threads, logs, study.timeout)
