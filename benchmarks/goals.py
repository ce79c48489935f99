"""Measure what the loop, the methods and the grid cost: each figure is a ratio, its pairs interleaved in one process.

    python benchmarks/goals.py --data-root ../datasets --model FOLDER step loop methods evaluation ...

Two trainings take turns, step by step, on the same examples, so that whatever else the machine does falls on both. A
ratio is the median over at least 20 pairs, in CPU seconds, with the interval of the sign test (95 %); it meets its goal
if the better end of its interval does. One torch thread, unless the figure says otherwise. docs/performance.md has the
table that this prints.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired_timing import WARM, Line, few, line, race
from trainings import LENGTH, RECIPE, Setting, bare, make_run, ours, padded_to, reference, trainer_of

from finetune_bench import registry
from finetune_bench.runner.inputs import encoded
from finetune_bench.study.grid import relative_passes
from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts
from finetune_bench.training import evaluation
from finetune_bench.training.examples import Encoded
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.run import TrainingRun


def step(setting: Setting) -> Iterator[Line]:
    """Measure goal 1: a vanilla step, and that it trains the same."""
    for task, batch_layout, goal in (
        ("cola", "padded", "≥ 5"),
        ("cola", "unpadded", "—"),
        ("cola", "unpadded_trimmed", "≥ 9"),
        ("rte", "padded", "—"),
        ("rte", "unpadded", "—"),
        ("rte", "unpadded_trimmed", "≥ 2"),
    ):
        ratios = race(reference(setting, task), ours(setting, task, "vanilla", batch_layout))
        yield line(f"1 · Trainer padded to 128 / a step here, {task}, {batch_layout}", ratios, goal)
    for task in ("cola", "rte"):
        for batch_layout in ("padded", "unpadded_trimmed"):
            far = apart(setting, task, batch_layout)
            figure = f"1 · weights apart after {RECIPE.steps} steps, dropout off, {task}, {batch_layout}"
            yield Line(figure, far, far, far, "≤ 1e-06", "yes" if far <= 1e-6 else "no")


def apart(setting: Setting, task: str, batch_layout: str) -> float:
    """Return the largest distance of two weights, one trained by the reference script, one here, without dropout."""
    still = "vanilla(dropout=all_off)"
    runs = [loop(lambda: None) for loop in (reference(setting, task, still), ours(setting, task, still, batch_layout))]
    left, right = (dict(run.model.named_parameters()) for run in runs)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def loop(setting: Setting) -> Iterator[Line]:
    """Measure goal 2: the loop over a bare PyTorch loop."""
    for task in ("cola", "rte"):
        ratios = race(ours(setting, task, "vanilla", "padded"), bare(setting, task))
        yield line(f"2 · the loop / a bare PyTorch loop, {task}", ratios, "≤ 1.02")


BOUNDS = {  # padded, trimmed
    "hype": (1.02, 1.02),
    "child_tuning_f": (1.1, 1.2),
    "mixout": (1.1, 1.2),
    "rdrop": (2.05, 2.05),
    "r3f": (2.05, 2.05),
}


def methods(setting: Setting) -> Iterator[Line]:
    """Measure goal 3, and every method: over vanilla with the same dropout, beside what its passes alone would cost."""
    for name in registry.names("methods"):
        stack = registry.make_stack(name)
        twin = f"vanilla(dropout={stack.dropout})"
        least = relative_passes(stack)
        for batch_layout in ("padded", "unpadded_trimmed") if name in BOUNDS else ("padded",):
            bound = BOUNDS.get(name, (None, None))[batch_layout == "unpadded_trimmed"]
            ratios = race(ours(setting, "cola", name, batch_layout), ours(setting, "cola", twin, batch_layout))
            figure = f"3 · {name} / {twin}, cola, {batch_layout}; by its passes {least:.3g}"
            yield line(figure, ratios, f"≤ {bound}" if bound else "—")


def memory(setting: Setting) -> Iterator[Line]:
    """Measure goal 4: the bytes that autograd saves."""
    saved = {}
    for name in ("hype", "vanilla(dropout=hidden_off)", "vanilla", "rdrop"):
        stack = registry.make_stack(name)
        run = make_run(setting, "rte", stack, RECIPE)
        stack.setup(run)
        saved[name] = saved_activation_bytes(run)
        stack.teardown(run)
    more = float(saved["hype"] - saved["vanilla(dropout=hidden_off)"])
    yield Line(
        "4 · bytes that HyPe saves beyond dropout-off vanilla, rte",
        more,
        more,
        more,
        "≤ 0",
        "yes" if more <= 0 else "no",
    )
    for name in ("vanilla(dropout=hidden_off)", "rdrop"):
        share = saved[name] / saved["vanilla"]
        yield Line(f"4 · saved bytes, {name} / vanilla, rte", share, share, share)


def evaluate(setting: Setting) -> Iterator[Line]:
    """Measure goal 7: evaluation against the Trainer's default."""
    for task, goal in (("cola", "≥ 7"), ("rte", "≥ 1.6")):
        run = make_run(setting, task, registry.make_stack("vanilla"), RECIPE)
        _, splits = encoded(setting.model, task, 480, setting.data_root, LENGTH)
        split = next(iter(splits.values()))
        positions = np.linspace(0, len(split) - 1, 160).astype(int)
        columns = {name: [column[i] for i in positions] for name, column in split.columns.items()}
        sample = replace(split, columns=columns, labels=split.labels[torch.from_numpy(positions)])
        rows = padded_to(sample, range(len(sample)))
        trainer = trainer_of(run, rows, lambda: None)

        def theirs(pass_on: Callable[[], None], trainer: Any = trainer, rows: Any = rows) -> None:
            for _ in range(20 + WARM):
                trainer.predict(rows)
                pass_on()

        def here(pass_on: Callable[[], None], run: TrainingRun = run, sample: Encoded = sample) -> None:
            for _ in range(20 + WARM):
                evaluation.predict(run, sample)
                pass_on()

        yield line(f"7 · Trainer's evaluation / the one here, {task}", race(theirs, here), goal)


