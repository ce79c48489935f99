"""One cell → one row: load, train, evaluate, measure. Everything that a worker process does for a cell is here."""

from __future__ import annotations

import dataclasses
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench.errors import DataError, Diverged
from finetune_bench.model import dropout, pretrained, weights
from finetune_bench.runner.environment import environment
from finetune_bench.runner.inputs import encoded, facts_of, initial_model, load_data
from finetune_bench.runner.row import Row, collapse_reason, constant_prediction, cost_facts, row_of, training_facts
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import CHECKPOINT_EVERY
from finetune_bench.training import evaluation, loop, measure, memory
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.run import TrainingRun

_OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Place:
    """Where a cell runs, and what is kept of it.

    Attributes:
        store: for its row.
        device: where it trains.
        data_root: of the data sets; None for the hub.
        save_model: whether the trained model is kept.
        checkpoint_every: steps from one checkpoint to the next.
    """

    store: Store
    device: torch.device
    data_root: Path | None = None
    save_model: bool = False
    checkpoint_every: int = CHECKPOINT_EVERY


def run_cell(cell: Cell, place: Place) -> Row:
    """Run a cell and write its row, whatever comes of it; returns the row.

    A cell whose process was killed goes on from its last checkpoint. A failure of the cell is a row with its reason,
    never an exception; an interruption passes through. A cell that runs out of memory is tried once more in
    micro-batches of half the size, which keeps the batch the same.
    """
    started, clock, store, device = time.time(), time.monotonic(), place.store, place.device
    cpu = time.process_time()
    devices.prepare(device, threads=max(1, cell.threads), deterministic=cell.recipe.deterministic)
    with store.writing(cell.id) as folder:
        model_folder = folder / "model" if place.save_model else None
        found, arrays, log = _attempt(cell, place, model_folder)
        if found.get("reason") == _OUT_OF_MEMORY and (halved := _in_halves(cell)) is not None:
            found, arrays, more = _attempt(halved, place, model_folder)
            log += more
            parts = halved.recipe.accumulation
            if found.get("reason") == _OUT_OF_MEMORY:
                found["reason"] += f", also with accumulation {parts}"
            else:
                found["accumulated"] = parts
        row = row_of(cell, **found)
        row |= {
            "environment": environment(device),
            "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": time.monotonic() - clock,
            "cpu_seconds": time.process_time() - cpu,
        }
        store.write(cell.to_dict(), row, arrays=arrays, log=log, into=folder)
    for checkpoint in store.checkpoints.glob(f"*{cell.id}-*"):  # with what was half-written when somebody was killed
        checkpoint.unlink()
    return row


def _attempt(cell: Cell, place: Place, model_folder: Path | None) -> tuple[Row, dict[str, dict[str, np.ndarray]], str]:
    """Status and findings of a cell, its arrays, and what to log."""
    try:
        found, arrays = _train_and_score(cell, place, model_folder)
    except Exception as error:
        return {"status": "failed", **_failure(error)}, {}, traceback.format_exc()
    return {"status": "done", **found}, arrays, ""


def _in_halves(cell: Cell) -> Cell | None:
    """The cell with twice the accumulation; None where the batch can't be halved, or a method can't do with it."""
    recipe = cell.recipe
    if recipe.batch_size % (2 * recipe.accumulation):
        return None
    halved = dataclasses.replace(cell, recipe=dataclasses.replace(recipe, accumulation=2 * recipe.accumulation))
    stack = halved.stack
    return None if stack.unsupported(facts_of(halved, stack)) else halved


def _failure(error: Exception) -> Row:
    if devices.is_out_of_memory(error):
        return {"reason": _OUT_OF_MEMORY, "retry": "always"}
    if devices.is_broken(error):
        return {"reason": f"the device failed: {_line(error)}", "retry": "always", "broken": True}
    if isinstance(error, Diverged):
        return {"reason": f"diverged at step {error.step}", "retry": "asked"}
    return {"reason": _line(error), "retry": "asked"}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0]


