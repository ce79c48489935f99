"""Presets are studies that somebody published, as study files: what is not printed of them is named as our choice.

A preset is a study file in `presets/`, with a table beside its options:

    [preset]
    title = "Table 1: ..."        what it reproduces
    source = "..."                where that stands
    paper = "hype"                whose numbers it can be held against; "" for none
    our_choice = ["..."]          what is not printed there
    analyses = ["transfer"]       analyses that the table is made of

    [preset.small]                what replaces checkpoints and sizes on a small machine

At the small scale all of its methods and tasks make one grid, on small checkpoints and little data.
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
class Preset:
    """A preset is a published study.

    Attributes:
        name: the name of its file.
        title: what it reproduces.
        source: where that stands.
        paper: the paper whose numbers it can be held against; "" for none.
        our_choice: what is not printed there.
        analyses: the analyses that it needs.
        values: the options and blocks of the study, as a file has them.
        small: the options that replace them at the small scale.
    """

    name: str
    title: str
    source: str
    paper: str
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
        return common | {"tasks": self.listed("tasks"), "methods": self.listed("methods")} | dict(self.small)

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
        models = self.small["model"]
        examples = f" and {self.small['limit_train']:,} training examples in place of its own sizes"
        return (
            f"{text} It ran at a small scale: {', '.join(models)} in place of {', '.join(self.listed('model'))}"
            f"{examples}, with one recipe for all tasks. Its scores are not to be held against the published ones."
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
        our_choice=tuple(preset["our_choice"]),
        analyses=tuple(preset["analyses"]),
        values=values,
        small=preset["small"],
    )
