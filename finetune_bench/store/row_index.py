"""The row index of a store keeps every trace in one file: a report needn't unpack thousands of files of arrays.

It is `RUN/derived.parquet`: one line per cell, with a hash of all that the cell's files held when the line was made,
and a hash of the line. Rows themselves are always read from their files, to the last byte; a line also has a hash of
the bytes of `row.json`, so that these are held against their checksum only once. A line whose cell holds something else
by now is made anew, as is a line that isn't what was written; deleting the index loses nothing. A store that can't be
written to is read without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from finetune_bench.files import Damaged, replacing
from finetune_bench.store.row import Row
from finetune_bench.store.store import Store

VERSION = 3  # of the index's columns; an index of another version is made anew
_ARRAYS = {
    "loss": np.float64,
    "task_loss": np.float64,
    "sketch": np.float64,
    "sketch_steps": np.int64,
    "scored_sketch": np.float64,
}
_TEXTS = ("id", "content", "row_file", "examples", "digest")
_CONTENT = (*_TEXTS, *_ARRAYS)
_COLUMNS = [*_CONTENT, "checksum"]
_SCHEMA = pa.schema(
    [(name, pa.large_binary() if name in _ARRAYS else pa.string()) for name in _COLUMNS], {"version": str(VERSION)}
)
# Keys whose values many rows have in common.
_SHARED = ("recipe", "environment", "methods", "majority", "dropout", "notes")


class Trace:
    """A trace holds the numbers that were recorded while a cell trained.

    Args:
        line: the cell's line of the index, by column.

    Attributes:
        digest: a hash of the recorded losses and weight sketches; None where there are not both.
        examples: evaluation examples by split.
    """

    def __init__(self, line: dict[str, Any]) -> None:
        self._arrays = {name: line[name] for name in _ARRAYS if isinstance(line[name], bytes)}
        self.digest: str | None = line["digest"] or None
        self.examples: dict[str, int] = json.loads(line["examples"])

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what there is of the arrays, by name.

        They are `loss`, `task_loss` (steps,), `sketch` (points, 64), `sketch_steps` (points,), `scored_sketch` (64,).
        """
        arrays = {name: np.frombuffer(content, _ARRAYS[name]) for name, content in self._arrays.items()}
        if "sketch" in arrays:
            arrays["sketch"] = arrays["sketch"].reshape(len(arrays["sketch_steps"]), -1)
        return arrays


def read(store: Store) -> tuple[list[tuple[Row, Trace]], dict[str, Damaged]]:
    """Return every row of a store that can be read with its trace, and what is damaged; brings the index up to date.

    Returns:
        Rows and traces in the order of their ids; and what is damaged, as `Store.read` has it.
    """
    old = _read(_path(store))[0] if store.reads_index else {}
    checked = {cell: line["row_file"] for cell, line in old.items()}
    rows, damaged = store.read(checked)
    lines, unreadable = _up_to_date(store, old, {cell: content for cell, (_, content) in rows.items()}, checked)
    shared: dict[str, Any] = {}
    pairs = []
    for cell, line in lines.items():
        row: dict[str, Any] = dict(rows[cell][0])
        for key in _SHARED:
            if key in row:
                row[key] = shared.setdefault(repr(row[key]), row[key])
        pairs.append((cast(Row, row), Trace(line)))
    return pairs, damaged | unreadable


