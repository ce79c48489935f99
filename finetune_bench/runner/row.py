"""A row is put together here, from a cell and the result of its run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Method
from finetune_bench.method.observing import Observed
from finetune_bench.model import pretrained
from finetune_bench.printable import LONGEST_REASON, brief
from finetune_bench.runner import analysing
from finetune_bench.spec import parse_stack
from finetune_bench.store.reading import SCHEMA
from finetune_bench.store.row import Cost, MethodEntry, Retry, Row, Status, TrainingFacts
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.task import HELD_OUT, Task
from finetune_bench.training import measure
from finetune_bench.training.record import GRAD_NORM, TrainingResult
from finetune_bench.training.run import TrainingRun

# The mean training loss of the last tenth must lie this far below that of predicting the label's distribution only.
LEARNT_SHARE = 0.95


def row_of(cell: Cell, status: Status, reason: str | None = None) -> Row:
    """Return the part of a row that is known without running: what the cell is, and what became of it.

    A long reason is cut; the log of a cell that failed has the whole.
    """
    task = registry.task(cell.task)
    methods = [_entry_of(method) for method in cell.make_stack().methods]
    return _row(cell, status, reason, label=cell.label, methods=methods, kind=task.kind, metric=task.metrics[0])


def _entry_of(method: Method) -> MethodEntry:
    entry: MethodEntry = {
        "name": method.name,
        "version": method.version,
        "parameters": {field.name: getattr(method, field.name) for field in dataclasses.fields(method)},
    }
    if type(method).losses is not Method.losses:
        entry["changes_losses"] = True
    return entry


def score_of(row: Row) -> float:
    """Return the score of a row that is done, in points: the mean over the evaluation splits, NaN without one."""
    metrics = row.get("metrics") or {}
    scores = [metrics[name].get(row["metric"]) for name in metrics if name != HELD_OUT]
    values = [math.nan if score is None else score for score in scores]
    return 100 * sum(values) / len(values) if values else math.nan


def refused_row(cell: Cell, reason: str) -> Row:
    """Return the row of a cell whose code isn't what was planned; it runs again where that code is back.

    Such code may not even be importable. Then the row has what the cell itself says.
    """
    try:
        row = row_of(cell, Status.FAILED, reason)
    except FinetuneBenchError:
        calls = zip(parse_stack(cell.method), cell.versions, strict=True)
        methods: list[MethodEntry] = [
            {"name": call.name, "version": version, "parameters": dict(call.arguments)} for call, version in calls
        ]
        named = {"label": cell.method, "kind": "classification", "metric": "accuracy"}
        row = _row(cell, Status.FAILED, reason, methods=methods, **named)
    row["retry"] = Retry.ALWAYS
    return row


def _row(
    cell: Cell, status: Status, reason: str | None, *, label: str, methods: list[MethodEntry], kind: str, metric: str
) -> Row:
    row: Row = {
        "schema": SCHEMA,
        "id": cell.id,
        "status": status,
        "reason": None if reason is None else brief(reason, LONGEST_REASON),
        "method": label,
        "methods": methods,
        "task": cell.task,
        "kind": kind,
        "metric": metric,
        "model": pretrained.label(cell.model),
        "seed": cell.seed,
        "limit_train": cell.limit_train,
        "held_out": cell.held_out,
        "stretch": cell.step_factor,
        "recipe": cell.recipe.to_dict(),
        "device": cell.device,
        "threads": cell.threads,
        "data": cell.data,
        "weights": cell.weights,
    }
    if cell.sources:
        row["sources"] = list(cell.sources)
    return row


def final_row(
    store: Store, cell: Cell, *, save_model: bool, retry_failed: bool, analyses: Sequence[str] = ()
) -> Row | None:
    """Return the row of a cell that needs no run; None where it is to be run.

    Args:
        store: the store that may have the row.
        cell: the cell.
        save_model: whether a cell that is done also needs its model.
        retry_failed: whether a cell that would fail again is to be run all the same.
        analyses: those that a cell that is done needs a result of, where they need its model.
    """
    row = store.row(cell.id)
    if row is None:
        return None
    if row["status"] == Status.DONE and (not save_model or store.has_model(cell.id)):
        return None if analysing.lacks(store, cell, analyses, retry_failed=retry_failed) else row
    if row["status"] == Status.FAILED and row.get("retry") == Retry.ASKED and not retry_failed:
        return row
    return None


def constant_prediction(train_labels: torch.Tensor, labels: np.ndarray, task: Task) -> np.ndarray:
    """Return the prediction that uses no text: the commonest training label, or the mean for regression.

    Args:
        train_labels: labels of the training examples, (examples,).
        labels: labels of the split to predict, (predicted,); only their number counts.
        task: the task.

    Returns:
        Scores, (predicted, outputs).
    """
    if task.kind == "regression":
        return np.full((len(labels), 1), float(train_labels.mean()))
    one_hot: np.ndarray = np.eye(task.outputs)[int(train_labels.bincount().argmax())]
    return np.tile(one_hot, (len(labels), 1))


def collapse_reason(
    task: Task,
    predictions: dict[str, np.ndarray],
    metrics: dict[str, dict[str, float]],
    majority: dict[str, dict[str, float]],
) -> str | None:
    """Return why a run counts as collapsed, judged on the first split; None when it doesn't."""
    first = next(iter(predictions))
    if task.kind == "classification" and len(np.unique(predictions[first].argmax(axis=1))) == 1:
        return "predicts one class only"
    if all(metrics[first][metric] <= majority[first][metric] for metric in task.metrics):
        return f"no better than the constant prediction in {' or '.join(task.metrics)}"
    return None


