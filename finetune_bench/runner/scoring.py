"""A cell's examples become its run, and a trained model becomes predictions, scores and a saved model."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune_bench.errors import DataError, Diverged, FinetuneBenchError
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained
from finetune_bench.runner.inputs import encoded, load_data
from finetune_bench.runner.row import collapse_reason, constant_prediction
from finetune_bench.store.row import Outcome
from finetune_bench.study.grid import Cell
from finetune_bench.task import Task, TaskData
from finetune_bench.training import evaluation, measure
from finetune_bench.training.examples import Encoded, truncation
from finetune_bench.training.record import TrainingResult
from finetune_bench.training.run import TrainingRun

Arrays = dict[str, dict[str, np.ndarray]]  # of a cell, by file


@dataclass(frozen=True)
class Examples:
    """The examples of a cell, as they are and tokenised."""

    task: Task
    data: TaskData
    train: Encoded
    splits: dict[str, Encoded]  # of evaluation, by name


@dataclass(frozen=True)
class Scored:
    """Scored holds the predictions of a trained model.

    Attributes:
        predictions: by split, (examples, outputs).
        sketch: of the weights that were scored, (64,).
        seconds: that it took.
    """

    predictions: dict[str, np.ndarray]
    sketch: np.ndarray
    seconds: float


def load_examples(cell: Cell, data_root: Path | None) -> Examples:
    """Return the examples of a cell.

    Raises:
        DataError: they are not those that the plan of the run found.
    """
    task, data = load_data(cell.task, cell.limit_train, data_root, cell.held_out)
    if data.fingerprint() != cell.data:
        raise DataError(f"the data of '{cell.task}' changed after the run was planned; start it again")
    train, splits = encoded(
        cell.model, cell.task, cell.limit_train, data_root, cell.recipe.max_length, held_out=cell.held_out
    )
    return Examples(task, data, train, splits)


def make_run(
    cell: Cell, stack: Stack, classifier: torch.nn.Module, examples: Examples, device: torch.device
) -> TrainingRun:
    """Return the training run of a cell, with as many steps as its factor asks for."""
    recipe = cell.recipe
    if cell.step_factor != 1:
        steps = round(cell.step_factor * recipe.total_steps(len(examples.train)))
        recipe = dataclasses.replace(recipe, epochs=None, steps=steps)
    return TrainingRun(
        classifier,
        examples.task,
        examples.train,
        recipe,
        stack,
        seed=cell.seed,
        device=device,
    )


def score(run: TrainingRun, stack: Stack, splits: dict[str, Encoded], trace: TrainingResult) -> Scored:
    """Predict every evaluation split, with the weights that the methods want to be scored.

    Raises:
        Diverged: a prediction is not finite. The last update did it, and no later loss could show that.
        FinetuneBenchError: the weights are not those that training left.
    """
    if not np.array_equal(measure.sketch(run.params.values()), trace.sketches[-1]):
        raise FinetuneBenchError(
            "The weights are not those that training left: a method that was scored from the same training before did "
            "not put them back after `evaluating`."
        )
    start = time.perf_counter()
    with stack.evaluating(run):
        predictions = {name: evaluation.predict(run, split) for name, split in splits.items()}
        sketch = measure.sketch(run.params.values())
    seconds = time.perf_counter() - start
    if not all(np.isfinite(values).all() for values in predictions.values()):
        raise Diverged(run.total_steps)
    return Scored(predictions, sketch, seconds)


def scored_weights(run: TrainingRun, stack: Stack) -> dict[str, Tensor]:
    """Return a copy of the weights that are scored: averages, where a method swaps them in."""
    with stack.evaluating(run):
        return {name: weight.detach().clone() for name, weight in run.params.items()}


def save_model(cell: Cell, run: TrainingRun, weights: dict[str, Tensor], folder: Path) -> None:
    """Save the model with these weights, after the methods have taken away what they had added to it."""
    with torch.no_grad():
        for name, weight in run.params.items():
            weight.copy_(weights[name])
    config = pretrained.config(cell.model, run.task.outputs)
    pretrained.save(run.model, pretrained.tokenizer(cell.model), config, folder, run.task.labels)


def scores(examples: Examples, predictions: dict[str, np.ndarray], model: str) -> Outcome:
    """Return the scores of predictions, beside those of the constant prediction of the majority."""
    task, train = examples.task, examples.train
    labels = _labels(examples.splits)
    metrics = {name: task.score(values, labels[name]) for name, values in predictions.items()}
    majority = {
        name: task.score(constant_prediction(train.labels, values, task), values) for name, values in labels.items()
    }
    all_splits = {"train": examples.data.train, **examples.data.evaluation}
    scores: Outcome = {
        "metrics": metrics,
        "majority": majority,
        "collapsed": collapse_reason(task, predictions, metrics, majority),
        "subset": [name for name, split in all_splits.items() if split.is_subset],
        "notes": [*examples.data.notes, *_truncation_notes(examples, pretrained.label(model))],
    }
    if task.licence:
        scores["licence"] = task.licence
    return scores


def _truncation_notes(examples: Examples, label: str) -> list[str]:
    """Return what is to be said of how the splits were tokenised, by the model of that label."""
    splits = {"train": examples.train, **examples.splits}
    return [note for name, split in splits.items() for note in truncation(name, split, label)]


def _labels(splits: dict[str, Encoded]) -> dict[str, np.ndarray]:
    return {name: split.labels.numpy() for name, split in splits.items()}


def arrays_of(splits: dict[str, Encoded], trace: TrainingResult, scored: Scored) -> Arrays:
    """Return the arrays of a cell: predictions with labels, and what was recorded while it trained."""
    predictions = {f"{name}.predictions": values for name, values in scored.predictions.items()}
    predictions |= {f"{name}.labels": values for name, values in _labels(splits).items()}
    sketches = {"sketch": np.array(trace.sketches), "sketch_steps": np.array(trace.sketch_steps)}
    if not np.array_equal(scored.sketch, trace.sketches[-1]):  # other weights were scored than those of the last step
        sketches["scored_sketch"] = scored.sketch
    return {"predictions": predictions, "trace": trace.steps | sketches}
