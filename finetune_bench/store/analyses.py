"""The results of analyses lie beside a row, each in a file of its own, and no row changes for them.

    RUN/cells/<id>/analysis-<name>.json   the result: numbers, curves by layer, what they were measured with
    RUN/cells/<id>/analysis-<name>.npz    its arrays, where there are any

The JSON file holds a hash of itself and of the arrays. It is written last and whole, so a reader sees a result or none.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np

from finetune_bench.files import MOST_JSON_BYTES, Damaged, open_plain, read_plain, replacing, unsealed
from finetune_bench.store.reading import MOST_ARRAY_BYTES, array_hash, unpacked
from finetune_bench.store.row import FileFacts
from finetune_bench.store.shape import misfit
from finetune_bench.store.store import write_json

FILE = re.compile(r"analysis-([a-z0-9_]+)\.(json|npz)")
SCHEMA = 1


class Result(TypedDict):
    """A Result is the record of one analysis of one run."""

    schema: int
    id: str  # of the run
    analysis: str
    version: int
    source: NotRequired[str]  # the fingerprint of a plugin's source
    parameters: dict[str, Any]
    reason: str | None  # why it failed; None where it didn't
    title: str
    about: str
    numbers: dict[str, float]
    layers: dict[str, list[float]]
    better: dict[str, str]
    notes: list[str]
    facts: dict[str, Any]
    seconds: float
    order: NotRequired[list[str]]  # of numbers and curves, as the analysis gave them
    files: NotRequired[dict[str, FileFacts]]


def write(folder: Path, result: Result, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a result into a cell's folder, in place of an earlier one of the same analysis."""
    name = result["analysis"]
    target = folder / f"analysis-{name}.json"
    target.unlink(missing_ok=True)  # the arrays are replaced first, and don't belong to the earlier result
    content = {
        **result,
        "order": list(dict.fromkeys([*result["numbers"], *result["layers"]])),
    }  # a file has its keys sorted
    arrays_file = folder / f"analysis-{name}.npz"
    if arrays:
        with replacing(arrays_file) as temporary, open(temporary, "w+b") as file:
            np.savez(file, allow_pickle=False, **dict(sorted(arrays.items())))
            size = file.tell()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        content["files"] = {arrays_file.name: {"bytes": size, "sha256": digest}}
    else:
        arrays_file.unlink(missing_ok=True)
    with replacing(target) as temporary:
        write_json(temporary, content)


def read(folder: Path, name: str, cell_id: str | None = None) -> Result | None:
    """Return the result of an analysis; None where there is none.

    Args:
        folder: the cell's folder.
        name: the analysis.
        cell_id: the cell's id, where the folder doesn't have its name yet; None for the folder's name.

    Raises:
        Damaged: a file of it isn't what was written.
    """
    path = folder / f"analysis-{name}.json"
    if not os.path.lexists(path):
        return None
    values, _, is_sealed = unsealed(read_plain(path, MOST_JSON_BYTES), path)
    if not is_sealed:
        raise Damaged(path, "has no checksum")
    if wrong := misfit(values, Result):
        raise Damaged(path, f"has {wrong}")
    result = cast(Result, values)
    if result["schema"] > SCHEMA:
        raise Damaged(path, "was written by a newer version of this program: update it")
    if (result["analysis"], result["id"]) != (name, cell_id or folder.name):
        raise Damaged(path, "is the result of another analysis or run than its place says")
    for file, facts in (result.get("files") or {}).items():
        if file != f"analysis-{name}.npz":
            raise Damaged(path, "names files that no analysis has")
        array_hash(folder / file, facts)
    place = {name: index for index, name in enumerate(result.get("order") or ())}
    result["numbers"], result["layers"] = (_sorted(result[part], place) for part in ("numbers", "layers"))
    return result


def _sorted(values: dict[str, Any], place: Mapping[str, int]) -> dict[str, Any]:
    return dict(sorted(values.items(), key=lambda item: place.get(item[0], len(place))))


def read_arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Return the arrays of an analysis; empty where it has none.

    Raises:
        Damaged: a file of it isn't what was written.
    """
    result = read(folder, name)
    path = folder / f"analysis-{name}.npz"
    if result is None or path.name not in (result.get("files") or {}):
        return {}
    with open_plain(path, MOST_ARRAY_BYTES) as file:
        return unpacked(file, path)


def copy(source: Path, target: Path, name: str, cell_id: str) -> None:
    """Copy a result with its arrays to another folder of the same cell; nothing where there is no such result.

    Raises:
        Damaged: a file of it isn't what was written.
    """
    result = read(source, name, cell_id)
    if result is None:
        return
    for file in [*(result.get("files") or {}), f"analysis-{name}.json"]:
        with (
            open_plain(source / file, MOST_ARRAY_BYTES) as opened,
            replacing(target / file) as temporary,
            open(temporary, "xb") as copied,
        ):
            shutil.copyfileobj(opened, copied, 2**20)
    read(target, name, cell_id)


def names(folder: Path) -> list[str]:
    """Return the names of the analyses that a cell's folder has a result of, sorted."""
    try:
        entries = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    found = (FILE.fullmatch(entry) for entry in entries)
    return sorted({match[1] for match in found if match is not None and match[2] == "json"})