def _train_and_score(cell: Cell, place: Place, save_to: Path | None) -> tuple[Row, dict[str, dict[str, np.ndarray]]]:
    device, data_root = place.device, place.data_root
    task, data = load_data(cell.task, cell.limit_train, data_root, cell.held_out)
    if data.fingerprint() != cell.data:
        raise DataError(f"the data of '{cell.task}' changed after the run was planned; start it again")
    recipe = cell.recipe
    train, splits = encoded(
        cell.model, cell.task, cell.limit_train, data_root, recipe.max_length, held_out=cell.held_out
    )
    if cell.stretch != 1:
        recipe = dataclasses.replace(recipe, epochs=None, steps=round(cell.stretch * recipe.total_steps(len(train))))
    stack = cell.stack

    measured = devices.reset_peak(device)
    classifier = initial_model(cell, stack, device)
    initial = pretrained.digest(classifier)
    run = TrainingRun(
        classifier,
        task,
        train,
        recipe,
        seed=cell.seed,
        device=device,
        keep_pretrained=stack.reads_pretrained,
    )
    # Of a cell that is tried again in smaller micro-batches, the first try's checkpoint is none.
    file = place.store.checkpoints / f"{cell.id}-{recipe.accumulation}.safetensors"
    try:
        before = devices.energy(device)
        trace = loop.train(run, stack, Checkpoints(file, place.checkpoint_every))
        after = devices.energy(device)
        allocated, reserved = devices.peak(device) if measured else (None, None)
        evaluating = time.perf_counter()
        with stack.evaluating(run):
            predictions = {name: evaluation.predict(run, split) for name, split in splits.items()}
            scored = measure.sketch(run.params.values())
        evaluation_seconds = time.perf_counter() - evaluating
        if not all(np.isfinite(values).all() for values in predictions.values()):
            raise Diverged(run.total_steps)  # the last update itself; no later loss could show it
        trainable = sum(p.numel() for p in run.params.values() if p.requires_grad)
        saved_bytes = memory.saved_activation_bytes(run)
        # What is kept is what was scored: averaged weights, where a method swaps them in.
        with stack.evaluating(run) if save_to else nullcontext():
            kept = {k: v.detach().clone() for k, v in run.params.items()} if save_to else {}
    finally:
        stack.teardown(run)
    if save_to:
        with torch.no_grad():
            for name, weight in run.params.items():  # without what methods had added
                weight.copy_(kept[name])
        config = pretrained.config(cell.model, task.outputs)
        pretrained.save(classifier, pretrained.tokenizer(cell.model), config, save_to, task.labels)

    labels = {name: split.labels.numpy() for name, split in splits.items()}
    metrics = {name: task.score(predictions[name], labels[name]) for name in splits}
    majority = {
        name: task.score(constant_prediction(train.labels, labels[name], task), labels[name]) for name in splits
    }
    found = {
        "metrics": metrics,
        "majority": majority,
        "collapsed": collapse_reason(task, predictions, metrics, majority),
        "subset": [name for name, split in {"train": data.train, **data.evaluation}.items() if split.is_subset],
        "notes": list(data.notes),
        "training": training_facts(task, trace, train.labels),
        "cost": cost_facts(run, trace)
        | {
            "saved_activation_bytes": saved_bytes,
            "peak_memory_bytes": allocated,
            "peak_reserved_bytes": reserved,
            "energy_joules": None if before is None or after is None else after - before,
            "trainable_parameters": trainable,
            "evaluation_seconds": evaluation_seconds,
            "resumed_at": trace.resumed_at or None,
        },
        "hashes": {
            "init": initial,
            "order": run.order.hexdigest()[:16],
            "data": cell.data,
        },
        "dropout": dropout.active_dropout(classifier),
        "fresh_weights": list(weights.taken(cell.model).fresh),
    }
    kept_predictions = {f"{name}.predictions": value for name, value in predictions.items()}
    kept_predictions |= {f"{name}.labels": value for name, value in labels.items()}
    sketches = {"sketch": np.array(trace.sketches), "sketch_steps": np.array(trace.sketch_steps)}
    if not np.array_equal(scored, trace.sketches[-1]):  # other weights were scored than those of the last step
        sketches["scored_sketch"] = scored
    return found, {"predictions": kept_predictions, "trace": trace.steps | sketches}
