"""Where cells run: `local` (processes of this machine), `ray` and `slurm` (many machines). All share one kind of store.

An executor takes cells and yields events. What it leaves undone, whatever happened, the next run finds missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench.runner.executors.base import Executor

if TYPE_CHECKING:
    from finetune_bench.study.study import Study


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
        from finetune_bench.runner.executors.ray import RayExecutor

        return RayExecutor(
            devices[0],
            workers=study.workers,
            gpus=study.gpus_per_worker,
            threads=study.threads,
            settings=settings,
            timeout=study.timeout,
        )
    if study.executor == "slurm":
        from finetune_bench.runner.executors.slurm import SlurmExecutor

        return SlurmExecutor(
            devices[0],
            workers=study.workers,
            threads=study.threads,
            settings=settings,
            logs=logs,
            options=dict(study.slurm),
        )
    from finetune_bench.runner.executors.local import LocalExecutor

    return LocalExecutor(devices, settings, study.threads, logs, study.timeout)
