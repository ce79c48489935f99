"""The commands that read finished runs: `report`, `compare`, `merge` and `power`."""

from __future__ import annotations

import argparse
import gc
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_bench.cli.console import say
from finetune_bench.cli.show import load_plugins
from finetune_bench.errors import UsageError
from finetune_bench.report import Options

if TYPE_CHECKING:
    from finetune_bench.store.store import Store


FORMATS = "markdown,html,csv"


def summarise(store: Store, folder: Path, formats: list[str], options: Options) -> tuple[str, list[Path]]:
    """Write and print a report; returns what was printed, and the files."""
    from finetune_bench import registry
    from finetune_bench.reports.markdown import summary_table

    folder.mkdir(parents=True, exist_ok=True)
    gc.disable()  # every collection would walk all rows, and a report of ten thousand needs no memory back
    written = {name: registry.report_class(name)().write(store, folder, options) for name in formats}
    places = "\n".join(f"{name}: {paths[0]}" for name, paths in written.items())
    answer = f"{summary_table(store, options)}\n\n{places}"
    print(answer)
    return answer, [path for paths in written.values() for path in paths]


def report_command(parsed: argparse.Namespace) -> int:
    from finetune_bench import registry
    from finetune_bench.spec import split
    from finetune_bench.store.store import Store

    load_plugins(parsed.plugin)
    formats = split(parsed.format, ",")
    if not formats:
        raise UsageError("--format: expected one format or more, separated by commas; got none.")
    for name in formats:
        registry.report_class(name)  # an unknown format is told before any is written
    if parsed.margin is not None and not parsed.margin > 0:
        raise UsageError(f"--margin: expected a number of points above 0; got {parsed.margin:g}.")
    options = Options(baseline=parsed.baseline, margin=parsed.margin, bootstrap=parsed.bootstrap)
    store = Store.open(parsed.run)
    folder = Path(parsed.out) if parsed.out else store.root / "report"
    if parsed.check:
        return _check_report(store, folder, formats, options)
    summarise(store, folder, formats, options)
    return 0


def _check_report(store: Store, folder: Path, formats: list[str], options: Options) -> int:
    """Whether a written report is what its store gives now; says which files aren't, and where they first differ."""
    from tempfile import TemporaryDirectory

    from finetune_bench import registry

    if not folder.is_dir():
        raise UsageError(f"--check: expected a written report in '{folder}', but there is no such folder.")
    differing = checked = 0
    with TemporaryDirectory(prefix="finetune-bench-") as name:
        for path in [
            path for one in formats for path in registry.report_class(one)().write(store, Path(name), options)
        ]:
            checked += 1
            inside = path.relative_to(name)
            reason = _difference(path, folder / inside)
            if reason:
                differing += 1
                print(f"{folder / inside}: {reason}")
    print(f"{checked} files recomputed, {differing} differ.")
    return 1 if differing else 0


def _difference(fresh: Path, written: Path) -> str:
    """Where a written file first differs from a fresh one; "" where it doesn't."""
    if not written.is_file():
        return "missing"
    new, old = fresh.read_bytes(), written.read_bytes()
    if new == old:
        return ""
    if fresh.suffix in (".pdf", ".parquet"):
        return "differs"
    pairs = enumerate(zip(new.decode().splitlines(), old.decode("utf-8", "replace").splitlines(), strict=False), 1)
    for number, (own, other) in pairs:
        if own != other:
            at = next(
                (i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), min(len(own), len(other))
            )
            around = slice(max(0, at - 40), at + 40)
            return f"line {number}: '{other[around]}' is written, '{own[around]}' is computed"
    return "differs in length"


def compare_command(parsed: argparse.Namespace) -> int:
    from finetune_bench.reports.runs import as_text, compare
    from finetune_bench.store.store import Store

    first, second = map(Store.open, parsed.runs)
    print(as_text(*compare(first, second)))
    return 0


def merge_command(parsed: argparse.Namespace) -> int:
    from finetune_bench.store.merge import merge

    merged = merge(Path(parsed.out), [Path(run) for run in parsed.runs])
    for conflict in merged.conflicts:
        say(conflict)
    print(f"{merged.copied} cells copied to '{parsed.out}', {merged.present} were there already.")
    return 1 if merged.conflicts else 0


def power_command(parsed: argparse.Namespace) -> int:
    from finetune_bench.reports.power import as_text, power_lines
    from finetune_bench.store.store import Store

    if not parsed.difference > 0:
        raise UsageError(f"--difference: expected a number of points above 0; got {parsed.difference:g}.")
    if not 0.05 < parsed.power < 1:
        raise UsageError(f"--power: expected a share between 0.05 and 1; got {parsed.power:g}.")
    lines = power_lines(Store.open(parsed.run), parsed.difference, parsed.power)
    print(as_text(lines, parsed.difference, parsed.power))
    return 0
