"""The local executor against workers that misbehave; they are small programs, so that no test waits for torch."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from finetune_bench import launch, registry
from finetune_bench.recipe import Recipe
from finetune_bench.runner.executors import memory, worker
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.memory import MemoryLimit, MemoryWatch
from finetune_bench.runner.executors.messages import Answer, EventStatus, Progress, WorkerSettings
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Retry, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell

SETTINGS = WorkerSettings(
    out="",
    data_root=None,
    save_model=False,
    checkpoint_every=5,
    retry_failed=False,
    plugins=(),
    foreign={"methods": [], "tasks": [], "task_files": []},
)
CELLS = [Cell("vanilla", (1,), "rte", "", "tiny", "", seed, Recipe(), None, "cpu", 1, ()) for seed in (1, 2)]
WORKER = """
import json, os, shutil, subprocess, sys, time
from pathlib import Path

def command():
    return sys.stdin.readline().split(" ", 1)

def answer(text):
    os.write(1, f"\\n{word} {text}\\n".encode())

def write_row(status):
    out = Path(settings["out"])
    shutil.copytree(out.parent / status / "cells" / cell["id"], out / "cells" / cell["id"])

def say(status):
    answer(json.dumps({"id": cell["id"], "status": status}))

def sleeper(**options):
    code = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"
    file = Path(settings["out"], f"sleeper-{len(os.listdir(settings['out']))}")
    subprocess.Popen([sys.executable, "-c", code, str(file)], **options)
    while not file.exists() or not file.read_text():
        time.sleep(0.01)

word, settings = command()
settings = json.loads(settings)
answer("ready")
while True:
    word, cell = command()
    cell = json.loads(cell)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Event]]:
    """Give both cells to one worker that does this with each; return what happened, apart from starts."""
    out = tmp_path / "run"
    out.mkdir()
    for status, reason in ((Status.DONE, None), (Status.FAILED, "no luck")):
        for cell in CELLS:
            row = row_of(cell, status, reason)
            row["seconds"] = 2.5
            Store(tmp_path / status).write(cell.to_dict(), row)
    settings = replace(SETTINGS, out=str(out))

    def run(code: str, timeout: float | None = None, memory: int | None = None) -> list[Event]:
        body = "".join(f"    {line}\n" for line in code.strip().splitlines())
        monkeypatch.setattr(launch, "START", WORKER + body)
        executor = LocalExecutor(["cpu"], settings, 1, tmp_path / "logs", timeout=timeout, memory=memory)
        events = list(executor.run(CELLS))
        return [event for event in events if event.status != EventStatus.STARTED]

    return run


def sleepers(tmp_path: Path) -> list[int]:
    """The processes that cells left; those that have ended are waited for, as init may be slow."""
    numbers = [int(file.read_text()) for file in (tmp_path / "run").glob("sleeper-*")]
    assert numbers
    deadline = time.monotonic() + 5
    while alive := [number for number in numbers if is_alive(number)]:
        if time.monotonic() > deadline:
            return alive
        time.sleep(0.01)
    return []


def is_alive(number: int) -> bool:
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_is_seen_to_be_dead_while_its_child_holds_the_pipe(
    tmp_path: Path, run: Callable[..., list[Event]]
) -> None:
    events = run("sleeper(stdout=1)\nos.kill(os.getpid(), 9)")
    assert [event.status for event in events] == [EventStatus.DIED] * 2
    assert events[0].reason == "its worker was killed by SIGKILL (out of memory, or by hand)"
    assert sleepers(tmp_path) == []


@pytest.mark.slow
def test_time_is_up_for_all_that_a_cell_started(tmp_path: Path, run: Callable[..., list[Event]]) -> None:
    """In its group, in a session of its own, and with a parent that is gone."""
    code = """
sleeper()
sleeper(start_new_session=True)
if os.fork() == 0:
    sleeper(start_new_session=True)
    os._exit(0)
time.sleep(300)
"""
    started = time.monotonic()
    events = run(code, timeout=0.6)
    assert {event.reason for event in events} == {
        "took longer than --timeout 0.6s and was stopped; its log shows where it was"
    }
    assert time.monotonic() - started < 60
    assert sleepers(tmp_path) == []


def test_what_a_cell_left_running_ends_with_its_worker(tmp_path: Path, run: Callable[..., list[Event]]) -> None:
    events = run("sleeper(start_new_session=True)\nwrite_row('done')\nsay('done')")
    assert [event.status for event in events] == [EventStatus.DONE] * 2
    assert sleepers(tmp_path) == []


def test_what_is_no_answer_is_passed_over(run: Callable[..., list[Event]]) -> None:
    code = """
os.write(1, b"junk\\n\\xff\\n")
os.write(1, json.dumps({"id": cell["id"], "status": "done"}).encode() + b"\\n" + b"x" * 100_000)
write_row("failed")
os.write(1, b"half a line")
say("failed")
"""
    events = run(code)
    assert [(event.status, event.reason, event.seconds) for event in events] == [
        (EventStatus.FAILED, "no luck", 2.5)
    ] * 2


def test_the_row_counts_where_no_answer_comes(run: Callable[..., list[Event]]) -> None:
    events = run("write_row('failed')\nsys.exit(3)")
    assert [(event.status, event.reason) for event in events] == [(EventStatus.FAILED, "no luck")] * 2


def test_an_answer_without_its_row_is_not_believed(run: Callable[..., list[Event]]) -> None:
    events = run("say('done')")
    assert {event.status for event in events} == {EventStatus.DIED}
    assert events[0].reason == "its worker said that it was done, and its row is not in the store"


