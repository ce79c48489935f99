"""A study becomes cells. A cell is one training run, fully specified; its id is a hash of all that can change it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from typing import Any

from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.method.cost import Passes
from finetune_bench.method.observing import is_observer
from finetune_bench.method.stack import Stack
from finetune_bench.model.dropout import Dropout, Rates
from finetune_bench.recipe import BATCH_LAYOUTS, Recipe
from finetune_bench.spec import parse_stack
from finetune_bench.study.attribution import effect_chain, label_of
from finetune_bench.study.search import HELD_OUT_SHARE, settings
from finetune_bench.study.study import Study

# It separates what HyPe gains by noise from what it gains by no dropout.
CONTROL = f"{registry.BASELINE}(dropout=hidden_off)"


@dataclass(frozen=True)
class Cell:
    """A cell is one training run.

    Attributes:
        method: the stack with every parameter spelt out.
        versions: the versions of the stack's methods, in its order.
        task: the task as typed.
        data: the fingerprint of the task's examples, after --limit-train.
        model: the checkpoint as typed.
        weights: the fingerprint of the checkpoint's files.
        seed: the seed that every random stream is derived from.
        recipe: how the cell is trained.
        limit_train: the number of training examples; None for all.
        device: "cpu" or "cuda", the class of device; another card of the class is no other cell.
        threads: torch threads on a CPU; 0 on another device, where they change nothing.
        libraries: the versions that can change the numbers.
        held_out: the share of the training examples that a search chooses by; 0 for none.
        step_factor: the factor on the recipe's number of steps; ids and files call it `stretch`.
        sources: what `sources_of` gives; nothing where all of the code is this package's.
        is_dropout_free: whether the checkpoint has no dropout, as far as is known; no part of what the cell is.
        companions: other cells of the same training, which a worker scores with this one; no part of what the cell is.
        analyses: what else is measured of the trained model, as typed; no part of what the cell is.
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
    step_factor: float = 1.0
    sources: tuple[str, ...] = ()
    is_dropout_free: bool = dataclasses.field(default=False, compare=False)
    companions: tuple[Cell, ...] = dataclasses.field(default=(), compare=False)
    analyses: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    @cached_property
    def id(self) -> str:
        """The cell's id has 16 hexadecimal digits. Where the checkpoint lies is left out of it, its content counts."""
        identity = self._stored()
        del identity["model"]
        # What was added after the first version is left out where it has no effect, so that ids stay what they were.
        if self.recipe.batch_layout == BATCH_LAYOUTS[0]:
            del identity["recipe"]["arrangement"]
        for key, without_effect in (("held_out", 0.0), ("stretch", 1.0), ("sources", ())):
            if identity[key] == without_effect:
                del identity[key]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def training_id(self) -> str:
        """Return the id of the training: that of the same cell without what doesn't change it, which shares it."""
        return training_ids([self])[self.id]

    @cached_property
    def label(self) -> str:
        """The method goes by this name in reports."""
        steps = f" ×{self.step_factor:g} steps" if self.step_factor != 1 else ""
        return label_of(self.method) + steps

    def make_stack(self) -> Stack:
        """Make a fresh stack of this cell's methods: a method keeps what it learns, so no two runs share one."""
        return registry.make_stack(self.method)

    def make_trained_stack(self) -> Stack:
        """Make a fresh stack as it is trained: without wishes for less dropout where the checkpoint has none."""
        stack = self.make_stack()
        if not self.is_dropout_free or stack.rates != Rates():
            return stack
        return Stack([dataclasses.replace(method, dropout=Dropout.KEEP) for method in stack.methods])

    def to_dict(self) -> dict[str, Any]:
        """Return the cell as JSON can hold it; `from_dict` reads it back."""
        return self._stored() | {"id": self.id}

    def to_message(self) -> dict[str, Any]:
        """Return the cell as a worker is given it, with what is no part of it; `from_dict` reads it back."""
        companions = [cell.to_message() for cell in self.companions]
        more = {"companions": companions, "analyses": self.analyses, "is_dropout_free": self.is_dropout_free}
        return self.to_dict() | more

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Cell:
        """Return the cell that `to_dict` or `to_message` gave."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key not in ("id", "recipe", "stretch", "companions")
        }
        companions = tuple(map(cls.from_dict, values.get("companions", ())))
        recipe = Recipe.from_dict(values["recipe"])
        return cls(recipe=recipe, step_factor=values["stretch"], companions=companions, **fields)

    def _stored(self) -> dict[str, Any]:
        """Return the fields under the names that ids and files have for them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["companions"], values["analyses"], values["is_dropout_free"]
        values["recipe"], values["stretch"] = self.recipe.to_dict(), values.pop("step_factor")
        return values


