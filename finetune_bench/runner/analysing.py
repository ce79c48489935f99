"""Analyses are run here: at the end of a run, on the model in memory, or later on a model that was kept.

An analysis that fails fails alone: its result says why, and the run's row is what it would have been without it. The
random streams are put back, and the weights are held against what they were.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.analysis import Analysis, Findings, Network, Trained
from finetune_bench.errors import DataError, FinetuneBenchError
from finetune_bench.files import Damaged, read_json
from finetune_bench.method.stack import Stack
from finetune_bench.model import pretrained, weights
from finetune_bench.printable import LONGEST_REASON, brief
from finetune_bench.runner.inputs import encoded, initial_model, load_data
from finetune_bench.spec import parse_call
from finetune_bench.store import analyses as results
from finetune_bench.store.analyses import Result
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.task import Task, TaskData
from finetune_bench.training import measure
from finetune_bench.training.examples import Encoded
from finetune_bench.training.run import TrainingRun

# Made of every run: it works on the predictions alone and takes no time.
ALWAYS = ("calibration",)
# How far the logits of a kept model may be from those of its row: other machines round otherwise.
ROUNDING = {"fp32": 1e-3}
COARSE_ROUNDING = 0.2

Measured = tuple[Result, Mapping[str, np.ndarray]]


def asked(texts: Sequence[str]) -> list[Analysis]:
    """Make the analyses that a study asks for, and before them those that are made of every run."""
    named = {parse_call(text).name for text in texts}
    known = registry.names("analyses")
    return [registry.make_analysis(text) for text in (*(n for n in ALWAYS if n in known and n not in named), *texts)]


def is_there(store: Store, cell_id: str, analysis: Analysis, *, also_failed: bool = False) -> bool:
    """Return whether a run has the result of such an analysis, of the same version, parameters and source.

    Args:
        store: the store of the run.
        cell_id: the run's id.
        analysis: the analysis.
        also_failed: whether the result of one that failed counts too.
    """
    try:
        result = results.read(store.folder(cell_id), analysis.name)
    except Damaged:
        return False
    if result is None or (result["reason"] is not None and not also_failed):
        return False
    return all(result.get(key) == value for key, value in _identity(analysis).items())


def lacks(store: Store, cell: Cell, texts: Sequence[str], *, retry_failed: bool = False) -> list[Analysis]:
    """Return the analyses, of those that need the model, that a run could have and has no result of."""
    task = registry.task(cell.task)
    return [
        analysis
        for analysis in map(registry.make_analysis, texts)
        if analysis.needs_model
        and analysis.unsupported(task) is None
        and not is_there(store, cell.id, analysis, also_failed=not retry_failed)
    ]


@dataclass(frozen=True)
class Scored:
    """Scored holds the examples of a run and its predictions; it has all that an analysis without a model reads.

    Attributes:
        task: the task.
        data: its examples.
        splits: those of evaluation, tokenised.
        predictions: the logits of each split, (examples, outputs).
        data_root: the folder that data sets are read from; None for the hub.
    """

    task: Task
    data: TaskData
    splits: Mapping[str, Encoded]
    predictions: Mapping[str, np.ndarray]
    data_root: Path | None


def at_the_end(cell: Cell, run: TrainingRun, stack: Stack, scored: Scored, texts: Sequence[str]) -> list[Measured]:
    """Analyse the model of a run that has been trained and scored, with the weights that are scored.

    Args:
        cell: the cell.
        run: its run, before teardown.
        stack: its methods.
        scored: what it was scored on.
        texts: the analyses that are asked for, as typed.
    """
    analyses = asked(texts)
    reads_model = any(analysis.needs_model for analysis in analyses)
    with stack.evaluating(run):
        trained = _trained(cell, scored, Network(run.model, run.params, run.device, run.autocast), run.device)
        before = measure.sketch(run.params.values()) if reads_model else None
        made = [_measured(cell, analysis, trained) for analysis in analyses]
        is_changed = before is not None and not np.array_equal(before, measure.sketch(run.params.values()))
    if is_changed:
        raise FinetuneBenchError(
            "An analysis changed the weights of the model that it was given; leave out the one that comes from "
            f"elsewhere (asked for: {', '.join(texts)})."
        )
    return made


def of_kept_model(
    cell: Cell, store: Store, analyses: Sequence[Analysis], *, device: torch.device, data_root: Path | None
) -> list[Result]:
    """Analyse a finished run from its predictions and the model that was kept, and write the results beside its row.

    Args:
        cell: the cell, whose row is done.
        store: its store; the caller has claimed the cell.
        analyses: what to measure.
        device: the device to run on.
        data_root: the folder that data sets are read from; None for the hub.

    Raises:
        Damaged: the kept model isn't the one that was scored.
        DataError: the data are not those of the run.
    """
    recipe = cell.recipe
    devices.prepare(
        device, threads=max(1, cell.threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    task, data = load_data(cell.task, cell.limit_train, data_root, cell.held_out)
    if data.fingerprint() != cell.data:
        raise DataError(
            f"The data of '{cell.task}' are not those that the run {cell.id} was trained on; give the same --data-root."
        )
    _, splits = encoded(cell.model, cell.task, cell.limit_train, data_root, recipe.max_length, held_out=cell.held_out)
    arrays = store.arrays(cell.id, "predictions")
    predictions = {name: arrays[f"{name}.predictions"] for name in splits}
    network = None
    if any(analysis.needs_model for analysis in analyses):
        folder = store.folder(cell.id) / "model"
        network = _kept_network(folder, task, device, recipe.precision)
        _check_kept(network, folder, splits, predictions, recipe.precision)
    trained = _trained(cell, Scored(task, data, splits, predictions, data_root), network, device)
    made = [_measured(cell, analysis, trained) for analysis in analyses]
    for result, result_arrays in made:
        results.write(store.folder(cell.id), result, result_arrays)
    return [result for result, _ in made]


def take_over(old: Path, new: Path, cell_id: str, before: Row | None, after: Row) -> None:
    """Copy the results of a run's analyses to the folder that replaces its own, where its numbers are the same."""
    if before is None or before["status"] != Status.DONE or before.get("metrics") != after.get("metrics"):
        return
    for name in set(results.names(old)) - set(results.names(new)):
        try:
            results.copy(old, new, name, cell_id)
        except Damaged:
            continue  # it is measured anew when it is asked for


