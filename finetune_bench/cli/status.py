"""Tell, for `status`, how far a run is: done, running, failed and left, since when, and about how long still."""

from __future__ import annotations

import argparse
import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from finetune_bench.cli.console import show
from finetune_bench.cli.documents import show_document
from finetune_bench.cli.report import tell_damaged
from finetune_bench.cli.shown import other_shards, runs
from finetune_bench.printable import brief

if TYPE_CHECKING:
    from finetune_bench.store.row import Row
    from finetune_bench.store.store import Store

_NAMED = 10  # failures, and running ones, that the text names


def status_command(parsed: argparse.Namespace) -> int:
    """Print how far a run is; return 1 where runs of it failed, or files of it are damaged."""
    from finetune_bench.store.store import Store

    store = Store.open(parsed.run)
    rows, damaged = store.read()
    facts = status({cell_id: row for cell_id, (row, _) in rows.items()}, store)
    if parsed.json:
        show_document("status", facts)
    else:
        show(_text(facts))
    return 1 if tell_damaged(store, damaged) or facts["failed"] else 0


def status(rows: dict[str, Row], store: Store) -> dict[str, Any]:
    """Return a `StatusDocument`'s own keys.

    Args:
        rows: every row that can be read, by id.
        store: the run.
    """
    from finetune_bench.store.lease import holders
    from finetune_bench.store.row import Status

    study = store.study()
    # An earlier version's study doesn't name its cells, nor does a damaged one: then it is all that there is.
    asked = list(dict.fromkeys(study.get("cells") or store.names()))
    covered = {cell_id: rows[cell_id] for cell_id in asked if cell_id in rows}
    by_status = {name: [row for row in covered.values() if row["status"] == name] for name in Status}
    held = [holder for holder in holders(store.root / "locks") if holder.name in asked]
    running = [
        {
            "id": holder.name,
            "host": holder.host,
            "process": holder.process,
            "seconds": _seconds_since_start(store, holder.name),
            "quiet_seconds": holder.quiet_seconds,
            "is_live": holder.is_live,
        }
        for holder in held
    ]
    ended = sum(len(by_status[name]) for name in (Status.DONE, Status.FAILED, Status.SKIPPED))
    left = len(asked) - ended
    began = sorted(row["started"] for row in covered.values() if row.get("started"))
    finished = sorted(row["finished"] for row in by_status[Status.DONE] if row.get("finished"))
    return {
        "folder": str(store.root),
        "runs": len(asked),
        **{str(name): len(by_status[name]) for name in Status},
        "damaged": len(set(asked) & set(store.names()) - rows.keys()),
        "left": left,
        "other_shards": len(other_shards(study, rows)),
        "other_commands": len(rows.keys() - set(asked)),
        "running": running,
        "failures": [
            {"id": row["id"], "run": _name(row), "reason": str(row["reason"] or "")} for row in by_status[Status.FAILED]
        ],
        "analyses": _analyses([row["id"] for row in by_status[Status.DONE]], store),
        "started": began[0] if began else None,
        "last_finished": finished[-1] if finished else None,
        "seconds_left": _seconds_left(by_status[Status.DONE], left, [line for line in running if line["is_live"]]),
    }


def _analyses(done: list[str], store: Store) -> list[dict[str, Any]]:
    """Return how many finished runs have a result of each analysis, and of how many it failed or is damaged."""
    from finetune_bench.files import Damaged
    from finetune_bench.store import analyses

    counts: dict[str, list[int]] = {}
    for cell_id in done:
        folder = store.folder(cell_id)
        for name in analyses.names(folder):
            try:
                result = analyses.read(folder, name)
            except Damaged:
                result = None
            is_good = result is not None and result["reason"] is None
            counts.setdefault(name, [0, 0])[0 if is_good else 1] += 1
    return [{"name": name, "results": good, "failed": bad} for name, (good, bad) in sorted(counts.items())]


