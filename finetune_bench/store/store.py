"""A store keeps rows on disk: one folder per cell, written whole or not at all.

    RUN/study.json            what was asked for, to resume and to head the report
    RUN/cells/<id>/cell.json  the cell's full specification
    RUN/cells/<id>/row.json   what came of it: see `row.py` for its keys
    RUN/cells/<id>/predictions.npz   per evaluation split: `<split>.predictions`, `<split>.labels`
    RUN/cells/<id>/trace.npz         per step: `loss` and whatever the methods log; `sketch`, `sketch_steps`,
                                     and `scored_sketch` where averaged weights were scored
    RUN/cells/<id>/log.txt           of a failed cell: traceback and what the worker printed
    RUN/cells/<id>/model/            with --save-model: a plain Hugging Face folder
    RUN/checkpoints/<id>-<n>.safetensors   the middle of a cell that runs in n micro-batches per step; gone when it ends

A folder is filled under a temporary name, flushed to disk and renamed, so a reader never sees half a cell and a crash
loses only the cell it hit.

Of a row, `metrics`, `majority`, `collapsed`, `training`, `hashes`, `dropout`, predictions and trace are equal to the
last bit for equal cells; `cost` (but for the counts and the saved bytes), `environment` and the times are measurements.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pandas as pd

from finetune_bench.errors import UsageError
from finetune_bench.store.lease import Leases
from finetune_bench.store.row import Row, Status

SCHEMA = 1
# Keys of a row whose values differ between equal cells; of `cost`, what is counted doesn't.
MEASURED = (
    "environment",
    "started",
    "finished",
    "seconds",
    "cpu_seconds",
    "cost",
)
COUNTED: Final = (
    "parameters",
    "trainable_parameters",
    "forwards_per_step",
    "backwards_per_step",
    "setup_forwards",
    "setup_backwards",
    "saved_activation_bytes",
)


class Store:
    """A store holds the rows of one run folder.

    Args:
        root: the run folder; made when something is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.cells = self.root / "cells"
        self.checkpoints = self.root / "checkpoints"
        self._leases = Leases(self.root / "locks")

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Return the store of an existing run folder.

        Raises:
            UsageError: there is none.
        """
        store = cls(root)
        if not store.cells.is_dir():
            raise UsageError(
                f"Expected the folder of a run (as `finetune-bench run --out` made it), but '{root}' holds no cells."
            )
        return store

    def folder(self, cell_id: str) -> Path:
        """Return the folder where a cell's files are, or will be."""
        return self.cells / cell_id

    def has_model(self, cell_id: str) -> bool:
        """Return whether a cell's trained model was kept."""
        return (self.folder(cell_id) / "model").is_dir()

    def row(self, cell_id: str) -> Row | None:
        """Return the row of a cell; None where none can be read, or one of its files is gone or cut."""
        folder = self.folder(cell_id)
        try:
            row = cast(Row, json.loads((folder / "row.json").read_text("utf-8")))
            if not isinstance(row, dict) or row.get("id") != cell_id or "status" not in row:
                return None
            is_whole = all((folder / name).stat().st_size == size for name, size in row.get("files", {}).items())
        except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
            return None
        return row if is_whole else None

    def rows(self) -> list[Row]:
        """Return all rows, in the order of their ids."""
        if not self.cells.is_dir():
            return []
        ids = sorted(folder.name for folder in self.cells.iterdir() if not folder.name.startswith("."))
        return [row for cell_id in ids if (row := self.row(cell_id)) is not None]

    def frame(self) -> pd.DataFrame:
        """Return all rows as a table, nested keys joined by dots, as `metrics.validation.accuracy`."""
        return pd.json_normalize([dict(row) for row in self.rows()])

    def arrays(self, cell_id: str, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of `predictions` or `trace`; empty where the cell has none."""
        path = self.folder(cell_id) / f"{name}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def without_measurements(self) -> dict[str, dict[str, Any]]:
        """Return what equal cells have in common to the last bit, by id: rows without times and machine, and arrays."""
        results = {}
        for row in self.rows():
            kept: dict[str, Any] = {key: value for key, value in row.items() if key not in MEASURED}
            kept["cost"] = {key: row["cost"].get(key) for key in COUNTED} if "cost" in row else None
            for name in ("predictions", "trace"):
                kept[name] = {key: value.tobytes() for key, value in sorted(self.arrays(row["id"], name).items())}
            results[row["id"]] = kept
        return results

    def study(self) -> dict[str, Any]:
        """Return what the run was asked for, as `study.json` holds it; empty where that file is missing.

        Raises:
            UsageError: the file can't be read.
        """
        path = self.root / "study.json"
        if not path.is_file():
            return {}
        try:
            study = json.loads(path.read_text("utf-8"))
        except (ValueError, RecursionError):
            study = None
        if not isinstance(study, dict):
            raise UsageError(
                f"'{path}' can't be read as a study; remove it, and give the run's command again, which writes it anew."
            )
        return study

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Keep what was asked for, replacing the earlier study of this folder."""
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f".study-{secrets.token_hex(4)}"
        _write(temporary, to_json(study).encode())
        os.replace(temporary, self.root / "study.json")

    @contextmanager
    def claim(self, cell_id: str) -> Iterator[bool]:
        """Hold a cell, so that no other process runs it, on whatever machine; yield False where another one does."""
        with self._leases.hold(cell_id) as claimed:
            yield claimed

    def has_lost(self, cell_id: str) -> bool:
        """Return whether this process claimed a cell and another one has it now: what is written of it is dropped."""
        return self._leases.is_lost(cell_id)

    @contextmanager
    def writing(self, cell_id: str) -> Iterator[Path]:
        """Yield a fresh folder to fill; it becomes the cell's when the block ends well, and vanishes when it doesn't.

        Call it with the cell claimed: what killed runs of the cell left behind is removed first. It vanishes, too,
        where another process took the cell over, and where a row that is done would give way to one that isn't.
        """
        self.cells.mkdir(parents=True, exist_ok=True)
        for stale in self.cells.glob(f".{cell_id}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        temporary = self.cells / f".{cell_id}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            _flush(temporary)
            if not self.has_lost(cell_id) and not self._undoes(temporary, cell_id):
                self._replace(temporary, self.folder(cell_id))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write(
        self,
        cell: Mapping[str, Any],
        row: Row,
        *,
        arrays: Mapping[str, Mapping[str, np.ndarray]] | None = None,
        log: str = "",
        into: Path | None = None,
    ) -> None:
        """Write a cell whole: its specification, its row, its arrays by file name, and its log.

        Args:
            cell: the specification, as `Cell.to_dict` gives it.
            row: the row, without the sizes of its files.
            arrays: arrays by name, by file: `predictions` and `trace`.
            log: what a failed cell left to read; "" for no log.
            into: the folder of a `writing` block that already holds something (a saved model).
        """
        if into is None:
            with self.writing(str(row["id"])) as folder:
                self.write(cell, row, arrays=arrays, log=log, into=folder)
            return
        sizes = {}
        for name, content in (arrays or {}).items():
            with open(into / f"{name}.npz", "wb") as file:
                np.savez(file, allow_pickle=False, **content)
                sizes[f"{name}.npz"] = file.tell()
        if log:
            _write(into / "log.txt", log.encode("utf-8", "replace"))
        _write(into / "cell.json", to_json(cell).encode())
        _write(into / "row.json", to_json({**row, "files": sizes} if sizes else row).encode())

    def write_unfinished(self, cell: Mapping[str, Any], row: Row, log: str = "") -> Row:
        """Write the row of a cell that came to nothing, unless it is done after all or another process is at it.

        Args:
            cell: the specification, as `Cell.to_dict` gives it.
            row: the row that says why.
            log: what the cell left to read; "" for no log.

        Returns:
            The row that the store has now; the given one where it has none.
        """
        with self.claim(str(row["id"])) as claimed:
            if claimed:
                self.write(cell, row, log=log)
        return self.row(str(row["id"])) or row

    def _undoes(self, new: Path, cell_id: str) -> bool:
        """Return whether a folder's row isn't done while the row of its cell is."""
        before = self.row(cell_id)
        if before is None or before["status"] != Status.DONE:
            return False
        return bool(json.loads((new / "row.json").read_text("utf-8"))["status"] != Status.DONE)

    def _replace(self, new: Path, target: Path) -> None:
        if target.exists() and _exchange(new, target):  # a row that was run again; `new` now is the former folder
            shutil.rmtree(new, ignore_errors=True)
        elif target.exists():  # a rename can't replace a folder, so for a moment there is none
            aside = self.cells / f".{target.name}-{secrets.token_hex(4)}"
            os.rename(target, aside)
            os.rename(new, target)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(new, target)
        _flush(self.cells)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that no reader finds either missing; return False where that can't be."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def to_json(value: Any) -> str:
    """Return JSON with sorted keys that every reader can read: NaN becomes null, an infinity the text "inf"."""
    return json.dumps(_plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # folders can't be opened on Windows
        return
    for path in [*folder.glob("*.npz"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