def training_facts(task: Task, trace: TrainingResult, labels: torch.Tensor, clip: float) -> TrainingFacts:
    """Return how the training loss fell, and how large the gradients were.

    Args:
        task: the task.
        trace: what was recorded while the cell trained.
        labels: the labels of its training examples, (examples,): the loss is held against predicting their shares.
        clip: the norm to which larger gradients were clipped.
    """
    losses, norms = trace.steps["task_loss"], trace.steps[GRAD_NORM]
    finite = norms[np.isfinite(norms)]
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
        "grad_norm": float(np.median(finite)) if len(finite) else math.nan,
        # A norm that is not finite is clipped too.
        "clipped_share": float(np.mean(~(norms <= clip))),
    }


def cost_of(
    run: TrainingRun,
    trace: TrainingResult,
    *,
    saved_activation_bytes: int,
    peak_memory_bytes: int | None,
    peak_reserved_bytes: int | None,
    energy_joules: float | None,
    trainable_parameters: int,
    muon_parameters: int | None = None,
) -> Cost:
    """Return what training a run took: the sums of its trace, and what was measured beside it.

    Args:
        run: the run, after the teardown of its methods.
        trace: what was recorded while it trained.
        saved_activation_bytes: bytes that autograd keeps for one objective.
        peak_memory_bytes: bytes at the peak, see `device.peak`; None where that is not measured.
        peak_reserved_bytes: bytes that the allocator held at the peak; None on a CPU.
        energy_joules: joules that the device used while training; None where it doesn't tell.
        trainable_parameters: weights that were trained, the methods' own among them.
        muon_parameters: those of them that Muon stepped; None with another optimiser.
    """
    timed = _timed(trace)
    seconds = float(trace.seconds[timed].sum())
    examples = int(trace.examples[timed].sum())
    cost: Cost = {
        "train_seconds": seconds,
        "train_cpu_seconds": float(trace.cpu_seconds[timed].sum()),
        "examples_per_second": examples / seconds if seconds else None,
        "setup_seconds": trace.setup_seconds,
        "forwards_per_step": trace.forwards_per_step,
        "backwards_per_step": trace.backwards_per_step,
        "setup_forwards": trace.setup_forwards,
        "setup_backwards": trace.setup_backwards,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "trainable_parameters": trainable_parameters,
        "saved_activation_bytes": saved_activation_bytes,
        "peak_memory_bytes": peak_memory_bytes,
        "peak_reserved_bytes": peak_reserved_bytes,
        "energy_joules": energy_joules,
        "resumed_at": trace.resumed_at or None,
    }
    return cost if muon_parameters is None else cost | {"muon_parameters": muon_parameters}


def cost_alone(cost: Cost, trace: TrainingResult, stack: Observed, cell_id: str, others_bytes: int) -> Cost:
    """Return what a run that may have shared its training would have cost alone, without the others' observers.

    Of a training that went on from a checkpoint they can't be told apart, since what they took before it was not kept.

    Args:
        cost: that of the training, see `cost_of`.
        trace: what was recorded while it trained.
        stack: what it was trained with.
        cell_id: the cell of the run.
        others_bytes: bytes of the tensors that only the other runs need.
    """
    if len(stack.members) == 1:
        return cost
    if not stack.has_others(cell_id):
        return cost | {"others_seconds": 0.0, "others_bytes": 0}
    if trace.resumed_at:
        return cost
    timed = _timed(trace)
    setup_seconds, seconds, cpu_seconds = stack.seconds_of_others(cell_id)
    others_seconds = float(seconds[timed].sum())
    left = cost["train_seconds"] - others_seconds
    rate, peak = cost["examples_per_second"], cost["peak_memory_bytes"]
    return cost | {
        "train_seconds": left,
        "train_cpu_seconds": cost["train_cpu_seconds"] - float(cpu_seconds[timed].sum()),
        "examples_per_second": rate * cost["train_seconds"] / left if rate and left else None,
        "setup_seconds": cost["setup_seconds"] - setup_seconds,
        "peak_memory_bytes": None if peak is None else peak - others_bytes,
        # Neither can be split.
        "peak_reserved_bytes": None,
        "energy_joules": None,
        "others_seconds": others_seconds,
        "others_bytes": others_bytes,
    }


def _timed(trace: TrainingResult) -> slice:
    """Return which steps count: the first pay for allocation and caches."""
    return slice(measure.WARMUP_STEPS if len(trace.seconds) > measure.WARMUP_STEPS else 0, None)
