"""A store keeps rows on disk: one folder per cell, written whole or not at all.

    RUN/study.json            what was asked for, to resume and to head the report
    RUN/cells/<id>/cell.json  the cell's full specification
    RUN/cells/<id>/row.json   what came of it: see `row.py` for its keys
    RUN/cells/<id>/predictions.npz   per evaluation split: `<split>.predictions`, `<split>.labels`
    RUN/cells/<id>/trace.npz         per step: `loss`, `task_loss`, `grad_norm` and whatever the methods log; `sketch`,
                                     `sketch_steps`, and `scored_sketch` where averaged weights were scored
    RUN/cells/<id>/log.txt           of a failed cell: traceback and what the worker printed
    RUN/cells/<id>/analysis-*.json, .npz   results of analyses, see `analyses.py`
    RUN/cells/<id>/model/            with --save-model: a plain Hugging Face folder
    RUN/checkpoints/<id>-<n>.safetensors   the middle of a cell that runs in n micro-batches per step; gone when it ends

A folder is filled under a temporary name, flushed to disk and renamed, so a reader never sees half a cell and a crash
loses only the cell it hit. A row that is replaced is there all the time on Linux, where two folders are exchanged in
one step; elsewhere, and on file systems that can't do that, a process that is killed between two renames leaves none,
and the cell is run again.

What is read is held against what was written: `row.json` and `study.json` hold a hash of themselves, `row.json` also
one of each file of arrays. A row that doesn't fit is damaged: it is named with the reason, never used, and run again.
Hashes find accidents and careless changes; whoever forges a whole row makes its hashes too.

Of a row, `metrics`, `majority`, `collapsed`, `training`, `hashes`, `dropout`, predictions and trace are equal to the
last bit for equal cells; `cost` (but for the counts and the saved bytes), `environment` and the times are measurements.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged, read_json, refuse_link, replacing, sealed
from finetune_bench.store.lease import Leases
from finetune_bench.store.reading import SCHEMA, NewerSchema, is_id, read_arrays, read_row
from finetune_bench.store.row import FileFacts, Row, Status, StudyRecord
from finetune_bench.store.shape import misfit

if TYPE_CHECKING:
    import pandas as pd

# Keys of a row whose values differ between equal cells; of `cost`, what is counted doesn't.
MEASURED = (
    "environment",
    "started",
    "finished",
    "seconds",
    "cpu_seconds",
    "cost",
    "shared_training",
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
        reads_index: whether the index of the rows may be used, or every trace is read anew.
    """

    def __init__(self, root: str | Path, *, reads_index: bool = True) -> None:
        self.root = Path(root)
        self.reads_index = reads_index
        self.cells = self.root / "cells"
        self.checkpoints = self.root / "checkpoints"
        self._leases = Leases(self.root / "locks")

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Return the store of an existing run folder.

        Raises:
            UsageError: there is none, or a part of it is a link.
        """
        store = cls(root)
        store.refuse_links()
        if not store.cells.is_dir():
            raise UsageError(
                f"Expected the folder of a run (as `finetune-bench run --out` made it), but '{root}' holds no cells."
            )
        return store

    def refuse_links(self) -> None:
        """Check that no folder of the store is a link, through which reading and writing would leave the store.

        Raises:
            UsageError: one is.
        """
        for name in ("cells", "checkpoints", "locks", "logs"):
            refuse_link(self.root / name)

    def folder(self, cell_id: str) -> Path:
        """Return the folder where a cell's files are, or will be."""
        return self.cells / cell_id

    def has_model(self, cell_id: str) -> bool:
        """Return whether a cell's trained model was kept."""
        folder = self.folder(cell_id) / "model"
        return folder.is_dir() and not folder.is_symlink()

    def row(self, cell_id: str) -> Row | None:
        """Return the row of a cell; None where there is none, or one of its files isn't what was written."""
        try:
            return read_row(self.folder(cell_id))[0]
        except (FileNotFoundError, Damaged):
            return None

    def damage(self, cell_id: str) -> Damaged | None:
        """Return what is wrong with a cell's files; None where nothing is, or there is no such cell."""
        try:
            read_row(self.folder(cell_id))
        except FileNotFoundError:
            return None
        except Damaged as damaged:
            return damaged
        return None

    def names(self) -> list[str]:
        """Return the names of whatever in the store should be a cell, in order; strange files are none."""
        if not self.cells.is_dir():
            return []
        return sorted(
            entry.name
            for entry in os.scandir(self.cells)
            if not entry.name.startswith(".") and (is_id(entry.name) or entry.is_symlink() or entry.is_dir())
        )

    def read(self, checked: dict[str, str] | None = None) -> tuple[dict[str, tuple[Row, str]], dict[str, Damaged]]:
        """Return what can be read and what can't.

        Args:
            checked: the rows that were held against their checksums before, as `read_row` has it.

        Returns:
            By id and in the order of ids, each row with a hash of all that its files hold; and by the name of the
            folder, or "study.json", what is damaged.
        """
        rows, damaged = {}, {}
        for name in self.names():
            try:
                rows[name] = read_row(self.folder(name), checked=checked)
            except FileNotFoundError:  # it was taken away just now
                continue
            except Damaged as error:
                damaged[name] = error
        try:
            self.read_study()
        except Damaged as error:
            damaged["study.json"] = error
        return rows, damaged

    def rows(self) -> list[Row]:
        """Return all rows that can be read, in the order of their ids."""
        return [row for row, _ in self.read()[0].values()]

    def frame(self) -> pd.DataFrame:
        """Return all rows as a table, nested keys joined by dots, as `metrics.validation.accuracy`."""
        import pandas as pd

        return pd.json_normalize([dict(row) for row in self.rows()])

    def arrays(self, cell_id: str, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of `predictions` or `trace`; empty where the cell has none.

        Raises:
            Damaged: they aren't what was written.
        """
        try:
            return read_arrays(self.folder(cell_id), f"{name}.npz")
        except FileNotFoundError:
            return {}

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
        """Return what the run was asked for, as `study.json` holds it; empty where that file is missing or damaged."""
        try:
            return self.read_study()
        except Damaged:
            return {}

    def read_study(self) -> dict[str, Any]:
        """Return what the run was asked for, as `study` does.

        Raises:
            Damaged: the file isn't what was written.
        """
        path = self.root / "study.json"
        if not os.path.lexists(path):
            return {}
        study = read_json(path)
        if wrong := misfit(study, StudyRecord):
            raise Damaged(path, f"has {wrong}")
        return study

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Keep what was asked for, replacing the earlier study of this folder.

        Raises:
            UsageError: a part of the store is a link.
        """
        self.refuse_links()
        self.root.mkdir(parents=True, exist_ok=True)
        with replacing(self.root / "study.json") as temporary:
            write_json(temporary, study)

    @contextmanager
    def claim(self, cell_id: str) -> Iterator[bool]:
        """Hold a cell, so that no other process runs it, on whatever machine; yield False where another one does."""
        _check_id(cell_id)
        with self._leases.hold(cell_id) as claimed:
            yield claimed

    def has_lost(self, cell_id: str) -> bool:
        """Return whether this process claimed a cell and another one has it now: what is written of it is dropped."""
        return self._leases.is_lost(cell_id)

    @contextmanager
    def writing(
        self, cell_id: str, leftovers: Collection[Path] | None = None, *, flushed: bool = True
    ) -> Iterator[Path]:
        """Yield a fresh folder to fill; it becomes the cell's when the block ends well, and vanishes when it doesn't.

        Call it with the cell claimed: what killed runs of the cell left behind is removed first. It vanishes, too,
        where another process took the cell over, and where a row that is done would give way to one that isn't.

        Args:
            cell_id: the cell.
            leftovers: what killed runs of any cell left behind, where that is known already; None to look for it.
            flushed: whether to wait until the disk has everything; else a crash of the machine may damage the cell.

        Raises:
            NewerSchema: a newer version of this program wrote the cell's row, which is not replaced.
        """
        _check_id(cell_id)
        refuse_link(self.cells)
        if isinstance(damaged := self.damage(cell_id), NewerSchema):
            raise damaged
        self.cells.mkdir(parents=True, exist_ok=True)
        for stale in self.leftovers() if leftovers is None else leftovers:
            if stale.name.startswith(f".{cell_id}-"):
                _remove(stale)
        temporary = self.cells / f".{cell_id}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            yield temporary
            if flushed:
                _flush([*temporary.glob("*.npz"), temporary])
            if not self.has_lost(cell_id) and not self._undoes(temporary, cell_id):
                self._replace(temporary, self.folder(cell_id))
                if flushed:
                    _flush([self.cells])
        finally:
            _remove(temporary)

    def leftovers(self) -> list[Path]:
        """Return what processes that write cells at this moment, or were killed while they did, have in the store."""
        return [Path(entry.path) for entry in os.scandir(self.cells) if entry.name.startswith(".")]

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
        files: dict[str, FileFacts] = {}
        for name, content in (arrays or {}).items():
            with open(into / f"{name}.npz", "w+b") as file:
                # A resumed cell has them in another order; its file shall be the same to the last bit.
                np.savez(file, allow_pickle=False, **dict(sorted(content.items())))
                size = file.tell()
                file.seek(0)
                files[f"{name}.npz"] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if log:
            _write(into / "log.txt", log.encode("utf-8", "replace"))
        _write(into / "cell.json", to_json(cell).encode())
        kept = {key: value for key, value in row.items() if key != "files"}
        write_json(into / "row.json", kept | {"schema": SCHEMA} | ({"files": files} if files else {}))

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
        if os.path.lexists(target) and _exchange(new, target):  # `new` now is what was there
            _remove(new)
        elif os.path.lexists(target):  # a rename can't replace a folder, so for a moment there is none
            aside = self.cells / f".{target.name}-{secrets.token_hex(4)}"
            os.rename(target, aside)
            try:
                os.rename(new, target)
            except OSError:
                os.rename(aside, target)
                raise
            _remove(aside)
        else:
            os.rename(new, target)


def _check_id(cell_id: str) -> None:
    """Check that an id is one, before it becomes the name of a folder: another name could lead out of the store."""
    if not is_id(cell_id):
        raise UsageError(f"Expected the id of a cell, of 16 hexadecimal digits; got '{cell_id}'.")


def _remove(path: Path) -> None:
    """Remove a folder with all that is in it, or whatever else has its name; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step, so that no reader finds either missing; return False where that can't be."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def to_json(value: Any) -> str:
    """Return JSON with sorted keys that every reader can read: NaN becomes null, an infinity the text "inf"."""
    return json.dumps(plain(value), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """Return a value as JSON holds it: NaN becomes None, an infinity the text "inf"."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None if np.isnan(value) else str(value)
    return value


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a table with its checksum."""
    _write(path, to_json(sealed(plain(values))).encode())


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush(paths: Sequence[Path]) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # folders can't be opened on Windows
        return
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
