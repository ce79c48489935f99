"""A checkpoint is whole or none, and a run that goes on from it ends the same to the last bit."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune_bench.method.base import Method
from finetune_bench.method.step import Run, State
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
@pytest.mark.slow
def test_killed_at_random_steps_it_ends_as_an_undisturbed_run(tmp_path: Path, recipe: dict[str, object]) -> None:
    used = dataclasses.replace(LONG, **recipe)  # type: ignore[arg-type]
    methods: list[Method] = [RDrop(), EMA(), R4F()]
    calm, result, predictions = toy_train([Deadly(), *methods], recipe=used)
    dice, checkpoints = random.Random(str(recipe)), Checkpoints(tmp_path / "run.safetensors", every=2, owner="a run")
    resumed = []
    for _ in range(5):
        Deadly.step = dice.randint(1, 8)
        run, _ = toy_run([Deadly(), *methods], recipe=used)
        with pytest.raises(Killed):
            resumed.append(train(run, checkpoints).resumed_at)
        if checkpoints.path.exists() and dice.random() < 0.3:
            checkpoints.path.write_bytes(checkpoints.path.read_bytes()[:-5])  # cut: begun anew
        if checkpoint.read(checkpoints) and checkpoint.read(checkpoints)[1]["step"] > 8:  # type: ignore[index]
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
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=5, owner="a run")
    toy_train([R4F(), EMA()], checkpoints=checkpoints)
    found = checkpoint.read(checkpoints)
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
    run, _, _ = toy_train(RDrop(), checkpoints=Checkpoints(tmp_path / "run.safetensors", every=2, owner="a run"))
    calm, _, _ = toy_train(RDrop())
    assert same(run, calm)
    assert "No checkpoint after step 2: [Errno 28] No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\xff" * 200], ids=["empty", "zeros", "ones"])
def test_what_is_no_checkpoint_is_begun_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.safetensors"
    path.write_bytes(content)
    _, result, _ = toy_train(RDrop(), checkpoints=Checkpoints(path, every=100, owner="a run"))
    assert result.resumed_at == 0


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.slow
def test_a_flipped_bit_of_header_or_tensors_is_no_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=4, owner="a run")
    calm, result, predictions = toy_train([RDrop(), EMA()], checkpoints=checkpoints)
    whole = checkpoints.path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    dice = random.Random(0)
    bits = [
        *range(8 * 60),
        *dice.sample(range(8 * 60, 8 * header), 60),
        *dice.sample(range(8 * header, 8 * len(whole)), 30),
    ]
    for bit in bits:
        checkpoints.path.write_bytes(flipped(whole, bit))
        assert checkpoint.read(checkpoints) is None, bit
    for bit in (8 * header - 200, 8 * len(whole) - 3):
        checkpoints.path.write_bytes(flipped(whole, bit))
        again, from_start, predicted = toy_train([RDrop(), EMA()], checkpoints=checkpoints)
        assert from_start.resumed_at == 0
        assert same(calm, again)
        assert np.array_equal(predictions, predicted)
        assert np.array_equal(result.sketches, from_start.sketches)
    assert "run.safetensors' is not used: " in capsys.readouterr().err
    assert checkpoint.read(checkpoints) is not None  # the run wrote its own anew


def test_a_checkpoint_of_another_run_is_not_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It lies under the right name, and would fit: its methods, shapes and steps are the same."""
    theirs = Checkpoints(tmp_path / "run.safetensors", every=4, owner="seed 2")
    toy_train(RDrop(), checkpoints=theirs)
    assert checkpoint.read(theirs) is not None
    ours = dataclasses.replace(theirs, owner="seed 1")
    _, result, _ = toy_train(RDrop(), checkpoints=ours)
    assert result.resumed_at == 0
    assert "is not used: it belongs to 'seed 2', and this run is 'seed 1'." in capsys.readouterr().err


def test_a_run_that_ends_first_writes_none(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=6, owner="a run")
    toy_train(RDrop(), checkpoints=checkpoints)  # it has six steps
    assert list(tmp_path.iterdir()) == []


def test_the_names_in_the_file_are_those_of_schema_5(tmp_path: Path) -> None:
    """Whoever moves names or header raises the schema: a checkpoint of another one is not gone on from."""
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=5, owner="a run")
    run, _, _ = toy_train([RDrop(), EMA()], checkpoints=checkpoints)
    content = checkpoint.read(checkpoints)
    assert content is not None
    tensors, facts = content
    weights = dict(run.model.state_dict())
    moments = {f"optimizer {i} {name}" for i in range(len(run.params)) for name in ("step", "exp_avg", "exp_avg_sq")}
    logs = {f"record log {name}" for name in ("loss", "task_loss", "grad_norm", "rdrop_divergence")}
    assert set(tensors) == {
        "stream cpu",
        *(f"weight {name}" for name in weights),
        *(f"weight {name}" for name, _ in run.model.named_buffers()),
        *moments,
        *(f"method toy 0 {name}" for name in run.params),
        *logs,
        *("record seconds", "record cpu_seconds", "record sketches"),
    }
    assert list(facts) == [
        *(
            "schema",
            "owner",
            "members",
            "step",
            "groups",
            "scheduler",
            "scaler",
            "method",
            "decay",
            "reanchored",
            "own_blocks",
            "passes",
        ),
        *("examples", "micro_batches", "sketch_steps"),
    ]
    assert facts["schema"] == 5
    assert facts["method"] == {"toy 0 steps": 5}


def test_what_a_method_reanchors_after_a_step_is_kept(tmp_path: Path) -> None:
    class Moved(Method):
        """Lets the head's weights after the second step be the pre-trained ones, and is pulled to them."""

        name = "moved"
        reads_pretrained = True

        def setup(self, run: Run) -> None:
            self.step_ = 0

        def gradients(self, run: Run) -> None:
            weight = run.params["classifier.weight"]
            assert weight.grad is not None
            weight.grad += weight.detach() - run.pretrained["classifier.weight"]

        def after_step(self, run: Run) -> None:
            self.step_ += 1
            if self.step_ == 2:
                run.reanchor(["classifier.weight"])

        def state(self) -> State:
            return {"step": self.step_}

        def load_state(self, state: State) -> None:
            self.step_ = state["step"]

    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=4, owner="a run")
    run, _, _ = toy_train(Moved(), checkpoints=checkpoints)
    again, result, _ = toy_train(Moved(), checkpoints=checkpoints)
    assert result.resumed_at == 4
    assert again.reanchored == {"classifier.weight"}
    assert torch.equal(again.pretrained["classifier.weight"], run.pretrained["classifier.weight"])
    assert same(run, again)


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
    checkpoints = Checkpoints(tmp_path / "run.safetensors", every=4, owner="a run")
    toy_train(Shaken(), checkpoints=checkpoints)
    again, result, _ = toy_train(Shaken(), checkpoints=checkpoints)
    assert result.resumed_at == 4
    assert same(calm, again)
