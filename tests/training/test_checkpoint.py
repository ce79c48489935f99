"""A checkpoint is whole or none, and a run that goes on from it ends the same to the last bit."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_bench.method.base import Method
from finetune_bench.method.step import Run
from finetune_bench.methods.ema import EMA
from finetune_bench.methods.r3f import R4F
from finetune_bench.methods.rdrop import RDrop
from finetune_bench.testing.toys import RECIPE, same, toy_run, toy_train
from finetune_bench.training import checkpoint
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import train

LONG = dataclasses.replace(RECIPE, epochs=6)  # 18 steps


class Killed(BaseException):
    """As a signal would end a run: nothing in it catches this."""


class Deadly(Method):
    """Dies in the step that it is told."""

    name = "deadly"
    step = 0

    def gradients(self, run: Run) -> None:
        type(self).step -= 1
        if type(self).step == 0:
            raise Killed


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        pytest.param({"accumulation": 2}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"batch_layout": "unpadded"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_killed_at_random_steps_it_ends_as_an_undisturbed_run(tmp_path: Path, recipe: dict[str, object]) -> None:
    used = dataclasses.replace(LONG, **recipe)  # type: ignore[arg-type]
    methods: list[Method] = [RDrop(), EMA(), R4F()]
    calm, result, predictions = toy_train([Deadly(), *methods], recipe=used)
    dice, checkpoints = random.Random(str(recipe)), Checkpoints(tmp_path / "run.safetensors", every=2)
    resumed = []
    for _ in range(5):
        Deadly.step = dice.randint(1, 8)
        run, _ = toy_run([Deadly(), *methods], recipe=used)
        with pytest.raises(Killed):
            resumed.append(train(run, checkpoints).resumed_at)
        if checkpoints.path.exists() and dice.random() < 0.3:
            checkpoints.path.write_bytes(checkpoints.path.read_bytes()[:-5])  # cut: begun anew
        if checkpoint.read(checkpoints.path) and checkpoint.read(checkpoints.path)[1]["step"] > 8:  # type: ignore[index]
            break
    Deadly.step = 0
    run, again, predicted = toy_train([Deadly(), *methods], recipe=used, checkpoints=checkpoints)
    assert same(calm, run)
    assert np.array_equal(predictions, predicted)
    for name, values in result.steps.items():
        assert np.array_equal(values, again.steps[name]), name
    assert np.array_equal(result.sketches, again.sketches)
    assert len(again.seconds) == len(result.seconds) == 18


def test_what_is_read_lies_where_new_tensors_lie(tmp_path: Path) -> None:
    """Products round by alignment: R4F once differed in the last bit after a checkpoint, one time in fifty."""
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=5)
    toy_train([R4F(), EMA()], checkpoints=checkpoints)
    found = checkpoint.read(checkpoints.path)
    assert found is not None
    tensors, facts = found
    assert facts["step"] == 5
    assert len(tensors) > 20
    assert {tensor.data_ptr() % 64 for tensor in tensors.values() if tensor.numel()} == {0}


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    run, _, _ = toy_train(RDrop(), checkpoints=Checkpoints(tmp_path / "run.safetensors", every=2))
    calm, _, _ = toy_train(RDrop())
    assert same(run, calm)
    assert "No checkpoint after step 2: [Errno 28] No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\xff" * 200], ids=["empty", "zeros", "ones"])
def test_what_is_no_checkpoint_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    _, result, _ = toy_train(RDrop(), checkpoints=Checkpoints(path, every=100))
    assert result.resumed_at == 0


def test_a_run_that_ends_first_writes_none(tmp_path: Path) -> None:
    toy_train(RDrop(), checkpoints=Checkpoints(tmp_path / "run.safetensors", every=6))  # it has six steps
    assert list(tmp_path.iterdir()) == []


def test_the_names_in_the_file_are_those_of_schema_1(tmp_path: Path) -> None:
    """Checkpoints of earlier versions are gone on from: neither names nor header may move."""
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=5)
    run, _, _ = toy_train([RDrop(), EMA()], checkpoints=checkpoints)
    content = checkpoint.read(checkpoints.path)
    assert content is not None
    tensors, facts = content
    weights = dict(run.model.state_dict())
    moments = {f"optimizer {i} {name}" for i in range(len(run.params)) for name in ("step", "exp_avg", "exp_avg_sq")}
    logs = {f"record log {name}" for name in ("loss", "task_loss", "rdrop_divergence")}
    assert set(tensors) == {
        "stream cpu",
        *(f"weight {name}" for name in weights),
        *(f"weight {name}" for name, _ in run.model.named_buffers()),
        *moments,
        *(f"method 1 {name}" for name in run.params),
        *logs,
        *("record seconds", "record cpu_seconds", "record sketches"),
    }
    assert list(facts) == [
        *("schema", "step", "groups", "scheduler", "scaler", "methods", "decay", "own_blocks", "passes"),
        *("examples", "micro_batches", "sketch_steps"),
    ]
    assert facts["schema"] == 1
    assert facts["methods"] == [{}, {"steps": 5}]


def test_blocks_of_a_methods_own_randomness_are_counted_on(tmp_path: Path) -> None:
    class Shaken(Method):
        """Adds noise of its own to the gradients, from a new block at every step."""

        name = "shaken"

        def setup(self, run: Run) -> None:
            with run.own_randomness(self.name):
                self.start_ = torch.rand(())

        def gradients(self, run: Run) -> None:
            with run.own_randomness(self.name):
                for weight in run.params.values():
                    if weight.grad is not None:
                        weight.grad.add_(torch.rand(()))

    calm, _, _ = toy_train(Shaken())
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=4)
    toy_train(Shaken(), checkpoints=checkpoints)
    again, result, _ = toy_train(Shaken(), checkpoints=checkpoints)
    assert result.resumed_at == 4
    assert same(calm, again)
