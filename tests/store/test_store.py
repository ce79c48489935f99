"""Rows on disk: whole or not at all, claimed by one process at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from finetune_bench.errors import UsageError
from finetune_bench.store.merge import merge
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store, to_json


def test_a_cell_is_read_as_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    arrays = {"trace": {"loss": np.arange(3.0)}, "predictions": {"validation.labels": np.array([1, 0])}}
    store.write({"id": "a"}, {"id": "a", "status": "done", "cost": {"seconds": 1.5}}, arrays=arrays)
    row = store.row("a")
    assert row is not None
    assert set(row.pop("files")) == {"trace.npz", "predictions.npz"}
    assert row == {"id": "a", "status": "done", "cost": {"seconds": 1.5}}
    assert np.array_equal(store.arrays("a", "trace")["loss"], np.arange(3.0))
    assert store.arrays("a", "absent") == {}
    assert store.frame()["cost.seconds"].tolist() == [1.5]
    assert store.row("b") is None


def test_a_failed_row_is_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": "failed"}, log="Traceback")
    assert (store.folder("a") / "log.txt").read_text("utf-8") == "Traceback"
    store.write({}, {"id": "a", "status": "done"})
    assert [row["status"] for row in store.rows()] == ["done"]
    assert not (store.folder("a") / "log.txt").exists()
    assert [path.name for path in store.cells.iterdir()] == ["a"]


def test_what_fails_while_writing_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="half way"), store.writing("a") as folder:
        (folder / "row.json").write_text("{}", "utf-8")
        raise RuntimeError("half way")
    assert store.rows() == []
    assert list(store.cells.iterdir()) == []


def test_what_a_killed_run_left_is_not_read_and_then_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    half = store.cells / ".a-1234"
    half.mkdir(parents=True)
    (half / "row.json").write_text(json.dumps({"id": "a", "status": "done"}), "utf-8")
    assert store.rows() == []
    store.write({}, {"id": "a", "status": "done"})
    assert not half.exists()


def test_a_truncated_row_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": "done"})
    (store.folder("a") / "row.json").write_text('{"id": "a", "sta', "utf-8")
    assert store.row("a") is None
    assert store.rows() == []


def test_a_row_with_an_array_that_was_cut_counts_as_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": "done"}, arrays={"trace": {"loss": np.zeros(9)}})
    row = store.row("a")
    assert row is not None
    assert row["files"] == {"trace.npz": (store.folder("a") / "trace.npz").stat().st_size}
    os.truncate(store.folder("a") / "trace.npz", 100)
    assert store.row("a") is None
    (store.folder("a") / "trace.npz").unlink()
    assert store.row("a") is None


def test_a_claim_is_exclusive_and_ends_with_its_process(tmp_path: Path) -> None:
    store = Store(tmp_path)
    code = (
        "import sys, time\nfrom finetune_bench.store import Store\n"
        "with Store(sys.argv[1]).claim('a') as mine:\n    print(mine, flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with store.claim("a") as mine:
            assert not mine
        with store.claim("b") as mine:
            assert mine
        other.kill()
        other.wait()
    with store.claim("a") as mine:
        assert mine


def test_a_done_row_is_never_replaced_by_another_status(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": "done"}, arrays={"trace": {"loss": np.arange(3.0)}})
    for status in ("failed", "interrupted", "skipped"):
        store.write({}, {"id": "a", "status": status})
        assert store.write_unfinished({}, {"id": "a", "status": status})["status"] == "done"
    assert np.array_equal(store.arrays("a", "trace")["loss"], np.arange(3.0))
    assert [path.name for path in store.cells.iterdir()] == ["a"]


def test_an_unfinished_row_is_not_written_while_another_process_is_at_the_cell(tmp_path: Path) -> None:
    worker, runner = Store(tmp_path), Store(tmp_path)
    with worker.claim("a"), worker.writing("a") as folder:
        assert runner.write_unfinished({}, {"id": "a", "status": "interrupted"})["status"] == "interrupted"
        worker.write({}, {"id": "a", "status": "done"}, into=folder)
    assert [row["status"] for row in runner.rows()] == ["done"]


def test_a_process_that_lost_its_claim_drops_what_it_made(tmp_path: Path) -> None:
    slow, other = Store(tmp_path), Store(tmp_path)
    with slow.claim("a"):
        for lease in (tmp_path / "locks").glob("a.*"):  # as after a sleep of minutes, another one takes over
            lease.unlink()
        other.write({}, {"id": "a", "status": "done", "seed": 2})
        assert slow.has_lost("a")
        slow.write({}, {"id": "a", "status": "done", "seed": 1})
    assert [row["seed"] for row in other.rows()] == [2]
    assert not slow.has_lost("a")


@pytest.mark.skipif(sys.platform != "linux", reason="folders are exchanged in one step on Linux only")
def test_a_row_that_is_replaced_is_there_all_the_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": "failed"})
    over = threading.Event()
    missing = 0

    def read() -> None:
        nonlocal missing
        while not over.is_set():
            missing += not store.folder("a").is_dir()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(100):
        store.write({}, {"id": "a", "status": "failed"})
    over.set()
    reader.join()
    assert missing == 0


def test_a_merge_leaves_a_cell_alone_that_is_being_run(tmp_path: Path) -> None:
    source, target = Store(tmp_path / "source"), Store(tmp_path / "target")
    row: Row = {"id": "a", "status": Status.DONE, "method": "hype", "task": "rte", "seed": 1}
    source.write({}, row)
    with target.claim("a"):
        merged = merge(target.root, [source.root])
        assert (merged.copied, len(merged.conflicts)) == (0, 1)
        assert "is being run" in merged.conflicts[0]
    assert merge(target.root, [source.root]).copied == 1


def test_json_has_no_nan() -> None:
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, 2)}})) == {
        "a": None,
        "b": ["inf", 1.5],
        "c": {"d": [1, 2]},
    }


def test_opening_what_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no cells"):
        Store.open(tmp_path)
