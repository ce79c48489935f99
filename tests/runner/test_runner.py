"""Whole grids with real workers on a tiny checkpoint: resumed, killed, interrupted, failing; always the same rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pytest

from finetune_bench import cli, run
from finetune_bench.errors import UsageError
from finetune_bench.files import sealed
from finetune_bench.recipe import Recipe
from finetune_bench.runner import execution
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import EventStatus
from finetune_bench.runner.plan import make_plan
from finetune_bench.store.reading import SCHEMA
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study

pytestmark = pytest.mark.slow


def command(*options: str, **paths: Path) -> list[str]:
    named = [part for name, path in paths.items() for part in (f"--{name}", str(path))]
    return [sys.executable, "-m", "finetune_bench.cli", "run", *named, *options]


class Ended(NamedTuple):
    """How a command ended."""

    returncode: int
    stderr: str


def ended(typed: list[str], capsys: pytest.CaptureFixture[str]) -> Ended:
    """Run a command in this process, which has imported all that it needs; its workers are processes as ever."""
    capsys.readouterr()
    return Ended(cli.main(typed[3:]), capsys.readouterr().err)


GRID = ("--methods", "vanilla,hype(eps=0.1),rdrop,mixout", "--seeds", "2", "--epochs", "2", "--lr", "1e-3")


@pytest.fixture(scope="module")
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study(
        methods=("vanilla", "hype(eps=0.1)", "rdrop", "mixout"),
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2),
        recipe=Recipe(lr=1e-3, epochs=2),
        out=tmp_path_factory.mktemp("runs") / "undisturbed",
        workers=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def undisturbed(study: Study) -> Store:
    frame = run(study)
    assert len(frame) == 5 * 2  # the dropout-off control was added
    assert set(frame["status"]) == {"done"}
    assert study.out is not None
    return Store(study.out)


def test_rows_say_what_was_done(undisturbed: Store, study: Study) -> None:
    rows = undisturbed.rows()
    assert {row["method"] for row in rows} == {
        "vanilla",
        "vanilla(dropout=hidden_off)",
        "hype(eps=0.1)",
        "rdrop",
        "mixout",
    }
    for seed in (1, 2):
        of_seed = [row for row in rows if row["seed"] == seed]
        assert len({str(row["hashes"]) for row in of_seed}) == 1  # paired: same head, same order, same data
    assert rows[0]["hashes"] != next(row for row in rows if row["seed"] != rows[0]["seed"])["hashes"]
    by_method = {row["method"]: row for row in rows if row["seed"] == 1}
    assert by_method["rdrop"]["cost"]["forwards_per_step"] == 2
    assert set(by_method["hype(eps=0.1)"]["dropout"]) == {"bert.encoder.layer.*.attention.self.dropout"}
    assert by_method["mixout"]["dropout"] == {}
    for row in rows:
        assert 0 <= row["metrics"]["validation"]["accuracy"] <= 1
        assert row["cost"]["train_seconds"] > 0
        assert row["cost"]["peak_memory_bytes"] > 2**20
        assert row["environment"]["torch"]
        trace = undisturbed.arrays(row["id"], "trace")
        assert len(trace["loss"]) == row["training"]["steps"]
        assert trace["sketch"].shape == (len(trace["sketch_steps"]), 64)
        predictions = undisturbed.arrays(row["id"], "predictions")
        accuracy = (predictions["validation.predictions"].argmax(1) == predictions["validation.labels"]).mean()
        assert accuracy == pytest.approx(row["metrics"]["validation"]["accuracy"])


def test_a_second_run_does_nothing(undisturbed: Store, study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.cells.rglob("*")}
    arguments = command(*GRID, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=undisturbed.root)[3:]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr()
    assert "10 cells" in shown.err
    assert "10 cached: nothing to do." in shown.err
    assert "rdrop" in shown.out
    assert "report.md" in shown.out
    assert {path: path.stat().st_mtime_ns for path in undisturbed.cells.rglob("*")} == before


def test_one_worker_gives_the_same_rows(undisturbed: Store, study: Study, tmp_path: Path) -> None:
    run(replace(study, workers=1, out=tmp_path / "one"))
    assert Store(tmp_path / "one").without_measurements() == undisturbed.without_measurements()


def wait_for_rows(store: Store, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(store.rows()) < count:
        assert process.poll() is None, "the run ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_kill_9_and_resume(
    undisturbed: Store, study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "killed")
    typed = command(*GRID, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root)
    with subprocess.Popen(typed, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True) as process:
        wait_for_rows(store, 3, process)
        process.kill()
    time.sleep(1.0)  # the workers notice that their run is gone
    kept = {row["id"]: (store.folder(row["id"]) / "row.json").stat().st_mtime_ns for row in store.rows()}
    assert 3 <= len(kept) < 10
    done = ended(typed, capsys)
    assert done.returncode == 0, done.stderr
    assert f"{len(kept)} cached: {10 - len(kept)} to run" in done.stderr
    assert store.without_measurements() == undisturbed.without_measurements()
    for cell, modified in kept.items():
        assert (store.folder(cell) / "row.json").stat().st_mtime_ns == modified


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(study: Study, tmp_path: Path) -> None:
    store = Store(tmp_path / "interrupted")
    typed = command(*GRID, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root)
    with subprocess.Popen(typed, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        wait_for_rows(store, 2, process)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    assert "To go on:" in talk
    assert f"--out {store.root}" in talk
    statuses = [row["status"] for row in store.rows()]
    assert statuses.count("done") >= 2
    assert "failed" not in statuses
    assert "Traceback" not in talk


PLUGIN = """
import os, signal, torch
from finetune_bench.method import Method, Objective
from finetune_bench.parameters import parameter

