"""`verify` checks all files of a run against their checksums and each other, or holds a run against a paper."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench.cli.console import show
from finetune_bench.cli.report import FORMATS, tell_damaged
from finetune_bench.cli.show import load_plugins
from finetune_bench.errors import UsageError

if TYPE_CHECKING:
    from finetune_bench.store.row import Row
    from finetune_bench.store.store import Store

# What a row says of its cell, under the names that a cell's file has for it.
_SHARED = ("task", "seed", "limit_train", "held_out", "stretch", "device", "threads", "recipe")
_MOST_CHECKPOINT_BYTES = 2**44
CONTRADICTED = 4  # the exit code where a run contradicts a claim
_KNOWN = ("row.json", "cell.json", "predictions.npz", "trace.npz", "log.txt", "model")


def verify_command(parsed: argparse.Namespace) -> int:
    """Check the files of a run, or hold it against a paper where one is named; see the two functions below."""
    return _verify_files(parsed) if parsed.paper is None else _verify_paper(parsed)


def _verify_paper(parsed: argparse.Namespace) -> int:
    """Write what a run says of a paper's numbers; return 4 where it contradicts a claim, 1 where rows are damaged."""
    from finetune_bench.papers.published import load_paper
    from finetune_bench.reports.published.blocks import answer
    from finetune_bench.reports.published.write import check_formats, verification, write
    from finetune_bench.spec import split
    from finetune_bench.store.store import Store

    paper = load_paper(parsed.paper)
    formats = split(FORMATS if parsed.format is None else parsed.format, ",")
    if not formats:
        raise UsageError("--format: expected one format or more, separated by commas; got none.")
    check_formats(formats)
    if parsed.margin is not None and not 0 < parsed.margin < math.inf:
        raise UsageError(f"--margin: expected a number of points above 0; got {parsed.margin:g}.")
    load_plugins(parsed.plugin)
    store = Store.open(parsed.run)
    verified = verification(paper, store, parsed.margin)
    show(answer(verified.judged, verified.claims))
    for path in write(verified, Path(parsed.out) if parsed.out else store.root / "verify" / paper.name, formats):
        if "latex" not in path.parts:  # the tables of a document
            show(str(path))
    damaged = tell_damaged(store, verified.data.damaged)
    return CONTRADICTED if verified.contradicted else damaged


def _verify_files(parsed: argparse.Namespace) -> int:
    """Print every damaged file of a run with the reason, and what was checked; return 1 where one is damaged."""
    from finetune_bench.papers.published import paper_names
    from finetune_bench.store.store import Store

    given = [flag for flag in ("margin", "format", "out") if getattr(parsed, flag) is not None]
    if given:
        raise UsageError(
            f"--{given[0]}: it is for holding a run against a paper, as in 'verify hype RUN'; leave it out to check "
            "the run's files."
        )
    if parsed.run in paper_names() and not Path(parsed.run).is_dir():
        raise UsageError(
            f"verify {parsed.run}: expected the folder of the run that is held against it, as in "
            f"'finetune-bench verify {parsed.run} RUN'; got none."
        )
    load_plugins(parsed.plugin)
    store = Store.open(parsed.run)
    rows, damaged = store.read()
    lines = [f"{name}: {error.reason}" for name, error in damaged.items()]
    for cell_id, (row, _) in rows.items():
        lines += [f"{cell_id}: {reason}" for reason in _wrong_with_cell(store, row)]
    lines += [*_wrong_with_index(store), *_wrong_with_receipt(store), *_wrong_with_checkpoints(store)]
    for line in sorted(lines):
        show(line)
    older = sum(row["schema"] == 1 for row, _ in rows.values())
    cells = len(rows) + len(damaged.keys() - {"study.json"})
    checked = f"{cells} cell{'' if cells == 1 else 's'} checked, {len(lines)} fault{'' if len(lines) == 1 else 's'}."
    unhashed = f" {older} cells are of an earlier version and have no checksums: a change of them can't be seen."
    models = sum(store.has_model(cell_id) for cell_id in rows)
    unchecked = f" Not covered by any checksum: logs, and {models} saved models." if models else ""
    show(checked + (unhashed if older else "") + unchecked)
    return 1 if lines else 0


