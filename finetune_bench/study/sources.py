"""A study takes its values from flags, from a TOML file, and from the embedded study.

A key of the file is a flag without its dashes (`batch_size = 16`). Flags win over the file, the file over the defaults.
A file may have several grids: see `blocks.py`.
"""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.printable import brief
from finetune_bench.recipe import Recipe
from finetune_bench.study import readers
from finetune_bench.study.blocks import Block, has_blocks, join, refuse_flags, split_blocks
from finetune_bench.study.options import Option, options_of, parameter_option
from finetune_bench.study.study import Study

# The two options that are no field: a file of options, and two parameters of the recipe in one.
CONFIG = Option("config", "", readers.text, "FILE", "a TOML file with these options; flags win over it", "study")
_LARGEST_FILE = 1_000_000  # bytes
_MOST_DOTS = 200  # of a key: for one of n parts, the parser takes n² of time and memory
BETAS = Option("betas", "", readers.betas, "A,B", f"betas of AdamW or Lion ({Recipe.beta1},{Recipe.beta2})", "recipe")


def _all_options() -> tuple[Option, ...]:
    """Return every option in the order of the help: what to compare, where and how, the recipe."""
    of_study = {option.name: option for option in options_of(Study)}
    of_recipe: list[Option] = []
    for field in dataclasses.fields(Recipe):
        if field.name in of_study:  # the study says it for the recipes of all its cells
            of_recipe.append(of_study.pop(field.name))
        elif field.name == "beta1":
            of_recipe.append(BETAS)
        elif field.name != "beta2":
            of_recipe.append(parameter_option(Recipe, field))
    plugin = of_study.pop("plugin")
    compared = [option for option in of_study.values() if option.group == "study"]
    where = [option for option in of_study.values() if option.group == "where"]
    return (*compared, CONFIG, plugin, *where, *of_recipe)


OPTIONS = _all_options()


def read_options(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Read option values of one source.

    Args:
        values: by option name; None counts as not given.
        source: the file's name for messages; "" for flags.

    Raises:
        UnknownName: a key that is no option.
        UsageError: a value that can't be read; names the source, the key and the value.
    """
    known = {option.name: option for option in OPTIONS}
    former = {option.former_name: option.name for option in OPTIONS if option.former_name}
    results: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        name = former.get(name, name)
        if name not in known or (source and name == CONFIG.name):
            raise UnknownName(f"option{f' in {source}' if source else ''}", key, set(known) - {CONFIG.name})
        if value is None:
            continue
        try:
            results[name] = known[name].read(value)
        except ValueError as error:
            where = f"{source}: key '{key}'" if source else known[name].flag
            raise UsageError(f"{where}: expected {error}; got '{brief(value)}'.") from None
    return results


def read_toml(path: str) -> dict[str, Any]:
    """Read the options of a TOML file.

    Raises:
        UsageError: no such file, broken TOML (with its line), an unknown key or a wrong value.
    """
    return read_options(_load_toml(path), source=path)


def _load_toml(path: str) -> dict[str, Any]:
    """Return what stands in a TOML file.

    Raises:
        UsageError: no such file, or broken TOML (with its line).
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise UsageError(f"--config: '{brief(path)}' can't be read: {error.strerror}.") from None
    if len(content) > _LARGEST_FILE:
        raise UsageError(f"--config: '{brief(path)}' has more than {_LARGEST_FILE} bytes; is it a file of options?")
    try:
        text = content.decode()
        if any(piece.count(".") > _MOST_DOTS for piece in re.split(r"[=,#\[\]{}\n]", text)):
            raise ValueError(f"a key has more than {_MOST_DOTS} dots")
        values = tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"--config: '{brief(path)}' has brackets within brackets too deep to read.") from None
    except ValueError as error:  # broken TOML, bytes that are not UTF-8, a number of thousands of digits
        reason = str(error).partition(";")[0]
        raise UsageError(f"--config: '{brief(path)}' is not valid TOML: {brief(reason)}.") from None
    return values


def make_study(flags: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """Make the study that flags describe, with the file of --config and the defaults below them.

    Args:
        flags: by option name, texts or values; None where not given.
        defaults: yields the options of the embedded study; its recipe counts only where no task is named, its model
            wherever none is.

    Raises:
        UsageError: the first thing that is wrong.
    """
    given = read_options(flags)
    if CONFIG.name not in given:
        return _study_of(given, defaults)
    path = given.pop(CONFIG.name)
    return study_of_file(_load_toml(path), path, given, defaults)


def study_of_file(
    values: Mapping[str, Any], path: str, flags: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]
) -> Study:
    """Make the study that a file describes, with flags over it and defaults below.

    Args:
        values: what stands in the file.
        path: its name, for messages.
        flags: by option name, as in `make_study`.
        defaults: as in `make_study`.

    Raises:
        UsageError: the first thing that is wrong.
    """
    given = read_options(flags)
    if not has_blocks(values):
        return _study_of(read_options(values, source=path) | given, defaults)
    groups = {option.name: option.group for option in OPTIONS}
    blocks = split_blocks(values, path, groups, read_options)
    refuse_flags(blocks, given)
    return join([_study_of_block(block, given, defaults) for block in blocks])


def _study_of_block(block: Block, flags: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """Return the study of a block.

    Raises:
        UsageError: something in it is wrong; says in which block.
    """
    given = read_options(block.values, source=block.place) | dict(flags)
    try:
        return _study_of(given, defaults)
    except UsageError as error:
        raise UsageError(f"{block.place}: {error}") from None


def _study_of(given: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """Return the study that options make which were read, with the embedded study's for what they leave open."""
    embedded = read_options(defaults(), source="the embedded study")
    chosen = {"model": embedded["model"], **given} if "tasks" in given else embedded | dict(given)
    if "methods" not in chosen:
        chosen["methods"] = ("vanilla",)
    if "steps" in given:  # it replaces the embedded study's epochs
        chosen = {name: value for name, value in chosen.items() if name != "epochs" or name in given}
    beta1, beta2 = chosen.pop(BETAS.name, (Recipe.beta1, Recipe.beta2))
    fields = {option.field: option.field_value(chosen[option.name]) for option in OPTIONS if option.name in chosen}
    of_study = {field.name for field in dataclasses.fields(Study)}
    of_recipe = {name: fields.pop(name) for name in set(fields) - of_study}
    lrs = fields.pop("lrs", (Recipe.lr,))
    for lr in lrs:  # every learning rate is checked before any cell runs
        recipe = Recipe(lr=lr, beta1=beta1, beta2=beta2, **of_recipe)
    return Study(lrs=lrs, recipe=dataclasses.replace(recipe, lr=lrs[0]), **fields)


def with_defaults(study: Study, defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """Fill in what a study leaves open: the embedded study's tasks, or its model alone where tasks are named."""
    if study.blocks or (study.tasks and study.models):  # a block has both
        return study
    embedded = read_options(defaults(), source="the embedded study")
    return dataclasses.replace(study, tasks=study.tasks or embedded["tasks"], models=study.models or embedded["model"])