def grid_command(setting: Setting, out: Path, seeds: int, *more: str) -> list[str]:
    """Return the command that trains a grid of four methods, which are 24 cells at six seeds."""
    command = [sys.executable, "-m", "finetune_bench.cli", "run", "--seeds", str(seeds), "--steps", "20"]
    command += ["--methods", "vanilla,vanilla(dropout=hidden_off),hype,noisytune", "--limit-train", "480"]
    command += ["--tasks", "cola", "--model", setting.model, "--data-root", str(setting.data_root)]
    device = "cuda" if "--gpus-per-worker" in more else "cpu"
    return [*command, "--out", str(out), "--device", device, *more]


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
import trainings
from dataclasses import replace
from pathlib import Path
from finetune_bench import registry
setting = trainings.Setting(Path(sys.argv[2]), sys.argv[3])
run = trainings.make_run(setting, "cola", registry.make_stack("vanilla"), replace(trainings.RECIPE, steps=20))
positions = [position for step in run.steps() for part in step for position in part]
trainer = trainings.trainer_of(run, trainings.padded_to(run.examples, positions), lambda: None)
trainer.train()
split = next(iter(trainings.encoded(setting.model, "cola", 480, setting.data_root, 128)[1].values()))
trainer.predict(trainings.padded_to(split, range(len(split))))
"""


def wall(command: list[str], **environment: str) -> float:
    """Run a command and return its wall seconds."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env=os.environ | environment)  # noqa: S603
    return time.perf_counter() - begin


def grid(setting: Setting) -> Iterator[Line]:
    """Measure goal 5: 24 cells against 24 runs of the reference script, of which four are run and counted six times."""
    script = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(setting.data_root), setting.model]
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        for repetition in range(2):
            single = [wall(script) for _ in range(2)]
            ratios.append(24 * sum(single) / 2 / wall(grid_command(setting, Path(folder) / str(repetition), 6)))
    yield few("5 · 24 reference scripts / a grid of 24 cells, wall, start-up included", ratios, "≥ 12")


def workers(setting: Setting) -> Iterator[Line]:
    """Measure goal 6: two workers against one, on two cores that do nothing else."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(3):
            one, two = (
                wall(grid_command(setting, Path(folder) / f"{repetition}-{count}", 6, "--workers", str(count)))
                for count in (1, 2)
            )
            ratios.append(one / two)
    yield few("6 · one worker / two workers, wall", ratios, "≥ 1.7")


def gpu(setting: Setting) -> Iterator[Line]:
    """Measure goal 9: several cells per device against one; that no step waits for it is a test (`pytest -m cuda`)."""
    if not torch.cuda.is_available():
        raise SystemExit("9 · this machine shows no CUDA device to torch")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for repetition in range(3):
            one, four = (
                wall(grid_command(setting, Path(folder) / f"{repetition}-{share}", 6, "--gpus-per-worker", share))
                for share in ("1", "0.25")
            )
            ratios.append(one / four)
    yield few("9 · one cell per GPU / four, wall", ratios, "≥ 2")


def cached(setting: Setting) -> Iterator[Line]:
    """Measure goal 8: a grid of 1,000 cells that is done, and --help."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_checkpoint(folder / "tiny")
        tiny_texts(folder / "toy.jsonl")
        command = [sys.executable, "-m", "finetune_bench.cli", "run", "--methods", "vanilla,hype", "--no-baseline"]
        command += [
            "--tasks",
            str(folder / "toy.jsonl"),
            "--model",
            str(folder / "tiny"),
            "--seeds",
            "500",
            "--steps",
            "1",
        ]
        command += ["--out", str(folder / "run"), "--device", "cpu"]
        wall(command, HF_HUB_OFFLINE="1")
        wall(command, HF_HUB_OFFLINE="1")
        again = [wall(command, HF_HUB_OFFLINE="1") for _ in range(5)]
        yield few("8 · a cached grid of 1,000 cells, seconds", again, "≤ 2")
    helps = sorted(wall([sys.executable, "-m", "finetune_bench.cli", "--help"]) for _ in range(20))
    yield line("8 · --help, seconds", helps, "≤ 0.3")


FIGURES = {
    "step": step,
    "loop": loop,
    "methods": methods,
    "memory": memory,
    "grid": grid,
    "workers": workers,
    "evaluation": evaluate,
    "cached": cached,
    "gpu": gpu,
}


def main() -> None:
    """Print the rows of the figures that are asked for."""
    parser = argparse.ArgumentParser(description="Measure the goals of docs/performance.md.")
    parser.add_argument("figures", nargs="+", choices=list(FIGURES))
    parser.add_argument("--data-root", type=Path, required=True, help="data sets in the hub's layout: cola and rte")
    parser.add_argument("--model", required=True, help="a BERT of the hub, or its folder")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(asked.data_root.resolve(), asked.model)
    print("| figure | median | 95 % interval | goal | met |\n|---|---|---|---|---|")
    for name in asked.figures:
        for result in FIGURES[name](setting):
            print(result, flush=True)


if __name__ == "__main__":
    main()
