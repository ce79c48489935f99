"""Finds methods that trained alike: the same at every recorded step, or nearly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Data, Section, is_vanilla


def _alone(section: Section, part: Mapping[str, Any]) -> tuple[str | None, str]:
    def same(label: str) -> bool:
        (other,) = section.parts(label)
        return other["name"] == part["name"] and other.get("parameters") == part.get("parameters")

    singles = [label for label in section.methods if len(section.parts(label)) == 1]
    for label in singles:
        if same(label):
            return label, ""
    if part["name"] in singles:  # a bare name is the label of the defaults
        return part["name"], f"The part {part['name']} was run alone at its default parameters only."
    return None, ""


@dataclass(frozen=True)
class Twin:
    """A run that equals another one at every recorded step: whatever tells them apart did nothing."""

    section: str
    method: str
    twin: str
    task: str
    seed: int


def twins(data: Data, section: Section) -> list[Twin]:
    """Runs whose losses and weight sketches are those of vanilla, or of a part of their stack, to the last bit."""
    result = []
    for task, seed in itertools.product(section.tasks, section.seeds):
        digests: dict[str, str] = {}
        for method in section.methods:
            row = section.runs.get((method, task, seed))
            if row is not None and row["status"] == "done" and (found := data.digest(row)) is not None:
                digests[method] = found
        for method, own in digests.items():
            for other in _effect_off(section, method):
                if digests.get(other) == own and section.paired(method, other, task, seed):
                    result.append(Twin(section.title, method, other, task, seed))
                    break
    return result


@once
def _effect_off(section: Section, method: str) -> list[str]:
    """Runs that a method should differ from: vanilla with each dropout, and the parts of a stack."""
    parts = section.parts(method)
    vanilla = [label for label in section.methods if is_vanilla(section.parts(label))]
    if method in vanilla:  # a control is held against those before it, so that a pair is reported once
        return vanilla[: vanilla.index(method)]
    alone = [label for part in parts if len(parts) > 1 and (label := _alone(section, part)[0]) is not None]
    return vanilla + alone
