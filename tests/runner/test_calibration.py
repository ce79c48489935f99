"""A calibration makes a few small steps within a given time; on an accelerator in a child process, by its clock."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from finetune_bench.errors import MachineError
from finetune_bench.files import read_json, sealed
from finetune_bench.method.cost import Passes
from finetune_bench.recipe import Recipe
from finetune_bench.runner import calibration, calibration_cache
from finetune_bench.runner import forecast as forecasting
from finetune_bench.runner.forecast import forecast
from finetune_bench.runner.plan import Plan
from finetune_bench.study.grid import Cell
from finetune_bench.training import loop
from finetune_bench.training.run import TrainingRun
from tests.model.checkpoints import planned

MADE_UP = calibration.Calibration(
    step_seconds=0.5,
    token_seconds=0.01,
    setup_seconds=1.0,
    setup_token_seconds=0.0,
    load_seconds=2.0,
    scored_token_seconds=0.01,
    peak_bytes=None,
    token_bytes=100.0,
    measured_tokens=64,
)
ANY_TIME = calibration.Allowance(100.0)
SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=2, max_length=32)


@pytest.fixture
def plan(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_cache.devices, "describe", str)
    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "run", recipe=SHORT)
    return replace(plan, devices=["cuda:0"])


@pytest.mark.slow
def test_the_runner_leaves_an_accelerator_to_a_child(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []
    in_the_child = calibration.initial_model

    def child(command: list[str], *, input: str, **options: Any) -> subprocess.CompletedProcess[str]:
        jobs.append(json.loads(input))
        # What the child would do, on this machine's device and with time for all.
        monkeypatch.setattr(calibration, "initial_model", in_the_child)
        allowance = jobs[-1]["allowance"] | {"seconds": 100.0}
        answer = calibration.answer(json.dumps(jobs[-1] | {"device": "cpu", "allowance": allowance}))
        monkeypatch.setattr(calibration, "initial_model", in_the_runner)
        return subprocess.CompletedProcess(command, 0, answer, "")

    def in_the_runner(*args: Any) -> NoReturn:
        pytest.fail("a model was made in the runner")

    monkeypatch.setattr(calibration, "initial_model", in_the_runner)
    monkeypatch.setattr(subprocess, "run", child)
    said: list[str] = []
    expected = forecast(plan, said.append)
    assert [job["device"] for job in jobs] == ["cuda:0"] * 2
    made = [cell["method"] for job in jobs for cell in job["cells"]]
    assert sorted(made) == sorted({cell.method for cell in plan.todo})
    assert all(text.startswith("Calibrating on cuda:0, in a process of its own: vanilla") for text in said)
    assert set(expected.seconds) == {cell.id for cell in plan.todo}
    assert all(seconds > 0 for seconds in expected.seconds.values())


def test_a_child_that_fails_says_why(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "Traceback\ntorch.OutOfMemoryError: no room\n")

    monkeypatch.setattr(subprocess, "run", child)
    with pytest.raises(MachineError, match="The calibration on cuda:0 failed: torch.OutOfMemoryError: no room"):
        forecast(plan)


def test_off_the_cpu_steps_are_timed_by_the_device(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A meta device stands for an accelerator, and a loop with known times for the training."""

    def timed(run: TrainingRun) -> SimpleNamespace:
        return SimpleNamespace(seconds=np.full(run.total_steps, 1000.0), cpu_seconds=np.full(run.total_steps, 1.0))

    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    monkeypatch.setattr(calibration.devices, "prepare", lambda *args, **options: None)
    monkeypatch.setattr(calibration.devices, "reset_peak", lambda device: True)
    monkeypatch.setattr(calibration.devices, "peak", lambda device: (1, 1))
    monkeypatch.setattr(calibration.pretrained, "digest", lambda model: "")
    monkeypatch.setattr(calibration.evaluation, "predict", lambda run, examples: None)
    monkeypatch.setattr(loop, "train", timed)
    monkeypatch.setattr(calibration, "saved_activation_bytes", lambda run: 1)
    allowance = {"seconds": 1.0, "least": None}
    job = {"cells": [plan.cells[0].to_dict()], "root": None, "device": "meta", "plugins": [], "allowance": allowance}
    (made,) = json.loads(calibration.answer(json.dumps(job)))
    # At a size that was measured: of steps of one size only, nothing is known about others.
    assert calibration.Calibration(**made).seconds_of(made["measured_tokens"]) == pytest.approx(1000.0)