def cell_of(store: Store, cell_id: str) -> Cell:
    """Read the cell of a row.

    Raises:
        Damaged: its file describes no cell, or another one.
    """
    path = store.folder(cell_id) / "cell.json"
    values = read_json(path)
    try:  # earlier versions left out what had no effect
        values = {"held_out": 0.0, "stretch": 1.0} | values | {"recipe": {"arrangement": "padded"} | values["recipe"]}
        cell = Cell.from_dict(values)
        is_it = cell.id == cell_id
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise Damaged(path, f"describes no run ({type(error).__name__})") from None
    if not is_it:
        raise Damaged(path, "describes another run")
    return cell


def _trained(cell: Cell, scored: Scored, network: Network | None, device: torch.device) -> Trained:
    recipe, stack = cell.recipe, cell.make_stack()

    def untouched() -> Network:
        model = initial_model(cell, stack, device).eval()
        return Network(model, dict(model.named_parameters()), device, _autocast(device, recipe.precision))

    # The seed is left out: it draws the head only, which no analysis reads of a model that was not trained.
    begins_with = (
        cell.model, cell.weights, cell.task, stack.dropout, recipe.max_length, recipe.precision, recipe.batch_layout,
        recipe.deterministic, str(device), cell.threads,
    )  # fmt: skip

    return Trained(
        task=scored.task,
        data=scored.data,
        splits=scored.splits,
        predictions=scored.predictions,
        checkpoint=pretrained.label(cell.model),
        checkpoint_name=cell.model,
        tokenizer=pretrained.tokenizer(cell.model),
        max_length=recipe.max_length,
        data_root=scored.data_root,
        network=network,
        untouched=untouched,
        begins_with=begins_with,
    )


