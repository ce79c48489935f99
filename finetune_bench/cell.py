"""One cell → one row: load, train, evaluate, measure. Everything that a worker process does for a cell is here."""

from __future__ import annotations

import dataclasses
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import evaluation, measure, model, packing, registry, training
from finetune_bench.checkpoint import Checkpoints
from finetune_bench.environment import environment
from finetune_bench.errors import DataError, Diverged
from finetune_bench.grid import Cell
from finetune_bench.method import Facts, Stack
from finetune_bench.seeds import derive
from finetune_bench.store import SCHEMA, Store
from finetune_bench.study import CHECKPOINT_EVERY
from finetune_bench.task import Task, TaskData, hold_out, limit
from finetune_bench.training import TrainingRun, encode

Row = dict[str, Any]

# The mean training loss of the last tenth must lie this far below that of predicting the label's distribution only.
LEARNT_SHARE = 0.95
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


def row_of(cell: Cell, status: str, **found: Any) -> Row:
    """The part of a row that is known without running, and what was found."""
    task = registry.task(cell.task)
    stack = cell.stack
    return {
        "schema": SCHEMA,
        "id": cell.id,
        "status": status,
        "reason": None,
        "method": cell.label,
        "methods": [
            {
                "name": method.name,
                "version": method.version,
                "parameters": {field.name: getattr(method, field.name) for field in dataclasses.fields(method)},
            }
            for method in stack.methods
        ],
        "task": cell.task,
        "kind": task.kind,
        "metric": task.metrics[0],
        "model": model.label(cell.model),
        "seed": cell.seed,
        "limit_train": cell.limit_train,
        "held_out": cell.held_out,
        "stretch": cell.stretch,
        "recipe": dataclasses.asdict(cell.recipe),
        "device": cell.device,
        "threads": cell.threads,
        **found,
    }


@lru_cache(maxsize=4)
def load_data(
    task_text: str, limit_train: int | None, data_root: Path | None, held_out: float = 0.0
) -> tuple[Task, TaskData]:
    """A task and its examples, the training ones limited, then a share of them held out; kept for the next cell.

    Raises:
        UsageError: the task is unknown or its data can't be had.
    """
    task = registry.task(task_text)
    data = task.load(data_root)
    if limit_train is not None:
        data = dataclasses.replace(data, train=limit(data.train, limit_train, task.name))
    if not len(data.train) or not all(len(split) for split in data.evaluation.values()):
        raise DataError(f"The task '{task.name}' has a split without examples.")
    return task, hold_out(data, held_out, task.name) if held_out else data


@lru_cache(maxsize=4)
def encoded(
    cell_model: str,
    task_text: str,
    limit_train: int | None,
    data_root: Path | None,
    length: int,
    *,
    held_out: float = 0.0,
) -> Any:
    """A task's training examples and evaluation splits by name, tokenised; kept for the next cell."""
    task, data = load_data(task_text, limit_train, data_root, held_out)
    tokenizer = model.tokenizer(cell_model)
    train = encode(data.train, tokenizer, length, task.kind)
    return train, {name: encode(split, tokenizer, length, task.kind) for name, split in data.evaluation.items()}


def forget() -> None:
    """Drop everything that was read from files, which may have changed since."""
    for reader in (load_data, encoded, _skeleton, model.config, model.tokenizer, model.hash_files):
        reader.cache_clear()


def facts_of(cell: Cell, stack: Stack) -> Facts:
    """What is known of a cell before any weight is loaded."""
    task = registry.task(cell.task)
    skeleton = _skeleton(cell.model, task.outputs, stack.dropout)
    return Facts(
        skeleton=skeleton,
        active_dropout=tuple(model.active_dropout(skeleton)),
        task=task,
        recipe=cell.recipe,
        dtype=devices.DTYPES[cell.recipe.precision],
    )


@cache
def _skeleton(name: str, outputs: int, dropout: Any) -> torch.nn.Module:
    return model.skeleton(model.with_dropout(model.config(name, outputs), dropout))


