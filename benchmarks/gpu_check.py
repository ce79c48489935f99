"""Check on a CUDA device, in some twenty minutes, all that a machine without one can't show.

    python -m benchmarks.gpu_check [--json gpu_check.json] [--seconds 600] [CHECK ...]

Each line says PASS or FAIL, what was checked, what was expected, and what was found; the JSON file has the same beside
the device and the versions. On a stand-in for a device that computes nothing, what depends on numbers is UNSEEN. Checks
that the time is over for are left out, which is said. It makes its data.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu_speed import Result, Results, computes, speed, workers
from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run
from finetune_bench.recipe import BATCH_LAYOUTS, Recipe
from finetune_bench.runner.environment import environment
from finetune_bench.testing import checks, toys
from finetune_bench.training import evaluation
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import train
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.run import TrainingRun

PRECISIONS = ("fp32", "bf16", "fp16")
SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=4, warmup=0.0)
PAIR = replace(SHORT, steps=1)
CLOSE = 1e-4


@contextmanager
def steps_watched() -> Iterator[None]:
    """Make it an error inside to wait for the device in a training step; a method's set-up may wait.

    In fp16 torch's scaler itself reads whether a step is left out, of an optimiser that can't find out on the device,
    as `schedule_free`, Lion and Muon: this it may do, and nothing else.
    """
    step, setup = devices.StepClock.step, Stack.setup
    scaled_step = torch.amp.GradScaler._maybe_opt_step

    @contextmanager
    def watch(clock: devices.StepClock) -> Iterator[None]:
        with step(clock), devices.waiting_forbidden(clock.device):
            yield

    def set_up(stack: Stack, run: Run) -> None:
        if run.device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
        setup(stack, run)

    def step_if_finite(_: Any, optimizer: Any, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        left_out = any(_read(flag) for flag in state["found_inf_per_device"].values())
        return None if left_out else optimizer.step(*args, **kwargs)

    devices.StepClock.step, Stack.setup = watch, set_up  # type: ignore[method-assign]
    torch.amp.GradScaler._maybe_opt_step = step_if_finite  # type: ignore[assignment]
    try:
        yield
    finally:
        devices.StepClock.step, Stack.setup = step, setup  # type: ignore[method-assign]
        torch.amp.GradScaler._maybe_opt_step = scaled_step  # type: ignore[method-assign]


def _read(flag: Tensor) -> bool:
    """Read a flag from the device, which is waited for, also where that is an error."""
    if flag.device.type != "cuda":
        return bool(flag)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    read = bool(flag)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode(before)
    return read


def train_toy(
    text: str,
    device: torch.device,
    recipe: Recipe = SHORT,
    architecture: str = "bert",
    points: Checkpoints | None = None,
) -> tuple[TrainingRun, np.ndarray, np.ndarray] | None:
    """Train a tiny model whole: steps, evaluation, the count of saved bytes.

    Returns:
        The run, its losses (steps,) and its predictions; None where the methods can't run so.
    """
    methods = list(registry.make_stack(text).methods)
    if toys.unsupported(methods, architecture, recipe=recipe):
        return None
    run, stack = toys.toy_run(methods, architecture, recipe=recipe, device=device)
    try:
        result = train(run, points)
        with stack.evaluating(run):
            predictions = evaluation.predict(run, run.examples)
        saved_activation_bytes(run)
    finally:
        stack.teardown(run)
    return run, result.steps["loss"], predictions


def layouts_of(name: str) -> tuple[str, ...]:
    """Return the batch layouts that a method can do."""
    return BATCH_LAYOUTS[: BATCH_LAYOUTS.index(registry.method_class(name).batch_layout) + 1]


def failures(runs: Iterable[tuple[str, Callable[[], Any]]]) -> tuple[int, dict[str, BaseException]]:
    """Call each; return how many there were, and the errors of those that failed, by name."""
    count, failed = 0, dict[str, BaseException]()
    for name, run in runs:
        count += 1
        try:
            run()
        except Exception as error:  # whatever it is, it is what this looks for
            failed[name] = error
    return count, failed


def judge(
    check: str,
    expected: str,
    failed: Mapping[str, BaseException],
    device: torch.device,
    of_numbers: tuple[type[Exception], ...] = (FinetuneBenchError,),
) -> Result:
    """Return the result of runs of which some failed, or none.

    Args:
        check: what was checked.
        expected: what is found where none failed.
        failed: the errors, by run.
        device: the device of the runs.
        of_numbers: errors that come of numbers, which tell nothing on a device that computes none.
    """
    refused = {name for name, error in failed.items() if isinstance(error, of_numbers) and not computes(device)}
    shown = [
        f"{name}: {type(error).__name__}: {str(error).strip()}".splitlines()[0]
        for name, error in failed.items()
        if name not in refused
    ]
    found = f"{len(shown)} failed: {'; '.join(shown[:5])}" if shown else expected  # the first five say what kind
    if refused:
        found += f" (not seen, for want of numbers: {', '.join(sorted(refused))})"
    return Result(check, expected, found, not shown)


class _Attention(TorchDispatchMode):
    """Inside it, the names of the attention kernels that torch calls are noted."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.name().removeprefix("aten::")
        if name.startswith("_scaled_dot_product") and "backward" not in name:
            self.names.add(name)
        return function(*args, **(kwargs or {}))


