"""Before any compute it is said what `--hold-out` has to choose among: nothing, or not as much of every method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.model import pretrained
from finetune_bench.printable import listed
from finetune_bench.study.attribution import label_of
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study

# What the learning rates are chosen within: model, task, and the recipe without its learning rate.
_Where: TypeAlias = tuple[str, str, str]


def check_choices(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Check that learning rates can be chosen on held-out data, and return where they can't, or not of every method.

    Args:
        study: the study, with its defaults filled in.
        cells: all of its cells that can run.

    Raises:
        UsageError: no method has several learning rates anywhere; a fifth of the training examples would be lost.
    """
    if not study.hold_out:
        return []
    places = _rates_of_methods(cells)
    if all(len(rates) < 2 for methods in places.values() for rates in methods.values()):
        rates = _named(sorted({cell.recipe.lr for cell in cells}))
        several = (
            "Take --scale full"
            if study.preset
            else "Give all that are to be tried with --lr, also those that were run before, which are not run again"
        )
        raise UsageError(
            f"--hold-out: expected several learning rates of a method to choose among; got one, {rates}. {several}; or "
            "leave --hold-out out, which takes a fifth of the training examples."
        )
    return [note for where, methods in places.items() for note in _notes(where, methods)]


def _rates_of_methods(cells: Sequence[Cell]) -> dict[_Where, dict[str, list[float]]]:
    """Return the learning rates of every method, ascending, wherever settings are chosen: by model, task and recipe."""
    rates: dict[_Where, dict[str, set[float]]] = {}
    for cell in cells:
        where = (cell.model, cell.task, repr({**cell.recipe.to_dict(), "lr": None}))
        rates.setdefault(where, {}).setdefault(cell.method, set()).add(cell.recipe.lr)
    return {
        where: {method: sorted(of_method) for method, of_method in methods.items()} for where, methods in rates.items()
    }


def _notes(where: _Where, methods: dict[str, list[float]]) -> list[str]:
    """Return what the report will not choose, or not compare, in one place; the sentences of a warning."""
    model, task, _ = where
    place = f"Warning: --hold-out: for {task} on {pretrained.label(model)}"
    if all(len(rates) < 2 for rates in methods.values()):
        return [f"{place} there is one learning rate only, so nothing is chosen."]
    baseline = registry.describe(registry.make_stack(registry.BASELINE), full=True)
    standard = baseline if baseline in methods else max(methods, key=lambda method: len(methods[method]))
    others = [label_of(method) for method, rates in methods.items() if rates != methods[standard]]
    if not others:
        return []
    return [
        f"{place} not every method has the learning rates of {label_of(standard)} ({_named(methods[standard])}), and "
        f"with other rates it is not compared: {listed(others)}."
    ]


def _named(rates: Sequence[float]) -> str:
    return listed(f"{rate:g}" for rate in rates)
