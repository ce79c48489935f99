"""The row index of a store is one file with every row and its trace; a report needn't open thousands of files.

It is `RUN/derived.parquet`: one line per cell, with the time and size of the `row.json` that it was read from. A line
whose file changed is read again, a line whose file is gone is dropped, and what is missing is added; deleting the index
loses nothing. A store that can't be written to is read without one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from finetune_bench.store.row import Row
from finetune_bench.store.store import Store

VERSION = 1  # of the index's columns; an index of another version is made anew
_ARRAYS = {
    "loss": np.float64,
    "task_loss": np.float64,
    "sketch": np.float64,
    "sketch_steps": np.int64,
    "scored_sketch": np.float64,
}
_COLUMNS = ["id", "changed", "size", "row", "examples", "digest", *_ARRAYS]
_SHARED = ("recipe", "environment", "methods", "majority", "dropout")  # keys whose values many rows have in common


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


def read(store: Store) -> list[tuple[Row, Trace]]:
    """Return every row of a store with its trace, in the order of their ids; brings the index up to date first."""
    shared: dict[str, Any] = {}
    pairs = []
    for line in up_to_date(store).to_dict("records"):
        row = json.loads(line["row"])
        for key in _SHARED:
            if row.get(key):
                row[key] = shared.setdefault(repr(row[key]), row[key])
        pairs.append((cast(Row, row), Trace({str(name): value for name, value in line.items()})))
    return pairs


def stamps(store: Store) -> Iterator[tuple[str, int, int]]:
    """Yield, for every row in the store, its id, when its file changed (ns), and the file's size in bytes."""
    if not store.cells.is_dir():
        return
    for folder in os.scandir(store.cells):
        if not folder.name.startswith("."):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                # For ten thousand files, making a Path takes most of the time.
                facts = os.stat(f"{folder.path}/row.json")  # noqa: PTH116
                yield folder.name, facts.st_mtime_ns, facts.st_size


def up_to_date(store: Store) -> pd.DataFrame:
    """Return the index, with a line for every row that is in the store now; write it where a line had to change."""
    path = store.root / "derived.parquet"
    current_stamps = {cell: [changed, size] for cell, changed, size in stamps(store)}
    old = _read(path)
    stored = zip(old["id"], old["changed"], old["size"], strict=True)
    current = np.array([current_stamps.get(cell) == [changed, size] for cell, changed, size in stored], dtype=bool)
    kept = old[current]
    missing = sorted(set(current_stamps) - set(kept["id"]))
    lines = [line for cell in missing if (line := _line(store, cell, current_stamps[cell])) is not None]
    if len(kept) == len(old) and not lines:
        return kept
    table = pd.DataFrame([*kept.to_dict("records"), *lines], columns=_COLUMNS).sort_values("id", ignore_index=True)
    _write(table, path)
    return table


def _line(store: Store, cell: str, stamp: list[int]) -> dict[str, Any] | None:
    row = store.row(cell)
    if row is None:
        return None
    trace = store.arrays(cell, "trace")
    predictions = store.arrays(cell, "predictions")
    examples = {key.removesuffix(".labels"): len(value) for key, value in predictions.items() if "labels" in key}
    content = {name: trace[name].astype(kind).tobytes() for name, kind in _ARRAYS.items() if name in trace}
    return {
        "id": cell,
        "changed": stamp[0],
        "size": stamp[1],
        "row": json.dumps(row),
        "examples": json.dumps(examples),
        "digest": _digest(content),
        **dict.fromkeys(_ARRAYS) | content,
    }


def _digest(content: dict[str, bytes]) -> str:
    """Return a hash of what tells two runs apart; "" where losses or sketches are missing."""
    if "loss" not in content or "sketch" not in content:
        return ""
    return hashlib.sha256(b"".join(content.get(key, b"") for key in ("loss", "sketch", "scored_sketch"))).hexdigest()


def _read(path: Path) -> pd.DataFrame:
    empty = pd.DataFrame(columns=_COLUMNS)
    if not path.is_file():
        return empty
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):  # cut off, or not a table: it is made anew
        return empty
    return table if table.attrs.get("version") == VERSION and list(table.columns) == _COLUMNS else empty


def _write(table: pd.DataFrame, path: Path) -> None:
    table.attrs = {"version": VERSION}
    temporary = path.with_name(f".derived-{secrets.token_hex(4)}")
    try:
        table.to_parquet(temporary, compression="zstd", index=False)
        os.replace(temporary, path)
    except OSError:  # a full disk or a read-only folder: a report needs the rows, not this file
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
