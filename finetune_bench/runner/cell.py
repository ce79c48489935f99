"""`run_cell` makes a row of a cell: load, train, score, measure. All that a worker does for a cell is here."""

from __future__ import annotations

import dataclasses
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch

from finetune_bench import device as devices
from finetune_bench.errors import Diverged
from finetune_bench.method.observing import Observed
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained
from finetune_bench.model import weights as checkpoint_weights
from finetune_bench.model.rates import dropout_in_use
from finetune_bench.printable import LONGEST_REASON, brief
from finetune_bench.runner import analysing, scoring
from finetune_bench.runner.environment import environment
from finetune_bench.runner.inputs import facts_of, initial_model
from finetune_bench.runner.row import cost_alone, cost_of, row_of, training_facts
from finetune_bench.store import analyses as results
from finetune_bench.store.row import Outcome, Retry, Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import CHECKPOINT_EVERY
from finetune_bench.training import loop, memory
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.record import TrainingResult
from finetune_bench.training.run import TrainingRun

OUT_OF_MEMORY = "out of memory"
# A signal's handler that is about to end this process sets it: what it then raises is no failure of the cell.
PROCESS_ENDS = threading.Event()

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


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
        shares_device: whether other workers of the run use the device, too: its energy is then not the cell's.
    """

    store: Store
    device: torch.device
    data_root: Path | None = None
    save_model: bool = False
    checkpoint_every: int = CHECKPOINT_EVERY
    tell: Callable[[int, int, float], None] | None = None
    shares_device: bool = False


@dataclass(frozen=True)
class _Attempt:
    """One attempt at a cell: what became of it, what came of it, its analyses, and the text for its log."""

    status: Status
    reason: str | None
    outcome: Outcome
    arrays: scoring.Arrays = dataclasses.field(default_factory=dict)
    log: str = ""
    analyses: Sequence[analysing.Measured] = ()


def run_cell(cell: Cell, context: WorkerContext) -> Row:
    """Run a cell alone and write its row, whatever comes of it; return the row."""
    return run_cells([cell], context)[0]


def run_cells(cells: Sequence[Cell], context: WorkerContext) -> list[Row]:
    """Run cells that are equal but for observers: one training, and each scored from it; return their rows.

    All rows are written, whatever comes of the cells. A training whose process was killed goes on from its last
    checkpoint. A failure is a row with its reason, never an exception; an interruption passes through. Cells that run
    out of memory are tried once more in micro-batches of half the size, which keeps the batch the same.
    """
    started, clock, cpu_clock = time.time(), time.monotonic(), time.process_time()
    store, device = context.store, context.device
    recipe = cells[0].recipe
    devices.prepare(
        device, threads=max(1, cells[0].threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    with ExitStack() as writing:
        folders = {cell.id: writing.enter_context(store.writing(cell.id)) for cell in cells}
        model_folder = folders[cells[0].id] / "model" if context.save_model else None
        attempts = _attempts(cells, cells, context, model_folder)
        hungry = [cell for cell in cells if _is_hungry(attempts[cell.id])]
        halved = [half for cell in hungry if (half := _in_halves(cell)) is not None]
        if halved and len(halved) == len(hungry):
            seconds = _attempts(hungry, halved, context, model_folder)
            for cell, half in zip(hungry, halved, strict=True):
                attempts[cell.id] = _second_attempt(attempts[cell.id], seconds[cell.id], half)
        rows = []
        for cell in cells:
            attempt = attempts[cell.id]
            row: Row = {
                **row_of(cell, attempt.status, attempt.reason),
                **attempt.outcome,
                "environment": environment(device),
                "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": time.monotonic() - clock,
                "cpu_seconds": time.process_time() - cpu_clock,
            }
            if len(cells) > 1:
                row["shared_training"] = len(cells)
            _write(cell, row, attempt, folders[cell.id], store)
            rows.append(row)
    if not any(store.has_lost(cell.id) for cell in cells):  # or the checkpoint is of the process that has them now
        remove_checkpoints(cells[0].training_id, store)
    return rows


def _write(cell: Cell, row: Row, attempt: _Attempt, folder: Path, store: Store) -> None:
    store.write(cell.to_dict(), row, arrays=attempt.arrays, log=attempt.log, into=folder)
    for result, arrays in attempt.analyses:
        results.write(folder, result, arrays)
    analysing.take_over(store.folder(cell.id), folder, cell.id, store.row(cell.id), row)


def remove_checkpoints(training_id: str, store: Store) -> None:
    """Remove the checkpoints of a training, also what was half-written when a process was killed."""
    for checkpoint in store.checkpoints.glob(f"*{training_id}-*"):
        checkpoint.unlink(missing_ok=True)


def _attempts(
    cells: Sequence[Cell], trained: Sequence[Cell], context: WorkerContext, model_folder: Path | None
) -> dict[str, _Attempt]:
    """Return an attempt at each cell, by its id; an error of the training is that of all of them.

    Args:
        cells: the cells, of one training.
        trained: the same cells as they are trained, which may be in smaller micro-batches.
        context: that of the worker.
        model_folder: the folder that takes the model; None where none is kept.
    """
    checkpoints = _checkpoints(cells, trained[0].recipe.accumulation, context)
    try:
        attempts = _train_and_score(trained, context, model_folder, checkpoints)
    except (Exception, SystemExit) as error:  # a plugin may call sys.exit
        if PROCESS_ENDS.is_set():
            raise
        # Each row has a table of its own.
        attempts = [_failed(error, context.device) for _ in cells]
    return {cell.id: attempt for cell, attempt in zip(cells, attempts, strict=True)}


def _failed(error: BaseException, device: torch.device) -> _Attempt:
    reason, outcome = _failure(error, device)
    return _Attempt(Status.FAILED, reason, outcome, log=traceback.format_exc())


def _is_hungry(attempt: _Attempt) -> bool:
    return attempt.reason == OUT_OF_MEMORY and not attempt.outcome.get("broken")


def _second_attempt(first: _Attempt, second: _Attempt, halved: Cell) -> _Attempt:
    """Return the second attempt at a cell that ran out of memory, in smaller micro-batches; the log is that of both."""
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
class _Trained:
    """What one training gave, whatever it is scored as.

    Attributes:
        trace: what was recorded.
        facts: what the row of one of its cells says of it; `cost` has no seconds of evaluation yet.
    """

    trace: TrainingResult
    facts: Outcome


def _train_and_score(
    cells: Sequence[Cell], context: WorkerContext, model_folder: Path | None, checkpoints: Checkpoints
) -> list[_Attempt]:
    """Train a model once, score it as each cell has it and measure; return what came of each."""
    device = context.device
    examples = scoring.load_examples(cells[0], context.data_root)
    stack = Observed({cell.id: cell.make_trained_stack() for cell in cells})
    members = [stack.members[cell.id] for cell in cells]
    peak_is_measured = devices.reset_peak(device)
    classifier = initial_model(cells[0], stack, device)
    initial_digest = pretrained.digest(classifier)
    run = scoring.make_run(cells[0], stack, classifier, examples, device)
    try:
        energy_before = None if context.shares_device else devices.energy(device)
        trace = loop.train(run, checkpoints, _teller(run, context))
        stack.check()
        dropout = dropout_in_use(classifier)
        energy_after = None if context.shares_device else devices.energy(device)
        allocated, reserved = devices.peak(device) if peak_is_measured else (None, None)
        held = memory.held_bytes(run, stack.methods)
        of_others = [held - memory.held_bytes(run, member.methods) for member in members]
        scored = _each(members, lambda _, member: scoring.score(run, member, examples.splits, trace), device)
        trainable = sum(p.numel() for p in run.params.values() if p.requires_grad)
        of_muon = sum(p.numel() for p in loop.muon_weights(run)) if run.recipe.optimizer == "muon" else None
        saved_bytes = memory.saved_activation_bytes(run)
        kept_weights = scoring.scored_weights(run, members[0]) if model_folder else {}
        analyses = _each(
            scored,
            lambda i, result: _analyse(cells[i], run, members[i], result, examples=examples, context=context),
            device,
        )
    finally:
        stack.teardown(run)
    if model_folder:
        scoring.save_model(cells[0], run, kept_weights, model_folder)

    facts: Outcome = {"training": training_facts(examples.task, trace, examples.train.labels, cells[0].recipe.clip)}
    cost = cost_of(
        run,
        trace,
        saved_activation_bytes=saved_bytes,
        peak_memory_bytes=allocated,
        peak_reserved_bytes=reserved,
        energy_joules=None if energy_before is None or energy_after is None else energy_after - energy_before,
        trainable_parameters=trainable,
        muon_parameters=of_muon,
    )
    facts["hashes"] = {"init": initial_digest, "order": run.order.hexdigest()[:16], "data": cells[0].data}
    facts["dropout"] = dropout
    facts["fresh_weights"] = _fresh_weights(cells[0])
    own = [cost_alone(cost, trace, stack, *of_cell) for of_cell in zip(stack.members, of_others, strict=True)]
    trained = [_Trained(trace, {**facts, "cost": of_cell}) for of_cell in own]
    return _each(analyses, lambda i, result: _done(cells[i], examples, trained[i], *result), device)


def _fresh_weights(cell: Cell) -> list[str]:
    taken = checkpoint_weights.taken(cell.model)
    return list(taken.lacked if checkpoint_weights.KEPT_HEAD in cell.weights else taken.fresh)


def _each(
    given: Sequence[_Given | _Attempt], make: Callable[[int, _Given], _Made], device: torch.device
) -> list[_Made | _Attempt]:
    """Return what is made of each cell's, by its position; one that failed stays the failed attempt, or becomes it.

    An error passes through where there is one cell only.
    """
    made: list[_Made | _Attempt] = []
    for index, each in enumerate(given):
        try:
            made.append(each if isinstance(each, _Attempt) else make(index, each))
        except (Exception, SystemExit) as error:
            if len(given) == 1 or PROCESS_ENDS.is_set():
                raise
            made.append(_failed(error, device))
    return made


def _analyse(
    cell: Cell,
    run: TrainingRun,
    stack: Stack,
    scored: scoring.Scored,
    *,
    examples: scoring.Examples,
    context: WorkerContext,
) -> tuple[scoring.Scored, list[analysing.Measured]]:
    """Return what was scored, with its analyses."""
    analysed = analysing.Scored(examples.task, examples.data, examples.splits, scored.predictions, context.data_root)
    return scored, analysing.at_the_end(cell, run, stack, analysed, cell.analyses)


def _done(
    cell: Cell,
    examples: scoring.Examples,
    trained: _Trained,
    scored: scoring.Scored,
    analyses: list[analysing.Measured],
) -> _Attempt:
    """Return the attempt at a cell that was trained, scored and analysed."""
    outcome: Outcome = {**scoring.scores(examples, scored.predictions, cell.model), **trained.facts}
    outcome["cost"] = {**trained.facts["cost"], "evaluation_seconds": scored.seconds}
    arrays = scoring.arrays_of(examples.splits, trained.trace, scored)
    return _Attempt(Status.DONE, None, outcome, arrays, analyses=analyses)


def _teller(run: TrainingRun, context: WorkerContext) -> Callable[[int, float], None] | None:
    """Return what is to be told of a run's losses, if anybody wants to know."""
    tell = context.tell
    return None if tell is None else lambda step, loss: tell(step, run.total_steps, loss)


def _checkpoints(cells: Sequence[Cell], accumulation: int, context: WorkerContext) -> Checkpoints:
    """Return where a training's checkpoints are; a second attempt, in smaller micro-batches, doesn't read the first's.

    Where only some of the cells got their rows before a process was killed, the others go on from there.
    """
    owner = f"{cells[0].training_id}-{accumulation}"
    path = context.store.checkpoints / f"{owner}.safetensors"
    return Checkpoints(path, context.checkpoint_every, owner, tuple(cell.id for cell in cells))
