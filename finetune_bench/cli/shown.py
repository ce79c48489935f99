"""Describe stacks, tasks, report formats and runs for `show`: each as a part of its document, and as a text."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.printable import brief

if TYPE_CHECKING:
    from finetune_bench.task import Split, Task

Shown = tuple[dict[str, Any], str]

_TEXTS = 2  # training examples of a task that are shown


def stack(text: str) -> Shown:
    """Return what there is to know of a stack, or of a single method: cards, cost and parameters."""
    from finetune_bench import registry
    from finetune_bench.method.asking import ask
    from finetune_bench.method.cost import SIZES, Memory, Passes
    from finetune_bench.parameters import as_text, expectation

    made = registry.make_stack(text)
    passes, memory = ask(made, "passes", Passes()), ask(made, "memory", Memory())
    methods: list[dict[str, Any]] = [
        {
            "name": method.name,
            "version": method.version,
            "card": (sys.modules[type(method).__module__].__doc__ or type(method).__doc__ or "").strip(),
            "own_learning_rate": method.own_learning_rate,
            "parameters": [
                {
                    "name": field.name,
                    "value": as_text(getattr(method, field.name)),
                    "default": as_text(field.default),
                    "expected": expectation(type(method), field),
                    "help": field.metadata.get("help", ""),
                }
                for field in dataclasses.fields(method)
            ],
        }
        for method in made.methods
    ]
    facts = {
        "label": registry.describe(made),
        "full": registry.describe(made, full=True),
        "forwards": passes.forwards,
        "backwards": passes.backwards,
        "saved": memory.saved_formula,
        "kept": memory.kept_formula,
        "methods": methods,
    }
    used = [name for name in SIZES if memory.saved.get(name) or memory.kept.get(name)]
    costs = [
        f"Cost model, {'at the defaults' if facts['label'] == made.methods[0].name else 'with these parameters'}:\n",
        f"  passes per step             {passes.forwards:g} forward + {passes.backwards:g} backward",
        f"  saved for the backward pass {memory.saved_formula}",
        f"  kept beside weights, gradients and two moments: {memory.kept_formula}\n",
        *(f"  {name:8} {SIZES[name]}" for name in used),
    ]
    rates = {method.name: method.own_learning_rate for method in made.methods if method.own_learning_rate}
    costs += [f"\n{name} is to be compared at its own learning rate: {why}." for name, why in rates.items()]
    needs = {method.name: method.needs_adamw for method in made.methods if method.needs_adamw}
    costs += [f"\n{name} needs --optimizer adamw: {why}." for name, why in needs.items()]
    if len(methods) == 1:
        return facts, "\n".join([methods[0]["card"], "", *costs, "", "Parameters:\n", _parameters(methods[0])])
    parts = [f"{facts['label']}: a stack of {len(methods)} methods; the leftmost is outermost.", "\n".join(costs)]
    for method in methods:
        parts.append(f"{method['name']}: {method['card'].partition(chr(10))[0]}\n\n{_parameters(method)}")
    return facts, "\n\n".join([*parts, "'finetune-bench show METHOD' has the whole card of each."])


def _parameters(method: Mapping[str, Any]) -> str:
    """Return the table of a method's parameters; their values where a stack sets any."""
    from tabulate import tabulate

    lines = method["parameters"]
    is_set = any(line["value"] != line["default"] for line in lines)
    keys = ["name", *(["value"] if is_set else []), "default", "expected", "help"]
    heads = {"name": "parameter", "expected": "must be", "help": "what it is"}
    rows = [[line[key] for key in keys] for line in lines]
    return tabulate(rows, headers=[heads.get(key, key) for key in keys], tablefmt="simple", disable_numparse=True)


