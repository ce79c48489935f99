"""Calibration on an accelerator happens in a child process, by the device's clock."""

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
from finetune_bench.recipe import Recipe
from finetune_bench.runner import calibration, calibration_cache
from finetune_bench.runner.forecast import forecast
from finetune_bench.runner.plan import Plan
from finetune_bench.study.grid import Cell
from finetune_bench.training import loop
from finetune_bench.training.run import TrainingRun
from tests.model.checkpoints import planned

SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=2, max_length=32)


@pytest.fixture
def plan(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(calibration_cache.devices, "describe", str)
    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "run", recipe=SHORT)
    return replace(plan, devices=["cuda:0"])


def test_the_runner_leaves_an_accelerator_to_a_child(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[dict[str, Any]] = []

    def child(command: list[str], *, input: str, **options: Any) -> subprocess.CompletedProcess[str]:
        jobs.append(json.loads(input))
        # What the child would do, on this machine's device.
        answer = calibration.answer(json.dumps(jobs[0] | {"device": "cpu"}))
        monkeypatch.setattr(calibration, "initial_model", in_the_runner)
        return subprocess.CompletedProcess(command, 0, answer, "")

    def in_the_runner(*args: Any) -> NoReturn:
        pytest.fail("a model was made in the runner")

    monkeypatch.setattr(subprocess, "run", child)
    expected = forecast(plan)
    assert [job["device"] for job in jobs] == ["cuda:0"]
    assert {cell["method"] for cell in jobs[0]["cells"]} == {cell.method for cell in plan.todo}
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
    job = {"cells": [plan.cells[0].to_dict()], "root": None, "device": "meta", "plugins": []}
    (made,) = json.loads(calibration.answer(json.dumps(job)))
    assert made["step_seconds"] > 500


@pytest.fixture
def counted(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were calibrated; what comes of it is made up."""
    methods: list[str] = []

    def calibrate(cells: list[Cell], *_: object) -> list[calibration.Calibration]:
        methods.extend(cell.method for cell in cells)
        return [calibration.Calibration(0.5, 1.0, 2.0, None, 64) for _ in cells]

    monkeypatch.setattr(calibration_cache, "calibrate", calibrate)
    return methods


def test_a_calibration_is_made_once(plan: Plan, counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = forecast(plan)
    assert sorted(counted) == sorted({cell.method for cell in plan.todo})
    plan.todo = [replace(cell, seed=cell.seed + 100) for cell in plan.todo]
    again = forecast(plan)
    assert len(counted) == len(set(counted))  # other seeds need no other
    assert list(again.seconds.values()) == list(first.seconds.values())
    one = plan.todo[0]
    for changed in (
        replace(one, method="sam(rho=0.05)"),
        replace(one, recipe=replace(one.recipe, max_length=31)),
        replace(one, weights="another"),
        replace(one, libraries=("torch 99",)),
        replace(one, sources=("x 1",)),
    ):
        before = len(counted)
        calibration_cache.calibrations_of([changed], None, torch.device("cuda:0"))
        assert len(counted) == before + 1
    calibration_cache.calibrations_of([one], None, torch.device("cpu"))
    assert len(counted) == before + 2


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