def kernels(device: torch.device) -> Results:
    """Check that attention has one kernel, whatever the precision, the layout and the method."""
    seen = _Attention()
    for precision in PRECISIONS:
        for layout in BATCH_LAYOUTS:
            for text in ("vanilla", "rdrop", "hype"):
                recipe = replace(PAIR, precision=precision, batch_layout=layout)
                with seen:
                    train_toy(text, device, recipe)
    expected = "_scaled_dot_product_efficient_attention"
    yield Result("attention kernels", expected, ", ".join(sorted(seen.names)), seen.names == {expected})


def waits(device: torch.device) -> Results:
    """Check that no step waits for the device: of every method, precision and layout, and on other architectures."""
    for precision in PRECISIONS:
        runs = [
            (f"{name}, {layout}", name, replace(SHORT, precision=precision, batch_layout=layout), "bert")
            for name in registry.names("methods")
            for layout in layouts_of(name)
        ]
        if precision == "fp32":
            others = ("xlnet", "modernbert")
            runs += [(f"{name}, {other}", name, SHORT, other) for other in others for name in registry.names("methods")]
        with steps_watched():
            called = ((label, lambda r=rest: train_toy(r[0], device, *r[1:])) for label, *rest in runs)  # type: ignore[misc]
            count, failed = failures(called)
        yield judge(f"waits for the device in a step, {count} runs, {precision}", "none", failed, device)


def pairs(device: torch.device) -> Results:
    """Check that every ordered pair of methods trains and is torn down."""
    names = [name for name in registry.names("methods") if name != registry.BASELINE]
    runs = ((f"{a}+{b}", lambda text=f"{a}+{b}": train_toy(text, device, PAIR)) for a in names for b in names if a != b)
    count, failed = failures(runs)
    yield judge(f"ordered pairs of methods, {count}", "no error", failed, device)


def same_as_cpu(device: torch.device) -> Results:
    """Check that without dropout the device trains as the CPU does."""
    for layout in BATCH_LAYOUTS:
        losses = []
        for place in (toys.CPU, device):
            trained = train_toy("vanilla(dropout=all_off)", place, replace(SHORT, batch_layout=layout))
            assert trained is not None
            losses.append(trained[1])
        far = float(np.abs(losses[0] - losses[1]).max())
        yield Result(f"losses of CPU and device apart, {layout}", f"≤ {CLOSE}", f"{far:.2g}", far <= CLOSE)


def replay(device: torch.device) -> Results:
    """Check that a run comes out the same again, and the same when it goes on from a checkpoint."""
    for name in ("vanilla", "rdrop", "mixout", "sage"):
        recipe = replace(SHORT, deterministic=True)
        with tempfile.TemporaryDirectory() as folder:
            points = Checkpoints(Path(folder) / "run.safetensors", every=3, owner="replay")
            trained = [train_toy(name, device, recipe, points=p) for p in (None, points, points)]
        runs = [each[0] for each in trained if each is not None]
        equal = [toys.same(runs[0], run) for run in runs[1:]]
        found = f"again {'same' if equal[0] else 'other'}, resumed {'same' if equal[1] else 'other'}"
        yield Result(f"replay to the last bit, {name}", "again same, resumed same", found, all(equal))


def leftovers(device: torch.device) -> Results:
    """Check that a run leaves no memory of the device behind, and that its peak is measured anew."""
    names = registry.names("methods")
    train_toy(registry.BASELINE, device)  # what libraries keep from their first use on
    left = {}

    def measure_one(name: str) -> None:
        devices.reset_peak(device)
        before = torch.accelerator.memory_allocated(device)
        train_toy(name, device)
        gc.collect()
        left[name] = torch.accelerator.memory_allocated(device) - before

    _, failed = failures((name, lambda name=name: measure_one(name)) for name in names)  # type: ignore[misc]
    if failed:
        yield judge("runs that leave something behind", "no error", failed, device)
    kept = {name: size for name, size in left.items() if size > 0}
    yield Result(f"bytes left behind by {len(left)} runs", "none", str(kept or "none"), not kept)
    devices.reset_peak(device)
    allocated, _ = devices.peak(device)
    present = torch.accelerator.memory_allocated(device)
    yield Result("peak after a reset", f"{present} bytes", f"{allocated} bytes", allocated == present)


def out_of_memory(device: torch.device) -> Results:
    """Check that a failed allocation is told from a fault, and that the device works after it."""
    try:
        torch.empty(2**50, dtype=torch.uint8, device=device)
        found = "no error"
    except RuntimeError as error:
        memory, broken = devices.is_out_of_memory(error), devices.is_broken(device, error)
        found = f"out of memory {memory}, broken {broken}"
    expected = "out of memory True, broken False"
    yield Result("an allocation of a petabyte", expected, found, found == expected)
    _, failed = failures(iter([("vanilla", lambda: train_toy("vanilla", device))]))
    yield judge("a run after it", "trains", failed, device)


