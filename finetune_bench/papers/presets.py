"""Presets are studies that somebody published, as study files: what is not printed of them is named as our choice.

A preset is a study file in `presets/`, with a table beside its options:

    [preset]
    title = "Table 1: ..."        what it reproduces
    source = "..."                where that stands
    paper = "hype"                whose numbers it can be held against; "" for none
    table = 1                     the number of the table that is laid beside the run; none for a picture
    our_choice = ["..."]          what is not printed there
    analyses = ["transfer"]       analyses that the table is made of

    [[preset.published]]          a printed number where there is no such table: its source, method, task, metric, score

    [preset.small]                what replaces checkpoints, tasks, methods, analyses and sizes on a small machine

At the small scale its methods and tasks make one grid, on small checkpoints and little data; what it leaves out is
told.
How large the checkpoints are stands in `checkpoints.toml`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from finetune_bench.errors import UnknownName

FULL, SMALL = "full", "small"
SCALES = (FULL, SMALL)
_SUFFIX = ".toml"


@dataclass(frozen=True)
class Size:
    """A Size tells how large a checkpoint is, without any head.

    Attributes:
        parameters: how many it has.
        bytes: what they take in float32.
        body: how many of them every token passes: all but the embeddings of words.
        layers: the number of its layers.
        hidden: their width.
    """

    parameters: int
    bytes: int
    body: int
    layers: int
    hidden: int


@dataclass(frozen=True)
class Printed:
    """A Printed score stands in no table of a paper that is here.

    Attributes:
        source: who printed it.
        method: the method, without parameters.
        task: the task.
        metric: the score's name.
        score: in points.
    """

    source: str
    method: str
    task: str
    metric: str
    score: float


@dataclass(frozen=True)
class Preset:
    """A preset is a published study.

    Attributes:
        name: the name of its file.
        title: what it reproduces.
        source: where that stands.
        paper: the paper whose numbers it can be held against; "" for none.
        table: the number of the paper's table; None for a picture, and without a paper.
        published: printed numbers that stand in no such table.
        our_choice: what is not printed there.
        analyses: the analyses that it needs.
        values: the options and blocks of the study, as a file has them.
        small: the options that replace them at the small scale.
    """

    name: str
    title: str
    source: str
    paper: str
    table: int | None
    published: tuple[Printed, ...]
    our_choice: tuple[str, ...]
    analyses: tuple[str, ...]
    values: Mapping[str, Any]
    small: Mapping[str, Any]

    def at(self, scale: str) -> dict[str, Any]:
        """Return the options and blocks of the study at a scale, as a file has them."""
        if scale == FULL:
            return dict(self.values)
        gone = {"grid", *(("epochs",) if "steps" in self.small else ())}
        common = {key: value for key, value in self.values.items() if key not in gone}
        small = {key: value for key, value in self.small.items() if key != "analyses"}
        return common | {"tasks": self.listed("tasks"), "methods": self.listed("methods")} | small

    def analyses_at(self, scale: str) -> list[str]:
        """Return the analyses that it needs at a scale."""
        return list(self.analyses if scale == FULL else self.small.get("analyses", self.analyses))

    def listed(self, key: str) -> list[str]:
        """Return all tasks, methods or models of its blocks, each once."""
        listed: dict[str, None] = {}
        for block in self.values["grid"]:
            values = block[key]
            listed |= dict.fromkeys([values] if isinstance(values, str) else values)
        return list(listed)

    def described(self, scale: str) -> str:
        """Return what a report of the study says of itself on its first lines."""
        text = f"This is the preset {self.name}: {self.title} ({self.source})."
        if scale == FULL:
            return f"{text} Our choice, since it is not printed: {'; '.join(self.our_choice)}."
        left_out = [
            f"{', '.join(gone)} left out"
            for key in ("tasks", "methods")
            if (gone := [name for name in self.listed(key) if name not in self.small.get(key, self.listed(key))])
        ]
        sizes = (
            f"{self.small['limit_train']:,} training examples and {self.small['seeds']} seeds unless others were named"
        )
        return (
            f"{text} It ran at a small scale: {', '.join(self.small['model'])} in place of "
            f"{', '.join(self.listed('model'))}; {sizes}; one recipe for all tasks"
            f"{''.join(f'; {gone}' for gone in left_out)}. Its scores are not to be held against the published ones."
        )


def preset_names() -> list[str]:
    """Return the names of all presets."""
    entries = files(__package__).joinpath("presets").iterdir()
    return sorted(entry.name.removesuffix(_SUFFIX) for entry in entries if entry.name.endswith(_SUFFIX))


@cache
def load_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        UnknownName: there is no such preset.
    """
    if name not in preset_names():
        raise UnknownName("preset", name, preset_names(), "'finetune-bench reproduce --list' shows them.")
    values = tomllib.loads(files(__package__).joinpath("presets", f"{name}{_SUFFIX}").read_text("utf-8"))
    preset = values.pop("preset")
    return Preset(
        name=name,
        title=preset["title"],
        source=preset["source"],
        paper=preset["paper"],
        table=preset.get("table"),
        published=tuple(Printed(**printed) for printed in preset.get("published", [])),
        our_choice=tuple(preset["our_choice"]),
        analyses=tuple(preset["analyses"]),
        values=values,
        small=preset["small"],
    )


@cache
def checkpoint_sizes() -> dict[str, Size]:
    """Return the sizes of the checkpoints that the presets name, by the checkpoint's name."""
    values = tomllib.loads(files(__package__).joinpath("checkpoints.toml").read_text("utf-8"))
    return {name: Size(**size) for name, size in values.items()}
