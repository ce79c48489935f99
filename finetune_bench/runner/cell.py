"""`run_cell` makes a row of a cell: load, train, score, measure. All that a worker does for a cell is here."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench.errors import DataError, Diverged
from finetune_bench.method.stack import Stack
from finetune_bench.model import dropout, pretrained
from finetune_bench.model import weights as checkpoint_weights
from finetune_bench.printable import LONGEST_REASON, brief
from finetune_bench.runner import analysing
from finetune_bench.runner.environment import environment
from finetune_bench.runner.inputs import encoded, facts_of, initial_model, load_data
from finetune_bench.runner.row import collapse_reason, constant_prediction, cost_of, row_of, training_facts
from finetune_bench.store import analyses as results
from finetune_bench.store.row import Outcome, Retry, Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import CHECKPOINT_EVERY
from finetune_bench.task import Task, TaskData
from finetune_bench.training import evaluation, loop, measure, memory
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.examples import Encoded, truncation
from finetune_bench.training.record import TrainingResult
from finetune_bench.training.run import TrainingRun

OUT_OF_MEMORY = "out of memory"
# A signal's handler that is about to end this process sets it: what it then raises is no failure of the cell.
PROCESS_ENDS = threading.Event()

Arrays = dict[str, dict[str, np.ndarray]]  # of a cell, by file


@dataclass(frozen=True)
class WorkerContext:
    """A worker has one context for all its cells: the store, the device, the data, and whether models are kept.

    Attributes:
        store: the store that gets the rows.
        device: the device that cells train on.
        data_root: the folder that data sets are read from; None for the hub.
        save_model: whether trained models are kept.
        checkpoint_every: steps from one checkpoint to the next.
        tell: is told a cell's step, its number of steps and its loss, whenever its losses are read; None for nobody.
        analyses: what else is measured of a trained model, as typed.
    """

    store: Store
    device: torch.device
    data_root: Path | None = None
    save_model: bool = False
    checkpoint_every: int = CHECKPOINT_EVERY
    tell: Callable[[int, int, float], None] | None = None
    analyses: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a cell: what became of it, what came of it, its analyses, and the text for its log."""

    status: Status
    reason: str | None
    outcome: Outcome
    arrays: Arrays = dataclasses.field(default_factory=dict)
    log: str = ""
    analyses: Sequence[analysing.Measured] = ()