# An index beyond a table is an assertion in a kernel, after which the process can't use its device any more.
FAULT = """
import torch
from finetune_bench import device as devices
place = torch.device("cuda", 0)
errors = []
for attempt in range(2):
    try:
        torch.nn.functional.embedding(torch.full((4,), 99, device=place), torch.zeros(3, 2, device=place)).sum().item()
    except RuntimeError as error:
        errors.append(error)
print(*[f"{devices.is_out_of_memory(error)} {devices.is_broken(place, error)}" for error in errors], sep=", ")
"""


def faults(device: torch.device) -> Results:
    """Check, in a process of its own, that a fault is told from a lack of memory."""
    done = subprocess.run([sys.executable, "-c", FAULT], capture_output=True, text=True, check=False)  # noqa: S603
    found = (done.stdout.strip().splitlines() or ["no answer"])[-1]
    yield Result(
        "a kernel's assertion (memory, broken), twice",
        "False True, False True",
        found,
        found == "False True, False True",
    )


# The checks of the contract in which a device can make a difference; pairs are checked by themselves.
OF_THE_DEVICE = (
    checks.neutral_is_vanilla,
    checks.is_alive,
    checks.is_deterministic,
    checks.resumes,
    checks.arranges,
    checks.evaluation_is_clean,
    checks.leaves_a_plain_model,
    checks.declares_its_passes,
    checks.declares_its_memory,
    checks.survives_checkpointing,
    checks.accumulates,
    checks.gradient_is_that_of_the_loss,
)
_WITHOUT_NUMBERS = (checks.leaves_a_plain_model, checks.declares_its_passes, checks.declares_its_memory)


def contract(device: torch.device) -> Results:
    """Check on the device what every method promises."""
    for check in OF_THE_DEVICE:
        failed = dict[str, BaseException]()
        for name in registry.names("methods"):
            for outcome in checks.check_method(registry.method_class(name), device, [check]):
                if outcome.error is not None:
                    failed[name] = outcome.error
        unseen = not computes(device) and check not in _WITHOUT_NUMBERS
        of_numbers = (FinetuneBenchError, AssertionError) if unseen else (FinetuneBenchError,)
        result = judge(f"contract: {check.__name__.replace('_', ' ')}", "kept", failed, device, of_numbers)
        yield replace(result, found="no error, and no numbers", passed=None) if unseen and result.passed else result


# Whatever these find on a device that computes nothing tells nothing.
OF_NUMBERS = ("same_as_cpu", "replay", "faults", "speed")

CHECKS = {
    "kernels": kernels,
    "out_of_memory": out_of_memory,
    "leftovers": leftovers,
    "same_as_cpu": same_as_cpu,
    "replay": replay,
    "faults": faults,
    "waits": waits,
    "pairs": pairs,
    "speed": speed,
    "workers": workers,
    "contract": contract,
}


def perform(names: list[str], device: torch.device, seconds: float) -> tuple[list[Result], list[str]]:
    """Perform checks one after another and print their lines; a check that raises has failed.

    Returns:
        The results, and the names of the checks that the time was over for.
    """
    over = time.monotonic() + seconds
    results: list[Result] = []
    late = []
    if not computes(device):
        results.append(Result("2 + 3 on the device", "5", "another number: what depends on numbers is UNSEEN", False))
        print(results[-1], flush=True)
    for name in names:
        if time.monotonic() > over:
            late.append(name)
            continue
        devices.prepare(device, threads=1, deterministic=name == "replay")
        start = len(results)
        try:
            for told in CHECKS[name](device):
                result = replace(told, passed=None) if name in OF_NUMBERS and not computes(device) else told
                print(result, flush=True)
                results.append(result)
        except Exception as error:  # the others still have something to say
            traceback.print_exc()
            results.append(Result(name, "no error", f"{type(error).__name__}: {error}".splitlines()[0], passed=False))
            print(results[-1], flush=True)
        assert len(results) > start
    for name in late:
        print(f"LEFT OUT | {name} | the time was over", flush=True)
    return results, late


def main(arguments: list[str] | None = None) -> int:
    """Perform the checks that are asked for; return 0 where all passed and none was left out."""
    parser = argparse.ArgumentParser(description="Check on a CUDA device what a machine without one can't show.")
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], help="all by default")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where the results go")
    parser.add_argument("--seconds", type=float, default=600.0, help="no check begins after so long (600)")
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no CUDA device here; run this where there is one.", file=sys.stderr)
        return 3
    device = torch.device("cuda", 0)
    results, late = perform(asked.checks or list(CHECKS), device, asked.seconds)
    report = {
        "environment": environment(device),
        "capability": torch.cuda.get_device_capability(device),
        "results": [asdict(result) for result in results],
        "left_out": late,
    }
    asked.json.write_text(json.dumps(report, indent=2), "utf-8")
    passed, failed = (sum(result.passed is outcome for result in results) for outcome in (True, False))
    unseen = len(results) - passed - failed
    print(f"{passed} passed, {failed} failed, {unseen} unseen; written to {asked.json}")
    return 0 if passed == len(results) and not late else 1


if __name__ == "__main__":
    sys.exit(main())