@pytest.fixture
def counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were calibrated; what comes of it is made up."""
    methods: list[str] = []

    def calibrate(cells: list[Cell], *_: object, **options: object) -> list[calibration.Calibration]:
        methods.extend(cell.method for cell in cells)
        return [MADE_UP for _ in cells]

    monkeypatch.setattr(calibration_cache, "calibrate", calibrate)
    return methods


def test_a_calibration_is_made_once(plan: Plan, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = forecast(plan)
    assert sorted(counted) == sorted({cell.method for cell in plan.todo})
    plan.todo = [replace(cell, seed=cell.seed + 100) for cell in plan.todo]
    again = forecast(plan)
    assert len(counted) == len(set(counted))  # other seeds need no other
    # The order of the examples is another, and with it the padding.
    assert list(again.seconds.values()) == pytest.approx(list(first.seconds.values()), rel=0.05)
    one = plan.todo[0]
    for changed in (
        replace(one, method="sam(rho=0.05)"),
        replace(one, recipe=replace(one.recipe, max_length=31)),
        replace(one, weights="another"),
        replace(one, libraries=("torch 99",)),
        replace(one, sources=("x 1",)),
    ):
        before = len(counted)
        calibration_cache.calibrations_of([changed], None, torch.device("cuda:0"), allowance=ANY_TIME)
        assert len(counted) == before + 1
    calibration_cache.calibrations_of([one], None, torch.device("cpu"), allowance=ANY_TIME)
    assert len(counted) == before + 2
    longer = replace(one.recipe, lr=1e-4, steps=200)
    for same in (replace(one, task="another", data="another", limit_train=5), replace(one, recipe=longer)):
        calibration_cache.calibrations_of([same], None, torch.device("cpu"), allowance=ANY_TIME)
    assert len(counted) == before + 2  # how many steps there are of how many tokens changes none of it


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"step_seconds": 0.5}', "null", "link", "folder"])
def test_a_damaged_calibration_is_made_anew(plan: Plan, counted: list[str], content: str, tmp_path: Path) -> None:
    forecast(plan)
    files = sorted((tmp_path / "cache" / "calibrations").iterdir())
    made = len(counted)
    assert len(files) == made
    for file in files:
        file.unlink()
        if content == "link":
            file.symlink_to("/dev/zero")
        elif content == "folder":
            file.mkdir()
        else:
            file.write_text(content)
    assert set(forecast(plan).seconds.values()) != set()
    assert len(counted) == 2 * made
    forecast(plan)
    assert len(counted) == (3 if content == "folder" else 2) * made  # no file can take a folder's place


@pytest.mark.parametrize("name", ["step_seconds", "setup_seconds", "peak_bytes", "largest_batch"])
@pytest.mark.parametrize("value", [-1, "1", True, [1]])
def test_what_no_calibration_can_hold_is_made_anew(
    plan: Plan, counted: list[str], name: str, value: object, tmp_path: Path
) -> None:
    forecast(plan)
    file = sorted((tmp_path / "cache" / "calibrations").iterdir())[0]
    file.write_text(json.dumps(sealed(read_json(file) | {name: value})))
    made = len(counted)
    forecast(plan)
    assert len(counted) == made + 1


def test_a_cache_that_can_not_be_written_is_none(
    plan: Plan, counted: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "file"))
    forecast(plan)
    made = len(counted)
    forecast(plan)
    assert len(counted) == 2 * made


TOKENS_A_SECOND = 100.0


@pytest.fixture
def made_steps(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The method and the tokens of every step that is made on a slow machine, whose clock moves with tokens alone."""
    steps: list[tuple[str, int]] = []
    seconds = [0.0]

    def train(run: TrainingRun) -> SimpleNamespace:
        run.method.setup(run)
        taken = []
        passes = calibration.registry.make_stack(run.method.methods[0].name).passes(Passes())
        for step in run.steps():
            tokens = calibration.tokens_of(run.examples, step, run.recipe.batch_layout)
            steps.append((run.method.methods[0].name, tokens))
            taken.append(0.1 + passes.forwards * tokens / TOKENS_A_SECOND)
            seconds[0] += taken[-1]
        return SimpleNamespace(seconds=np.array(taken), cpu_seconds=np.array(taken))

    monkeypatch.setattr(calibration, "clock", lambda device: seconds[0])
    monkeypatch.setattr(forecasting, "clock", lambda device: seconds[0])
    monkeypatch.setattr(loop, "train", train)
    return steps


