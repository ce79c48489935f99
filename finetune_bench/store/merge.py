"""One store from several: cells are copied, each once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store

# What equal cells have in common on every machine of one kind; the rest of a row are measurements.
_EXACT = ("metrics", "collapsed", "training", "hashes")
_RANK = {Status.DONE: 3, Status.FAILED: 2, Status.SKIPPED: 1, Status.INTERRUPTED: 0}  # the higher is kept


@dataclass(frozen=True)
class Merged:
    """A merge comes to these numbers, and to these conflicts.

    Attributes:
        copied: cells that were copied.
        present: cells that the target had already, at least as good.
        conflicts: sentences about cells that are done in two stores with other numbers; the first is kept.
    """

    copied: int
    present: int
    conflicts: tuple[str, ...]


def merge(target: Path, sources: Sequence[Path]) -> Merged:
    """Copy every cell of the sources into a target store, made where it isn't there.

    A cell that is in several is taken from the first that finished it; the sources are left as they are.

    Args:
        target: the run folder that gets the cells.
        sources: the run folders that they come from.

    Raises:
        UsageError: a source is no store, or is the target.
    """
    stores = [Store.open(source) for source in sources]
    merged = Store(target)
    if any(store.root.resolve() == merged.root.resolve() for store in stores):
        raise UsageError(f"'{target}' is to be made from other stores; leave it out of the list.")
    studies = [_study_of(store) for store in (merged, *stores)]
    copied = present = 0
    conflicts: list[str] = []
    for store in stores:
        for row in store.rows():
            kept = merged.row(row["id"])
            if kept is not None and _RANK[kept["status"]] >= _RANK[row["status"]]:
                present += 1
                differs = any(kept.get(key) != row.get(key) for key in _EXACT)
                if kept["status"] == row["status"] == Status.DONE and differs:
                    conflicts.append(
                        f"{row['method']} on {row['task']}, seed {row['seed']} ({row['id']}) has other numbers in "
                        f"'{store.root}'; those that were there first are kept."
                    )
                continue
            with merged.claim(row["id"]) as claimed:
                if not claimed:
                    conflicts.append(
                        f"{row['method']} on {row['task']}, seed {row['seed']} ({row['id']}) is being run in "
                        f"'{merged.root}', so it was not copied; merge again when that run has ended."
                    )
                    continue
                with merged.writing(row["id"]) as folder:
                    shutil.copytree(store.folder(row["id"]), folder, dirs_exist_ok=True)
            copied += 1
    merged.write_study(_joined(studies))
    return Merged(copied, present, tuple(conflicts))


def _study_of(store: Store) -> dict[str, Any]:
    """Return a store's study with the ids of its cells, which are all where it doesn't name them."""
    folders = store.cells.iterdir() if store.cells.is_dir() else ()
    return {"cells": sorted(folder.name for folder in folders if not folder.name.startswith("."))} | store.study()


def _joined(studies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one study: lists and tables of all, and everything else from the first study that has it."""
    joined: dict[str, Any] = {}
    for study in studies:
        for key, value in study.items():
            known = joined.get(key)
            if isinstance(known, list) and isinstance(value, list):
                joined[key] = known + [item for item in value if item not in known]
            elif isinstance(known, dict) and isinstance(value, dict):
                joined[key] = value | known
            elif known is None:
                joined[key] = value
    return joined
