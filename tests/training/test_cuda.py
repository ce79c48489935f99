"""Whole runs on a CUDA device, in which no step may wait for it; they are skipped where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.recipe import BATCH_LAYOUTS, Recipe
from finetune_bench.testing import toys
from finetune_bench.training import evaluation
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import train
from finetune_bench.training.memory import saved_activation_bytes

gpu_check = pytest.importorskip("benchmarks.gpu_check", reason="the benchmarks are in a checkout only")
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

CUDA = torch.device("cuda", 0)
STEPS = 4


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    """Make it an error to wait for the device in a step, from its batch to its `after_step`; a set-up may wait."""
    devices.prepare(CUDA, threads=1, deterministic=False)
    with gpu_check.steps_watched():
        yield


def train_whole(text: str, architecture: str, folder: Path, precision: str, batch_layout: str) -> None:
    """Train with a checkpoint, evaluate, measure; then go on from the checkpoint."""
    recipe = Recipe(
        lr=1e-3, batch_size=8, epochs=None, steps=STEPS, warmup=0.0, precision=precision, batch_layout=batch_layout
    )
    if reason := toys.unsupported(list(registry.make_stack(text).methods), architecture, recipe=recipe):
        pytest.skip(reason)
    points = Checkpoints(folder / "run.safetensors", every=STEPS - 1, owner="a run")
    for resumed_at in (0, STEPS - 1):
        run, stack = toys.toy_run(list(registry.make_stack(text).methods), architecture, recipe=recipe, device=CUDA)
        try:
            result = train(run, points)
            with stack.evaluating(run):
                predictions = evaluation.predict(run, run.examples)
            assert saved_activation_bytes(run) > 0
        finally:
            stack.teardown(run)
        assert result.resumed_at == resumed_at
        assert {len(values) for values in result.steps.values()} == {STEPS}
        assert predictions.shape == (toys.EXAMPLES, toys.CLASSES)
        assert {weight.device for weight in run.params.values()} == {CUDA}


@pytest.mark.parametrize("batch_layout", BATCH_LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", registry.names("methods"))
def test_no_step_of_a_method_waits_for_the_device(name: str, precision: str, batch_layout: str, tmp_path: Path) -> None:
    furthest = BATCH_LAYOUTS.index(registry.method_class(name).batch_layout)
    if BATCH_LAYOUTS.index(batch_layout) > furthest:
        pytest.skip("the method can't do this batch layout")
    train_whole(name, "bert", tmp_path, precision, batch_layout)


@pytest.mark.parametrize("name", registry.names("methods"))
@pytest.mark.parametrize("architecture", ["xlnet", "modernbert"])
def test_no_step_on_other_architectures_waits_for_the_device(name: str, architecture: str, tmp_path: Path) -> None:
    train_whole(name, architecture, tmp_path, "fp32", "padded")
