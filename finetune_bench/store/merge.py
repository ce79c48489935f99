"""One store from several: cells are copied, each once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.store.store import Store

# What equal cells have in common on every machine of one kind; the rest of a row are measurements.
_EXACT = ("metrics", "collapsed", "training", "hashes")
_RANK = {"done": 3, "failed": 2, "skipped": 1, "interrupted": 0}


@dataclass(frozen=True)
class Merged:
    """What came of a merge.

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

    Raises:
        UsageError: a source is no store, or is the target.
    """
    stores = [Store.open(source) for source in sources]
    into = Store(target)
    if any(store.root.resolve() == into.root.resolve() for store in stores):
        raise UsageError(f"'{target}' is to be made from other stores; leave it out of the list.")
    copied = present = 0
    conflicts: list[str] = []
    for store in stores:
        for row in store.rows():
            held = into.row(row["id"])
            if held is not None and _RANK[held["status"]] >= _RANK[row["status"]]:
                present += 1
                if held["status"] == row["status"] == "done" and any(held.get(k) != row.get(k) for k in _EXACT):
                    conflicts.append(
                        f"{row['method']} on {row['task']}, seed {row['seed']} ({row['id']}) has other numbers in "
                        f"'{store.root}'; those that were there first are kept."
                    )
                continue
            with into.claim(row["id"]), into.writing(row["id"]) as folder:
                shutil.copytree(store.folder(row["id"]), folder, dirs_exist_ok=True)
            copied += 1
    into.write_study(_joined([*(store.study() for store in (into, *stores))]))
    return Merged(copied, present, tuple(conflicts))


def _joined(studies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One study: lists and tables of all, everything else of the first that says it."""
    result: dict[str, Any] = {}
    for study in studies:
        for key, value in study.items():
            held = result.get(key)
            if isinstance(held, list) and isinstance(value, list):
                result[key] = held + [one for one in value if one not in held]
            elif isinstance(held, dict) and isinstance(value, dict):
                result[key] = value | held
            elif held is None:
                result[key] = value
    return result