class Trouble(Method):
    '''Raises, diverges or dies, as told.'''
    name = "trouble"
    how: str = parameter("raise", choices=("raise", "diverge", "die", "memory"))

    def objective(self, step, inner, view):
        found = inner(view)
        if self.how == "raise":
            raise RuntimeError("no luck today")
        if self.how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "memory":
            raise torch.OutOfMemoryError("not enough")
        return Objective(found.loss * float("nan"), found.output)
"""


def test_a_failing_cell_is_a_row_and_the_grid_goes_on(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "trouble.py"
    plugin.write_text(PLUGIN, "utf-8")
    store = Store(tmp_path / "failing")
    ways = ["trouble", "trouble(how=diverge)", "trouble(how=die)", "trouble(how=memory)"]
    options = [
        "--methods",
        ",".join(["vanilla", *ways]),
        "--no-baseline",
        "--seeds",
        "7,",
        "--epochs",
        "1",
        "--workers",
        "1",
        "--trust-plugins",  # so that they share a worker: each alone starts one for itself
    ]
    typed = command(*options, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root, plugin=plugin)
    first = ended(typed, capsys)
    assert first.returncode == 1, first.stderr
    rows = {row["method"]: row for row in store.rows()}
    assert {name: row["status"] for name, row in rows.items()} == {"vanilla": "done"} | dict.fromkeys(ways, "failed")
    assert rows["trouble"]["reason"] == "RuntimeError: no luck today"
    assert rows["trouble(how=diverge)"]["reason"] == "diverged at step 1"
    assert "SIGKILL" in rows["trouble(how=die)"]["reason"]
    assert rows["trouble(how=memory)"]["reason"] == "out of memory, also with accumulation 2"
    assert "no luck today" in (store.folder(rows["trouble"]["id"]) / "log.txt").read_text("utf-8")
    second = ended(typed, capsys)
    assert second.returncode == 1
    # What would fail the same way is left alone; a killed cell and one that ran out of memory are run again.
    assert "1 cached, 2 failed before, --retry-failed runs those that failed again: 2 to run" in second.stderr


HUNGRY = """
import torch
from finetune_bench.method import Method

class Hungry(Method):
    '''Has no room for more than eight examples at once.'''
    name = "hungry"

    def objective(self, step, inner, view):
        if len(step.batch.labels) > 8:
            raise torch.OutOfMemoryError("no room")
        return inner(view)
"""


def test_a_cell_without_room_is_trained_in_halves_and_says_so(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "hungry.py"
    plugin.write_text(HUNGRY, "utf-8")
    rows = {}
    for name, more in {"asked": ["--accumulation", "2"], "found": []}.items():
        options = ["--methods", "hungry", "--no-baseline", "--seeds", "7,", "--epochs", "1", "--workers", "1", *more]
        typed = command(
            *options, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=tmp_path / name, plugin=plugin
        )
        done = ended(typed, capsys)
        assert done.returncode == 0, done.stderr
        (rows[name],) = Store(tmp_path / name).rows()
    asked, found = rows["asked"], rows["found"]
    assert found["recipe"]["accumulation"] == 1  # still the cell that was asked for
    assert found["accumulated"] == 2
    assert "accumulated" not in asked
    assert found["metrics"] == asked["metrics"]  # the same arithmetic, to the last bit
    assert found["training"] == asked["training"]
    assert found["hashes"]["order"] == asked["hashes"]["order"]
    assert "no room" in (Store(tmp_path / "found").folder(found["id"]) / "log.txt").read_text("utf-8")
    page = (tmp_path / "found" / "report" / "report.md").read_text("utf-8")
    assert "Out of memory, so trained with accumulation 2 (the batch is the same)" in page


HANGING = """
import signal, time
from finetune_bench.method import Method
from finetune_bench.parameters import parameter