def test_nothing_of_the_current_folder_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., list[Event]]
) -> None:
    folder = tmp_path / "current"
    folder.mkdir()
    for name in ("json", "subprocess"):
        (folder / f"{name}.py").write_text("raise ValueError\n", "utf-8")
    monkeypatch.chdir(folder)
    assert [event.status for event in run("write_row('done')\nsay('done')")] == [EventStatus.DONE] * 2


GREEDY = """
if cell["seed"] == 1:
    code = "import time; taken = b'x' * 300_000_000; time.sleep(300)"
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    time.sleep(300)
write_row("done")
say("done")
"""


def test_a_worker_that_takes_too_much_memory_is_ended_and_the_grid_goes_on(
    run: Callable[..., list[Event]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it started counts; what goes on has the memory that one cell had taken."""
    monkeypatch.setattr(memory, "RELATIVES_LOOKS", 1)
    greedy, modest = run(GREEDY, memory=200_000_000)
    assert (greedy.status, greedy.retry) == (EventStatus.DIED, Retry.ALWAYS)
    assert re.fullmatch(
        r"used 0\.[23]\d* GB of memory, more than --memory 0\.2 GB, and was stopped", str(greedy.reason)
    )
    assert modest.status == EventStatus.DONE


def test_without_a_limit_a_worker_may_take_more_than_its_share_while_there_is_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = {"total": 16e9, "available": 10e9}
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(**left))
    limit = MemoryLimit.of(None, workers=2)
    assert limit.most == 4.5e9
    assert limit.reason(5_000_000_000) is None
    left["available"] = 0.5e9
    assert limit.reason(5_000_000_000) == (
        "used 5 GB of memory while the machine had 0.5 GB left, more than the 4.5 GB that each of 2 workers may use "
        "then, and was stopped; give fewer --workers"
    )
    assert MemoryLimit.of(8 * 10**9, workers=2).most == 8e9


def test_memory_that_processes_share_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the children do that a process forks: each shows all of its parent's."""
    shared = SimpleNamespace(rss=6 * 10**9)
    family = [
        SimpleNamespace(memory_info=lambda: shared, memory_full_info=lambda: SimpleNamespace(pss=2 * 10**9, uss=0))
    ]
    monkeypatch.setattr(memory, "_family", lambda number: 3 * family)
    assert MemoryWatch(MemoryLimit(7 * 10**9, 0, 1), 1).excess() is None
    assert MemoryWatch(MemoryLimit(5 * 10**9, 0, 1), 1).excess() is not None


def test_a_worker_goes_on_after_cells_of_trusted_plugins_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(worker, "compute", lambda *_: None)
    row = {"status": "done", "reason": None, "seconds": 1.0}
    monkeypatch.setattr(worker, "run_cells", lambda cells, _: [{**row, "id": cell.id} for cell in cells])
    monkeypatch.setattr(registry, "load_plugin", loaded.append)
    foreign = {"methods": ["vanilla"], "tasks": [], "task_files": []}
    settings = replace(SETTINGS, out=str(tmp_path), plugins=("plugin.py",), foreign=foreign)
    for trusts in (False, True):
        working = worker.Worker(replace(settings, trust_plugins=trusts))
        assert [working.work(cell).is_last for cell in CELLS] == [not trusts] * 2
    assert loaded == ["plugin.py"] * 4  # for each cell, as the file may have been edited since the last


class Writing:
    """In the place of a worker: its cells write into every file that is open for writing."""

    def __init__(self, settings: WorkerSettings, tell: Callable[[int, int, float], None]) -> None:
        self.tell = tell

    def work(self, cell: Cell) -> Answer:
        for step in range(3, 9):  # of all the steps within a second one is told
            self.tell(step, 10, 0.5)
        os.write(self.pipe, b"junk without an end")
        return Answer(cell.id, EventStatus.FAILED, "a reason" * 10_000)

    pipe = 0


def test_a_worker_answers_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    (commands, ours), (theirs, answers) = os.pipe(), os.pipe()
    ended = threading.Event()
    monkeypatch.setattr(worker, "Worker", Writing)
    monkeypatch.setattr(worker, "_end", ended.set)
    monkeypatch.setattr(Writing, "pipe", answers)
    threading.Thread(target=worker.serve, args=(commands, answers), daemon=True).start()
    cell = json.dumps(CELLS[0].to_dict())
    os.write(ours, f"first {SETTINGS.to_json()}\nsecond {cell}\n".encode())
    with open(theirs, encoding="utf-8") as file:
        lines = [file.readline() for _ in range(6)]
        assert lines[:2] == ["\n", "first ready\n"]
        assert lines[2:5] == ["\n", "second at 3 10 0.5\n", "junk without an end\n"]
        assert lines[5].startswith("second {")
        assert len(lines[5]) < 1000
        assert Answer.from_json(lines[5].partition(" ")[2]) == Answer(CELLS[0].id, EventStatus.FAILED)
    os.close(ours)
    assert ended.wait(10)
    os.close(answers)


def test_a_cell_tells_how_far_it_has_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its progress is passed on while it runs, and is taken for no answer."""
    monkeypatch.setattr(launch, "START", f'{WORKER}    answer("at 3 10 0.5")\n    time.sleep(0.2)\n    say("busy")\n')
    monkeypatch.setattr("finetune_bench.runner.executors.local.TICK_SECONDS", 0.05)
    (tmp_path / "run").mkdir()
    executor = LocalExecutor(["cpu"], replace(SETTINGS, out=str(tmp_path / "run")), 1, tmp_path / "logs")
    events = executor.run(CELLS[:1])
    started, training, busy = next(events), next(events), next(events)
    events.close()  # type: ignore[attr-defined]
    assert (started.status, training.status, busy.status) == (
        EventStatus.STARTED,
        EventStatus.TRAINING,
        EventStatus.BUSY,
    )
    assert training.progress == Progress(3, 10, 0.5)