def _kept_network(folder: Path, task: Task, device: torch.device, precision: str) -> Network:
    config = pretrained.config(str(folder), task.outputs)
    model = weights.load(str(folder), config, 0, keep_head=True).to(device).eval()
    return Network(model, dict(model.named_parameters()), device, _autocast(device, precision))


def _autocast(device: torch.device, precision: str) -> Callable[[], Any]:
    dtype = devices.DTYPES[precision]
    return partial(torch.autocast, device.type, dtype=dtype, enabled=dtype != torch.float32)


def _check_kept(
    network: Network, folder: Path, splits: Mapping[str, Encoded], predictions: Mapping[str, np.ndarray], precision: str
) -> None:
    """Check that a kept model predicts the first split as its row says.

    Raises:
        Damaged: it doesn't.
    """
    first = next(iter(splits))
    apart = float(np.abs(network.logits(splits[first]) - predictions[first]).max())
    allowed = ROUNDING.get(precision, COARSE_ROUNDING) * max(1.0, float(np.abs(predictions[first]).max()))
    if not apart <= allowed:
        raise Damaged(
            folder, f"is not the model that was scored: its logits differ from the row's by up to {apart:.2g}"
        )


def _measured(cell: Cell, analysis: Analysis, trained: Trained) -> Measured:
    """Return the result of one analysis and its arrays; of one that failed, the reason."""
    started, findings = time.monotonic(), Findings()
    reason = analysis.unsupported(trained.task)
    if reason is None:
        given = trained if analysis.needs_model else dataclasses.replace(trained, network=None)
        try:
            with _nothing_drawn(trained.network):
                findings = analysis.measure(given)
        except (Exception, SystemExit) as error:  # a plugin may do anything
            reason = f"{type(error).__name__}: {brief(str(error).strip() or 'no message', LONGEST_REASON)}"
            traceback.print_exc()
    numbers, notes = _finite(findings)
    result: Result = {
        "schema": results.SCHEMA,
        "id": cell.id,
        **_identity(analysis),  # type: ignore[typeddict-item]
        "reason": reason,
        "title": analysis.title or analysis.name,
        "about": analysis.about,
        "numbers": numbers,
        "layers": {name: [float(value) for value in curve] for name, curve in findings.layers.items()},
        "better": dict(findings.better),
        "notes": notes,
        "facts": dict(findings.facts),
        "seconds": time.monotonic() - started,
    }
    return result, findings.arrays


def _identity(analysis: Analysis) -> dict[str, Any]:
    """Return what tells one result of an analysis from another of the same name."""
    parameters = {field.name: getattr(analysis, field.name) for field in dataclasses.fields(analysis)}
    source = registry.source("analyses", analysis.name)
    return {
        "analysis": analysis.name,
        "version": analysis.version,
        "parameters": parameters,
        **({"source": source} if source else {}),
    }


def _finite(findings: Findings) -> tuple[dict[str, float], list[str]]:
    """Return the numbers, those that are infinite as NaN with a note, and the notes."""
    numbers = {name: float(value) for name, value in findings.numbers.items()}
    infinite = [name for name, value in numbers.items() if math.isinf(value)]
    notes = [*findings.notes, *(f"{name} is infinite." for name in infinite)]
    return {name: math.nan if name in infinite else value for name, value in numbers.items()}, notes


@contextmanager
def _nothing_drawn(network: Network | None) -> Iterator[None]:
    """Put every global random stream back after the block, and the model into evaluation mode."""
    python, numpy = random.getstate(), np.random.get_state()
    device = torch.device("cpu") if network is None else network.device
    try:
        with devices.random_state_kept(device):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if network is not None:
            network.model.eval()
