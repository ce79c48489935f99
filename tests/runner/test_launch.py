"""Workers are launched while the study is checked: they run its cells, and none is left where there is no study."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_bench import launch
from finetune_bench.cli.entry import main
from finetune_bench.recipe import Recipe
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.messages import EventStatus, WorkerSettings
from finetune_bench.runner.executors.worker import print_to
from finetune_bench.study.grid import Cell

SETTINGS = WorkerSettings(
    out="", data_root=None, save_model=False, checkpoint_every=5, retry_failed=False, plugins=(), foreign={}
)
CELLS = [Cell("vanilla", (1,), "rte", "", "tiny", "", seed, Recipe(), None, "cpu", 1, ()) for seed in (1, 2)]
# It writes down its number and its settings, and ends at its first cell.
WORKER = """
import os, sys
word, settings = sys.stdin.readline().split(" ", 1)
open("asked", "a").write(f"{os.getpid()} {settings}")
os.write(1, f"{word} ready\\n".encode())
sys.stdin.readline()
"""
ENVIRONMENT = launch.environment_of("cpu", 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "START", WORKER)
    return tmp_path


def asked(folder: Path) -> list[tuple[int, WorkerSettings]]:
    """Run both cells; return the number and the settings of every worker that was given any."""
    executor = LocalExecutor(["cpu"], replace(SETTINGS, out=str(folder / "run")), 1, folder / "logs")
    statuses = [event.status for event in executor.run(CELLS)]
    assert statuses == [EventStatus.STARTED, EventStatus.DIED] * 2
    lines = [line.partition(" ") for line in (folder / "asked").read_text().splitlines()]
    return [(int(number), WorkerSettings.from_json(settings)) for number, _, settings in lines]


def test_a_cell_goes_to_the_worker_that_was_launched_early(folder: Path) -> None:
    """It is told where its log is; the one that is started after it writes to its log from its start."""
    with launch.early_ended():
        launch.launch_early(ENVIRONMENT)
        (early,) = launch._early
        (number, settings), (other, later) = asked(folder)
        assert number == early.process.pid != other
        assert settings.log == str(folder / "logs" / "worker-0.log")
        assert later.log is None
        assert launch._early == []


def test_an_early_worker_that_ends_before_it_is_ready_is_replaced_by_one_whose_log_tells_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "START", "import sys; sys.stdin.readline(); sys.exit('no luck')")
    with launch.early_ended():
        launch.launch_early(ENVIRONMENT)
        executor = LocalExecutor(["cpu"], replace(SETTINGS, out=str(folder / "run")), 1, folder / "logs")
        events = [event for event in executor.run(CELLS[:1]) if event.status == EventStatus.DIED]
    assert [event.reason for event in events] == ["its worker ended with exit code 1"]
    assert events[0].log == "no luck\n"


@pytest.mark.parametrize("changed", ["threads", "variable", "path"])
def test_a_worker_that_was_launched_for_something_else_gets_no_cell_and_is_ended(
    folder: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    with launch.early_ended():
        monkeypatch.setenv("SEEN", "before")
        launch.launch_early(launch.environment_of("cpu", 2) if changed == "threads" else ENVIRONMENT)
        (early,) = launch._early
        if changed == "variable":
            monkeypatch.setenv("SEEN", "after")
        if changed == "path":
            monkeypatch.syspath_prepend(str(folder))
        assert early.process.pid not in {number for number, _ in asked(folder)}
        assert early.process.poll() is None
    assert early.process.poll() is not None


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ([], 2),
        (["--workers", "5"], 4),  # there are four cells
        (["--threads", "2"], 1),
        (["--device", "cuda"], 0),
        (["--out", "."], 0),  # some of the cells may be there
        (["--plugin", "mine"], 0),
    ],
)
def test_a_new_study_launches_the_workers_that_it_needs_and_ends_them_if_it_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], count: int
) -> None:
    launched = []
    monkeypatch.setattr(launch, "cores", lambda: 2)
    monkeypatch.setattr(launch, "launch", lambda environment, log: launched.append(Fake()) or launched[-1])
    study = ["run", "--methods", "vanilla", "--tasks", "nothing.csv", "--model", "./none", "--seeds", "4"]
    assert main([*study, *options]) in (2, 3)
    assert [worker.ended for worker in launched] == [True] * count
    assert launch._early == []


class Fake:
    """It stands for a process."""

    ended = False

    def end(self) -> None:
        self.ended = True


def test_what_a_worker_prints_goes_to_the_log_that_it_is_told(tmp_path: Path) -> None:
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        print_to(str(tmp_path / "log"))
        os.write(1, b"one\n")
        os.write(2, b"two\n")
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_settings_come_back_from_their_line() -> None:
    settings = replace(SETTINGS, log="/logs/worker-0.log", plugins=("mine",))
    assert WorkerSettings.from_json(json.dumps(json.loads(settings.to_json()))) == settings
