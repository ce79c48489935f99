"""A study file may have several grids: `[[grid]]` blocks with their own tasks, models, methods and recipe.

    seeds = 5                    what stands above the blocks holds for all of them

    [[grid]]
    tasks = ["rte", "mrpc"]
    model = "bert-base-cased"

    [[grid]]
    tasks = ["cola"]
    model = "roberta-base"
    batch_size = 32

    [recipe.rte]                 what differs for a task, in every block that runs it
    epochs = 10

Each block is a study as if it stood in a file of its own, and its cells have the ids that they have there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.printable import brief, listed
from finetune_bench.study.study import Study

GRID, RECIPE = "grid", "recipe"
_PLUGIN = "plugin"  # its methods and tasks are those of the whole study


@dataclass(frozen=True)
class Block:
    """A block is one grid of a study file.

    Attributes:
        place: where it stands, for messages.
        values: its options as they stand in the file, with what stands above the blocks.
        own: the names that the block says itself, or that are said for its task.
    """

    place: str
    values: dict[str, Any]
    own: frozenset[str]


def has_blocks(values: Mapping[str, Any]) -> bool:
    """Tell whether a study file has several grids, or recipes of single tasks."""
    return GRID in values or RECIPE in values


def split_blocks(
    values: Mapping[str, Any],
    path: str,
    groups: Mapping[str, str],
    read: Callable[[Mapping[str, Any], str], dict[str, Any]],
) -> list[Block]:
    """Split a study file into its blocks; tasks with a recipe of their own become blocks of their own.

    Args:
        values: the whole file.
        path: its name, for messages.
        groups: the group of every option, by its name; a block may say what to compare and the recipe.
        read: reads options of one source, as `sources.read_options` does.

    Raises:
        UsageError: a block that can't be one, a key that is not for blocks, a recipe of a task that no block runs.
    """
    common = {key: value for key, value in values.items() if key not in (GRID, RECIPE)}
    for_all = _recipes(values.get(RECIPE, {}), path, path, groups)
    grids = values.get(GRID, [{}])
    if not isinstance(grids, list) or not grids or not all(isinstance(grid, dict) for grid in grids):
        raise UsageError(f"{path}: expected '{GRID}' as [[{GRID}]], one table or more; got {brief(repr(grids), 60)}.")
    blocks: list[Block] = []
    used: set[str] = set()
    for number, grid in enumerate(grids, start=1):
        place = f"{path}, [[{GRID}]] block {number}" if GRID in values else path
        own = {_name(key): value for key, value in grid.items() if key != RECIPE}
        _refuse_keys(own, ("study", "recipe"), place, groups)
        recipes = _recipes(grid.get(RECIPE, {}), path, place, groups)
        merged = _over(common, own)
        tasks = read(merged, place).get("tasks", ())
        if not tasks:
            raise UsageError(f'{place}: expected its tasks, as tasks = ["rte"]; got none.')
        if unknown := sorted(set(recipes) - set(tasks)):
            raise UsageError(f"{place}: [{RECIPE}.{brief(unknown[0])}]: the block doesn't run '{brief(unknown[0])}'.")
        used |= set(tasks)
        special = {task: _over(for_all.get(task, {}), recipes.get(task, {})) for task in tasks}
        plain = [task for task in tasks if not special[task]]
        if plain:
            blocks.append(Block(place, merged | {"tasks": plain}, frozenset(own)))
        for task in tasks:
            if special[task]:
                said = frozenset({*own, *special[task]})
                blocks.append(Block(f"{place}, task '{task}'", _over(merged, special[task]) | {"tasks": [task]}, said))
    if unused := sorted(set(for_all) - used):
        raise UsageError(f"{path}: [{RECIPE}.{brief(unused[0])}]: no block runs '{brief(unused[0])}'.")
    return blocks


def refuse_flags(blocks: Iterable[Block], flags: Iterable[str]) -> None:
    """Refuse flags that would silently change what single blocks say.

    Raises:
        UsageError: names the flag and the first such block.
    """
    for flag in sorted(flags):
        for block in blocks:
            if flag in block.own:
                shown = flag.replace("_", "-")
                raise UsageError(f"--{shown}: {block.place} says its own; change it there, or leave the flag out.")


def join(studies: Sequence[Study]) -> Study:
    """Return the study that several blocks make together: its lists hold what any of them has.

    Raises:
        UsageError: blocks search; each would draw its own settings for one table.
    """
    if len(studies) == 1:
        return studies[0]
    if any(study.search is not None for study in studies):
        raise UsageError(
            f"--search: leave it out with [[{GRID}]] blocks or [{RECIPE}.TASK]: each would draw its own settings. "
            "Give several learning rates and --hold-out, or search each block alone."
        )

    def union(field: str) -> tuple[Any, ...]:
        return tuple(dict.fromkeys(value for study in studies for value in getattr(study, field)))

    lists: dict[str, Any] = {
        field: union(field) for field in ("methods", "tasks", "models", "lrs", "seeds", "analyses")
    }
    return dataclasses.replace(
        studies[0],
        **lists,
        hold_out=any(study.hold_out for study in studies),
        trust_plugins=all(study.trust_plugins for study in studies),
        blocks=tuple(studies),
    )


def block_name(study: Study) -> str:
    """Return what a block is called in messages that come after the file was read."""
    return f"in the block of {listed(study.tasks)} on {listed(study.models)}"


def _recipes(values: Any, path: str, place: str, groups: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the recipes of single tasks, by the task as typed."""
    if not isinstance(values, dict) or not all(isinstance(recipe, dict) for recipe in values.values()):
        raise UsageError(f"{place}: expected '{RECIPE}' as tables [{RECIPE}.TASK]; got {brief(repr(values), 60)}.")
    recipes = {}
    for task, recipe in values.items():
        named = {_name(key): value for key, value in recipe.items()}
        _refuse_keys(named, ("recipe",), f"{path}, [{RECIPE}.{brief(task)}]", groups)
        recipes[task] = named
    return recipes


def _refuse_keys(values: Mapping[str, Any], allowed: Sequence[str], place: str, groups: Mapping[str, str]) -> None:
    """Refuse options that a block, or a recipe, can't say; an unknown key is refused where options are read."""
    for key in values:
        group = "where" if key == _PLUGIN else groups.get(key, allowed[0])
        if group in allowed:
            continue
        if group == "study":
            raise UsageError(f"{place}: key '{key}' is no part of a recipe; put it into a [[{GRID}]] block.")
        raise UsageError(f"{place}: key '{key}' holds for the whole study; put it above the first block.")


def _over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lower values with the upper ones over them; steps replace epochs, and the other way round."""
    instead = {"steps": "epochs", "epochs": "steps"}
    gone = {instead[key] for key in upper if key in instead} - set(upper)
    return {key: value for key, value in lower.items() if key not in gone} | dict(upper)


def _name(key: str) -> str:
    return key.replace("-", "_")