def _wrong_with_cell(store: Store, row: Row) -> Iterator[str]:
    """Yield what is wrong with a cell's folder, of which the row and the arrays are what was written."""
    from finetune_bench.files import Damaged, read_json
    from finetune_bench.store import analyses

    folder = store.folder(row["id"])
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path.is_dir() if path.name == "model" else path.is_file()):
            yield f"{path.name} is a link, or something else than its name says"
        elif (match := analyses.FILE.fullmatch(path.name)) is not None:
            if match[2] == "npz" and match[1] not in analyses.names(folder):
                yield f"{path.name} belongs to no result"
        elif path.name not in _KNOWN:
            yield f"{path.name} is no file of a cell"
        elif path.suffix == ".npz" and row["schema"] > 1 and path.name not in (row.get("files") or {}):
            yield f"{path.name} is not in the row"
    for name in analyses.names(folder):
        try:
            analyses.read(folder, name)
        except Damaged as error:
            yield error.reason
    try:
        yield from _differences(read_json(folder / "cell.json"), row)
    except Damaged as error:
        yield error.reason


def _differences(values: dict[str, Any], row: Row) -> Iterator[str]:
    """Yield in what a cell's specification, as its file has it, isn't that of its row."""
    from finetune_bench.errors import FinetuneBenchError
    from finetune_bench.model import pretrained
    from finetune_bench.study.grid import Cell

    # Earlier versions left out what had no effect.
    usual = {"held_out": 0.0, "stretch": 1.0}
    try:
        values = usual | values | {"recipe": {"arrangement": "padded"} | values["recipe"]}
        cell = Cell.from_dict(values)
        cell_id = cell.id
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        yield f"cell.json describes no cell ({type(error).__name__}: {error})"
        return
    if cell_id != row["id"]:
        yield f"cell.json describes another cell, {cell_id}"
        return
    kept: dict[str, Any] = usual | {key: value for key, value in row.items() if key in _SHARED}
    for key in _SHARED:
        if kept.get(key) != (cell.recipe.to_dict() if key == "recipe" else values[key]):
            yield f"row.json has another {key} than cell.json"
    if row["model"] != pretrained.label(cell.model):
        yield "row.json has another model than cell.json"
    with contextlib.suppress(FinetuneBenchError):  # the method of a plugin that wasn't named
        if row["method"] != cell.label:
            yield "row.json has another method than cell.json"


def _wrong_with_index(store: Store) -> list[str]:
    from finetune_bench.store import row_index

    return [f"derived.parquet: {fault}; the next report makes it anew" for fault in row_index.faults(store)]


def _wrong_with_receipt(store: Store) -> list[str]:
    """Return what is wrong with the answer that is kept of a finished run; without it a run checks everything anew."""
    from finetune_bench.files import Damaged, read_json

    path = store.root / "receipt.json"
    try:
        if os.path.lexists(path):
            read_json(path)
    except Damaged as error:
        return [error.reason]
    return []


def _wrong_with_checkpoints(store: Store) -> Iterator[str]:
    """Yield the checkpoints of unfinished cells that can't be read; such a cell starts from its first step."""
    from finetune_bench.files import Damaged, open_plain
    from finetune_bench.training import checkpoint

    for path in sorted(store.checkpoints.glob("[!.]*.safetensors")):
        try:
            with open_plain(path, _MOST_CHECKPOINT_BYTES):
                is_used = checkpoint.read(checkpoint.Checkpoints(path, every=1, owner=path.stem)) is not None
        except Damaged as error:
            yield f"checkpoints: {error.reason}"
        else:
            if not is_used:  # stderr has the reason
                yield f"checkpoints: {path.name} would not be used"
