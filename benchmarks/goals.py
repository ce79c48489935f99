"""What the loop, the methods and the grid cost: each figure a ratio, its pairs interleaved in one process.

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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run
from finetune_bench.model import packing, pretrained, weights
from finetune_bench.model.dropout import with_dropout
from finetune_bench.recipe import Recipe
from finetune_bench.runner.inputs import encoded
from finetune_bench.study.grid import relative_passes
from finetune_bench.training import evaluation
from finetune_bench.training.examples import Encoded
from finetune_bench.training.loop import make_optimizer, make_scheduler, train
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.run import TrainingRun

PAIRS, WARM = 24, 2
LENGTH = 128
CPU = torch.device("cpu")
RECIPE = Recipe(lr=2e-5, steps=PAIRS + WARM, warmup=0.1)


@dataclass(frozen=True)
class Setting:
    """Where data and checkpoint are."""

    data_root: Path
    model: str


@dataclass(frozen=True)
class Line:
    """One row of the table: a figure with its interval, and the bound that it is held against."""

    figure: str
    median: float
    low: float
    high: float
    goal: str = "—"
    met: str = "—"

    def __str__(self) -> str:
        """As a row of markdown."""
        interval = f"{self.low:.3g} – {self.high:.3g}" if self.low != self.high else "—"
        return f"| {self.figure} | {self.median:.3g} | {interval} | {self.goal} | {self.met} |"


def line(figure: str, ratios: Sequence[float], goal: str = "—") -> Line:
    """A figure from its pairs; the goal is a text as `≥ 5` or `≤ 1.02`."""
    ordered = sorted(ratios)
    rank = int(binom.ppf(0.025, len(ordered), 0.5))  # this many from either end, by the sign test
    low, high = ordered[max(rank - 1, 0)], ordered[min(len(ordered) - rank, len(ordered) - 1)]
    met = "—"
    if goal != "—":
        bound = float(goal[1:])
        met = "yes" if (high >= bound if goal.startswith("≥") else low <= bound) else "no"
    return Line(figure, float(np.median(ordered)), low, high, goal, met)


class Turns:
    """Two loops in two threads, of which one runs at a time; each passes on after each of its steps.

    Attributes:
        seconds: CPU seconds of the steps of either.
    """

    def __init__(self) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self._mine = (threading.Semaphore(1), threading.Semaphore(0))
        self._over = [False, False]
        self._start = 0.0

    def begin(self, who: int) -> None:
        """Wait for the first turn."""
        self._mine[who].acquire()
        self._start = time.process_time()

    def pass_on(self, who: int) -> None:
        """A step is over: let the other make one, and wait."""
        self.seconds[who].append(time.process_time() - self._start)
        self._mine[1 - who].release()
        if not self._over[1 - who]:
            self._mine[who].acquire()
        self._start = time.process_time()

    def end(self, who: int) -> None:
        """No more steps of this one."""
        self._over[who] = True
        self._mine[1 - who].release()

    def ratios(self) -> list[float]:
        """The first's seconds over the second's, pair by pair, without the first pairs."""
        return [a / b for a, b in list(zip(*self.seconds, strict=False))[WARM:]]


def race(first: Callable[[Callable[[], None]], Any], second: Callable[[Callable[[], None]], Any]) -> list[float]:
    """Ratios of the first's steps to the second's; each calls what it is given after every step."""
    turns = Turns()
    errors: list[BaseException] = []

    def go(who: int, loop: Callable[[Callable[[], None]], Any]) -> None:
        turns.begin(who)
        try:
            loop(lambda: turns.pass_on(who))
        except BaseException as error:
            errors.append(error)
        finally:
            turns.end(who)

    threads = [threading.Thread(target=go, args=(who, loop)) for who, loop in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return turns.ratios()


class _Turn(Method):
    """Passes on after each step; does nothing else."""

    name = "turn"
    arrangement = "trimmed"

    def __init__(self) -> None:
        super().__init__()
        self.pass_on: Callable[[], None] = lambda: None

    def after_step(self, run: Run) -> None:
        self.pass_on()


def make_run(setting: Setting, task: str, stack: Stack, recipe: Recipe) -> TrainingRun:
    """A run on the first 480 examples of a task, seed 1."""
    train, _ = encoded(setting.model, task, 480, setting.data_root, LENGTH)
    owner = registry.task(task)
    net = weights.load(setting.model, with_dropout(pretrained.config(setting.model, owner.outputs), stack.dropout), 1)
    if recipe.arrangement != "padded":
        packing.prepare(net)
    return TrainingRun(net, owner, train, recipe, seed=1, device=CPU, keep_pretrained=stack.reads_pretrained)


def ours(setting: Setting, task: str, method: str, arrangement: str) -> Callable[[Callable[[], None]], TrainingRun]:
    """The benchmark's own loop."""
    turn = _Turn()
    stack = Stack([*registry.make_stack(method).methods, turn])
    run = make_run(setting, task, stack, replace(RECIPE, arrangement=arrangement))

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        turn.pass_on = pass_on
        train(run, stack)
        stack.teardown(run)
        return run

    return loop


