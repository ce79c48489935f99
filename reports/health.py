"""Which runs failed, collapsed, hardly moved or did nothing, and what they ran with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from finetune_bench.reports.rows.sections import STATUSES, Data, Row, bare, flat
from finetune_bench.reports.rows.twins import Twin


def status_counts(data: Data) -> dict[str, int]:
    """Cells by status, every status named."""
    found = Counter(row["status"] for row in data.rows)
    return {status: found[status] for status in STATUSES}


def mixed_versions(data: Data) -> list[str]:
    """Environment entries in which rows of one store differ."""
    values: dict[str, set[str]] = {}
    for row in data.rows:
        if row["status"] == "done":
            for key, value in flat(row.get("environment") or {}).items():
                values.setdefault(key, set()).add(str(value))
    return [
        f"Rows differ in their environment, {key}: {', '.join(sorted(found))}."
        for key, found in sorted(values.items())
        if len(found) > 1
    ]


def environment(data: Data) -> dict[str, str]:
    """What the finished runs ran on, each entry with all values that occur."""
    values: dict[str, set[str]] = {}
    for row in data.rows:
        if row["status"] == "done":
            for key, value in flat(row.get("environment") or {}).items():
                values.setdefault(key, set()).add("—" if value is None else str(value))
    return {key: ", ".join(sorted(found)) for key, found in sorted(values.items())}


def by_reason(rows: Iterable[Row], key: str) -> list[tuple[str, str, int]]:
    """Rows by the reason under `key`: (reason, which cells, how many), the most frequent first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key) or "no reason given"), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(reason, cells(found), len(found)) for reason, found in ordered]


def cells(rows: Iterable[Row]) -> str:
    """`hype on rte (seeds 1, 2); rdrop on cola (seed 3)`."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["method"], row["task"]), set()).add(row["seed"])
    return "; ".join(f"{method} on {task} ({_seeds(found)})" for (method, task), found in sorted(seeds.items()))


def _seeds(found: Iterable[int]) -> str:
    ordered = sorted(found)
    return f"seed{'s' if len(ordered) > 1 else ''} {', '.join(map(str, ordered))}"


def hardly_moved(data: Data) -> list[Row]:
    """Finished runs whose training loss hardly moved."""
    return [row for row in data.rows if row["status"] == "done" and (row.get("training") or {}).get("hardly_moved")]


def collapsed(data: Data) -> list[Row]:
    """Finished runs that count as collapsed."""
    return [row for row in data.rows if row["status"] == "done" and row.get("collapsed")]


def no_effect(twins: Iterable[Twin]) -> list[str]:
    """One sentence for each method and the twin that it can't be told from."""
    groups: dict[tuple[str, str], dict[str, set[int]]] = {}
    for twin in twins:
        groups.setdefault((twin.method, twin.twin), {}).setdefault(twin.task, set()).add(twin.seed)
    return [
        f"No effect: {bare(method)} equals {other} at every recorded step, in loss and weights, on "
        + "; ".join(f"{task} ({_seeds(seeds)})" for task, seeds in sorted(tasks.items()))
        + "."
        for (method, other), tasks in groups.items()
    ]
