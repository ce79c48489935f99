"""Time what `gpu_check` holds against bounds: a step against other loops, and workers that share a device."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.model import unpadding
from finetune_bench.model.dropout import with_dropout
from finetune_bench.model.pretrained import build
from finetune_bench.recipe import BATCH_LAYOUTS, Recipe
from finetune_bench.testing import toys
from finetune_bench.training import measure
from finetune_bench.training.examples import Encoded
from finetune_bench.training.loop import make_optimizer, make_scheduler, train
from finetune_bench.training.run import TrainingRun

TIMED = Recipe(batch_size=16, epochs=None, steps=40, precision="bf16")
TOKENS = 128
PATIENCE = 200  # seconds that a grid may take
GRID = 16  # runs


@dataclass(frozen=True)
class Result:
    """A result is one line of the table.

    Attributes:
        check: what was checked.
        expected: what should be found.
        found: what was found.
        passed: whether it is what was expected; None where this device can't show it.
    """

    check: str
    expected: str
    found: str
    passed: bool | None

    def __str__(self) -> str:
        """Return the line."""
        outcome = {True: "PASS", False: "FAIL", None: "UNSEEN"}[self.passed]
        return f"{outcome} | {self.check} | expected {self.expected} | found {self.found}"


Results = Iterator[Result]


@cache
def computes(device: torch.device) -> bool:
    """Return whether a device computes anything at all; a stand-in for one takes every call and computes nothing."""
    return float(torch.full((), 2.0, device=device) + 3.0) == 5.0


def speed(device: torch.device) -> Results:
    """Time a step of BERT-base: beside a bare PyTorch loop, beside transformers' Trainer, and in each input layout."""
    ours, bare = [], []
    for _ in range(5):  # in turns, so that a change of the clock rate falls on both
        ours.append(_seconds_of_loop(device))
        bare.append(_seconds_bare(device))
    ratio = float(np.median(ours) / np.median(bare))
    yield Result("seconds of a step over a bare loop's", "≤ 1.02", f"{ratio:.3f}", ratio <= 1.02)
    ratio = _seconds_of_trainer(device) / float(np.median(ours))
    yield Result("Trainer's seconds of a step over the loop's", "≥ 1", f"{ratio:.3f}", ratio >= 1)
    times: dict[str, list[float]] = {layout: [] for layout in BATCH_LAYOUTS}
    for _ in range(3):
        for layout, seconds in times.items():
            seconds.append(_seconds_of_loop(device, layout))
    medians = {layout: float(np.median(seconds)) for layout, seconds in times.items()}
    fastest = min(medians, key=lambda layout: medians[layout])
    found = ", ".join(f"{layout} {1000 * seconds:.1f} ms" for layout, seconds in medians.items())
    expected = "padded is the fastest, which a study takes by itself"
    yield Result("a step by input layout", expected, f"{found}: {fastest}", fastest == BATCH_LAYOUTS[0])


def _run_of_bert(device: torch.device, layout: str = BATCH_LAYOUTS[0]) -> TrainingRun:
    from transformers import AutoConfig

    config = AutoConfig.for_model("bert")
    config.num_labels = toys.CLASSES
    stack = registry.make_stack("vanilla")
    model = build(with_dropout(config, stack.dropout)).to(device)
    unpadding.prepare_for(model, device, layout)
    random = np.random.default_rng(0)
    ids = [random.integers(1000, 30000, size=int(random.integers(TOKENS // 2, TOKENS + 1))) for _ in range(256)]
    columns = {"input_ids": ids, "attention_mask": [np.ones_like(each) for each in ids]}
    labels = torch.tensor([int(each[0]) % toys.CLASSES for each in ids])
    examples = Encoded(columns, {"input_ids": 0, "attention_mask": 0}, False, labels)
    recipe = replace(TIMED, batch_layout=layout)
    return TrainingRun(model, toys.toy_task("classification"), examples, recipe, stack, seed=1, device=device)


def _seconds_of_loop(device: torch.device, layout: str = BATCH_LAYOUTS[0]) -> float:
    run = _run_of_bert(device, layout)
    result = train(run)
    return float(np.median(result.seconds[measure.WARMUP_STEPS :]))


def _seconds_bare(device: torch.device) -> float:
    run = _run_of_bert(device)
    optimizer = make_optimizer(run)
    scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
    run.model.train()
    clock = devices.StepClock(device)
    for (part,) in run.steps():
        with clock.step():
            batch = run.examples.batch(part, device)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits: Tensor = run.model(**batch.inputs).logits
            nn.functional.cross_entropy(logits.float(), batch.labels).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(run.params.values(), run.recipe.clip)
            optimizer.step()
            scheduler.step()
    return float(np.median(clock.seconds()[0][measure.WARMUP_STEPS :]))


def _seconds_of_trainer(device: torch.device) -> float:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    run = _run_of_bert(device)
    positions = [position for step in run.steps() for part in step for position in part]
    rows = [{"position": position} for position in positions]

    def collate(chosen: list[dict[str, int]]) -> dict[str, Tensor]:
        batch = run.examples.batch([row["position"] for row in chosen], toys.CPU)
        return {**batch.inputs, "labels": batch.labels}

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.accelerator.synchronize(device)
            times.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=run.total_steps,
            per_device_train_batch_size=TIMED.batch_size,
            bf16=True,
            optim="adamw_torch_fused",
            remove_unused_columns=False,
            report_to=[],
            save_strategy="no",
            logging_steps=10**9,
            disable_tqdm=True,
        )
        Trainer(
            model=run.model,  # type: ignore[arg-type]
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[Clock()],
        ).train()
    return float(np.median(np.diff(times)[measure.WARMUP_STEPS :]))


def grid_options(model: Path, texts: Path, device: torch.device) -> list[str]:
    """Return the options of a grid of `GRID` runs of one method."""
    options = ["--methods", "vanilla", "--no-baseline", "--tasks", str(texts), "--model", str(model)]
    return [*options, "--seeds", str(GRID), "--steps", "60", "--device", str(device)]


def workers(device: torch.device) -> Results:
    """Count the runs per hour that one, two and four workers on the device come to, start-up left out."""
    rates = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, texts = toys.tiny_checkpoint(folder / "model"), toys.tiny_texts(folder / "texts.jsonl")
        for count in (1, 2, 4):
            out = folder / f"run{count}"
            options = [*grid_options(model, texts, device), "--gpus-per-worker", str(1 / count), "--out", str(out)]
            command = [sys.executable, "-m", "finetune_bench.cli", "run", *options]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)  # noqa: S603
                said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            except subprocess.TimeoutExpired:
                said = f"not ready after {PATIENCE} s"
            rows = [json.loads(path.read_text("utf-8")) for path in out.glob("cells/*/row.json")]
            finished = sum(row["status"] == "done" for row in rows)
            found = str(finished) if finished == GRID else f"{finished}: {said}"
            yield Result(f"runs done by {count} workers", str(GRID), found, finished == GRID)
            if finished < GRID:
                return
            rates[count] = 3600 * count / float(np.mean([row["seconds"] for row in rows]))
    gain = max(rates.values()) / rates[1]
    found = ", ".join(f"{count}: {rate:.0f}" for count, rate in rates.items())
    passed = gain >= 2 if computes(device) else None
    yield Result("runs per hour by workers", "≥ 2 × those of one", f"{found} ({gain:.2f} ×)", passed)
