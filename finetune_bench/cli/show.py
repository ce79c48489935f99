"""`list`, `show` and `check` are the commands that tell what there is: methods, tasks, formats, runs and cells."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_bench.cli import shown
from finetune_bench.cli.console import show
from finetune_bench.cli.documents import show_document
from finetune_bench.errors import UnknownName, UsageError

_HEADS = {
    "methods": {"name": "method", "summary": "what it is", "passes": "passes", "memory": "memory beside vanilla's"},
    "tasks": {"name": "task", "kind": "kind", "metrics": "metrics (the first is compared)", "classes": "classes"},
    "models": {"name": "model", "summary": "what it is", "licence": "licence", "place": "here"},
    "analyses": {"name": "analysis", "summary": "what it is", "needs_model": "needs the trained model"},
    "reports": {"name": "format", "summary": "what it is"},
}


def list_command(parsed: argparse.Namespace) -> int:
    """Print a table of all methods, tasks, checkpoints from packages, analyses or report formats; return 0."""
    from tabulate import tabulate

    load_plugins(parsed.plugin)
    entries = _entries(parsed.group)
    if parsed.json:
        show_document("list", {parsed.group: entries})
        return 0
    for entry in entries:
        if parsed.group == "methods":
            entry["passes"] = f"{entry['forwards']:g} + {entry['backwards']:g}"
            entry["memory"] = _memory_beside(entry["name"])
        elif parsed.group == "tasks":
            entry |= {"metrics": ", ".join(entry["metrics"]), "classes": len(entry["labels"]) or ""}
        elif parsed.group == "models":
            entry["place"] = "yes" if entry["here"] else f"no: {entry['how']}"
        elif parsed.group == "analyses":
            entry["needs_model"] = "yes" if entry["needs_model"] else "no: made of every run"
    heads = _HEADS[parsed.group]
    if parsed.group == "methods":
        show(tabulate(_grouped(entries, list(heads)), headers=list(heads.values()), tablefmt="simple"))
        show("\npasses: forward + backward, per step; memory: in the sizes that 'finetune-bench show NAME' explains")
        return 0
    lines = [[entry[key] for key in heads] for entry in entries]
    show(tabulate(lines, headers=list(heads.values()), tablefmt="simple"))
    return 0


def _grouped(entries: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[list[str]]:
    """Return the lines of a table of methods by what they act on, the baseline first, each group under its name."""
    from finetune_bench import registry
    from finetune_bench.method.base import PLACES

    lines = [[entry[key] for key in keys] for entry in entries if entry["name"] == registry.BASELINE]
    others = [entry for entry in entries if entry["name"] != registry.BASELINE]
    for place in (*PLACES, ""):
        of_place = [[entry[key] for key in keys] for entry in others if entry["acts_on"] == place]
        if of_place:
            lines += [[f"-- {place or 'something else'}", *[""] * (len(keys) - 1)], *of_place]
    return lines


def _memory_beside(name: str) -> str:
    """Return what a method keeps in memory at its defaults beside what vanilla keeps; "" for nothing."""
    from finetune_bench import registry
    from finetune_bench.method.asking import ask
    from finetune_bench.method.cost import SIZES, Memory

    before, after = Memory(), ask(registry.method_class(name)(), "memory", Memory())
    counts = {
        size: after.saved.get(size, 0) + after.kept.get(size, 0) - before.saved.get(size, 0) - before.kept.get(size, 0)
        for size in SIZES
    }
    return " ".join(f"{count:+g}·{size}" for size, count in counts.items() if count).replace("-", "−")


def _entries(group: str) -> list[dict[str, Any]]:
    """Return what `list` tells of every plugin of a group or checkpoint, with the keys of its document."""
    from finetune_bench import registry

    if group == "models":
        return _models()
    entries: list[dict[str, Any]] = []
    entry: dict[str, Any]
    for name in registry.names(group):
        if group == "methods":
            from finetune_bench.method.asking import ask
            from finetune_bench.method.cost import Memory, Passes

            method = registry.method_class(name)()
            passes, memory = ask(method, "passes", Passes()), ask(method, "memory", Memory())
            summary = (type(method).__doc__ or "").strip().partition("\n")[0]
            entry = {
                "summary": summary,
                "acts_on": method.acts_on,
                "forwards": passes.forwards,
                "backwards": passes.backwards,
                "saved": memory.saved_formula,
                "kept": memory.kept_formula,
            }
        elif group == "tasks":
            task = registry.task(name)
            entry = {"kind": task.kind, "metrics": task.metrics, "labels": task.labels}
        elif group == "analyses":
            analysis = registry.analysis_class(name)
            summary = (analysis.__doc__ or "").strip().partition("\n")[0]
            entry = {"summary": summary, "needs_model": analysis.needs_model}
        else:
            entry = {"summary": (registry.report_class(name).__doc__ or "").strip().partition("\n")[0]}
        entries.append({"name": name, **entry})
    return entries


def _models() -> list[dict[str, Any]]:
    """Return what `list` tells of every checkpoint that comes in Python packages."""
    from finetune_bench.model import packaged

    return [
        {
            "name": name,
            "summary": model.summary,
            "licence": model.licence,
            "here": packaged.is_here(name),
            "how": model.how,
        }
        for name, model in packaged.MODELS.items()
    ]


def show_command(parsed: argparse.Namespace) -> int:
    """Print what there is to know of a method or stack, a task, a report format, a run or a cell; return 0."""
    load_plugins(parsed.plugin)
    kind, facts, text = _found(parsed.name, parsed.run, Path(parsed.data_root) if parsed.data_root else None)
    if parsed.json:
        show_document("show", {kind: facts})
    else:
        show(text)
    return 0


def _found(name: str, run: str | None, data_root: Path | None) -> tuple[str, Mapping[str, Any], str]:
    """Return what a name stands for, with the keys of its part of the document, and as a text.

    Raises:
        UnknownName: it stands for nothing.
    """
    from finetune_bench import registry
    from finetune_bench.reports.card import card, find_cell
    from finetune_bench.store.reading import read_row

    methods = registry.names("methods")
    if name in methods:
        return "stack", *shown.stack(name)
    if name in registry.names("tasks"):
        return "task", *shown.task(registry.task(name), data_root)
    if name in registry.names("reports"):
        return "report", *shown.report_format(name)
    if os.path.isdir(os.path.join(name, "cells")) and name:  # noqa: PTH112, PTH118 — they take any text
        return "run", *shown.run(name)
    cell = find_cell(name, [Path(run)] if run else sorted(Path("runs").glob("*")))
    if cell is not None:
        store, cell_id = cell
        text = card(store, cell_id)
        return "cell", {"folder": str(store.folder(cell_id)), "row": dict(read_row(store.folder(cell_id))[0])}, text
    if any(mark in name for mark in "+(.:"):  # which no name has, but a stack, a file or a source
        if _is_stack(name):
            return "stack", *shown.stack(name)
        if registry.task_plugin(name)[0] != "tasks":
            return "task", *shown.task(registry.task(name), data_root)
    known = [*methods, *registry.names("tasks"), *registry.names("reports")]
    hint = "'finetune-bench list methods' shows the methods; a cell's run is given by --run."
    raise UnknownName("method, task, report, run or cell", name, known, hint)


def _is_stack(text: str) -> bool:
    """Return whether a text is that of a stack with a method that exists."""
    from finetune_bench import registry
    from finetune_bench.spec import parse_stack

    try:
        return any(call.name in registry.names("methods") for call in parse_stack(text))
    except UsageError:
        return False


def check_command(parsed: argparse.Namespace) -> int:
    """Run the contract's tests on a method, or on all of a plugin's file; return 1 where one failed."""
    from finetune_bench import registry
    from finetune_bench.testing.checks import check_method

    names: Sequence[str] = [parsed.target]
    if Path(parsed.target).suffix == ".py":
        names = [name for name in registry.load_plugin(parsed.target) if name in registry.names("methods")]
        if not names:
            raise UsageError(f"'{parsed.target}' defines no method to check.")
    failed = 0
    for name, method in [(name, registry.method_class(name)) for name in names]:
        show(f"{name}:")
        for check in check_method(method):
            show(f"  {check.outcome:4}  {check.name}" + (f": {check.detail}" if check.detail else ""))
            failed += check.outcome == "FAIL"
    return 1 if failed else 0


def load_plugins(text: str | None) -> None:
    """Load the files that --plugin names; None for none."""
    from finetune_bench import registry
    from finetune_bench.study.sources import read_options

    for plugin in read_options({"plugin": text}).get("plugin", ()):
        registry.load_plugin(plugin)
