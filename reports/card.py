"""Show one cell as text for the command `show`: what was run, what came of it, what it cost, on what machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from finetune_bench.errors import UsageError
from finetune_bench.reports.rows.sections import flat
from finetune_bench.store.store import Store

_PARTS = ("metrics", "majority", "training", "cost", "hashes", "recipe", "environment")
# So many lines of the end of a log are shown.
_LOG_LINES = 40


def find_cell(text: str, roots: Iterable[Path]) -> tuple[Store, str] | None:
    """Return the store and the id of a cell; None where there is no such cell.

    Args:
        text: The cell's folder, or the first digits of its id.
        roots: Runs in which to look for the id.

    Raises:
        UsageError: The digits fit several cells.
    """
    path = Path(text)
    if (path / "row.json").is_file():
        return Store(path.resolve().parent.parent), path.resolve().name
    if not text or set(text) - set("0123456789abcdef"):
        return None
    folders = [folder for root in roots for folder in sorted((root / "cells").glob(f"{text}*"))]
    if len({folder.name for folder in folders}) > 1:
        names = ", ".join(folder.name for folder in folders[:5])
        raise UsageError(f"'{text}' fits {len(folders)} cells ({names} …); give more digits.")
    return (Store(folders[0].parent.parent), folders[0].name) if folders else None


def card(store: Store, cell_id: str) -> str:
    """Return everything a store has of one cell.

    Raises:
        UsageError: Its row can't be read.
    """
    row = store.row(cell_id)
    if row is None:
        raise UsageError(f"'{store.folder(cell_id)}' has no row that can be read; run its study again.")
    values: dict[str, Any] = dict(row)
    lines = [
        (key, value) for key, value in values.items() if key not in (*_PARTS, "methods") and value not in (None, [], "")
    ]
    parts = ["\n".join([f"{row['method']} on {row['task']}, seed {row['seed']}", _table(lines)])]
    for method in row.get("methods") or []:
        parts.append(f"{method['name']} (version {method['version']})\n{_table(method['parameters'].items())}")
    for name in _PARTS:
        if values.get(name):
            parts.append(f"{name}\n{_table(flat(values[name]).items())}")
    log = store.folder(cell_id) / "log.txt"
    if log.is_file():
        tail = log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:]
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
