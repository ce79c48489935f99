"""A calibration trains a few steps of a cell and scores a few examples, to foretell what cells like it will take.

On an accelerator it runs in a child process, so that the runner keeps no memory of the device while the workers train.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import MachineError
from finetune_bench.method.stack import Stack
from finetune_bench.model import hub, pretrained
from finetune_bench.runner.inputs import encoded, initial_model, load_data
from finetune_bench.study.grid import Cell
from finetune_bench.training import evaluation, loop
from finetune_bench.training.examples import Encoded, training_steps
from finetune_bench.training.run import TrainingRun

WARMUP_STEPS = 1  # of a calibration, which are not timed
TIMED_STEPS = 7
SCORED_EXAMPLES = 64  # of every evaluation split, which are timed

# The child gets this process's import path, and never imports its main module. What a library prints is no answer.
START = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from finetune_bench.runner.calibration import answer
answers.write(answer(sys.stdin.read()))
"""


@dataclass(frozen=True)
class Calibration:
    """A calibration has the times and sizes of a method on a task, from which a forecast is made.

    Attributes:
        step_seconds: seconds of a step of average size.
        setup_seconds: seconds of the method's setup.
        other_seconds: seconds to load the model and to evaluate.
        peak_bytes: bytes at the peak of training; None where that can't be measured.
        largest_batch: tokens of the largest batch.
    """

    step_seconds: float
    setup_seconds: float
    other_seconds: float
    peak_bytes: int | None
    largest_batch: int


def calibrate(
    cells: Sequence[Cell], root: Path | None, device: torch.device, plugins: Sequence[str] = ()
) -> list[Calibration]:
    """Calibrate cells one after another; writes nothing.

    Args:
        cells: the cells.
        root: the folder that data sets are read from; None for the hub.
        device: the device to train on.
        plugins: modules and files that register methods or tasks; a child process has to load them.

    Raises:
        MachineError: the child process failed.
    """
    if device.type == "cpu":
        return [_calibrate(cell, root, device) for cell in cells]
    job = {
        "cells": [cell.to_dict() for cell in cells],
        "root": str(root) if root else None,
        "device": str(device),
        "plugins": list(plugins),
    }
    command = [sys.executable, "-c", START, json.dumps(sys.path)]
    environment = {**os.environ, **hub.environment()}
    done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, check=False, env=environment)  # noqa: S603
    if done.returncode:
        (*_, reason) = ["no message", *done.stderr.strip().splitlines()]
        raise MachineError(
            f"The calibration on {device} failed: {reason}. Run without plan and --budget to see how cells end there."
        )
    return [Calibration(**values) for values in json.loads(done.stdout)]


def answer(job: str) -> str:
    """Calibrate the cells of a job, in the child process that `calibrate` starts; both are JSON."""
    values = json.loads(job)
    for plugin in values["plugins"]:
        registry.load_plugin(plugin)
    root = Path(values["root"]) if values["root"] else None
    cells = [Cell.from_dict(cell) for cell in values["cells"]]
    return json.dumps([dataclasses.asdict(_calibrate(cell, root, torch.device(values["device"]))) for cell in cells])


def _now(device: torch.device) -> float:
    """Return the seconds of a clock: of CPU time on a CPU, else of wall time once the device has done its work."""
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()


def _calibrate(cell: Cell, root: Path | None, device: torch.device) -> Calibration:
    """Train a few steps of a cell, and score a few examples."""
    recipe = cell.recipe
    devices.prepare(
        device, threads=max(1, cell.threads), deterministic=recipe.deterministic, precision=recipe.precision
    )
    task, _ = load_data(cell.task, cell.limit_train, root, cell.held_out)
    train, splits = encoded(
        cell.model, cell.task, cell.limit_train, root, cell.recipe.max_length, held_out=cell.held_out
    )
    stack = cell.make_stack()
    initial_model(cell, stack, device)  # the first time reads files that the next ones find in memory
    devices.reset_peak(device)
    start = _now(device)
    classifier = initial_model(cell, stack, device)
    pretrained.digest(classifier)
    load_seconds = _now(device) - start
    steps = list(training_steps(len(train), cell.recipe, cell.seed, task.name))
    sizes = np.array([_tokens(train, step, cell.recipe.batch_layout) for step in steps])
    chosen = _choose_steps(sizes)
    run = TrainingRun(
        classifier,
        task,
        train,
        cell.recipe,
        stack,
        seed=cell.seed,
        device=device,
        steps=[steps[index] for index in chosen],
    )
    start = _now(device)
    try:
        trace = loop.train(run)
        step_times = trace.cpu_seconds if device.type == "cpu" else trace.seconds
        setup_seconds = _now(device) - start - float(step_times.sum())
        peak, _ = devices.peak(device)
        scoring_seconds = _time_scoring(run, stack, splits)
    finally:
        stack.teardown(run)
    seconds_per_token = float(np.median(step_times[WARMUP_STEPS:] / sizes[chosen[WARMUP_STEPS:]]))
    step_seconds = seconds_per_token * float(sizes.mean())
    return Calibration(step_seconds, setup_seconds, load_seconds + scoring_seconds, peak, int(sizes.max()))


def _choose_steps(sizes: np.ndarray) -> list[int]:
    """Return the steps to calibrate on: the largest to warm up, then steps evenly spread over the sizes, (steps,)."""
    ranks = np.linspace(0, len(sizes) - 1, TIMED_STEPS + 2).round().astype(int)[1:-1]
    spread = np.argsort(sizes, kind="stable")[ranks]
    return [int(sizes.argmax())] * WARMUP_STEPS + [int(index) for index in spread]


def _time_scoring(run: TrainingRun, stack: Stack, splits: Mapping[str, Encoded]) -> float:
    """Return the seconds that it takes to predict all splits, from a sample of each."""
    start = _now(run.device)
    scale = 1.0
    with stack.evaluating(run):
        for split in splits.values():
            sample = _sample(split)
            evaluation.predict(run, sample)
            scale = max(scale, float(split.lengths().sum() / sample.lengths().sum()))
    return (_now(run.device) - start) * scale


def _tokens(examples: Encoded, step: list[list[int]], batch_layout: str) -> int:
    """Return the number of tokens that a step computes on, its padding among them where there is some."""
    lengths = [[len(examples.columns["input_ids"][index]) for index in part] for part in step]
    return sum(sum(part) if batch_layout != "padded" else len(part) * max(part) for part in lengths)


def _sample(split: Encoded) -> Encoded:
    """Return some examples of a split, evenly spread."""
    indices = np.unique(np.linspace(0, len(split) - 1, SCORED_EXAMPLES).round().astype(int))
    columns = {name: [column[index] for index in indices] for name, column in split.columns.items()}
    return dataclasses.replace(split, columns=columns, labels=split.labels[torch.from_numpy(indices)])
