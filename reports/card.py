"""One cell as text: what was run, what came of it, what it cost, on what machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from tabulate import tabulate

from finetune_bench.errors import UsageError
from finetune_bench.reports.rows.sections import flat
from finetune_bench.store.store import Store

_PARTS = ("metrics", "majority", "training", "cost", "hashes", "recipe", "environment")
_LONGEST_LOG = 40  # lines


def find_cell(text: str, roots: Iterable[Path]) -> tuple[Store, str] | None:
    """The store and id of a cell, from its folder, or from the first digits of its id in one of some runs.

    Raises:
        UsageError: the digits fit several cells.
    """
    path = Path(text)
    if (path / "row.json").is_file():
        return Store(path.resolve().parent.parent), path.resolve().name
    if not text or set(text) - set("0123456789abcdef"):
        return None
    found = [folder for root in roots for folder in sorted((root / "cells").glob(f"{text}*"))]
    if len({folder.name for folder in found}) > 1:
        names = ", ".join(folder.name for folder in found[:5])
        raise UsageError(f"'{text}' fits {len(found)} cells ({names} …); give more digits.")
    return (Store(found[0].parent.parent), found[0].name) if found else None


def card(store: Store, cell_id: str) -> str:
    """Everything a store has of one cell.

    Raises:
        UsageError: its row can't be read.
    """
    row = cast(dict[str, Any] | None, store.row(cell_id))
    if row is None:
        raise UsageError(f"'{store.folder(cell_id)}' has no row that can be read; run its study again.")
    lines: list[tuple[str, Any]] = [
        (key, value) for key, value in row.items() if key not in (*_PARTS, "methods") and value not in (None, [], "")
    ]
    parts = ["\n".join([f"{row['method']} on {row['task']}, seed {row['seed']}", _table(lines)])]
    for method in row.get("methods") or []:
        parts.append(f"{method['name']} (version {method['version']})\n{_table(method['parameters'].items())}")
    for name in _PARTS:
        if row.get(name):
            parts.append(f"{name}\n{_table(flat(row[name]).items())}")
    log = store.folder(cell_id) / "log.txt"
    if log.is_file():
        tail = log.read_text("utf-8", "replace").splitlines()[-_LONGEST_LOG:]
        parts.append("\n".join([f"the end of {log}", *tail]))
    parts.append(f"files: {store.folder(cell_id)}")
    return "\n\n".join(parts)


def _table(items: Iterable[tuple[str, Any]]) -> str:
    rows = [[f"  {key}", _plain(value)] for key, value in items]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