def training_ids(cells: Sequence[Cell]) -> dict[str, str]:
    """Return the id of every cell's training, by the cell's: that of the same cell without what doesn't change it.

    That is without observers, and on a checkpoint without dropout without wishes for less of it.
    """
    # Of a grid's thousands of cells, few differ in their stack.
    beneath: dict[tuple[str, bool], tuple[str, tuple[int, ...]] | None] = {}
    ids = {}
    for cell in cells:
        key = (cell.method, cell.is_dropout_free)
        if key not in beneath:
            beneath[key] = _beneath(cell)
        trained = beneath[key]
        ids[cell.id] = (
            cell.id if trained is None else dataclasses.replace(cell, method=trained[0], versions=trained[1]).id
        )
    return ids


def _beneath(cell: Cell) -> tuple[str, tuple[int, ...]] | None:
    """Return the stack that a cell's training is named by, spelt out, and its versions; None where it is the cell's."""
    given = cell.make_stack()
    stack = cell.make_trained_stack()
    kept = [method for method in stack.methods if not is_observer(method)]
    if len(kept) == len(given.methods) and all(
        a.dropout is b.dropout for a, b in zip(kept, given.methods, strict=True)
    ):
        return None
    beneath = Stack(kept) if kept else registry.make_stack(registry.BASELINE)
    return registry.describe(beneath, full=True), _versions(beneath)


def sharing(cells: Sequence[Cell]) -> list[Cell]:
    """Return one cell per training, in the order of the first of each, with those that share it as its companions."""
    ids = training_ids(cells)
    trainings: dict[str, list[Cell]] = {}
    for cell in cells:
        trainings.setdefault(ids[cell.id], []).append(cell)
    return [dataclasses.replace(first, companions=tuple(others)) for first, *others in trainings.values()]


@cache
def libraries() -> tuple[str, ...]:
    """Return the names and versions of the libraries that compute the numbers."""
    return tuple(f"{name} {version(name)}" for name in ("torch", "transformers", "tokenizers"))


def stacks(study: Study) -> tuple[list[str], list[str]]:
    """Return the study's stacks with every parameter spelt out, the baseline and its control first.

    Returns:
        All of them, and the labels of those that were added.

    Raises:
        UsageError: a method that is unknown, wrong, or given twice in two spellings.
    """
    typed: dict[str, str] = {}
    parsed: dict[str, Stack] = {}
    for text in study.methods:
        stack = registry.make_stack(text)
        full = registry.describe(stack, full=True)
        if full in typed:
            raise UsageError(f"--methods: '{typed[full]}' and '{text}' are the same method; give it once.")
        typed[full], parsed[full] = text, stack
    added: dict[str, str] = {}
    if study.baseline:
        for text in (registry.BASELINE, CONTROL):
            full = _spelt_out(text)
            if full not in typed:
                added[full] = text
    twins: dict[str, str] = {}
    if study.attribution:
        runs = [_spelt_out(registry.BASELINE)]
        runs += [run for stack in parsed.values() for _, run in effect_chain(stack)]
        twins = {run: label_of(run) for run in runs if run not in typed and run not in added}
    return [*added, *typed, *twins], [*added.values(), *twins.values()]


def sources_of(method: str, task: str) -> tuple[str, ...]:
    """Return the fingerprints of the code from elsewhere that a cell runs, as `registry.source` gives them.

    Args:
        method: the stack.
        task: the task as typed.

    Returns:
        `NAME FINGERPRINT` for each such method of the stack, in its order, and `(task) FINGERPRINT` for such a task.
    """
    sources = {call.name: registry.source("methods", call.name) for call in parse_stack(method)}
    sources["(task)"] = registry.source(*registry.task_plugin(task))
    return tuple(f"{name} {source}" for name, source in sources.items() if source)


