"""One store from several: cells are copied, each once, and of each only the files that a cell has.

A source may come from anywhere. A cell of it counts only where its files are what was written; no link in it is
followed, and nothing is written outside of the target.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.files import MOST_JSON_BYTES, Damaged, open_plain
from finetune_bench.store import analyses
from finetune_bench.store.reading import ARRAY_FILES, MOST_ARRAY_BYTES, MOST_LOG_BYTES, NewerSchema, read_row
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store

# What equal cells have in common on every machine of one kind; the rest of a row are measurements.
_EXACT = ("metrics", "collapsed", "training", "hashes")
_RANK = {Status.DONE: 3, Status.FAILED: 2, Status.SKIPPED: 1, Status.INTERRUPTED: 0}  # the higher is kept

# The files of a cell's folder, and the bytes that each may have.
_LARGEST = {
    "cell.json": MOST_JSON_BYTES,
    "row.json": MOST_JSON_BYTES,
    "log.txt": MOST_LOG_BYTES,
    **dict.fromkeys(ARRAY_FILES, MOST_ARRAY_BYTES),
}
_LARGEST_MODEL = 2**40


@dataclass(frozen=True)
class Merged:
    """A merge comes to these numbers, and to these conflicts.

    Attributes:
        copied: cells that were copied.
        present: cells that the target had already, at least as good.
        conflicts: sentences about cells that are done in two stores with other numbers; the first is kept.
        damaged: by run folder of a source, what in it is damaged and was not copied.
    """

    copied: int
    present: int
    conflicts: tuple[str, ...]
    damaged: Mapping[Path, Mapping[str, Damaged]]


def merge(target: Path, sources: Sequence[Path]) -> Merged:
    """Copy every cell of the sources into a target store, made where it isn't there.

    A cell that is in several is taken from the first that finished it; the sources are left as they are. Nothing waits
    for the disk: after a crash of the machine another merge replaces what is damaged.

    Args:
        target: the run folder that gets the cells.
        sources: the run folders that they come from.

    Raises:
        UsageError: a source is no store, or is the target.
    """
    stores = [Store.open(source) for source in sources]
    merged = Store(target)
    merged.refuse_links()
    if any(store.root.resolve() == merged.root.resolve() for store in stores):
        raise UsageError(f"'{target}' is to be made from other stores; leave it out of the list.")
    studies = [_study_of(store) for store in (merged, *stores)]
    merged.cells.mkdir(parents=True, exist_ok=True)
    leftovers = merged.leftovers()  # listed once: listing ten thousand cells for each of them takes minutes
    copied = present = 0
    conflicts: list[str] = []
    damaged: dict[Path, dict[str, Damaged]] = {}
    for store in stores:
        rows, damaged[store.root] = store.read()
        for row, content in rows.values():
            kept = _kept(merged, row["id"])
            if isinstance(kept, NewerSchema):
                conflicts.append(f"{kept} It was kept, so that of '{store.root}' was not copied.")
                continue
            if kept is not None and (kept[1] == content or _RANK[kept[0]["status"]] >= _RANK[row["status"]]):
                present += 1
                damaged[store.root] |= _add_results(merged, store, kept[0], row)
                conflicts += _conflict(kept[0], row, store) if kept[1] != content else []
                continue
            with merged.claim(row["id"]) as claimed:
                if not claimed:
                    conflicts.append(
                        f"{_name(row)} is being run in '{merged.root}', so it was not copied; merge again when that "
                        "run has ended."
                    )
                    continue
                try:
                    with merged.writing(row["id"], leftovers, flushed=False) as folder:
                        _copy(store.folder(row["id"]), folder)
                        damaged[store.root] |= _copy_results(store.folder(row["id"]), folder, row["id"])
                        if read_row(folder, row["id"])[1] != content:
                            raise Damaged(store.folder(row["id"]), "was replaced while it was copied")
                    copied += 1
                except Damaged as error:
                    damaged[store.root][row["id"]] = error
    merged.write_study(_joined(studies))
    return Merged(copied, present, tuple(conflicts), damaged)


def _kept(merged: Store, cell_id: str) -> tuple[Row, str] | NewerSchema | None:
    """Return what the target has of a cell: a row with a hash of its content, a newer version's, or none of use."""
    try:
        return read_row(merged.folder(cell_id))
    except NewerSchema as error:
        return error
    except (FileNotFoundError, Damaged):
        return None


