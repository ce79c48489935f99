"""A dose study tells how strongly a method disturbs logits and gradients of a real batch, at each strength.

    finetune-bench dose hype --eps 1e-6,1e-5,1e-4,1e-3,1e-2,1e-1 --tasks stsb

Dropout is off while the disturbance is measured, so that it is the method's own; ordinary dropout is measured beside
it, as something to compare with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune_bench import registry
from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import from_text, kind_of
from finetune_bench.runner.inputs import encoded, facts_of, initial_model, load_data
from finetune_bench.seeds import derive
from finetune_bench.spec import split
from finetune_bench.study.grid import Cell
from finetune_bench.task import Output
from finetune_bench.training.examples import training_steps
from finetune_bench.training.loop import make_optimizer
from finetune_bench.training.run import TrainingRun, TrainingStep

DRAWS = 3  # of the noise, averaged


@dataclass(frozen=True)
class Disturbance:
    """Both numbers are means over draws, and NaN if the method can't run with dropout off.

    Attributes:
        logits: rms of the change of the logits over the rms of the logits, in the pass of a step that changes most.
        gradients: Euclidean norm of the change of the gradient over that of the gradient.
    """

    logits: float
    gradients: float


def read_doses(text: str, option: str, values: str) -> dict[float, str]:
    """Read the stacks of a dose-response study.

    Args:
        text: the method or stack as typed.
        option: the parameter's name, or `method.parameter`.
        values: numbers, separated by commas.

    Returns:
        The stack with every parameter spelt out, by dose.

    Raises:
        UsageError: no such parameter, not a number, out of range, or given twice.
    """
    stack = registry.make_stack(text)
    owner, _, name = option.rpartition(".")
    fields = [
        (method, field)
        for method in stack.methods
        for field in dataclasses.fields(method)
        if field.name == name and owner in ("", method.name)
    ]
    numeric = [(method, field) for method, field in fields if kind_of(type(method), field)[0] in (int, float)]
    if fields and not numeric:
        raise UsageError(f"--{option}: a dose is a number, and '{name}' of {fields[0][0].name} is none.")
    if not fields:
        known = [f.name for m in stack.methods for f in dataclasses.fields(m) if kind_of(type(m), f)[0] in (int, float)]
        raise UnknownName(f"parameter of '{text}'", option, known)
    if len(numeric) > 1:
        names = " or ".join(f"--{method.name}.{name}" for method, _ in numeric)
        raise UsageError(f"--{option}: several methods of '{text}' have it; say {names}.")
    method, _ = numeric[0]
    doses: dict[float, str] = {}
    for value in split(values, ","):
        dosed = dataclasses.replace(method, **from_text(type(method), {name: value}))
        dose = getattr(dosed, name)
        if dose is None or float(dose) in doses:
            raise UsageError(f"--{option}: expected different numbers, separated by commas; got '{values}'.")
        parts = [dosed if part is method else part for part in stack.methods]
        doses[float(dose)] = registry.describe(Stack(parts), full=True)
    if not doses:
        raise UsageError(f"--{option}: expected numbers, separated by commas; got none.")
    return doses


def default_dose(text: str, option: str) -> float:
    """Return the default of a parameter of a method or stack; NaN where it is no number."""
    owner, _, name = option.rpartition(".")
    for method in registry.make_stack(text).methods:
        for field in dataclasses.fields(method):
            if field.name == name and owner in ("", method.name) and isinstance(field.default, int | float):
                return float(field.default)
    return float("nan")


def measure_doses(
    cell: Cell, doses: Mapping[float, str], data_root: Path | None, device: torch.device
) -> tuple[dict[float, Disturbance], Disturbance]:
    """Return the disturbance at every dose, and that of ordinary dropout.

    Args:
        cell: the cell whose first batch and first weights are disturbed.
        doses: stacks by dose.
        data_root: the folder that data sets are read from; None for the hub.
        device: the device to compute on.
    """

    def passes(stack: Stack, draw: int) -> tuple[list[Tensor], dict[str, Tensor]]:
        return _one_step(cell, stack, draw, data_root, device)

    vanilla = registry.method_class(registry.BASELINE)
    (clean, *_), gradient = passes(Stack([vanilla(dropout=Dropout.ALL_OFF)]), 0)

    def disturbance(stack: Stack) -> Disturbance:
        logits, gradients = [], []
        for draw in range(DRAWS):
            disturbed_logits, disturbed_gradient = passes(stack, draw)
            logits.append(max(float((values - clean).norm() / clean.norm()) for values in disturbed_logits))
            gradients.append(_distance(disturbed_gradient, gradient))
        return Disturbance(sum(logits) / DRAWS, sum(gradients) / DRAWS)

    measured = {}
    for dose, full in doses.items():
        stack = Stack([_without_dropout(method) for method in registry.make_stack(full).methods])
        measured[dose] = disturbance(stack) if _can_run(cell, stack) else Disturbance(float("nan"), float("nan"))
    return measured, disturbance(Stack([vanilla()]))


def _without_dropout(method: Method) -> Method:
    return dataclasses.replace(method, dropout=Dropout.ALL_OFF)


def _can_run(cell: Cell, stack: Stack) -> bool:
    return stack.unsupported(facts_of(cell, stack)) is None


class _Recorder(TrainingStep):
    """A step that keeps the logits of every pass."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.logits: list[Tensor] = []

    def forward(self, view: View | None = None) -> Output:
        output = super().forward(view)
        self.logits.append(output.logits.detach().double().cpu())
        return output


def _one_step(
    cell: Cell, stack: Stack, draw: int, data_root: Path | None, device: torch.device
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the logits of every pass of the objective, and the gradients by weight."""
    task, _ = load_data(cell.task, cell.limit_train, data_root)
    train, _ = encoded(cell.model, cell.task, cell.limit_train, data_root, cell.recipe.max_length)
    classifier = initial_model(cell, stack, device)
    indices = next(training_steps(len(train), cell.recipe, cell.seed, task.name))[0]
    run = TrainingRun(
        classifier,
        task,
        train,
        cell.recipe,
        stack,
        seed=derive(cell.seed, "draw", str(draw)),
        device=device,
    )
    try:
        stack.setup(run)
        stack.optimizer(make_optimizer(run), run)
        run.model.train()
        torch.manual_seed(derive(cell.seed, "draw", str(draw), "dropout"))
        step = _Recorder(run, train.batch(indices, device))
        step.backward(step.objective().loss)
        gradients = {name: p.grad.double().cpu() for name, p in run.params.items() if p.grad is not None}
    finally:
        stack.teardown(run)
    return step.logits, gradients


def _distance(disturbed: Mapping[str, Tensor], clean: Mapping[str, Tensor]) -> float:
    """Return ‖disturbed − clean‖ / ‖clean‖ over the weights of `clean`; a weight without a gradient has one of 0."""
    squared_distance = sum(
        float((disturbed[name] - value if name in disturbed else value).square().sum()) for name, value in clean.items()
    )
    squared_norm = sum(float(value.square().sum()) for value in clean.values())
    return float((squared_distance / squared_norm) ** 0.5)
