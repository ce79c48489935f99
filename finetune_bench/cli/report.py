"""`report`, `compare`, `merge` and `power` are the commands for finished runs: they train nothing."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_bench.cli.console import say, show, terminal_width
from finetune_bench.cli.documents import show_document
from finetune_bench.cli.report_documents import compare_values, power_values, reasons, report_values
from finetune_bench.cli.show import load_plugins
from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged, make_folder, read_json, read_plain, sealed, write_text
from finetune_bench.report import DEFAULT, Options

if TYPE_CHECKING:
    from finetune_bench.store.store import Store

_NAMED = 5  # of what is damaged; the rest is counted
FORMATS = "markdown,html,csv"
WRITTEN_WITH = "options.json"  # in a report's folder: its formats and options, which a check takes up


def summarise(store: Store, folder: Path, formats: list[str], options: Options) -> tuple[str, list[Path]]:
    """Write a report, print its summary, and return what was printed and the files."""
    from finetune_bench.reports.terminal import summary

    written = write_report(store, folder, formats, options)
    first_files = "\n".join(f"{name}: {paths[0]}" for name, paths in written.items())
    answer = f"{summary(store, options, terminal_width())}\n\n{first_files}"
    show(answer)
    return answer, [path for paths in written.values() for path in paths]


def write_report(store: Store, folder: Path, formats: list[str], options: Options) -> dict[str, list[Path]]:
    """Write a report, and return the files of each format."""
    from finetune_bench import registry
    from finetune_bench.reports.rows.load import load
    from finetune_bench.reports.topics.tests import refuse_few_seeds

    # Every collection would walk all rows, and a report of ten thousand needs no memory back.
    gc.disable()
    data = load(
        store, options
    )  # it is kept; what is wrong with the rows or the options is told before a folder is made
    if options.bootstrap:
        refuse_few_seeds(data)
    make_folder(folder)
    written = {name: registry.report_class(name)().write(store, folder, options) for name in formats}
    asked = {name: value for name, value in asdict(options).items() if name != "cells"}
    write_text(folder / WRITTEN_WITH, json.dumps(sealed({"formats": formats, **asked}), indent=1))
    return written


def report_command(parsed: argparse.Namespace) -> int:
    """Write a run's report, or check the written one; return 1 where a checked file differs."""
    from finetune_bench import registry
    from finetune_bench.reports.rows.load import load
    from finetune_bench.spec import split
    from finetune_bench.store.store import Store

    load_plugins(parsed.plugin)
    formats = split(FORMATS if parsed.format is None else parsed.format, ",")
    if not formats:
        raise UsageError("--format: expected one format or more, separated by commas; got none.")
    for name in formats:
        registry.report_class(name)  # an unknown format is told before any is written
    if not _is_margin(parsed.margin):
        raise UsageError(f"--margin: expected a number of points above 0; got {parsed.margin:g}.")
    options = Options(baseline=parsed.baseline, margin=parsed.margin, bootstrap=parsed.bootstrap, all_cells=parsed.all)
    store = Store.open(parsed.run)
    folder = Path(parsed.out) if parsed.out else store.root / "report"
    if parsed.check:
        if options == DEFAULT and parsed.format is None:
            formats, options = _written_with(folder, formats)
        return _check_report(store, folder, formats, options, as_json=parsed.json)
    if parsed.json:
        written = write_report(store, folder, formats, options)
        show_document("report", report_values(store, options, written))
    else:
        summarise(store, folder, formats, options)
    damaged = load(store, options).damaged
    # Python ends with a collection that would walk all rows once more.
    gc.freeze()
    return tell_damaged(store, damaged)


def _written_with(folder: Path, formats: list[str]) -> tuple[list[str], Options]:
    """Return the formats and options that a report was written with, and tell them; the usual where none are known."""
    from finetune_bench import registry

    try:
        values = read_json(folder / WRITTEN_WITH)
        written = [str(name) for name in values.pop("formats")]
        for name in written:
            registry.report_class(name)
        options = Options(**values)
        if not _could_be_asked(options):
            return formats, DEFAULT
    except (Damaged, UsageError, TypeError, KeyError):
        return formats, DEFAULT
    asked = [f"{name} {value}" for name, value in values.items() if value != getattr(DEFAULT, name)]
    say(f"Checked as it was written: {', '.join([*written, *asked])}.")
    return written, options


def _is_margin(value: object) -> bool:
    """Return whether a value is a number of points above 0, or None for no margin."""
    return value is None or (isinstance(value, int | float) and 0 < value < math.inf)


def _could_be_asked(options: Options) -> bool:
    """Return whether options from a file are some that a reader could have given."""
    return (
        isinstance(options.baseline, str | None)
        and _is_margin(options.margin)
        and isinstance(options.bootstrap, bool)
        and isinstance(options.all_cells, bool)
        and options.cells is None
    )


