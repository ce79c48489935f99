"""What is settled about a cluster before anything is started on it."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune_bench.errors import UsageError
from finetune_bench.runner.checks import check_devices
from finetune_bench.runner.executors.logs import logged_to
from finetune_bench.runner.executors.ray import capacity, check_room, job_config, loopback_only
from finetune_bench.study.study import Study


def test_room_is_counted_node_by_node() -> None:
    nodes = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0}, {"CPU": 1.0, "GPU": 4.0}]
    assert capacity(nodes, {"CPU": 1.0}) == 12
    assert capacity(nodes, {"CPU": 2.0}) == 5  # 8 // 2 + 3 // 2 + 0: no worker spans two nodes
    assert capacity(nodes, {"CPU": 1.0, "GPU": 0.5}) == 5
    assert capacity([{"CPU": 64.0, "GPU": 2.0}], {"CPU": 1.0, "GPU": 0.4}) == 4  # a fifth would span both GPUs
    assert capacity([{"CPU": 64.0, "GPU": 3.0}], {"CPU": 1.0, "GPU": 0.7}) == 3
    assert check_room(None, 5, {"CPU": 1.0}) == 5
    assert check_room(3, 5, {"CPU": 1.0}) == 3


def test_the_switch_that_keeps_ray_on_this_machine_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
    constants = SimpleNamespace(ENABLE_RAY_CLUSTER=True)
    ray = SimpleNamespace(_private=SimpleNamespace(ray_constants=constants))
    for before in (None, "1"):
        monkeypatch.delenv(name, raising=False)
        if before:
            monkeypatch.setenv(name, before)
        with loopback_only(ray):
            assert (constants.ENABLE_RAY_CLUSTER, os.environ[name]) == (False, "0")
        assert (constants.ENABLE_RAY_CLUSTER, os.environ.get(name)) == (True, before)


def test_ray_s_workers_import_from_the_current_folder_only_where_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = SimpleNamespace(job_config=SimpleNamespace(JobConfig=dict))
    monkeypatch.chdir(tmp_path)
    assert job_config(ray) == {"_client_job": True}
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    assert job_config(ray) == {"_client_job": False}


@pytest.mark.parametrize("options", [{"executor": "ray"}, {"executor": "slurm", "slurm": {"time": "60"}}], ids=str)
def test_a_machine_without_a_gpu_says_nothing_of_a_clusters_nodes(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    with pytest.raises(UsageError, match="this machine has no GPU, which tells nothing of those that will run"):
        check_devices(Study(**options))  # type: ignore[arg-type]
    for device in ("cpu", "cuda"):
        (chosen,) = check_devices(Study(**options, device=device))  # type: ignore[arg-type]
        assert chosen.type == device
    (chosen,) = check_devices(Study(executor="slurm", slurm={"cluster": "local"}))  # type: ignore[arg-type]
    assert chosen.type == "cpu"


def test_what_a_library_logs_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("cluster")
    handler = logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(KeyboardInterrupt), logged_to(tmp_path / "logs" / "cluster.log", "cluster"):
            logging.getLogger("cluster.worker").info("a local instance was started")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("this will change", FutureWarning, stacklevel=1)
            raise KeyboardInterrupt
        assert capsys.readouterr() == ("", "")
        written = (tmp_path / "logs" / "cluster.log").read_text("utf-8")
        assert "INFO cluster.worker: a local instance was started" in written
        assert "this will change" in written
        logger.info("afterwards")
        assert capsys.readouterr().err == "afterwards\n"
        assert logger.propagate
    finally:
        logger.removeHandler(handler)
