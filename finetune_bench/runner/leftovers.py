"""Code from elsewhere is run in a process of its cell alone, so nothing of it reaches another cell.

A method can leave anything behind in a warm worker: a patched `nn.Linear.forward`, a global hook, gradients switched
off, another default dtype, changed examples in a cache, a thread. Comparing and restoring the process's state would
find what somebody thought of listing, and no more; a process that is gone has left nothing. A plugin is also imported
in these processes only, since importing it can patch as much as running it. The price is the start of a process per
cell, some seconds. This package's methods share warm workers: they change the model of their run and nothing of the
process, and the contract's checks hold the model that they leave against a plain one, not the process's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.spec import parse_call, parse_stack
from finetune_bench.study.grid import sources_of

if TYPE_CHECKING:
    from finetune_bench.study.grid import Cell

GROUPS = ("methods", "tasks", "task_files", "task_sources", "analyses")


def foreign_names() -> dict[str, list[str]]:
    """List what is known here and comes from elsewhere, by group; JSON can hold it."""
    return {group: registry.foreign(group) for group in GROUPS}


def is_foreign(cell: Cell, foreign: Mapping[str, Sequence[str]]) -> bool:
    """Say whether a cell, or what is measured of its model, runs code from elsewhere.

    Args:
        cell: as planned.
        foreign: what `foreign_names` gave where it was planned.
    """
    task = parse_call(cell.task).name
    return (
        any(call.name in foreign["methods"] for call in parse_stack(cell.method))
        or bool({cell.task, task} & set(foreign["tasks"]))
        or Path(task).suffix.lstrip(".").lower() in foreign["task_files"]
        or task.partition(":")[0] in foreign["task_sources"]
        or any(parse_call(text).name in foreign["analyses"] for text in cell.analyses)
    )


def import_plugins(cell: Cell, plugins: Sequence[str]) -> str | None:
    """Import the files of --plugin for a cell, and return why its code is not what was planned; None where it is.

    Args:
        cell: as planned.
        plugins: the files.
    """
    try:
        for plugin in plugins:
            registry.load_plugin(plugin)
        sources = sources_of(cell.method, cell.task)
    except FinetuneBenchError as error:
        return (
            f"its plugin changed after the run was planned, or can't be used by a worker: {error} Start the run again"
        )
    changed = sorted({text.rpartition(" ")[0] for text in {*sources} ^ {*cell.sources}})
    if not changed:
        return None
    return f"the source of {', '.join(changed)} changed after the run was planned; start it again"
