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
from finetune_bench.spec import parse_call, parse_stack

if TYPE_CHECKING:
    from finetune_bench.study.grid import Cell

GROUPS = ("methods", "tasks", "task_files")


def foreign_names() -> dict[str, list[str]]:
    """List what is known here and comes from elsewhere, by group; JSON can hold it."""
    return {group: registry.foreign(group) for group in GROUPS}


def is_foreign(cell: Cell, foreign: Mapping[str, Sequence[str]]) -> bool:
    """Say whether a cell runs code from elsewhere.

    Args:
        cell: as planned.
        foreign: what `foreign_names` gave where it was planned.
    """
    task = parse_call(cell.task).name
    return (
        any(call.name in foreign["methods"] for call in parse_stack(cell.method))
        or bool({cell.task, task} & set(foreign["tasks"]))
        or Path(task).suffix.lstrip(".").lower() in foreign["task_files"]
    )
