"""Choose the rows that a report covers, and tell rows apart that have the same name for different things.

A folder may hold the cells of several commands; a report covers those of one. Two rows of one task are of the same data
only if their fingerprints say so, whatever the file is called, and so it is with the weights of a model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, cast

from finetune_bench.report import Options
from finetune_bench.reports.text import counted, listed
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store

# A cell's specification is much smaller than this.
_MOST_BYTES = 2**20
# So many names are written out of a list of them.
_NAMED = 8
_UNKNOWN = "unknown"


def covered(rows: Sequence[Row], study: Mapping[str, Any], options: Options) -> tuple[list[Row], list[Row]]:
    """Return the rows that a report covers, and those that are left.

    Args:
        rows: All of the store.
        study: What the store holds of its last command; one of an earlier version doesn't name its cells.
        options: What the reader asked for.
    """
    asked = study.get("cells") if options.cells is None else options.cells
    ids = {text for text in asked if isinstance(text, str)} if isinstance(asked, list | tuple) else set()
    if options.all_cells or not ids:
        return list(rows), []
    return [row for row in rows if row["id"] in ids], [row for row in rows if row["id"] not in ids]


def others_text(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return a sentence about the rows that a report doesn't cover; none where there are none."""
    if not rows:
        return []
    parts = []
    for axis in ("method", "task", "model", "seed"):
        values = sorted({row.get(axis) for row in rows}, key=_by_size)
        parts.append(f"{axis}s {listed(list(map(str, values)), _NAMED)}")
    return [
        f"This covers the runs of one command. The folder holds {counted(len(rows), 'run')} more, of other commands "
        f"({'; '.join(parts)}); 'finetune-bench report RUN --all' covers them too."
    ]


def shard_text(rows: Sequence[Row], study: Mapping[str, Any]) -> list[str]:
    """Return a sentence about the runs of a study that are in other shards; none where there are none.

    Args:
        rows: Those that the report covers.
        study: What the store holds of its study.
    """
    elsewhere = set(study.get("other_shards") or ()) - set(study.get("cells") or ()) - {row["id"] for row in rows}
    if not elsewhere:
        return []
    return [
        f"This covers a part of a study that was run in shards: {counted(len(elsewhere), 'run')} more of it are in "
        "other shards; 'finetune-bench merge' puts them together."
    ]


def with_fingerprints(store: Store, row: Row) -> Row:
    """Return a row with the fingerprints of its data and weights, which those of earlier versions lack."""
    if "weights" in row:
        return row
    specification = _specification(store, row["id"])
    found = {key: value for key in ("data", "weights") if isinstance(value := specification.get(key), str)}
    hashes = row.get("hashes")
    data = {"data": hashes["data"]} if hashes and hashes.get("data") else {}
    return cast(Row, data | found | row)


