"""A cell's folder is read here, and everything in it that was hashed is held against its hash.

Whoever made the folder, reading it ends: with a row, or with `Damaged` and the reason.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np

from finetune_bench.files import MOST_JSON_BYTES, Damaged, hash_plain, open_plain, read_plain, unsealed
from finetune_bench.store.row import FileFacts, Row
from finetune_bench.store.shape import misfit

# Of a row. Those of schema 1 hold no hashes, and of their files of arrays only the bytes; they are read as they are.
SCHEMA = 2
ARRAY_FILES = ("predictions.npz", "trace.npz")
MOST_LOG_BYTES = 2**30
MOST_ARRAY_BYTES = 2**32  # the predictions of ten million examples have some 0.2 GB

_ID = re.compile("[0-9a-f]{16}")


class NewerSchema(Damaged):
    """A row was written by a newer version of this program, which may mean something else by it."""


def is_id(name: str) -> bool:
    """Return whether a name can be a cell's id, which is also the name of its folder."""
    return _ID.fullmatch(name) is not None


def read_row(folder: Path, cell_id: str | None = None, checked: dict[str, str] | None = None) -> tuple[Row, str]:
    """Return the row of a cell's folder, and a hash of all that its row and arrays hold.

    Args:
        folder: the folder.
        cell_id: the cell's id, where the folder doesn't have its name yet; None for the folder's name.
        checked: by id, a hash of the bytes of `row.json` when they were last held against the checksum within, which
            equal bytes needn't be again; brought up to date. None where nothing is known.

    Raises:
        FileNotFoundError: there is no such folder.
        Damaged: something in it isn't what was written.
        NewerSchema: a newer version of this program wrote it.
    """
    cell_id = cell_id or folder.name
    if not is_id(cell_id):
        raise Damaged(folder, "has a name that is no id of 16 hexadecimal digits")
    facts_of_folder = folder.lstat()
    if not stat.S_ISDIR(facts_of_folder.st_mode):
        raise Damaged(folder, "is a link or a file, not a folder")
    try:
        row, digest = _read_row_file(folder, cell_id, {} if checked is None else checked)
        hashes = [digest, *(f"{name} {array_hash(f'{folder}/{name}', facts)}" for name, facts in _files(folder, row))]
    except Damaged:
        if folder.lstat().st_ino == facts_of_folder.st_ino:
            raise
        return read_row(folder, cell_id, checked)  # the cell was replaced while it was read: half was the former one's
    return row, hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of one file of a cell; empty where the cell has no such file.

    Args:
        folder: the cell's folder.
        name: the name of the file.

    Raises:
        FileNotFoundError: there is no such folder.
        Damaged: the row or the file isn't what was written.
    """
    row, _ = _read_row_file(folder, folder.name, {})
    facts = dict(_files(folder, row)).get(name)
    if facts is None:
        return {}
    path = folder / name
    with open_plain(path, MOST_ARRAY_BYTES) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        _hold_against(facts, path, file.tell(), digest)
        file.seek(0)
        return unpacked(file, path)


def _read_row_file(folder: Path, cell_id: str, checked: dict[str, str]) -> tuple[Row, str]:
    path = f"{folder}/row.json"  # for ten thousand files, making a Path takes a tenth of the time
    content = read_plain(path, MOST_JSON_BYTES)
    hash_of_bytes = hashlib.sha256(content).hexdigest()
    values, digest, is_sealed = unsealed(content, path, is_checked=checked.get(cell_id) == hash_of_bytes)
    schema = values.get("schema")
    if not isinstance(schema, int):
        raise Damaged(path, "says no schema")
    if schema > SCHEMA:
        raise NewerSchema(
            path, f"was written by a newer version of this program (schema {schema}, not {SCHEMA}): update it"
        )
    if schema > 1 and not is_sealed:
        raise Damaged(path, "has no checksum")
    if values.get("id") != cell_id:
        raise Damaged(path, "is the row of another cell than its folder's name says")
    if schema == 1 and isinstance(values.get("files"), dict):
        values["files"] = {name: {"bytes": size} for name, size in values["files"].items()}
    if wrong := misfit(values, Row):
        raise Damaged(path, f"has {wrong}")
    row = cast(Row, values)
    if any(name not in ARRAY_FILES for name in row.get("files") or {}):
        raise Damaged(path, "names files that no cell has")
    if is_sealed:
        checked[cell_id] = hash_of_bytes
    return row, digest


def _files(folder: Path, row: Row) -> list[tuple[str, FileFacts | None]]:
    """Return the files of arrays that belong to a row; without facts those of a row that is older than the facts."""
    if row["schema"] == 1 and row.get("files") is None:
        return [(name, None) for name in ARRAY_FILES if (folder / name).is_file()]
    return list((row.get("files") or {}).items())


def array_hash(path: Path | str, facts: FileFacts | None) -> str:
    """Return the hash of a file's content, after it was held against what the row says of the file."""
    size, digest = hash_plain(path, MOST_ARRAY_BYTES)
    _hold_against(facts, path, size, digest)
    return digest


def _hold_against(facts: FileFacts | None, path: Path | str, size: int, digest: str) -> None:
    if facts is not None and size != facts["bytes"]:
        raise Damaged(path, f"has {size:,} bytes, not the {facts['bytes']:,} that were written")
    if facts is not None and facts.get("sha256", digest) != digest:
        raise Damaged(path, "was changed after it was written: its hash is another")


def unpacked(file: BufferedReader, path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an opened file, which takes no more memory than the file has bytes."""
    try:
        with zipfile.ZipFile(file) as packed:
            members = packed.infolist()
        size = file.seek(0, 2)
        file.seek(0)
        is_plain = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_plain or sum(member.file_size for member in members) > size:
            raise Damaged(path, "is packed as no file of this program is")
        with np.load(file, allow_pickle=False) as arrays:
            content: dict[str, Any] = dict(arrays)
    # NumPy and zipfile raise all of these where a file was cut or made up.
    except (ValueError, EOFError, KeyError, SyntaxError, MemoryError, NotImplementedError, zipfile.BadZipFile):
        raise Damaged(path, "holds no arrays that can be read") from None
    if not all(isinstance(values, np.ndarray) for values in content.values()):
        raise Damaged(path, "holds something else than arrays")
    return content
