"""Find runs that trained alike, the same at every recorded step: whatever tells them apart did nothing."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section, is_vanilla
from finetune_bench.store.row import MethodEntry, Status


@dataclass(frozen=True)
class Twin:
    """A twin is a run that equals another one at every recorded step.

    Attributes:
        section: Title of the section.
        method: Label of the run.
        twin: Label of the run that it equals.
        task: Their task.
        seed: Their seed.
    """

    section: str
    method: str
    twin: str
    task: str
    seed: int


def twins(data: Data, section: Section) -> list[Twin]:
    """Return the runs whose losses and weight sketches are those of vanilla or of a part of their stack."""
    result = []
    for task, seed in itertools.product(section.tasks, section.seeds):
        digests: dict[str, str] = {}
        for method in section.methods:
            row = section.runs.get((method, task, seed))
            if row is not None and row["status"] == Status.DONE and (digest := data.digest(row)) is not None:
                digests[method] = digest
        for method, digest in digests.items():
            for other in _effect_off(section, method):
                if digests.get(other) == digest and section.paired(method, other, task, seed):
                    result.append(Twin(section.title, method, other, task, seed))
                    break
    return result


@cached
def _effect_off(section: Section, method: str) -> list[str]:
    """Return the runs that a method should differ from: vanilla with each dropout, and the parts of a stack."""
    parts = section.parts(method)
    vanilla = [label for label in section.methods if is_vanilla(section.parts(label))]
    if method in vanilla:
        # A control is held against those before it, so that a pair is reported once.
        return vanilla[: vanilla.index(method)]
    alone = [label for part in parts if len(parts) > 1 and (label := run_alone(section, part)[0]) is not None]
    return vanilla + alone


def run_alone(section: Section, part: MethodEntry) -> tuple[str | None, str]:
    """Return the label under which a part of a stack was run alone, and a note where its parameters are others.

    Args:
        section: Where to look.
        part: A method's name and parameters, as a row has them.

    Returns:
        The label, None where the part was not run alone; and the note, "" for the same parameters.
    """

    def same(label: str) -> bool:
        (other,) = section.parts(label)
        return other["name"] == part["name"] and other.get("parameters") == part.get("parameters")

    singles = [label for label in section.methods if len(section.parts(label)) == 1]
    for label in singles:
        if same(label):
            return label, ""
    if part["name"] in singles:
        # A bare name is the label of the method at its defaults.
        return part["name"], f"The part {part['name']} was run alone at its default parameters only."
    return None, ""
