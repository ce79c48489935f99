"""`list`, `show` and `check` are the commands that tell what there is: methods, tasks, formats and cells."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_bench.cli.console import show
from finetune_bench.errors import UsageError

if TYPE_CHECKING:
    from finetune_bench.method.base import Method
    from finetune_bench.task import Task


def list_command(parsed: argparse.Namespace) -> int:
    """Print a table of all methods, tasks, checkpoints from packages or report formats; return 0."""
    from tabulate import tabulate

    from finetune_bench import registry

    load_plugins(parsed.plugin)
    lines: list[list[str | int]] = []
    if parsed.group == "models":
        lines += _models()
    for name in registry.names(parsed.group) if parsed.group != "models" else ():
        if parsed.group == "methods":
            from finetune_bench.method.asking import ask
            from finetune_bench.method.cost import Passes

            method = registry.method_class(name)()
            passes = ask(method, "passes", Passes())
            summary = (type(method).__doc__ or "").strip().partition("\n")[0]
            lines.append([name, summary, f"{passes.forwards} + {passes.backwards}"])
        elif parsed.group == "tasks":
            task = registry.task(name)
            lines.append([name, task.kind, ", ".join(task.metrics), len(task.labels) or ""])
        else:
            lines.append([name, (registry.report_class(name).__doc__ or "").strip().splitlines()[0]])
    heads = {
        "methods": ["method", "what it is", "passes per step (forward + backward)"],
        "tasks": ["task", "kind", "metrics (the first is compared)", "classes"],
        "models": ["model", "what it is", "licence", "here"],
        "reports": ["format", "what it is"],
    }
    show(tabulate(lines, headers=heads[parsed.group], tablefmt="simple"))
    return 0


def _models() -> list[list[str | int]]:
    """Return a line for each checkpoint that comes in Python packages."""
    from finetune_bench.model import packaged

    return [
        [name, model.summary, model.licence, "yes" if packaged.is_here(name) else f"no: {model.how}"]
        for name, model in packaged.MODELS.items()
    ]


def show_command(parsed: argparse.Namespace) -> int:
    """Print a method's card, a task, or a cell of a run; return 0."""
    from finetune_bench import registry

    load_plugins(parsed.plugin)
    if parsed.name in registry.names("methods"):
        _show_method(registry.method_class(parsed.name))
    elif parsed.name in registry.names("tasks"):
        _show_task(registry.task(parsed.name))
    else:
        _show_cell(parsed.name, [Path(parsed.run)] if parsed.run else sorted(Path("runs").glob("*")))
    return 0


def _show_method(owner: type[Method]) -> None:
    import dataclasses

    from tabulate import tabulate

    from finetune_bench.parameters import as_text, expectation

    show((sys.modules[owner.__module__].__doc__ or owner.__doc__ or "").strip())
    show(f"\n{_costs(owner())}\n\nParameters:\n")
    lines = [
        [field.name, as_text(field.default), expectation(owner, field), field.metadata.get("help", "")]
        for field in dataclasses.fields(owner)
    ]
    show(tabulate(lines, headers=["parameter", "default", "must be", "what it is"], tablefmt="simple"))


def _show_task(task: Task) -> None:
    show(f"{task.name}: {task.kind}; metrics: {', '.join(task.metrics)}")
    if task.labels:
        show(f"classes, from id 0: {', '.join(task.labels)}")


def _show_cell(name: str, runs: list[Path]) -> None:
    from finetune_bench import registry
    from finetune_bench.errors import UnknownName
    from finetune_bench.reports.card import card, find_cell

    cell = find_cell(name, runs)
    if cell is None:
        known = [*registry.names("methods"), *registry.names("tasks")]
        hint = "'finetune-bench list methods' shows the methods; a cell's run is given by --run."
        raise UnknownName("method, task or cell", name, known, hint)
    show(card(*cell))


def _costs(method: Method) -> str:
    """Return the cost model of a method at its defaults, as a text of several lines."""
    from finetune_bench.method.asking import ask
    from finetune_bench.method.cost import SIZES, Memory, Passes

    passes, memory = ask(method, "passes", Passes()), ask(method, "memory", Memory())
    used = [name for name in SIZES if memory.saved.get(name) or memory.kept.get(name)]
    return "\n".join(
        [
            "Cost model, at the defaults:\n",
            f"  passes per step             {passes.forwards} forward + {passes.backwards} backward",
            f"  saved for the backward pass {memory.saved_formula}",
            f"  kept beside weights, gradients and two moments: {memory.kept_formula}\n",
            *(f"  {name:8} {SIZES[name]}" for name in used),
        ]
    )


def check_command(parsed: argparse.Namespace) -> int:
    """Run the contract's tests on a method, or on all of a plugin's file; return 1 where one failed."""
    from finetune_bench import registry
    from finetune_bench.testing.checks import check_method

    names = [parsed.target]
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