def cells(
    study: Study,
    data: dict[str, str],
    weights: dict[str, str],
    device: str,
    batch_layout: str = BATCH_LAYOUTS[0],
    *,
    dropout_free: Collection[str] = (),
) -> list[Cell]:
    """Return all cells, in the order in which they run: whole comparisons come early.

    Args:
        study: what to compare.
        data: the data's fingerprint by task.
        weights: the checkpoint's fingerprint by model.
        device: the class of device, "cpu" or "cuda".
        batch_layout: how the batches of all cells are laid out.
        dropout_free: the models that have no dropout.
    """
    methods, _ = stacks(study)
    arms = _arms(study, methods)
    versions = {method: _versions(registry.make_stack(method)) for method in {method for method, _, _ in arms}}
    sources = {(method, task): sources_of(method, task) for method in versions for task in study.tasks}
    return [
        Cell(
            method=method,
            versions=versions[method],
            task=task,
            data=data[task],
            model=model,
            weights=weights[model],
            seed=seed,
            recipe=dataclasses.replace(study.recipe, lr=lr, batch_layout=batch_layout),
            limit_train=study.limit_train,
            device=device,
            threads=study.threads if device == "cpu" else 0,
            libraries=libraries(),
            held_out=held_out(study),
            step_factor=step_factor,
            sources=sources[method, task],
            is_dropout_free=model in dropout_free,
            analyses=study.analyses,
        )
        for model in study.models
        for task in study.tasks
        for seed in study.seeds
        for method, lr, step_factor in arms
    ]


def in_shard(cells: Sequence[Cell], shard: tuple[int, int]) -> list[Cell]:
    """Return the cells of one part of a grid, in their order.

    The cells are put in an order of their own, by task, checkpoint, passes per step, method, learning rate and seed,
    and dealt out one by one, as cards are. So every part has as many cells of each task, and about as many passes, as
    any other, to one cell. Cells that share a training stay together, or each part would train it again. Which part has
    a cell depends on these facts of the whole grid only, not on its id: not on the order of options, nor on the device
    or the libraries of the machine that asks.

    Args:
        cells: all cells of a study.
        shard: the part, from 1, and the number of parts.

    Raises:
        UsageError: there are more parts than trainings, and this one would be empty.
    """
    index, count = shard
    trainings = [(first, *first.companions) for first in sharing(cells)]
    if index > len(trainings):
        shared = f" of {len(trainings)} trainings" if len(trainings) < len(cells) else ""
        raise UsageError(
            f"--shard {index}/{count}: the study has {len(cells)} runs{shared}, so this shard has none; give "
            f"{len(trainings)} shards at most."
        )
    passes = {method: relative_passes(registry.make_stack(method)) for method in {cell.method for cell in cells}}

    def place(cell: Cell) -> tuple[object, ...]:
        cost = passes[cell.method] * cell.step_factor
        return cell.task, cell.weights, cost, cell.method, cell.step_factor, cell.recipe.lr, cell.seed, cell.model

    trainings.sort(key=lambda shared: min(map(place, shared)))
    dealt = {cell.id for shared in trainings[index - 1 :: count] for cell in shared}
    return [cell for cell in cells if cell.id in dealt]


def held_out(study: Study) -> float:
    """Return the share of the training examples that a study sets aside to choose by."""
    return HELD_OUT_SHARE if study.search or study.hold_out else 0.0


def _arms(study: Study, methods: list[str]) -> list[tuple[str, float, float]]:
    """Return what runs once per task and seed: method, learning rate and factor on the steps."""
    lrs = study.lrs or (study.recipe.lr,)
    if study.search:
        return [(full, lr, 1.0) for method in methods for full, lr in settings(method, study.search, lrs[0])]
    arms = [(method, lr, 1.0) for lr in lrs for method in methods]
    if study.fair_cost:
        vanilla = _spelt_out(registry.BASELINE)
        factors = {relative_passes(registry.make_stack(method)) for method in methods}
        arms += [(vanilla, lr, factor) for lr in lrs for factor in sorted(factors) if factor > 1]
    return arms


def relative_passes(stack: Stack) -> float:
    """Return the passes over a batch in one step; vanilla has 1.

    One backward call may go back through several forward passes, so that the larger of the two counts.
    """
    passes = stack.passes(Passes())
    return round(max(passes.forwards, passes.backwards), 2)


def _versions(stack: Stack) -> tuple[int, ...]:
    return tuple(method.version for method in stack.methods)


def _spelt_out(text: str) -> str:
    """Return a stack's text with every parameter spelt out."""
    return registry.describe(registry.make_stack(text), full=True)
