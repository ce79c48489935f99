"""From a study to cells. A cell is one training run, fully specified; its id is the hash of all that can change it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from finetune_bench import registry
from finetune_bench.attribution import effect_chain, label_of
from finetune_bench.errors import UsageError
from finetune_bench.study import Recipe, Study

if TYPE_CHECKING:
    from finetune_bench.method import Stack

CONTROL = (
    f"{registry.BASELINE}(dropout=hidden_off)"  # separates what HyPe gains by noise from what it gains by no dropout
)


@dataclass(frozen=True)
class Cell:
    """One training run.

    Attributes:
        method: the stack with every parameter spelt out.
        versions: of the stack's methods, in its order.
        task, data: the task as typed, and the fingerprint of its examples (after --limit-train).
        model, weights: the checkpoint as typed, and the fingerprint of its files.
        seed: of every random stream.
        recipe: how it is trained.
        limit_train: training examples; None for all.
        device: "cpu" or "cuda", the class of device; another card of the class is no other cell.
        threads: torch threads on a CPU; 0 on another device, where they change nothing.
        libraries: versions that can change the numbers.
    """

    method: str
    versions: tuple[int, ...]
    task: str
    data: str
    model: str
    weights: str
    seed: int
    recipe: Recipe
    limit_train: int | None
    device: str
    threads: int
    libraries: tuple[str, ...]

    @property
    def id(self) -> str:
        """16 hexadecimal digits; the checkpoint's place is left out, its content counts."""
        identity = {key: value for key, value in dataclasses.asdict(self).items() if key != "model"}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def stack(self) -> Stack:
        """A fresh stack of this cell's methods."""
        return registry.make_stack(self.method)

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` reads it back."""
        return dataclasses.asdict(self) | {"id": self.id}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cell:
        """The cell that `to_dict` wrote."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key not in ("id", "recipe")
        }
        return cls(recipe=Recipe(**values["recipe"]), **plain)


@cache
def libraries() -> tuple[str, ...]:
    """Versions of what computes the numbers."""
    return tuple(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))


def stacks(study: Study) -> tuple[list[str], list[str]]:
    """The study's stacks with every parameter spelt out, the baseline and its control first.

    Returns:
        All of them, and the labels of those that were added.

    Raises:
        UsageError: a method that is unknown, wrong, or given twice in two spellings.
    """
    typed: dict[str, str] = {}
    for text in study.methods:
        full = registry.describe(registry.make_stack(text), full=True)
        if full in typed:
            raise UsageError(f"--methods: '{typed[full]}' and '{text}' are the same method; give it once.")
        typed[full] = text
    added = []
    if study.baseline:
        for text in (registry.BASELINE, CONTROL):
            full = registry.describe(registry.make_stack(text), full=True)
            if full not in typed:
                added.append((full, text))
    twins: dict[str, str] = {}
    if study.attribution:
        known = {*typed, *(full for full, _ in added)}
        first = registry.describe(registry.make_stack(registry.BASELINE), full=True)
        runs = [first, *(run for full in typed for _, run in effect_chain(registry.make_stack(full)))]
        twins = {run: label_of(run) for run in runs if run not in known}
    return [full for full, _ in added] + list(typed) + list(twins), [text for _, text in added] + list(twins.values())


def cells(study: Study, data: dict[str, str], weights: dict[str, str], device: str) -> list[Cell]:
    """All cells, in the order in which they run: whole comparisons come early.

    Args:
        study: what to compare.
        data: fingerprint by task.
        weights: fingerprint by model.
        device: class of device.
    """
    methods, _ = stacks(study)
    versions = {method: tuple(m.version for m in registry.make_stack(method).methods) for method in methods}
    return [
        Cell(
            method=method,
            versions=versions[method],
            task=task,
            data=data[task],
            model=model,
            weights=weights[model],
            seed=seed,
            recipe=dataclasses.replace(study.recipe, lr=lr),
            limit_train=study.limit_train,
            device=device,
            threads=study.threads if device == "cpu" else 0,
            libraries=libraries(),
        )
        for model in study.models
        for lr in study.lrs or (study.recipe.lr,)
        for task in study.tasks
        for seed in study.seeds
        for method in methods
    ]