def stamps(store: Store) -> Iterator[tuple[str | int, ...]]:
    """Yield, for every cell in the store, its name and what changes with its files: for what one process keeps."""
    cells = str(store.cells)
    for name in store.names():
        facts: list[str | int] = [name]
        for file in ("row.json", "predictions.npz", "trace.npz"):
            # For ten thousand files, making a Path takes most of the time.
            try:
                status = os.lstat(f"{cells}/{name}/{file}")
            except OSError:
                continue
            facts += (file, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
        yield tuple(facts)


def faults(store: Store) -> list[str]:
    """Return what is wrong with a store's index: lines that aren't what was written, or not what their cells give."""
    lines, damaged = _read(_path(store))
    checked: dict[str, str] = {}
    rows, _ = store.read(checked)
    current = {cell: line for cell, line in lines.items() if cell in rows and line["content"] == rows[cell][1]}
    differing = [
        cell
        for cell, line in current.items()
        if line != _line_or_none(store, cell, rows[cell][1], checked.get(cell, ""))
    ]
    texts = [f"the line of {cell} isn't what its files give" for cell in differing]
    return [*texts, *([damaged] if damaged else [])]


def _up_to_date(
    store: Store, old: dict[str, dict[str, Any]], contents: dict[str, str], row_files: dict[str, str]
) -> tuple[dict[str, dict[str, Any]], dict[str, Damaged]]:
    """Return the lines of some cells, and the cells whose arrays are no trace.

    Args:
        store: where the cells are.
        old: the lines that the index has.
        contents: by id of the cell, a hash of its content.
        row_files: by id, a hash of the bytes of its `row.json`, where that has a checksum.
    """
    lines: dict[str, dict[str, Any]] = {}
    damaged: dict[str, Damaged] = {}
    for cell, content in contents.items():
        try:
            row_file = row_files.get(cell, "")
            line = old.get(cell)
            is_current = line is not None and (line["content"], line["row_file"]) == (content, row_file)
            lines[cell] = line if line is not None and is_current else _line(store, cell, content, row_file)
        except Damaged as error:
            damaged[cell] = error
    if lines != old:
        _write(lines, _path(store))
    return lines, damaged


def _line(store: Store, cell: str, content: str, row_file: str) -> dict[str, Any]:
    trace = store.arrays(cell, "trace")
    predictions = store.arrays(cell, "predictions")
    _check_shapes(trace, store.folder(cell) / "trace.npz")
    examples = {key.removesuffix(".labels"): len(value) for key, value in predictions.items() if "labels" in key}
    arrays = {name: trace[name].astype(kind).tobytes() for name, kind in _ARRAYS.items() if name in trace}
    line = {
        "id": cell,
        "content": content,
        "row_file": row_file,
        "examples": json.dumps(examples),
        "digest": _digest(arrays),
        **dict.fromkeys(_ARRAYS),
        **arrays,
    }
    return line | {"checksum": checksum_of_line(line)}


def _line_or_none(store: Store, cell: str, content: str, row_file: str) -> dict[str, Any] | None:
    try:
        return _line(store, cell, content, row_file)
    except Damaged:
        return None


def _check_shapes(trace: dict[str, np.ndarray], path: Path) -> None:
    """Check that arrays are those of a trace.

    Raises:
        Damaged: they aren't.
    """
    for name in _ARRAYS:
        if name in trace and (
            trace[name].ndim != (2 if name == "sketch" else 1) or trace[name].dtype.kind not in "fiu"
        ):
            raise Damaged(path, f"holds {name} of another shape or type")
    if "sketch" in trace and len(trace["sketch"]) != len(trace.get("sketch_steps", ())):
        raise Damaged(path, "holds sketches without their steps")


def checksum_of_line(line: dict[str, Any]) -> str:
    """Return a hash of a line of the index."""
    digest = hashlib.sha256()
    for name in _CONTENT:
        value = line[name] if isinstance(line[name], bytes) else str(line[name]).encode()
        digest.update(f"{name} {len(value)} ".encode() + value)
    return digest.hexdigest()


def _digest(content: dict[str, bytes]) -> str:
    """Return a hash of what tells two runs apart; "" where losses or sketches are missing."""
    if "loss" not in content or "sketch" not in content:
        return ""
    return hashlib.sha256(b"".join(content.get(key, b"") for key in ("loss", "sketch", "scored_sketch"))).hexdigest()


def _path(store: Store) -> Path:
    return store.root / "derived.parquet"


def _read(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Return the lines of the index by id, but for those that aren't what was written, and a word on these if any."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return {}, "it is no plain file"
    if not path.exists():
        return {}, ""
    try:
        # More threads take more time than they save.
        table = parquet.read_table(path, use_threads=False)
        if not table.schema.equals(_SCHEMA, check_metadata=True):
            return {}, ""
        every = table.to_pylist()
        lines = {line["id"]: line for line in every if line["checksum"] == checksum_of_line(line)}
    except Exception:  # whatever is wrong with it, and pyarrow raises much: it is made anew
        return {}, "it can't be read"
    damaged = len(every) - len(lines)
    return lines, f"{damaged} of its lines were changed after they were written" if damaged else ""


def _write(lines: dict[str, dict[str, Any]], path: Path) -> None:
    table = pa.Table.from_pylist(list(lines.values()), schema=_SCHEMA)
    # On a full disk or in a read-only folder: a report needs the rows, not this file.
    with contextlib.suppress(OSError), replacing(path) as temporary:
        parquet.write_table(table, temporary, compression="zstd")