def told_apart(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Return rows of which no two have the same name for different weights or data, and a sentence for each such name.

    Rows of former examples get a setting of their own, so that no mean over tasks holds two versions of one.

    Args:
        rows: Rows with fingerprints, where they are known.
    """
    models, notes = _labels(rows, "model", "weights", "sets of weights", lambda row: row["model"])
    # How many examples are trained on, or held out, changes the fingerprint too.
    tasks, notes_on_tasks = _labels(
        rows,
        "task",
        "data",
        "sets of examples",
        lambda row: (row["task"], row.get("limit_train"), row.get("held_out") or 0),
    )
    former = {cell_id: label for cell_id, (label, is_newest) in tasks.items() if not is_newest}
    distinct = []
    for row in rows:
        new: dict[str, Any] = {"examples": former.get(row["id"], "newest")} if tasks else {}
        new |= {"model": models[row["id"]][0]} if row["id"] in models else {}
        new |= {"task": tasks[row["id"]][0]} if row["id"] in tasks else {}
        distinct.append(cast(Row, row | new))
    return distinct, notes + notes_on_tasks


def newest_of(rows: Sequence[Row], settings: Sequence[str], chosen_among: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Return one row per run, and the rows that are left out for an older version or another source of their code.

    A run's row is of the newest versions of its methods, of the source that finished last, and finished last itself. Of
    a label whose defaults have changed, that is `fgm` for two lengths, the row has those of the run that finished last.
    What a choice is made among is of one version and one source, at whatever learning rate and parameters.

    Args:
        rows: All that the report covers.
        settings: Each row's setting.
        chosen_among: Each row's setting without what is chosen; "" where nothing is.
    """
    runs = []
    for row, setting, common in zip(rows, settings, chosen_among, strict=True):
        names = "+".join(part["name"] for part in row.get("methods") or [])
        method = (names, common) if common else (row["method"], setting)
        runs.append((method, (row["task"], common or setting), (row["method"], row["task"], row["seed"], setting), row))
    runs.sort(key=lambda run: str(run[-1].get("finished") or ""))  # where two are alike, the later stays
    newest: dict[Hashable, list[int]] = {}
    for method, _, _, row in runs:
        newest[method] = max(newest.get(method, []), _versions(row))
    current = [run for run in runs if _versions(run[-1]) == newest[run[0]]]
    of_methods = {method: _sources(row, of_task=False) for method, _, _, row in current}
    of_tasks = {task: _sources(row, of_task=True) for _, task, _, row in current}
    current = [
        (method, task, run, row)
        for method, task, run, row in current
        if _sources(row, of_task=False) == of_methods[method] and _sources(row, of_task=True) == of_tasks[task]
    ]
    meant = {row["method"]: row for *_, row in current}
    current = [each for each in current if _is_set_alike(each[-1], meant[each[-1]["method"]])]
    latest = {(run, bool(row.get("held_out"))): row for _, _, run, row in current}
    kept = {row["id"] for *_, row in current}
    left_out = [row for *_, row in runs if row["id"] not in kept]
    return sorted(latest.values(), key=lambda row: row["id"]), left_out


def _versions(row: Row) -> list[int]:
    return [part.get("version") or 0 for part in row.get("methods") or []]


def _is_set_alike(row: Row, other: Row) -> bool:
    """Return whether no parameter differs between two rows of one label; one may have some that the other lacks."""
    pairs = zip(row.get("methods") or [], other.get("methods") or [], strict=False)
    return all(
        other_part["parameters"].get(name, value) == value
        for part, other_part in pairs
        for name, value in part["parameters"].items()
    )


def _sources(row: Row, *, of_task: bool) -> list[str]:
    return [text for text in row.get("sources") or [] if text.startswith("(task)") == of_task]


def _labels(
    rows: list[Row], name: str, fingerprint: str, noun: str, key: Callable[[Row], Hashable]
) -> tuple[dict[str, tuple[str, bool]], list[str]]:
    """Return labels for the rows whose name stands for several things, and a sentence about each such name.

    Returns:
        By id of the row, the name with a short fingerprint behind it, and whether that is of the newest; the sentences.
    """
    groups: dict[Hashable, dict[str, list[Row]]] = {}
    for row in rows:
        value = str(row.get(fingerprint) or _UNKNOWN)
        groups.setdefault(key(row), {}).setdefault(value, []).append(row)
    labels: dict[str, tuple[str, bool]] = {}
    notes = []
    for kinds in groups.values():
        unknown = kinds.get(_UNKNOWN, [])
        if all(row["status"] != Status.DONE for row in unknown):  # no number of theirs is in any mean
            kinds.pop(_UNKNOWN, None)
        if len(kinds) < 2:
            continue
        marks = _short(sorted(kinds, key=lambda value: max(_finished(kinds[value]))))
        *_, newest = marks
        for value, of_kind in {_UNKNOWN: unknown, **kinds}.items():
            mark = marks.get(value, marks[newest])
            labels |= {row["id"]: (f"{_value(row, name)} [{mark}]", mark == marks[newest]) for row in of_kind}
        first = _value(next(iter(kinds.values()))[0], name)
        notes.append(_note(f"The {name} '{first}' stands for {len(kinds)} {noun}", kinds, marks))
    return labels, notes


def _value(row: Mapping[str, object], name: str) -> object:
    return row[name]


def _note(text: str, kinds: Mapping[str, Sequence[Row]], marks: Mapping[str, str]) -> str:
    parts = [
        f"[{mark}] in {counted(len(kinds[value]), 'run')}"
        + (f", the first finished {since}" if (since := min(_finished(kinds[value]))) else "")
        for value, mark in marks.items()
    ]
    contents = [value.partition("-")[0] for value in kinds]
    same = " Equal digits are the same files, taken in another way; docs/protocol.md tells what the marks say."
    return f"{text}, which are compared apart: {listed(parts)}." + (same if len({*contents}) < len(contents) else "")


def _finished(rows: Sequence[Row]) -> list[str]:
    """Return when some rows were finished, at least one text; "" where none was."""
    return [finished for row in rows if (finished := str(row.get("finished") or ""))] or [""]


def _short(values: Sequence[str]) -> dict[str, str]:
    """Return a short form of each fingerprint; the whole ones where two have the same."""
    short = {}
    for value in values:
        content, dash, marks = value.partition("-")
        short[value] = f"{content[:6] if value != _UNKNOWN else value}{dash}{marks}"
    return short if len({*short.values()}) == len(short) else {value: value for value in values}


def _specification(store: Store, cell_id: str) -> dict[str, Any]:
    """Return what a cell's specification says; empty where it can't be read."""
    path = store.folder(cell_id) / "cell.json"
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return {}
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _by_size(value: Any) -> tuple[bool, float, str]:
    return (not isinstance(value, int), value if isinstance(value, int) else 0, str(value))