@pytest.fixture
def large(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, plan: Plan) -> Plan:
    """A plan of methods whose whole steps take 5 s and more of that clock."""
    recipe = Recipe(lr=1e-3, batch_size=60, epochs=100, max_length=32)
    methods = ("vanilla", "rdrop", "sam", "freelb", "hype", "mixout", "ema", "r3f")
    return planned(tiny_checkpoint, tiny_data, tmp_path / "large", methods, recipe=recipe, workers=1)


@pytest.mark.slow
def test_a_calibration_stays_within_its_time(large: Plan, made_steps: list[tuple[str, int]]) -> None:
    said: list[str] = []
    expected = forecast(large, said.append)
    assert sum(size for _, size in made_steps) < 20 * TOKENS_A_SECOND
    assert len(said) == len(expected.timed_with)
    timed = {calibration.label_of(method) for method in expected.timed_with}
    assert "vanilla" in timed and 1 < len(timed) < 8
    by_label = {cell.label: expected.seconds[cell.id] for cell in large.todo}
    assert by_label["rdrop"] == pytest.approx(2 * by_label["vanilla"], rel=0.05)
    assert by_label["freelb"] > 3 * by_label["vanilla"]  # by its passes, if there was no time for it


def test_small_steps_tell_of_large_ones(large: Plan, made_steps: list[tuple[str, int]]) -> None:
    (cell,) = [cell for cell in large.todo if cell.label == "vanilla"]
    (made,) = calibration.calibrate([cell], None, torch.device("cpu"), allowance=calibration.Allowance(3.0))
    sizes = [size for _, size in made_steps]
    assert len(sizes) >= calibration.LEAST_STEPS
    assert max(sizes) < 200
    assert made is not None
    assert made.seconds_of(1000) == pytest.approx(0.1 + 1000 / TOKENS_A_SECOND)


def test_a_second_plan_makes_no_step_again(large: Plan, made_steps: list[tuple[str, int]]) -> None:
    large.todo = [cell for cell in large.todo if cell.label in ("vanilla", "ema")]
    first = forecast(large)
    made = len(made_steps)
    assert made
    said: list[str] = []
    assert forecast(large, said.append).seconds == first.seconds
    assert len(made_steps) == made
    assert said == []  # nothing is calibrated, so nothing says so


def test_what_has_no_time_at_all_is_left_to_passes(large: Plan, made_steps: list[tuple[str, int]]) -> None:
    cells = [cell for cell in large.todo if cell.label in ("vanilla", "sam")]
    nothing = calibration.Allowance(0.0, [1.0, 1.0])
    assert calibration.calibrate(cells, None, torch.device("cpu"), allowance=nothing) == [None, None]
    assert not made_steps
    needed = calibration.calibrate(cells[:1], None, torch.device("cpu"), allowance=calibration.Allowance(0.0))
    assert needed != [None]
    assert len(made_steps) == calibration.LEAST_STEPS


@pytest.mark.slow
def test_a_pass_over_the_data_is_measured_on_a_part(
    plan: Plan, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "fisher", ("child_tuning_d",), recipe=SHORT)
    cells = [cell for cell in plan.todo if cell.label in ("vanilla", "child_tuning_d")]
    vanilla, child = calibration.calibrate(cells, None, torch.device("cpu"), allowance=ANY_TIME)
    assert vanilla is not None and child is not None
    if cells[0].label != "vanilla":
        vanilla, child = child, vanilla
    assert vanilla.setup_token_seconds == 0.0 < child.setup_token_seconds


@pytest.mark.parametrize(
    ("sizes", "seconds", "expected"),
    [
        ([64, 128, 256], [1.64, 2.28, 3.56], (1.0, 0.01)),
        ([64, 64], [0.64, 0.64], (0.0, 0.01)),
        ([64, 128], [0.5, 1.2], (0.0, 0.0086)),  # the line would be below 0 without tokens
        ([64, 128], [1.0, 0.9], (0.95, 0.0)),  # and here it would fall
    ],
)
def test_a_line_is_laid_through_steps(sizes: list[int], seconds: list[float], expected: tuple[float, float]) -> None:
    assert calibration.fitted(sizes, np.array(seconds)) == pytest.approx(expected, rel=0.02)