def _conflict(kept: Row, row: Row, store: Store) -> list[str]:
    """Return a sentence where a cell is done in two stores with other numbers."""
    if not kept["status"] == row["status"] == Status.DONE or all(kept.get(key) == row.get(key) for key in _EXACT):
        return []
    return [f"{_name(row)} has other numbers in '{store.root}'; those that were there first are kept."]


def _name(row: Row) -> str:
    return f"{row['method']} on {row['task']}, seed {row['seed']} ({row['id']})"


def _copy(source: Path, target: Path) -> None:
    """Copy a cell's files into an empty folder.

    Args:
        source: the cell's folder.
        target: the folder to fill.

    Raises:
        Damaged: a file is a link, no plain file, or larger than any that this program writes.
    """
    for name, most in _LARGEST.items():
        if os.path.lexists(source / name):
            _copy_file(source / name, target / name, most)
    for path in _model_files(source / "model"):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(path, copy, _LARGEST_MODEL)


def _copy_results(source: Path, target: Path, cell_id: str) -> dict[str, Damaged]:
    """Copy the results of analyses that the target lacks; return those that are damaged, which are left out."""
    damaged = {}
    for name in sorted(set(analyses.names(source)) - set(analyses.names(target))):
        try:
            analyses.copy(source, target, name, cell_id)
        except Damaged as error:
            damaged[f"{cell_id}/analysis-{name}"] = error
    return damaged


def _add_results(merged: Store, store: Store, kept: Row, row: Row) -> dict[str, Damaged]:
    """Add to a cell that the target has the results of analyses that only a source has, where both did the same."""
    if any(kept.get(key) != row.get(key) for key in ("status", *_EXACT)):
        return {}
    with merged.claim(row["id"]) as claimed:
        if not claimed:
            return {}
        return _copy_results(store.folder(row["id"]), merged.folder(row["id"]), row["id"])


def _model_files(folder: Path) -> Iterator[Path]:
    """Yield what a saved model consists of, in folders that are no links."""
    if folder.is_symlink():
        raise Damaged(folder, "is a link")
    for root, folders, files in os.walk(folder):
        for name in folders:
            if (path := Path(root, name)).is_symlink():
                raise Damaged(path, "is a link")
        yield from (Path(root, name) for name in files)


def _copy_file(source: Path, target: Path, most: int) -> None:
    with open_plain(source, most) as file, open(target, "xb") as copy:
        shutil.copyfileobj(file, copy, 2**20)


def _study_of(store: Store) -> dict[str, Any]:
    """Return a store's study with the ids of its cells, which are all where it doesn't name them."""
    folders = store.cells.iterdir() if store.cells.is_dir() else ()
    return {"cells": sorted(folder.name for folder in folders if not folder.name.startswith("."))} | store.study()


def joined_settings(former: Mapping[str, list[Any]], further: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return what was tried of each method by either of two commands: all settings of both, each once."""
    joined = dict(former)
    for method, settings in further.items():
        known = joined.get(method, [])
        joined[method] = [*known, *(setting for setting in settings if setting not in known)]
    return joined


def _joined(studies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one study: lists and tables of all, and everything else from the first study that has it."""
    joined: dict[str, Any] = {}
    for study in studies:
        for key, value in study.items():
            known = joined.get(key)
            if key in ("searched", "searched_before"):
                joined[key] = joined_settings(known or {}, value or {})
            elif isinstance(known, list) and isinstance(value, list):
                joined[key] = known + [item for item in value if item not in known]
            elif isinstance(known, dict) and isinstance(value, dict):
                joined[key] = value | known
            elif known is None:
                joined[key] = value
    joined.pop("shard", None)  # what several shards come to is none; which cells are missing stands in `other_shards`
    return joined