def task(task: Task, data_root: Path | None) -> Shown:
    """Return what there is to know of a task: what it is, its sizes, some of its texts, and where they come from.

    Args:
        task: the task.
        data_root: a folder in the hub's layout; None to read only what takes no network.
    """
    provenance, licence = task.provenance(), task.licence or "not stated by the task"
    examples, texts, notes = dict(provenance.published), [], []
    is_read = False
    if data_root is not None or not (examples or provenance.source.endswith("on the hub")):
        try:
            data = task.load(data_root)
        except FinetuneBenchError as error:
            notes.append(f"The data can't be read: {brief(error, 500)}")
        else:
            is_read, notes = True, list(data.notes)
            examples = {"train": len(data.train), **{name: len(split) for name, split in data.evaluation.items()}}
            texts = [_texts(data.train, index) for index in range(min(_TEXTS, len(data.train)))]
    facts = {
        "name": task.name,
        "kind": task.kind,
        "metrics": task.metrics,
        "labels": task.labels,
        "examples": examples,
        "is_read": is_read,
        "texts": texts,
        "source": provenance.source,
        "licence": licence,
        "notes": notes,
    }
    lines = [f"{task.name}: {task.kind}; metrics: {', '.join(task.metrics)} (the first is compared)"]
    if task.labels:
        lines.append(f"classes, from id 0: {', '.join(task.labels)}")
    if examples:
        sizes = ", ".join(f"{name} {count:,}" for name, count in examples.items())
        lines.append(f"examples{'' if is_read else ', as published'}: {sizes}")
    lines += [f"source: {provenance.source}", f"licence: {licence}", *notes]
    if texts:
        lines += ["the first training examples:", *(f"  {' | '.join(map(brief, pair))}" for pair in texts)]
    elif not is_read and not notes:
        lines.append("Its texts are shown with --data-root, from a folder laid out like the hub.")
    return facts, "\n".join(lines)


def _texts(split: Split, index: int) -> list[str]:
    """Return the text of an example, or both texts of a pair."""
    return [split.texts[index], *([] if split.pairs is None else [split.pairs[index]])]


def report_format(name: str) -> Shown:
    """Return what a report format says of itself."""
    import inspect

    from finetune_bench import registry

    text = inspect.getdoc(registry.report_class(name)) or ""
    return {"name": name, "help": text}, f"{text}\n\nIt is written by: finetune-bench report RUN --format {name}"


def run(folder: str) -> Shown:
    """Return what there is to know of a run folder: what was asked for, and what came of it."""
    from finetune_bench.store.store import Store

    store = Store.open(folder)
    rows, damaged = store.read()
    study = store.study()
    every = [row for row, _ in rows.values()]
    started = sorted(row["started"] for row in every if "started" in row)
    finished = sorted(row["finished"] for row in every if "finished" in row)
    reports = store.root / "report"
    facts: dict[str, Any] = {
        "folder": str(store.root),
        "methods": _in_order([row["method"] for row in every], study.get("methods")),
        "tasks": _in_order([row["task"] for row in every], study.get("tasks")),
        "models": _in_order([row["model"] for row in every], study.get("models")),
        "seeds": sorted({row["seed"] for row in every}),
        "statuses": dict(sorted(Counter(str(row["status"]) for row in every).items())),
        "other_shards": len(other_shards(study, rows)),
        "started": started[0] if started else None,
        "finished": finished[-1] if finished else None,
        "seconds": sum(row.get("seconds") or 0.0 for row in every),
        "damaged": sorted(damaged),
        "reports": sorted(str(path) for path in reports.glob("report.*") if path.is_file()),
    }
    counts = ", ".join(f"{count} {status}" for status, count in facts["statuses"].items())
    lines = [
        f"{store.root}: {runs(len(every))} ({counts or 'none'})",
        *(f"{key}: {', '.join(map(str, facts[key])) or 'none'}" for key in ("methods", "tasks", "models", "seeds")),
    ]
    if started and finished:
        lines.append(f"from {started[0]} to {finished[-1]}, {facts['seconds']:.0f} s of runs")
    if facts["other_shards"]:
        lines.append(f"a shard; left to other shards: {runs(facts['other_shards'], 'more ')} of its study")
    if damaged:
        lines.append(f"damaged: {', '.join(sorted(damaged)[:5])}; `finetune-bench verify` names all that is")
    lines.append(f"report: {', '.join(facts['reports']) or f'none yet; finetune-bench report {store.root}'}")
    lines.append(f"what is left to do: finetune-bench status {store.root}")
    return facts, "\n".join(lines)


def runs(count: int, more: str = "") -> str:
    """Write how many runs there are: `1 run`, `2 more runs`."""
    return f"{count} {more}run{'' if count == 1 else 's'}"


def other_shards(study: Mapping[str, Any], rows: Mapping[str, Any]) -> set[str]:
    """Return the ids of the runs of a study that other shards have, as far as the folder has no rows of them."""
    return set(study.get("other_shards") or ()) - set(study.get("cells") or ()) - rows.keys()


def _in_order(names: Sequence[str], asked: Sequence[str] | None) -> list[str]:
    """Return different names, those that were asked for first and in that order."""
    wanted = [name for name in asked or () if name in names]
    return list(dict.fromkeys([*wanted, *sorted(names)]))
