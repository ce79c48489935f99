"""The same grid under every executor: the same rows to the last bit, also when workers are lost."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune_bench import cli
from finetune_bench.errors import MachineError, UsageError
from finetune_bench.recipe import Recipe
from finetune_bench.runner.execution import execute
from finetune_bench.runner.executors.messages import Answer, EventStatus, WorkerSettings
from finetune_bench.runner.executors.slurm import SlurmExecutor
from finetune_bench.runner.plan import make_plan
from finetune_bench.store.store import Store
from finetune_bench.study.study import Study

pytestmark = pytest.mark.slow

SETTINGS = WorkerSettings(
    out="x",
    data_root=None,
    save_model=False,
    checkpoint_every=5,
    retry_failed=False,
    plugins=("a", "b"),
    foreign={"methods": ["a"], "tasks": [], "task_files": []},
)
METHODS = ("vanilla", "hype(eps=0.1)", "rdrop", "mixout", "ema", "smart", "child_tuning_d", "noisytune")
CELLS = 2 * len(METHODS)


@pytest.fixture(scope="module")
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(
        methods=METHODS,
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2),
        recipe=Recipe(lr=1e-3, epochs=4, batch_size=8),
        baseline=False,
        out=tmp_path_factory.mktemp("runs") / "local",
        workers=2,
        device="cpu",
        checkpoint_every=5,
    )


@pytest.fixture(scope="module")
def rows(study: Study) -> dict[str, Any]:
    plan = make_plan(study)
    assert execute(plan).done == CELLS
    return plan.store.without_measurements()


def finish(study: Study, out: Path, **changes: Any) -> tuple[Any, Store]:
    plan = make_plan(dataclasses.replace(study, out=out, **changes))
    return execute(plan), plan.store


@pytest.fixture
def own_ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    yield ray
    assert not ray.is_initialized()  # what the executor started, it ended


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_gives_the_same_rows_also_when_a_worker_is_killed(
    study: Study, rows: dict[str, Any], tmp_path: Path, own_ray: Any
) -> None:
    store = Store(tmp_path / "ray")
    killed: list[int] = []
    listening: set[str] = set()

    def kill() -> None:
        """The process that holds a cell, once some are done."""
        while not killed:
            time.sleep(0.02)
            if len(list(store.cells.glob("[0-9a-f]*"))) < 4:
                continue
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    sockets = process.net_connections("inet")
                    listening.update(socket.laddr.ip for socket in sockets if socket.status == psutil.CONN_LISTEN)
            for file in (store.root / "locks").glob("*"):
                words = file.read_text().splitlines()
                if len(words) == 5 and (process := int(words[2])) != os.getpid():
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                    break

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    tally, _ = finish(study, store.root, executor="ray")
    assert killed
    assert listening
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert (tally.done + tally.cached, tally.failed) == (CELLS, 0)
    assert store.without_measurements() == rows


@pytest.mark.filterwarnings("ignore")
def test_ray_says_what_it_can_never_have(study: Study, tmp_path: Path, own_ray: Any, capsys: Any) -> None:
    with pytest.raises(MachineError, match=r"a worker needs 1024 CPU, and no node of the cluster has that"):
        finish(study, tmp_path / "wide", executor="ray", threads=1024)
    with pytest.raises(UsageError, match=r"--workers 4096: the cluster has room for \d+ workers of 1 CPU"):
        finish(study, tmp_path / "many", executor="ray", workers=4096)


def test_messages_are_read_back_as_they_were_sent() -> None:
    assert WorkerSettings.from_json(SETTINGS.to_json()) == SETTINGS
    answer = Answer("0123456789abcdef", EventStatus.FAILED, "out of memory", 1.5, broken=True)
    read = Answer.from_json(answer.to_json())
    assert read == answer
    assert isinstance(read.status, EventStatus)
    assert "\n" not in SETTINGS.to_json() + answer.to_json()


def test_slurm_s_jobs_give_the_same_rows_also_when_their_time_is_over(
    study: Study, rows: dict[str, Any], tmp_path: Path
) -> None:
    """Through submitit's processes of this machine; one of them is told that its time is over, and is queued again."""
    pytest.importorskip("submitit")
    store = Store(tmp_path / "slurm")
    told: list[int] = []

    def tell() -> None:
        while not told:
            time.sleep(0.02)
            if len(list(store.cells.glob("[0-9a-f]*"))) < 4:
                continue
            for file in (store.root / "locks").glob("*"):
                words = file.read_text().splitlines()
                if len(words) == 5:
                    os.kill(int(words[2]), signal.SIGUSR2)
                    told.append(int(words[2]))
                    break

    threading.Thread(target=tell, daemon=True).start()
    tally, _ = finish(study, store.root, executor="slurm", slurm=(("cluster", "local"), ("time", "5")))
    assert told
    assert (tally.done + tally.cached, tally.failed) == (CELLS, 0)
    assert store.without_measurements() == rows
    logs = "".join(path.read_text() for path in (store.root / "logs" / "jobs").glob("*_log.*"))
    assert "requeu" in logs.lower() or "timed-out" in logs.lower(), logs[-2000:]