def _seconds_since_start(store: Store, cell_id: str) -> float | None:
    """Return since when a run goes on, by the folder that it will fill when it ends; None where there is none."""
    try:
        began = max(path.lstat().st_mtime for path in store.cells.glob(f".{cell_id}-*"))
    except (OSError, ValueError):  # it has just ended, or has not yet begun
        return None
    return max(0.0, time.time() - began)


def _seconds_left(done: list[Row], left: int, running: list[dict[str, Any]]) -> float | None:
    """Return how long the runs that are left take at the mean of the finished ones; None where nothing tells."""
    seconds = [value for row in done if isinstance(value := row.get("seconds"), int | float) and math.isfinite(value)]
    if left == 0:
        return 0.0
    if not seconds or not running:
        return None
    mean = sum(seconds) / len(seconds)
    spent = sum(min(mean, line["seconds"] or 0.0) for line in running)
    return max(0.0, left * mean - spent) / min(left, len(running))


def _name(row: Row) -> str:
    return f"{row['method']} on {row['task']}, seed {row['seed']}"


def _text(facts: dict[str, Any]) -> str:
    """Return a status as the terminal shows it."""
    live = [line for line in facts["running"] if line["is_live"]]
    gone = [line for line in facts["running"] if not line["is_live"]]
    counts = [
        f"{facts[name]} {name}" for name in ("done", "failed", "skipped", "interrupted", "damaged") if facts[name]
    ]
    counts += [f"{len(live)} running", f"{facts['left']} left"]
    lines = [f"{facts['folder']}: {runs(facts['runs'])}: {', '.join(counts)}."]
    if facts["started"]:
        last = f"; the last one finished {facts['last_finished']}{_ago(facts['last_finished'])}"
        lines.append(f"Began {facts['started']}{last if facts['last_finished'] else ''}.")
    for line in live[:_NAMED]:
        since = "" if line["seconds"] is None else f" for {_duration(line['seconds'])}"
        quiet = _duration(line["quiet_seconds"])
        lines.append(
            f"Running{since}: {line['id']}, by process {line['process']} of {line['host']} (seen {quiet} ago)."
        )
    for line in gone[:_NAMED]:
        lines.append(f"Not running any more: {line['id']}, whose process {line['process']} of {line['host']} is gone.")
    for failure in facts["failures"][:_NAMED]:
        lines.append(f"Failed: {failure['run']} ({failure['id']}): {brief(failure['reason'])}")
    hidden = max(0, len(live) - _NAMED) + max(0, len(gone) - _NAMED) + max(0, len(facts["failures"]) - _NAMED)
    lines += [f"And {hidden} more, which --json lists."] * bool(hidden)
    if facts["analyses"]:
        each = [
            f"{line['name']} {line['results']}" + (f" ({line['failed']} failed)" if line["failed"] else "")
            for line in facts["analyses"]
        ]
        lines.append(f"Analysed: {', '.join(each)}.")
    if facts["seconds_left"]:
        workers = f"{len(live)} at a time" if len(live) > 1 else "one at a time"
        lines.append(f"About {_duration(facts['seconds_left'])} left, {workers}, at the mean of the finished runs.")
    elif facts["left"] and not live:
        lines.append("Nothing runs now; the command that began it goes on with what is left.")
    if facts["other_shards"]:
        be = "is" if facts["other_shards"] == 1 else "are"
        lines.append(f"This is a shard: {runs(facts['other_shards'], 'more ')} of its study {be} left to other shards.")
    if facts["other_commands"]:
        lines.append(f"The folder holds {runs(facts['other_commands'], 'more ')}, of other commands.")
    return "\n".join(lines)


def _ago(text: str | None) -> str:
    """Return how long ago a time in ISO 8601 was; "" where it is none, or lies ahead by this machine's clock."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(str(text))).total_seconds()
    except (TypeError, ValueError):
        return ""
    return f", {_duration(seconds)} ago" if seconds >= 0 else ""


def _duration(seconds: float) -> str:
    """Write seconds for a person: 45 s, 12 min, 3.5 h, 2.1 days."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
