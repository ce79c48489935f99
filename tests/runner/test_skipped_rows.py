"""Rows of cells that can't run are written like all others: with the cell claimed, never over one that is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from finetune_bench.runner import execution
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from tests.synthetic_store import make_cell


def test_a_skipped_row_waits_for_no_other_process_and_undoes_nothing(tmp_path: Path) -> None:
    cell = make_cell(1)
    worker, store = Store(tmp_path), Store(tmp_path)
    plan = SimpleNamespace(store=store, skipped=[(cell, "it can't run")])
    with worker.claim(cell.id), worker.writing(cell.id) as folder:
        execution._write_skipped(plan)
        assert store.row(cell.id) is None
        assert folder.is_dir()  # another writer would have removed it as a killed run's
        worker.write(cell.to_dict(), row_of(cell, Status.DONE), into=folder)
    execution._write_skipped(plan)
    assert [row["status"] for row in store.rows()] == ["done"]


def test_a_skipped_row_is_written_once(tmp_path: Path) -> None:
    cell, store = make_cell(1), Store(tmp_path)
    plan = SimpleNamespace(store=store, skipped=[(cell, "it can't run")])
    execution._write_skipped(plan)
    before = (store.folder(cell.id) / "row.json").stat().st_mtime_ns
    execution._write_skipped(plan)
    assert [(row["status"], row["reason"]) for row in store.rows()] == [("skipped", "it can't run")]
    assert (store.folder(cell.id) / "row.json").stat().st_mtime_ns == before