class Hang(Method):
    '''Sleeps for ever, if need be deaf to a polite end.'''
    name = "hang"
    deaf: bool = parameter(False)

    def gradients(self, run):
        if self.deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
"""


def test_a_hanging_cell_is_stopped_and_the_grid_goes_on(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "hanging.py"
    plugin.write_text(HANGING, "utf-8")
    store = Store(tmp_path / "hanging")
    options = ["--methods", "hang,hang(deaf=true),vanilla", "--no-baseline", "--seeds", "7,", "--epochs", "1"]
    options += ["--workers", "1", "--timeout", "10s"]
    typed = command(*options, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root, plugin=plugin)
    first = ended(typed, capsys)
    assert first.returncode == 1, first.stderr
    rows = {row["method"]: row for row in store.rows()}
    assert rows["vanilla"]["status"] == "done"
    for name in ("hang", "hang(deaf=true)"):
        assert rows[name]["status"] == "failed"
        assert rows[name]["reason"] == "took longer than --timeout 10s and was stopped; its log shows where it was"
        assert "in gradients" in (store.folder(rows[name]["id"]) / "log.txt").read_text("utf-8")
    second = ended(typed, capsys)
    assert "1 cached, 2 failed before" in second.stderr  # it would hang again


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where this user may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if sys.platform != "linux" or shutil.which("mount") is None:
        pytest.skip("needs Linux's tmpfs")
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_loses_nothing_and_the_same_command_goes_on(
    undisturbed: Store, study: Study, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(small_disk / "run")
    typed = command(*GRID, "--workers", "1", tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - 90_000))
    first = ended(typed, capsys)
    assert first.returncode == 3, first.stderr
    assert "No space left on device; make room and give the same command again." in " ".join(first.stderr.split())
    kept = store.without_measurements()
    done = sum(row["status"] == "done" for row in kept.values())
    assert 0 < done < 10
    ballast.unlink()
    second = ended(typed, capsys)
    assert second.returncode == 0, second.stderr
    assert f"{done} cached" in second.stderr
    assert store.without_measurements() == undisturbed.without_measurements()
    assert not list(store.cells.glob(".*"))  # what was half-written is gone


def test_a_read_only_folder_is_told_before_any_compute(
    study: Study, small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(small_disk / "run")
    typed = command(*GRID, tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = ended(typed, capsys)
    assert done.returncode == 2, done.stderr
    assert "can't be written to; give another folder" in " ".join(done.stderr.split())
    assert "] done: " not in done.stderr


@pytest.mark.usefixtures("cells_in_this_process")
def test_cut_files_are_not_believed(undisturbed: Store, study: Study, tmp_path: Path) -> None:
    store = Store(tmp_path / "cut")
    shutil.copytree(undisturbed.root, store.root)
    cells = sorted(path for path in store.cells.iterdir())
    for cell, name in zip(cells, ("row.json", "trace.npz", "predictions.npz"), strict=False):
        os.truncate(cell / name, 60)
    content = bytearray((cells[3] / "predictions.npz").read_bytes())
    content[len(content) // 2] ^= 1  # a bit that flipped
    (cells[3] / "predictions.npz").write_bytes(content)
    (store.cells / ".DS_Store").write_bytes(b"")
    (store.root / "study.json").write_text("[]", "utf-8")
    before = {cell: (cell / "row.json").stat().st_mtime_ns for cell in cells}
    study = replace(study, out=store.root)
    notes = make_plan(study).notes
    assert any("study.json' holds no table. It is written anew" in note for note in notes)
    told = [note for note in notes if note.startswith("Damaged, so run again: ")]
    assert [any(cell.name in note for note in told) for cell in cells] == [True] * 4 + [False] * (len(cells) - 4)
    frame = run(study)
    assert len(frame) == 10
    assert store.without_measurements() == undisturbed.without_measurements()
    assert [cell for cell in cells if (cell / "row.json").stat().st_mtime_ns != before[cell]] == cells[:4]


def test_a_row_of_a_newer_version_is_not_run_again(undisturbed: Store, study: Study, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.root, tmp_path / "run")
    path = min((tmp_path / "run" / "cells").glob("*/row.json"))
    newer = json.dumps(sealed(json.loads(path.read_text("utf-8")) | {"schema": SCHEMA + 1}))
    path.write_text(newer, "utf-8")
    with pytest.raises(UsageError, match="written by a newer version"):
        make_plan(replace(study, out=tmp_path / "run"))
    with (
        pytest.raises(UsageError, match="written by a newer version"),
        Store(tmp_path / "run").writing(path.parent.name),
    ):
        pass
    assert path.read_text("utf-8") == newer


def test_a_worker_killed_after_it_wrote_its_row_has_done_its_cell(
    undisturbed: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: between the rename and the answer."""
    store = Store(tmp_path / "killed")
    shutil.copytree(undisturbed.root, store.root)
    plan = make_plan(replace(study, out=store.root))
    plan.todo = plan.cells[:1]
    row = store.row(plan.cells[0].id)

    class Dying:
        running: ClassVar[dict[int, Cell]] = {}

        def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
            yield from (Event(cell, EventStatus.DIED, "its worker was killed by SIGKILL") for cell in cells)

    monkeypatch.setattr(execution, "make_executor", lambda *_: Dying())
    counts = execution.execute(plan)
    assert (counts.done, counts.failed) == (1, 0)
    assert store.row(plan.cells[0].id) == row


