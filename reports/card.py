"""Show one cell as text for the command `show`: what was run, what came of it, what it cost, on what machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged, open_plain
from finetune_bench.reports.rows.sections import flat
from finetune_bench.store.reading import MOST_LOG_BYTES, is_id, read_row
from finetune_bench.store.store import Store

_PARTS = ("metrics", "majority", "training", "cost", "hashes", "recipe", "environment")
# So many lines of the end of a log are shown.
_LOG_LINES = 40
_LOG_BYTES = 2**16


def find_cell(text: str, roots: Iterable[Path]) -> tuple[Store, str] | None:
    """Return the store and the id of a cell; None where there is no such cell.

    Args:
        text: The cell's folder, or the first digits of its id.
        roots: Runs in which to look for the id.

    Raises:
        UsageError: The digits fit several cells.
    """
    path = Path(text)
    if "\0" not in text and is_id(path.resolve().name) and (path / "row.json").is_file():
        return Store(path.resolve().parent.parent), path.resolve().name
    if not text or set(text) - set("0123456789abcdef"):
        return None
    folders = [store.folder(name) for store in map(Store, roots) for name in store.names() if name.startswith(text)]
    if len({folder.name for folder in folders}) > 1:
        names = ", ".join(folder.name for folder in folders[:5])
        raise UsageError(f"'{text}' fits {len(folders)} cells ({names} …); give more digits.")
    return (Store(folders[0].parent.parent), folders[0].name) if folders else None


def card(store: Store, cell_id: str) -> str:
    """Return everything a store has of one cell.

    Raises:
        UsageError: Its row can't be read.
    """
    try:
        row, _ = read_row(store.folder(cell_id))
    except FileNotFoundError:
        raise UsageError(f"There is no cell '{cell_id}' in '{store.root}' any longer; run its study again.") from None
    except Damaged as error:
        raise UsageError(f"'{store.folder(cell_id)}' is damaged: {error.reason}; run its study again.") from None
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
    if os.path.lexists(log):
        parts.append("\n".join([f"the end of {log}", *_end(log)]))
    parts.append(f"files: {store.folder(cell_id)}")
    return "\n\n".join(parts)


def _end(log: Path) -> list[str]:
    """Return the last lines of a log, whatever its length."""
    try:
        with open_plain(log, MOST_LOG_BYTES) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-_LOG_LINES:]
    except Damaged as error:
        return [error.reason]


def _table(items: Iterable[tuple[str, Any]]) -> str:
    rows = [[f"  {key}", _plain(value)] for key, value in items]
    return tabulate(rows, tablefmt="plain", disable_numparse=True)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)