def initial_model(cell: Cell, stack: Stack, device: torch.device) -> torch.nn.Module:
    """A cell's model before any training, under its dropout policy, arranged and checkpointed as its recipe says."""
    task = registry.task(cell.task)
    config = model.with_dropout(model.config(cell.model, task.outputs), stack.dropout)
    classifier = model.load(cell.model, config, derive(cell.seed, "init", task.name, cell.weights)).to(device)
    if cell.recipe.arrangement != "padded":
        packing.prepare(classifier)
    if cell.recipe.gradient_checkpointing:
        model.checkpoint_activations(classifier)
    return classifier


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
    initial = model.digest(classifier)
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
        trace = training.train(run, stack, Checkpoints(file, place.checkpoint_every))
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
        saved_bytes = training.saved_activation_bytes(run)
        # What is kept is what was scored: averaged weights, where a method swaps them in.
        with stack.evaluating(run) if save_to else nullcontext():
            kept = {k: v.detach().clone() for k, v in run.params.items()} if save_to else {}
    finally:
        stack.teardown(run)
    if save_to:
        with torch.no_grad():
            for name, weight in run.params.items():  # without what methods had added
                weight.copy_(kept[name])
        model.save(classifier, model.tokenizer(cell.model), model.config(cell.model, task.outputs), save_to)

    labels = {name: split.labels.numpy() for name, split in splits.items()}
    metrics = {name: task.score(predictions[name], labels[name]) for name in splits}
    majority = {name: task.score(_constant(train.labels, labels[name], task), labels[name]) for name in splits}
    found = {
        "metrics": metrics,
        "majority": majority,
        "collapsed": _collapse(task, predictions, metrics, majority),
        "subset": [name for name, split in {"train": data.train, **data.evaluation}.items() if split.is_subset],
        "notes": list(data.notes),
        "training": _training(task, trace, train.labels),
        "cost": _cost(run, trace)
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
        "dropout": model.active_dropout(classifier),
    }
    kept_predictions = {f"{name}.predictions": value for name, value in predictions.items()}
    kept_predictions |= {f"{name}.labels": value for name, value in labels.items()}
    sketches = {"sketch": np.array(trace.sketches), "sketch_steps": np.array(trace.sketch_steps)}
    if not np.array_equal(scored, trace.sketches[-1]):  # other weights were scored than those of the last step
        sketches["scored_sketch"] = scored
    return found, {"predictions": kept_predictions, "trace": trace.steps | sketches}


def _constant(train_labels: torch.Tensor, labels: np.ndarray, task: Task) -> np.ndarray:
    """The prediction that uses no text: the commonest training label, or the mean for regression."""
    if task.kind == "regression":
        return np.full((len(labels), 1), float(train_labels.mean()))
    one_hot: np.ndarray = np.eye(task.outputs)[int(train_labels.bincount().argmax())]
    return np.tile(one_hot, (len(labels), 1))


def _collapse(
    task: Task,
    predictions: dict[str, np.ndarray],
    metrics: dict[str, dict[str, float]],
    majority: dict[str, dict[str, float]],
) -> str | None:
    """Why a run counts as collapsed, judged on the first split; None when it doesn't."""
    first = next(iter(predictions))
    if task.kind == "classification" and len(np.unique(predictions[first].argmax(axis=1))) == 1:
        return "predicts one class only"
    if all(metrics[first][metric] <= majority[first][metric] for metric in task.metrics):
        return f"no better than the constant prediction in {' or '.join(task.metrics)}"
    return None


def _training(task: Task, trace: training.Trace, labels: torch.Tensor) -> Row:
    losses = trace.steps["task_loss"]
    tenth = max(1, len(losses) // 10)
    first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
    if task.kind == "regression":
        constant = float(labels.var(correction=0))
    else:
        shares = labels.bincount().double() / len(labels)
        constant = float(torch.special.entr(shares).sum())
    return {
        "steps": len(losses),
        "first_loss": first,
        "last_loss": last,
        "constant_loss": constant,
        "hardly_moved": last > LEARNT_SHARE * constant,
    }


def _cost(run: TrainingRun, trace: training.Trace) -> Row:
    timed = slice(measure.WARMUP_STEPS if len(trace.seconds) > measure.WARMUP_STEPS else 0, None)
    seconds = float(trace.seconds[timed].sum())
    examples = int(trace.examples[timed].sum())
    return {
        "train_seconds": seconds,
        "train_cpu_seconds": float(trace.cpu_seconds[timed].sum()),
        "examples_per_second": examples / seconds if seconds else None,
        "forwards_per_step": trace.forwards_per_step,
        "backwards_per_step": trace.backwards_per_step,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "setup_seconds": trace.setup_seconds,
        "setup_forwards": trace.setup_forwards,
        "setup_backwards": trace.setup_backwards,
    }