def trainer_of(run: TrainingRun, examples: list[dict[str, Any]], pass_on: Callable[[], None], **options: Any) -> Any:
    """The reference script: transformers' Trainer with the same recipe, on these examples in this order."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> None:
            return None

    class PassOn(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pass_on()

    recipe = run.recipe
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=run.total_steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        adam_epsilon=recipe.adam_eps,
        max_grad_norm=recipe.clip,
        warmup_steps=recipe.warmup_steps(run.total_steps),
        report_to=[],
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return InOrder(model=run.model, args=arguments, train_dataset=examples, callbacks=[PassOn()])  # type: ignore[arg-type]


def padded_to(examples: Encoded, places: Sequence[int]) -> list[dict[str, Any]]:
    """Examples as the reference script has them, each padded to 128 tokens."""
    return [
        {
            name: np.pad(c[i], (0, LENGTH - len(c[i])), constant_values=examples.padding[name])
            for name, c in examples.columns.items()
        }
        | {"labels": int(examples.labels[i])}
        for i in places
    ]


def reference(setting: Setting, task: str, method: str = "vanilla") -> Callable[[Callable[[], None]], TrainingRun]:
    """The reference script's loop, from the same head, on the same examples in the same steps."""
    run = make_run(setting, task, registry.make_stack(method), RECIPE)
    examples = padded_to(run.examples, [place for step in run.steps() for part in step for place in part])

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        torch.manual_seed(1)
        trainer_of(run, examples, pass_on).train()
        return run

    return loop


def bare(setting: Setting, task: str) -> Callable[[Callable[[], None]], TrainingRun]:
    """A plain PyTorch loop with the same kernels."""
    run = make_run(setting, task, registry.make_stack("vanilla"), RECIPE)

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        run.model.train()
        optimizer = make_optimizer(run)
        scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
        for (part,) in run.steps():
            batch = run.examples.batch(part, CPU)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(run.model(**batch.inputs).logits, batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(run.params.values(), run.recipe.clip)
            optimizer.step()
            scheduler.step()
            pass_on()
        return run

    return loop


def step(setting: Setting) -> Iterator[Line]:
    """Goal 1: a vanilla step, and that it trains the same."""
    for task, arrangement, goal in (
        ("cola", "padded", "≥ 5"),
        ("cola", "packed", "—"),
        ("cola", "trimmed", "≥ 9"),
        ("rte", "padded", "—"),
        ("rte", "packed", "—"),
        ("rte", "trimmed", "≥ 2"),
    ):
        ratios = race(reference(setting, task), ours(setting, task, "vanilla", arrangement))
        yield line(f"1 · Trainer padded to 128 / a step here, {task}, {arrangement}", ratios, goal)
    for task in ("cola", "rte"):
        for arrangement in ("padded", "trimmed"):
            far = apart(setting, task, arrangement)
            figure = f"1 · weights apart after {RECIPE.steps} steps, dropout off, {task}, {arrangement}"
            yield Line(figure, far, far, far, "≤ 1e-06", "yes" if far <= 1e-6 else "no")


def apart(setting: Setting, task: str, arrangement: str) -> float:
    """Largest distance of two weights, one trained by the reference script and one here, without dropout."""
    still = "vanilla(dropout=all_off)"
    runs = [loop(lambda: None) for loop in (reference(setting, task, still), ours(setting, task, still, arrangement))]
    left, right = (dict(run.model.named_parameters()) for run in runs)
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def loop(setting: Setting) -> Iterator[Line]:
    """Goal 2: the loop over a bare PyTorch loop."""
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
    """Goal 3, and every method: over vanilla with the same dropout, beside what its passes alone would cost."""
    for name in registry.names("methods"):
        stack = registry.make_stack(name)
        twin = f"vanilla(dropout={stack.dropout})"
        least = relative_passes(stack)
        for arrangement in ("padded", "trimmed") if name in BOUNDS else ("padded",):
            bound = BOUNDS.get(name, (None, None))[arrangement == "trimmed"]
            ratios = race(ours(setting, "cola", name, arrangement), ours(setting, "cola", twin, arrangement))
            figure = f"3 · {name} / {twin}, cola, {arrangement}; by its passes {least:.3g}"
            yield line(figure, ratios, f"≤ {bound}" if bound else "—")


def memory(setting: Setting) -> Iterator[Line]:
    """Goal 4: bytes that autograd saves."""
    saved = {}
    for name in ("hype", "vanilla(dropout=hidden_off)", "vanilla", "rdrop"):
        stack = registry.make_stack(name)
        run = make_run(setting, "rte", stack, RECIPE)
        run.method = stack
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
    """Goal 7: evaluation against the Trainer's default."""
    for task, goal in (("cola", "≥ 7"), ("rte", "≥ 1.6")):
        run = make_run(setting, task, registry.make_stack("vanilla"), RECIPE)
        _, splits = encoded(setting.model, task, 480, setting.data_root, LENGTH)
        split = next(iter(splits.values()))
        places = np.linspace(0, len(split) - 1, 160).astype(int)
        columns = {name: [column[place] for place in places] for name, column in split.columns.items()}
        few = replace(split, columns=columns, labels=split.labels[torch.from_numpy(places)])
        rows = padded_to(few, range(len(few)))
        trainer = trainer_of(run, rows, lambda: None)

        def theirs(pass_on: Callable[[], None], trainer: Any = trainer, rows: Any = rows) -> None:
            for _ in range(20 + WARM):
                trainer.predict(rows)
                pass_on()

        def own(pass_on: Callable[[], None], run: TrainingRun = run, few: Encoded = few) -> None:
            for _ in range(20 + WARM):
                evaluation.predict(run, few)
                pass_on()

        yield line(f"7 · Trainer's evaluation / the one here, {task}", race(theirs, own), goal)


def grid_command(setting: Setting, out: Path, seeds: int, *more: str) -> list[str]:
    """24 cells at six seeds."""
    words = [sys.executable, "-m", "finetune_bench.cli", "run", "--seeds", str(seeds), "--steps", "20"]
    words += ["--methods", "vanilla,vanilla(dropout=hidden_off),hype,noisytune", "--limit-train", "480"]
    words += ["--tasks", "cola", "--model", setting.model, "--data-root", str(setting.data_root)]
    device = "cuda" if "--gpus-per-worker" in more else "cpu"
    return [*words, "--out", str(out), "--device", device, *more]


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[1]]
import goals
from pathlib import Path
setting = goals.Setting(Path(sys.argv[2]), sys.argv[3])
run = goals.make_run(setting, "cola", goals.registry.make_stack("vanilla"), goals.replace(goals.RECIPE, steps=20))
places = [place for step in run.steps() for part in step for place in part]
trainer = goals.trainer_of(run, goals.padded_to(run.examples, places), lambda: None)
trainer.train()
split = next(iter(goals.encoded(setting.model, "cola", 480, setting.data_root, 128)[1].values()))
trainer.predict(goals.padded_to(split, range(len(split))))
"""


def wall(words: list[str], **environment: str) -> float:
    """Wall seconds of a command."""
    begin = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=os.environ | environment)  # noqa: S603
    return time.perf_counter() - begin


def grid(setting: Setting) -> Iterator[Line]:
    """Goal 5: 24 cells against 24 runs of the reference script, of which four are run and counted six times."""
    script = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(setting.data_root), setting.model]
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        for place in range(2):
            single = [wall(script) for _ in range(2)]
            ratios.append(24 * sum(single) / 2 / wall(grid_command(setting, Path(folder) / str(place), 6)))
    yield few("5 · 24 reference scripts / a grid of 24 cells, wall, start-up included", ratios, "≥ 12")


def few(figure: str, found: Sequence[float], goal: str) -> Line:
    """A figure of so few pairs that their range takes the interval's place."""
    bound = float(goal[1:])
    met = max(found) >= bound if goal.startswith("≥") else min(found) <= bound
    return Line(figure, float(np.median(found)), min(found), max(found), goal, "yes" if met else "no")


