"""The derived table: always what the store says, whatever happened to it or to the table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from finetune_bench import files
from finetune_bench.store import row_index
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, make_store, make_trace, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte", "mnli"), seeds=2)


def rows_of(store: Store) -> list[dict[str, Any]]:
    return [row for row, _ in row_index.read(store)[0]]


def lines_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which cells' traces a reading opens."""
    opened: list[str] = []
    read = Store.arrays

    def arrays(self: Store, cell: str, name: str) -> dict[str, np.ndarray]:
        opened.extend([cell] if name == "trace" else [])
        return read(self, cell, name)

    monkeypatch.setattr(Store, "arrays", arrays)
    assert rows_of(store) == sorted(rows_of(store), key=lambda row: row["id"])
    monkeypatch.undo()
    return opened


def test_rows_and_traces_are_the_stores(store: Store) -> None:
    found, damaged = row_index.read(store)
    assert damaged == {}
    assert [row for row, _ in found] == store.rows()
    for row, trace in found:
        original = store.arrays(row["id"], "trace")
        for name, values in trace.arrays().items():
            np.testing.assert_array_equal(values, original[name])
        splits = ("validation",) if row["task"] == "rte" else ("validation_matched", "validation_mismatched")
        assert trace.examples == dict.fromkeys(splits, 277 if row["task"] == "rte" else 500)
    assert len({trace.digest for _, trace in found}) == 8


def test_the_second_reading_opens_no_trace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(lines_read(store, monkeypatch)) == 8
    table = store.root / "derived.parquet"
    stamp = table.stat().st_mtime_ns
    assert lines_read(store, monkeypatch) == []
    assert table.stat().st_mtime_ns == stamp  # nothing to write either


def test_the_second_reading_makes_no_checksum_of_a_row_anew(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = rows_of(store)
    made: list[int] = []
    checksum = files.checksum

    def counted(values: Mapping[str, Any]) -> str:
        made.append(len(values))
        return checksum(values)

    monkeypatch.setattr(files, "checksum", counted)
    assert rows_of(store) == expected
    assert made == []
    row_index.read(Store(store.root, reads_index=False))  # without the index nothing is known
    assert len(made) >= 8


def test_a_row_whose_bytes_changed_is_held_against_its_checksum_again(store: Store) -> None:
    cell = rows_of(store)[0]["id"]
    path = store.folder(cell) / "row.json"
    text = path.read_text("utf-8")
    path.write_text(text.replace('"seed": ', '"seed": 1', 1), "utf-8")
    assert cell in row_index.read(store)[1]
    path.write_text(text, "utf-8")
    assert row_index.read(store)[1] == {}
    assert len(rows_of(store)) == 8


def test_a_changed_row_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of(store)
    row = make_row("hype", "rte", 1)
    row["metrics"]["validation"]["accuracy"] = 0.123
    put(store, row)
    assert lines_read(store, monkeypatch) == [row["id"]]
    assert rows_of(store) == store.rows()
    assert 0.123 in [found["metrics"].get("validation", {}).get("accuracy") for found in rows_of(store)]


def test_new_rows_come_and_deleted_rows_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of(store)
    new = make_row("rdrop", "rte", 1)
    put(store, new)
    gone = make_row("hype", "rte", 2)["id"]
    (store.folder(gone) / "row.json").unlink()
    assert lines_read(store, monkeypatch) == [new["id"]]
    ids = [row["id"] for row in rows_of(store)]
    assert new["id"] in ids
    assert gone not in ids
    assert len(ids) == 8


def test_a_row_that_was_cut_off_is_no_row(store: Store) -> None:
    rows_of(store)
    path = store.folder(make_row("hype", "rte", 1)["id"]) / "row.json"
    path.write_text(path.read_text("utf-8")[:100], "utf-8")
    assert len(rows_of(store)) == 7


@pytest.mark.parametrize("damage", ["deleted", "cut off", "no table", "other version", "empty"])
def test_a_damaged_table_is_made_anew(store: Store, damage: str) -> None:
    expected = rows_of(store)
    path = store.root / "derived.parquet"
    if damage == "deleted":
        path.unlink()
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "no table":
        path.write_text("not a table", "utf-8")
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        table = parquet.read_table(path)
        parquet.write_table(table.replace_schema_metadata({"version": str(row_index.VERSION - 1)}), path)
    assert rows_of(store) == expected
    assert parquet.read_schema(path).metadata[b"version"] == str(row_index.VERSION).encode()


def test_a_store_that_cannot_be_written_to_is_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(parquet, "write_table", full)
    assert rows_of(store) == store.rows()
    monkeypatch.undo()
    assert sorted(path.name for path in store.root.iterdir()) == ["cells"]  # nothing half-written stays


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_store_is_read(store: Store) -> None:
    store.root.chmod(0o555)
    try:
        assert rows_of(store) == store.rows()
    finally:
        store.root.chmod(0o755)


def test_a_store_without_cells_has_no_rows(tmp_path: Path) -> None:
    assert row_index.read(Store(tmp_path)) == ([], {})


def test_equal_runs_have_equal_digests(store: Store) -> None:
    row = make_row("hype", "rte", 1)
    put(store, row, make_trace(make_row("vanilla", "rte", 1)))
    digests = {found["id"]: trace.digest for found, trace in row_index.read(store)[0]}
    assert digests[row["id"]] == digests[make_row("vanilla", "rte", 1)["id"]]
    put(store, row, {"loss": np.zeros(3)})  # without sketches nothing can be said
    assert {found["id"]: trace.digest for found, trace in row_index.read(store)[0]}[row["id"]] is None


def test_rows_share_what_is_equal(store: Store) -> None:
    for key in ("recipe", "environment", "notes"):
        assert len({id(row[key]) for row in rows_of(store) if key in row}) <= 1