def _check_report(store: Store, folder: Path, formats: list[str], options: Options, *, as_json: bool) -> int:
    """Print which files of a written report aren't what the store gives now, and where; return 1 where some aren't."""
    from tempfile import TemporaryDirectory

    from finetune_bench import registry
    from finetune_bench.reports.rows.load import load
    from finetune_bench.store.store import Store

    if not folder.is_dir():
        raise UsageError(f"--check: expected a written report in '{folder}', but there is no such folder.")
    store = Store(store.root, reads_index=False)  # the report may rest on an index that somebody changed
    differing: dict[str, str] = {}
    checked = 0
    with TemporaryDirectory(prefix="finetune-bench-") as name:
        reports = [registry.report_class(format_name)() for format_name in formats]
        for path in [path for report in reports for path in report.write(store, Path(name), options)]:
            checked += 1
            written = folder / path.relative_to(name)
            if reason := _difference(path, written):
                differing[str(written)] = reason
    damaged = load(store, options).damaged
    if as_json:
        lines = [{"file": name, "reason": reason} for name, reason in differing.items()]
        found = {"checked": checked, "differing": lines, "damaged": reasons(damaged)}
        show_document("report --check", {"folder": str(store.root), **found})
    else:
        for name, reason in differing.items():
            show(f"{name}: {reason}")
        show(f"{checked} files recomputed, {len(differing)} differ.")
    return 1 if tell_damaged(store, damaged) or differing else 0


def _difference(fresh: Path, written: Path) -> str:
    """Say where a written file first differs from a fresh one; "" where it doesn't."""
    if not os.path.lexists(written):
        return "missing"
    new = fresh.read_bytes()
    try:
        old = read_plain(written, 100 * len(new) + 2**20)
    except Damaged as error:
        return error.reason
    if new == old:
        return ""
    if fresh.suffix in (".pdf", ".parquet", ".zip"):
        return "differs"
    lines = zip(new.decode().splitlines(), old.decode("utf-8", "replace").splitlines(), strict=False)
    for number, (computed, kept) in enumerate(lines, 1):
        if computed != kept:
            pairs = enumerate(zip(computed, kept, strict=False))
            at = next((index for index, (a, b) in pairs if a != b), min(len(computed), len(kept)))
            around = slice(max(0, at - 40), at + 40)
            return f"line {number}: '{kept[around]}' is written, '{computed[around]}' is computed"
    return "differs in length"


def tell_damaged(store: Store, damaged: Mapping[str, Damaged]) -> int:
    """Name on stderr what of a store can't be read; return 1 where there is something, else 0."""
    if not damaged:
        return 0
    reasons = [f"{name} ({error.reason})" for name, error in sorted(damaged.items())]
    more = f" and {len(reasons) - _NAMED} more" if len(reasons) > _NAMED else ""
    say(
        f"Damaged in '{store.root}', so left out: {', '.join(reasons[:_NAMED])}{more}. `finetune-bench verify` names "
        "all that is; running the study again, or merging from a whole copy, puts rows back."
    )
    return 1


def compare_command(parsed: argparse.Namespace) -> int:
    """Print how two runs differ, cell by cell; return 1 where a part of them is damaged."""
    from finetune_bench.reports.runs import as_text, compare
    from finetune_bench.store.store import Store

    stores = [Store.open(run) for run in parsed.runs]
    compared = compare(stores[0], stores[1])
    if parsed.json:
        show_document("compare", compare_values([store.root for store in stores], compared))
    else:
        show(as_text(compared.lines, compared.notes))
    return max(tell_damaged(store, damaged) for store, damaged in zip(stores, compared.damaged, strict=True))


def merge_command(parsed: argparse.Namespace) -> int:
    """Copy the cells of several runs into one; return 1 where two disagree about a cell, or one is damaged."""
    from finetune_bench.store.merge import merge
    from finetune_bench.store.store import Store

    merged = merge(Path(parsed.out), [Path(run) for run in parsed.runs])
    for conflict in merged.conflicts:
        say(conflict)
    show(f"{merged.copied} cells copied to '{parsed.out}', {merged.present} were there already.")
    told = [tell_damaged(Store(source), damaged) for source, damaged in merged.damaged.items()]
    return 1 if merged.conflicts or any(told) else 0


def power_command(parsed: argparse.Namespace) -> int:
    """Print what numbers of seeds would find, and how many a difference takes; return 1 where the run is damaged."""
    from finetune_bench.reports.power import as_text, power_lines
    from finetune_bench.reports.rows.load import load
    from finetune_bench.store.store import Store

    if not 0 < parsed.difference < math.inf:
        raise UsageError(f"--difference: expected a number of points above 0; got {parsed.difference:g}.")
    if not 0.05 < parsed.power < 1:
        raise UsageError(f"--power: expected a share between 0.05 and 1; got {parsed.power:g}.")
    store = Store.open(parsed.run)
    data = load(store)
    damaged = tell_damaged(store, data.damaged)
    lines = power_lines(store, parsed.difference, parsed.power)
    if parsed.json:
        show_document("power", power_values(store, lines, parsed.difference, parsed.power))
    else:
        show(as_text(lines, parsed.difference, parsed.power))
        for note in data.notes:
            say(note)
    return damaged