def workers(setting: Setting) -> Iterator[Line]:
    """Goal 6: two workers against one, on two cores that do nothing else."""
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for place in range(3):
            one, two = (
                wall(grid_command(setting, Path(folder) / f"{place}-{count}", 6, "--workers", str(count)))
                for count in (1, 2)
            )
            ratios.append(one / two)
    yield few("6 · one worker / two workers, wall", ratios, "≥ 1.7")


def gpu(setting: Setting) -> Iterator[Line]:
    """Goal 9: several cells per device against one; that no step waits for it is a test (`pytest -m cuda`)."""
    if not torch.cuda.is_available():
        raise SystemExit("9 · this machine shows no CUDA device to torch")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for place in range(3):
            one, four = (
                wall(grid_command(setting, Path(folder) / f"{place}-{share}", 6, "--gpus-per-worker", share))
                for share in ("1", "0.25")
            )
            ratios.append(one / four)
    yield few("9 · one cell per GPU / four, wall", ratios, "≥ 2")


def cached(setting: Setting) -> Iterator[Line]:
    """Goal 8: a grid of 1,000 cells that is done, and --help."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

        tiny_checkpoint(folder / "tiny")
        tiny_texts(folder / "toy.jsonl")
        words = [sys.executable, "-m", "finetune_bench.cli", "run", "--methods", "vanilla,hype", "--no-baseline"]
        words += [
            "--tasks",
            str(folder / "toy.jsonl"),
            "--model",
            str(folder / "tiny"),
            "--seeds",
            "500",
            "--steps",
            "1",
        ]
        words += ["--out", str(folder / "run"), "--device", "cpu"]
        wall(words, HF_HUB_OFFLINE="1")
        wall(words, HF_HUB_OFFLINE="1")
        again = [wall(words, HF_HUB_OFFLINE="1") for _ in range(5)]
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
        for found in FIGURES[name](setting):
            print(found, flush=True)


if __name__ == "__main__":
    main()
