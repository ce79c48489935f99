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
from finetune_bench.errors import UsageError
from finetune_bench.recipe import ARRANGEMENTS, Recipe
from finetune_bench.study.attribution import effect_chain, label_of
from finetune_bench.study.search import HELD_OUT_SHARE, settings
from finetune_bench.study.study import Study

if TYPE_CHECKING:
    from finetune_bench.method.stack import Stack

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
        held_out: share of the training examples that a search chooses by; 0 for none.
        stretch: factor on the number of steps.
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
    held_out: float = 0.0
    stretch: float = 1.0

    @property
    def id(self) -> str:
        """16 hexadecimal digits; the checkpoint's place is left out, its content counts."""
        identity = {key: value for key, value in dataclasses.asdict(self).items() if key != "model"}
        if identity["recipe"]["arrangement"] == ARRANGEMENTS[0]:
            del identity["recipe"]["arrangement"]
        for key, usual in (("held_out", 0.0), ("stretch", 1.0)):
            if identity[key] == usual:
                del identity[key]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """How reports call the method."""
        steps = f" ×{self.stretch:g} steps" if self.stretch != 1 else ""
        return registry.describe(self.stack) + steps

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


def cells(
    study: Study, data: dict[str, str], weights: dict[str, str], device: str, arrangement: str = ARRANGEMENTS[0]
) -> list[Cell]:
    """All cells, in the order in which they run: whole comparisons come early.

    Args:
        study: what to compare.
        data: fingerprint by task.
        weights: fingerprint by model.
        device: class of device.
        arrangement: of all of them.
    """
    methods, _ = stacks(study)
    return [
        Cell(
            method=method,
            versions=tuple(m.version for m in registry.make_stack(method).methods),
            task=task,
            data=data[task],
            model=model,
            weights=weights[model],
            seed=seed,
            recipe=dataclasses.replace(study.recipe, lr=lr, arrangement=arrangement),
            limit_train=study.limit_train,
            device=device,
            threads=study.threads if device == "cpu" else 0,
            libraries=libraries(),
            held_out=held_out(study),
            stretch=stretch,
        )
        for model in study.models
        for task in study.tasks
        for seed in study.seeds
        for method, lr, stretch in _arms(study, methods)
    ]


def held_out(study: Study) -> float:
    """The share of the training examples that a study sets aside to choose by."""
    return HELD_OUT_SHARE if study.search else 0.0


def _arms(study: Study, methods: list[str]) -> list[tuple[str, float, float]]:
    """What runs once per task and seed: method, learning rate and factor on the steps."""
    lrs = study.lrs or (study.recipe.lr,)
    if study.search:
        return [(full, lr, 1.0) for method in methods for full, lr in settings(method, study.search, lrs[0])]
    arms = [(method, lr, 1.0) for lr in lrs for method in methods]
    if study.fair_cost:
        vanilla = registry.describe(registry.make_stack(registry.BASELINE), full=True)
        stretches = sorted({relative_passes(registry.make_stack(method)) for method in methods} - {1.0})
        arms += [(vanilla, lr, stretch) for lr in lrs for stretch in stretches if stretch > 1]
    return arms


def relative_passes(stack: Stack) -> float:
    """Passes over a batch in one step; vanilla has 1. One backward call may go back through several forward passes."""
    from finetune_bench.method.cost import Passes

    passes = stack.passes(Passes())
    return round(max(passes.forwards, passes.backwards), 2)