def test_one_executor_goes_on_where_another_stopped(study: Study, rows: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    tally, store = finish(study, tmp_path / "both", seeds=(2,))
    assert tally.done == len(METHODS)
    tally, store = finish(study, tmp_path / "both", executor="slurm", slurm={"cluster": "local"})
    assert (tally.done, tally.cached) == (CELLS - len(METHODS), len(METHODS))
    assert store.without_measurements() == rows


FAKE = """#!/bin/sh
echo "$@" >> {folder}/calls
case "$(basename $0)" in
  sbatch) cp "$1" {folder}/script.sh; echo "Submitted batch job 7";;
  squeue) exit 1;;
  *) exit 1;;
esac
"""


def test_the_script_that_sbatch_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: Study) -> None:
    pytest.importorskip("submitit")
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sbatch", "srun", "squeue", "sacct", "scancel"):
        (tools / name).write_text(FAKE.format(folder=tmp_path))
        (tools / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    options = {"partition": "gpu", "time": "04:00:00", "account": "lab"}
    executor = SlurmExecutor("cuda", workers=1, threads=4, settings=SETTINGS, logs=tmp_path / "logs", options=options)
    cells = make_plan(dataclasses.replace(study, out=tmp_path / "run")).todo[:2]
    events = list(executor.run(cells))
    script = (tmp_path / "script.sh").read_text()
    for line in ("partition=gpu", "time=240", "account=lab", "cpus-per-task=4", "gpus-per-node=1", "signal=USR2@90"):
        assert f"#SBATCH --{line}" in script, line
    assert f"{sys.executable} -P -u -m submitit" in script
    assert {event.status for event in events} == {"died"}  # there is no such job in the queue
    assert "the jobs ended without it" in str(events[0].reason)


def test_what_executors_refuse(study: Study, monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineError, match="there is no sbatch on this machine"):
        finish(study, tmp_path / "none", executor="slurm", slurm={"time": "60"})
    for options, said in (
        (("--slurm", "partition=x"), "--slurm: these parameters are for jobs; give --executor slurm with them."),
        (("--executor", "slurm", "--timeout", "5m"), "give --slurm time=04:00:00"),
        (("--executor", "slurm", "--gpus-per-worker", "0.5"), "a SLURM job has a GPU of its own"),
        (("--executor", "cloud"), "--executor: expected one of local, ray, slurm; got 'cloud'."),
        (("--gpus-per-worker", "2"), "--gpus-per-worker: expected a number above 0 and at most 1"),
        (("--executor", "slurm", "--slurm", "gpu"), "--slurm: expected pairs, as partition=gpu,time=04:00:00"),
    ):
        assert cli.main(["run", *options]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def has_slurm() -> bool:
    try:
        return subprocess.run(["sinfo", "-h"], capture_output=True, text=True, timeout=10, check=False).stdout != ""
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.mark.skipif(not has_slurm(), reason="no SLURM cluster answers here")
def test_a_real_cluster_gives_the_same_rows(study: Study, rows: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    tally, store = finish(study, tmp_path / "cluster", executor="slurm", slurm={"time": "10"})
    assert (tally.done + tally.cached, tally.failed) == (CELLS, 0)
    assert store.without_measurements() == rows