def test_a_clock_that_jumps_changes_nothing(
    undisturbed: Store, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Back and forth by years while cells run, in this process as in the workers; what is timed is timed steadily."""
    plugin = tmp_path / "jump.py"
    plugin.write_text(
        "import random, time\nfrom finetune_bench.method import Method\n"
        "real = time.time\ntime.time = lambda: real() + random.uniform(-1e8, 1e8)\n\n"
        "class Jump(Method):\n    'The clock jumps.'\n    name = 'jump'\n",
        "utf-8",
    )
    monkeypatch.setattr(time, "time", lambda real=time.time: real() - 1e8)
    frame = run(replace(study, out=tmp_path / "run", plugins=(str(plugin),), seeds=(1,), timeout=300))
    assert set(frame["status"]) == {"done"}
    assert ((frame["seconds"] > 0) & (frame["seconds"] < 300)).all()
    found, expected = Store(tmp_path / "run").without_measurements(), undisturbed.without_measurements()
    assert found == {cell: expected[cell] for cell in found}


def test_two_runs_on_one_store_share_the_work(undisturbed: Store, study: Study, tmp_path: Path) -> None:
    store = Store(tmp_path / "shared")
    typed = command(*GRID, "--workers", "1", tasks=Path(study.tasks[0]), model=Path(study.models[0]), out=store.root)
    both = [subprocess.Popen(typed, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    talk = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], talk
    assert sum(text.count("] done: ") for text in talk) == 10  # each cell was run by one of them
    assert store.without_measurements() == undisturbed.without_measurements()


@pytest.mark.usefixtures("cells_in_this_process")
def test_saved_models_are_plain(study: Study, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    quick = replace(
        study,
        methods=("hype+mixout",),
        seeds=(1,),
        recipe=Recipe(lr=1e-3, epochs=1),
        out=tmp_path / "saved",
        baseline=False,
        save_model=True,
    )
    frame = run(quick)
    store = Store(tmp_path / "saved")
    folder = store.folder(frame["id"][0]) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.hidden_dropout_prob == 0.1  # the checkpoint's own, not the method's
    tokenizer = AutoTokenizer.from_pretrained(folder)
    from finetune_bench import registry

    data = registry.task(study.tasks[0]).load(None)
    texts = list(data.evaluation["validation"].texts)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    logits = model.eval()(**inputs).logits.detach().numpy()
    np.testing.assert_allclose(logits, store.arrays(frame["id"][0], "predictions")["validation.predictions"], atol=1e-5)


def test_one_checkpoint_under_two_names_is_refused(study: Study, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Their runs have the same ids: the table would show one of them, without a word."""
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    with pytest.raises(UsageError, match=r"--model: '.*tiny-bert' and '.*copy' have the same weights"):
        make_plan(replace(study, models=(str(tiny_checkpoint), str(tmp_path / "copy"))))


@pytest.mark.usefixtures("cells_in_this_process")
def test_what_one_model_cannot_do_is_skipped(study: Study, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """R-Drop needs passes that differ: on a checkpoint without dropout its cells are skipped, and the rest runs."""
    from transformers import AutoConfig

    still = tmp_path / "still-bert"
    still.mkdir()
    for file in tiny_checkpoint.iterdir():
        os.link(file, still / file.name)
    config = AutoConfig.from_pretrained(tiny_checkpoint)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    (still / "config.json").unlink()
    config.save_pretrained(still)
    both = replace(
        study,
        methods=("vanilla", "rdrop"),
        models=(str(tiny_checkpoint), str(still)),
        seeds=(1,),
        recipe=Recipe(lr=1e-3, epochs=1),
        out=tmp_path / "both",
        baseline=False,
    )
    frame = run(both)
    frame["model"] = frame["model"].str.rpartition("/")[2]
    rdrop = frame[frame["method"] == "rdrop"].set_index("model")
    assert rdrop["status"].to_dict() == {"tiny-bert": "done", "still-bert": "skipped"}
    assert "identical" in str(rdrop.loc["still-bert", "reason"])
    assert set(frame[frame["method"] == "vanilla"]["status"]) == {"done"}
