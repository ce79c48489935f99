"""Runs of tasks that each have a recipe of their own are one comparison: their settings are joined here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

from finetune_bench.recipe import OPTIMIZERS
from finetune_bench.store.row import Row

# Runs of one setting, or of several that have no task in common.
Group: TypeAlias = list[list[Row]]


def joined(settings: Sequence[list[Row]]) -> list[Group]:
    """Join settings that have no task in common, as those of a study file with `[recipe.TASK]`.

    Within a task all methods have one setting then, and nothing is compared across settings; only the mean over tasks
    takes them together. Several learning rates of the same tasks stay apart: joined are, for each of them, the tasks
    that differ in something else. Models and optimisers always stay apart.

    Args:
        settings: the rows of each setting.
    """
    groups: list[Group] = [[rows] for rows in settings]
    # `examples` is set where a task's data changed: such a task is there twice, under two names.
    for keys in (("model", "examples", "optimizer", "lr"), ("model", "examples", "optimizer")):
        alike: dict[tuple[Any, ...], list[Group]] = {}
        for group in groups:
            alike.setdefault(_values(group[0][0], keys), []).append(group)
        groups = []
        for candidates in alike.values():
            tasks = [{row["task"] for rows in group for row in rows} for group in candidates]
            apart = len(set().union(*tasks)) < sum(map(len, tasks))
            groups += candidates if apart else [list(chain.from_iterable(candidates))]
    return groups


def _values(row: Row, keys: Sequence[str]) -> tuple[Any, ...]:
    recipe: dict[str, Any] = {"optimizer": OPTIMIZERS[0], **(row.get("recipe") or {})}
    return tuple(recipe.get(key, row.get(key)) for key in keys)


def joined_setting(settings: Sequence[tuple[Mapping[str, Any], Sequence[str]]]) -> dict[str, Any]:
    """Return one setting for several: what differs between them is a text that names the tasks of each value.

    Args:
        settings: what each has, flat, and its tasks.
    """
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for setting, _ in settings for key in setting):
        tasks: dict[str, list[str]] = {}
        for setting, of_setting in settings:
            value = setting.get(key)
            tasks.setdefault(f"{value:g}" if isinstance(value, float) else str(value), []).extend(of_setting)
        several = [f"{text} ({', '.join(names)})" for text, names in tasks.items()]
        result[key] = " and ".join(several) if len(several) > 1 else settings[0][0].get(key)
    return result


def own_models(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the model of each of several settings, if no two have the same; else nothing."""
    models = [str(setting.get("model")) for setting in settings]
    return models if len(set(models)) == len(models) > 1 else []


def on_cpu(rows: Iterable[Row]) -> tuple[bool, bool]:
    """Return whether some of the runs, and whether all of them, ran on a CPU: tasks may have run on two devices."""
    found = {str(row.get("device")).startswith("cpu") for row in rows}
    return True in found, found == {True}