def run_cell(cell: Cell, context: WorkerContext) -> Row:
    """Run a cell and write its row, whatever comes of it; return the row.

    A cell whose process was killed goes on from its last checkpoint. A failure of the cell is a row with its reason,
    never an exception; an interruption passes through. A cell that runs out of memory is tried once more in
    micro-batches of half the size, which keeps the batch the same.
    """
    started, clock, cpu_clock = time.time(), time.monotonic(), time.process_time()
    store, device = context.store, context.device
    recipe = cell.recipe
    devices.prepare(
        device, threads=max(1, cell.threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    with store.writing(cell.id) as folder:
        model_folder = folder / "model" if context.save_model else None
        attempt = _attempt(cell, context, model_folder, _checkpoints(cell, recipe.accumulation, context))
        is_hungry = attempt.reason == OUT_OF_MEMORY and not attempt.outcome.get("broken")
        if is_hungry and (halved := _in_halves(cell)) is not None:
            checkpoints = _checkpoints(cell, halved.recipe.accumulation, context)
            attempt = _second_attempt(attempt, halved, context, model_folder, checkpoints)
        row: Row = {
            **row_of(cell, attempt.status, attempt.reason),
            **attempt.outcome,
            "environment": environment(device),
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - clock,
            "cpu_seconds": time.process_time() - cpu_clock,
        }
        store.write(cell.to_dict(), row, arrays=attempt.arrays, log=attempt.log, into=folder)
        for result, arrays in attempt.analyses:
            results.write(folder, result, arrays)
        analysing.take_over(store.folder(cell.id), folder, cell.id, store.row(cell.id), row)
    if not store.has_lost(cell.id):  # or the checkpoint is of the process that has the cell now
        remove_checkpoints(cell.id, store)
    return row


def remove_checkpoints(cell_id: str, store: Store) -> None:
    """Remove the checkpoints of a cell, also what was half-written when a process was killed."""
    for checkpoint in store.checkpoints.glob(f"*{cell_id}-*"):
        checkpoint.unlink(missing_ok=True)


def _attempt(cell: Cell, context: WorkerContext, model_folder: Path | None, checkpoints: Checkpoints) -> _Attempt:
    try:
        outcome, arrays, analyses = _train_and_score(cell, context, model_folder, checkpoints)
    except (Exception, SystemExit) as error:  # a plugin may call sys.exit
        if PROCESS_ENDS.is_set():
            raise
        reason, outcome = _failure(error, context.device)
        return _Attempt(Status.FAILED, reason, outcome, log=traceback.format_exc())
    return _Attempt(Status.DONE, None, outcome, arrays, analyses=analyses)


def _second_attempt(
    first: _Attempt, halved: Cell, context: WorkerContext, model_folder: Path | None, checkpoints: Checkpoints
) -> _Attempt:
    """Try a cell that ran out of memory again, in smaller micro-batches; the log is that of both attempts."""
    second = _attempt(halved, context, model_folder, checkpoints)
    reason, outcome = second.reason, second.outcome
    if reason == OUT_OF_MEMORY:
        reason += f", also with accumulation {halved.recipe.accumulation}"
    else:
        outcome["accumulated"] = halved.recipe.accumulation
    return dataclasses.replace(second, reason=reason, outcome=outcome, log=first.log + second.log)


def _in_halves(cell: Cell) -> Cell | None:
    """Return the cell with twice the accumulation; None where its batch can't be halved, or its methods refuse that."""
    recipe = cell.recipe
    if recipe.batch_size % (2 * recipe.accumulation):
        return None
    halved = dataclasses.replace(cell, recipe=dataclasses.replace(recipe, accumulation=2 * recipe.accumulation))
    stack = halved.make_stack()
    return None if stack.unsupported(facts_of(halved, stack)) else halved


def _failure(error: BaseException, device: torch.device) -> tuple[str, Outcome]:
    """Return why a cell failed, when it is worth another run, and whether the device can't be used any more."""
    broken: Outcome = {"broken": True} if devices.is_broken(device, error) else {}
    if devices.is_out_of_memory(error):
        return OUT_OF_MEMORY, {"retry": Retry.ALWAYS, **broken}
    if broken:
        return f"the device failed: {_first_line(error)}", {"retry": Retry.ALWAYS, **broken}
    if isinstance(error, Diverged):
        return f"diverged at step {error.step}", {"retry": Retry.ASKED}
    return _first_line(error), {"retry": Retry.ASKED}


def _first_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"its code called sys.exit({error.code!r}); a method or task raises an error in place of ending its process"
        )
    line = brief(error, LONGEST_REASON, write=lambda error: (str(error).strip() or "no message").splitlines()[0])
    return f"{type(error).__name__}: {line}"


@dataclass(frozen=True)
class _Examples:
    """The examples of a cell, as they are and tokenised."""

    task: Task
    data: TaskData
    train: Encoded
    splits: dict[str, Encoded]  # of evaluation, by name


@dataclass(frozen=True)
class _Scored:
    """What a trained model predicted.

    Attributes:
        predictions: by split, (examples, outputs).
        sketch: of the weights that were scored, (64,).
        seconds: that it took.
    """

    predictions: dict[str, np.ndarray]
    sketch: np.ndarray
    seconds: float


def _train_and_score(
    cell: Cell, context: WorkerContext, model_folder: Path | None, checkpoints: Checkpoints
) -> tuple[Outcome, Arrays, list[analysing.Measured]]:
    """Train a cell's model, score it and measure; return what its row says of that, its arrays, and its analyses."""
    device = context.device
    examples = _load_examples(cell, context.data_root)
    stack = cell.make_stack()
    peak_is_measured = devices.reset_peak(device)
    classifier = initial_model(cell, stack, device)
    initial_digest = pretrained.digest(classifier)
    run = _make_run(cell, stack, classifier, examples, device)
    try:
        energy_before = devices.energy(device)
        trace = loop.train(run, checkpoints, _teller(run, context))
        energy_after = devices.energy(device)
        allocated, reserved = devices.peak(device) if peak_is_measured else (None, None)
        scored = _score(run, stack, examples.splits)
        trainable = sum(p.numel() for p in run.params.values() if p.requires_grad)
        saved_bytes = memory.saved_activation_bytes(run)
        scored_weights = _scored_weights(run, stack) if model_folder else {}
        analysed = analysing.Scored(
            examples.task, examples.data, examples.splits, scored.predictions, context.data_root
        )
        analyses = analysing.at_the_end(cell, run, stack, analysed, context.analyses)
    finally:
        stack.teardown(run)
    if model_folder:
        _save_model(cell, run, scored_weights, model_folder)

    outcome = _scores(examples, scored.predictions, cell.model)
    outcome["training"] = training_facts(examples.task, trace, examples.train.labels, cell.recipe.clip)
    outcome["cost"] = cost_of(
        run,
        trace,
        saved_activation_bytes=saved_bytes,
        peak_memory_bytes=allocated,
        peak_reserved_bytes=reserved,
        energy_joules=None if energy_before is None or energy_after is None else energy_after - energy_before,
        trainable_parameters=trainable,
        evaluation_seconds=scored.seconds,
    )
    outcome["hashes"] = {"init": initial_digest, "order": run.order.hexdigest()[:16], "data": cell.data}
    outcome["dropout"] = dropout.active_dropout(classifier)
    taken = checkpoint_weights.taken(cell.model)
    outcome["fresh_weights"] = list(taken.lacked if checkpoint_weights.KEPT_HEAD in cell.weights else taken.fresh)
    return outcome, _arrays(examples.splits, trace, scored), analyses


def _teller(run: TrainingRun, context: WorkerContext) -> Callable[[int, float], None] | None:
    """Return what is to be told of a run's losses, if anybody wants to know."""
    tell = context.tell
    return None if tell is None else lambda step, loss: tell(step, run.total_steps, loss)


def _load_examples(cell: Cell, data_root: Path | None) -> _Examples:
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
    return _Examples(task, data, train, splits)


def _make_run(
    cell: Cell, stack: Stack, classifier: torch.nn.Module, examples: _Examples, device: torch.device
) -> TrainingRun:
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


def _checkpoints(cell: Cell, accumulation: int, context: WorkerContext) -> Checkpoints:
    """Return where a cell's checkpoints are; a second attempt, in smaller micro-batches, doesn't read the first's."""
    owner = f"{cell.id}-{accumulation}"
    return Checkpoints(context.store.checkpoints / f"{owner}.safetensors", context.checkpoint_every, owner)


def _score(run: TrainingRun, stack: Stack, splits: dict[str, Encoded]) -> _Scored:
    """Predict every evaluation split, with the weights that the methods want to be scored.

    Raises:
        Diverged: a prediction is not finite. The last update did it, and no later loss could show that.
    """
    start = time.perf_counter()
    with stack.evaluating(run):
        predictions = {name: evaluation.predict(run, split) for name, split in splits.items()}
        sketch = measure.sketch(run.params.values())
    seconds = time.perf_counter() - start
    if not all(np.isfinite(values).all() for values in predictions.values()):
        raise Diverged(run.total_steps)
    return _Scored(predictions, sketch, seconds)


def _scored_weights(run: TrainingRun, stack: Stack) -> dict[str, Tensor]:
    """Return a copy of the weights that are scored: averages, where a method swaps them in."""
    with stack.evaluating(run):
        return {name: weight.detach().clone() for name, weight in run.params.items()}


def _save_model(cell: Cell, run: TrainingRun, weights: dict[str, Tensor], folder: Path) -> None:
    """Save the model with these weights, after the methods have taken away what they had added to it."""
    with torch.no_grad():
        for name, weight in run.params.items():
            weight.copy_(weights[name])
    config = pretrained.config(cell.model, run.task.outputs)
    pretrained.save(run.model, pretrained.tokenizer(cell.model), config, folder, run.task.labels)


def _scores(examples: _Examples, predictions: dict[str, np.ndarray], model: str) -> Outcome:
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


def _truncation_notes(examples: _Examples, label: str) -> list[str]:
    """Return what is to be said of how the splits were tokenised, by the model of that label."""
    splits = {"train": examples.train, **examples.splits}
    return [note for name, split in splits.items() for note in truncation(name, split, label)]


def _labels(splits: dict[str, Encoded]) -> dict[str, np.ndarray]:
    return {name: split.labels.numpy() for name, split in splits.items()}


def _arrays(splits: dict[str, Encoded], trace: TrainingResult, scored: _Scored) -> Arrays:
    predictions = {f"{name}.predictions": values for name, values in scored.predictions.items()}
    predictions |= {f"{name}.labels": values for name, values in _labels(splits).items()}
    sketches = {"sketch": np.array(trace.sketches), "sketch_steps": np.array(trace.sketch_steps)}
    if not np.array_equal(scored.sketch, trace.sketches[-1]):  # other weights were scored than those of the last step
        sketches["scored_sketch"] = scored.sketch
    return {"predictions": predictions, "trace": trace.steps | sketches}
