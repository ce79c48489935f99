"""Rows on disk: whole or not at all, claimed by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from finetune_bench.errors import UsageError
from finetune_bench.store import reading
from finetune_bench.store.merge import merge
from finetune_bench.store.store import Store, to_json
from tests.synthetic_store import bare_row

A, B = "a" * 16, "b" * 16


def test_a_cell_is_read_as_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    arrays = {"trace": {"loss": np.arange(3.0)}, "predictions": {"validation.labels": np.array([1, 0])}}
    store.write({"id": A}, bare_row(A, "done", seconds=1.5), arrays=arrays)
    row = store.row(A)
    assert row is not None
    assert set(row.pop("files")) == {"trace.npz", "predictions.npz"}
    assert row == bare_row(A, "done", seconds=1.5)
    assert np.array_equal(store.arrays(A, "trace")["loss"], np.arange(3.0))
    assert store.arrays(A, "absent") == {}
    assert store.frame()["seconds"].tolist() == [1.5]
    assert store.row(B) is None


def test_arrays_in_another_order_make_the_same_files(tmp_path: Path) -> None:
    arrays = {"loss": np.arange(3.0), "task_loss": np.arange(3.0), "penalty": np.zeros(3)}
    other = {name: arrays[name] for name in ("penalty", "loss", "task_loss")}  # as after a resumption
    files = []
    for folder, content in (("one", arrays), ("two", other)):
        store = Store(tmp_path / folder)
        store.write({"id": A}, bare_row(A, "done"), arrays={"trace": content})
        (row,) = store.rows()
        files.append(row["files"])
    assert files[0] == files[1]


def test_a_failed_row_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "failed"), log="Traceback")
    assert (store.folder(A) / "log.txt").read_text("utf-8") == "Traceback"
    store.write({}, bare_row(A, "done"))
    assert [row["status"] for row in store.rows()] == ["done"]
    assert not (store.folder(A) / "log.txt").exists()
    assert [path.name for path in store.cells.iterdir()] == [A]


def test_what_fails_while_writing_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="half way"), store.writing(A) as folder:
        (folder / "row.json").write_text("{}", "utf-8")
        raise RuntimeError("half way")
    assert store.rows() == []
    assert list(store.cells.iterdir()) == []


def test_what_a_killed_run_left_is_not_read_and_then_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = store.cells / f".{A}-1234"
    half.mkdir(parents=True)
    (half / "row.json").write_text(json.dumps(bare_row(A, "done")), "utf-8")
    assert store.rows() == []
    store.write({}, bare_row(A, "done"))
    assert not half.exists()


def test_a_truncated_row_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "done"))
    (store.folder(A) / "row.json").write_text('{"id": "aaaa', "utf-8")
    assert store.row(A) is None
    assert store.rows() == []


def test_a_row_with_an_array_that_was_cut_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "done"), arrays={"trace": {"loss": np.zeros(9)}})
    row = store.row(A)
    assert row is not None
    content = (store.folder(A) / "trace.npz").read_bytes()
    assert row["files"] == {"trace.npz": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    os.truncate(store.folder(A) / "trace.npz", 100)
    assert store.row(A) is None
    (store.folder(A) / "trace.npz").unlink()
    assert store.row(A) is None


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import sys, time\nfrom finetune_bench.store import Store\n"
        f"with Store(sys.argv[1]).claim('{A}') as mine:\n    print(mine, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with store.claim(A) as mine:
            assert not mine
        with store.claim(B) as mine:
            assert mine
        other.kill()
        other.wait()
    with store.claim(A) as mine:
        assert mine


def test_a_done_row_is_never_replaced_by_another_status(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "done"), arrays={"trace": {"loss": np.arange(3.0)}})
    for status in ("failed", "interrupted", "skipped"):
        store.write({}, bare_row(A, status))
        assert store.write_unfinished({}, bare_row(A, status))["status"] == "done"
    assert np.array_equal(store.arrays(A, "trace")["loss"], np.arange(3.0))
    assert [path.name for path in store.cells.iterdir()] == [A]


def test_an_unfinished_row_is_not_written_while_another_process_is_at_the_cell(tmp_path: Path) -> None:
    worker, runner = Store(tmp_path), Store(tmp_path)
    with worker.claim(A), worker.writing(A) as folder:
        assert runner.write_unfinished({}, bare_row(A, "interrupted"))["status"] == "interrupted"
        worker.write({}, bare_row(A, "done"), into=folder)
    assert [row["status"] for row in runner.rows()] == ["done"]


def test_a_process_that_lost_its_claim_drops_what_it_made(tmp_path: Path) -> None:
    slow, other = Store(tmp_path), Store(tmp_path)
    with slow.claim(A):
        for lease in (tmp_path / "locks").glob(f"{A}.*"):  # as after a sleep of minutes, another one takes over
            lease.unlink()
        other.write({}, bare_row(A, "done", seed=2))
        assert slow.has_lost(A)
        slow.write({}, bare_row(A, "done", seed=1))
    assert [row["seed"] for row in other.rows()] == [2]
    assert not slow.has_lost(A)


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux only")
def test_a_row_that_is_replaced_is_there_all_the_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "failed"))
    over = threading.Event()
    missing = 0

    def read() -> None:
        nonlocal missing
        while not over.is_set():
            missing += not store.folder(A).is_dir()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        store.write({}, bare_row(A, "failed"))
    over.set()
    reader.join()
    assert missing == 0


def test_a_row_that_is_replaced_while_it_is_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, seed=1), arrays={"trace": {"loss": np.zeros(9)}})
    hash_now = reading.hash_plain
    replaced: list[Path] = []

    def hash_late(path: Path, most: int) -> tuple[int, str]:
        if not replaced:
            replaced.append(path)
            store.write({}, bare_row(A, seed=2), arrays={"trace": {"loss": np.ones(9)}})
        return hash_now(path, most)

    monkeypatch.setattr(reading, "hash_plain", hash_late)
    row = store.row(A)
    assert row is not None
    assert row["seed"] == 2


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_replacement_that_fails_keeps_the_former_row(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(A, "failed", seed=1))
    rename = os.rename

    def fail(source: Path, target: Path) -> None:
        if Path(target) == store.folder(A) and (Path(source) / "row.json").read_text("utf-8").count('"seed": 2'):
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    if not exchanges:  # as on another system than Linux, and on file systems that can't
        monkeypatch.setattr(sys, "platform", "other")
        with pytest.raises(OSError, match="No space left"):
            store.write({}, bare_row(A, "failed", seed=2))
    else:
        store.write({}, bare_row(A, "failed", seed=2))
    assert [row["seed"] for row in store.rows()] == [2 if exchanges and sys.platform == "linux" else 1]
    assert [path.name for path in store.cells.iterdir()] == [A]


@pytest.mark.parametrize("name", ["./../victim", "../../victim", "a", "A" * 16, ".", ""])
def test_only_an_id_can_name_a_cell(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    (tmp_path / "victim").mkdir()
    for write in (lambda: store.write({}, bare_row(name)), lambda: store.write_unfinished({}, bare_row(name))):
        with pytest.raises(UsageError, match="Expected the id of a cell, of 16 hexadecimal digits"):
            write()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["victim"]


def test_a_merge_does_no_work_that_grows_with_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Store(tmp_path / "source")
    for number in range(5):
        source.write({}, bare_row(f"{number:016x}", seed=number))
    calls: list[str] = []
    listed, flushed = Store.leftovers, os.fsync
    monkeypatch.setattr(Store, "leftovers", lambda store: calls.append("listed") or listed(store))
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("flushed") or flushed(handle))
    assert merge(tmp_path / "target", [source.root]).copied == 5
    assert sorted(calls) == ["flushed", "listed"]  # the study is flushed
    assert len(Store(tmp_path / "target").rows()) == 5


def test_a_merge_leaves_a_cell_alone_that_is_being_run(tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    source.write({}, bare_row(A))
    with target.claim(A):
        merged = merge(target.root, [source.root])
        assert (merged.copied, len(merged.conflicts)) == (0, 1)
        assert "is being run" in merged.conflicts[0]
    assert merge(target.root, [source.root]).copied == 1


def test_json_has_no_nan() -> None:
    assert json.loads(to_json({A: float("nan"), B: [float("inf"), 1.5], "c": {"d": (1, 2)}})) == {
        A: None,
        B: ["inf", 1.5],
        "c": {"d": [1, 2]},
    }


def test_opening_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no cells"):
        Store.open(tmp_path)
