"""Cells are run by an executor: `local` (on this machine), `ray` or `slurm` (on many). All share one kind of store.

An executor takes cells and yields events. What it leaves undone, whatever happened, the next run finds missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from finetune_bench.runner.executors.base import Executor
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.messages import WorkerSettings
from finetune_bench.runner.executors.ray import RayExecutor
from finetune_bench.runner.executors.slurm import SlurmExecutor
from finetune_bench.study.study import Study


def make_executor(study: Study, devices: Sequence[str], settings: WorkerSettings, logs: Path) -> Executor:
    """Return the executor that a study asks for.

    Args:
        study: the study, which names the executor and its options.
        devices: one torch device per worker on this machine, as "cpu" or "cuda:0".
        settings: what workers need beside cells and a device.
        logs: the folder for the workers' output.

    Raises:
        MachineError: its library is not installed, or what it would run on isn't there.
    """
    if study.executor == "ray":
        return RayExecutor(
            devices[0],
            workers=study.workers,
            gpus=study.gpus_per_worker,
            threads=study.threads,
            settings=settings,
            logs=logs,
            timeout=study.timeout,
        )
    if study.executor == "slurm":
        return SlurmExecutor(
            devices[0],
            workers=study.workers,
            threads=study.threads,
            settings=settings,
            logs=logs,
            options=dict(study.slurm),
        )
    return LocalExecutor(devices, settings, study.threads, logs, timeout=study.timeout, memory=study.memory)
