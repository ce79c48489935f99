"""The command that checks a CUDA device, as far as a CPU can stand for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune_bench import device as devices
from finetune_bench import registry, testing
from finetune_bench.cli.arguments import make_parser
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.cost import Passes
from finetune_bench.runner.plan import make_plan
from finetune_bench.study.sources import make_study
from finetune_bench.testing.toys import CPU, tiny_texts

gpu_check = pytest.importorskip("benchmarks.gpu_check", reason="the benchmarks are in a checkout only")
gpu_speed = pytest.importorskip("benchmarks.gpu_speed", reason="the benchmarks are in a checkout only")


@pytest.mark.slow
def test_what_a_cpu_can_stand_for_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda group: ["vanilla", "rdrop", "hype"])
    monkeypatch.setattr(gpu_check, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(gpu_check, "SHORT", gpu_check.PAIR)
    results, late = gpu_check.perform(["same_as_cpu", "waits", "pairs"], CPU, 600.0)
    assert [str(result) for result in results if not result.passed] == []
    assert len(results) == 3 + 1 + 1
    assert late == []
    assert "15 runs, fp32" in results[3].check  # three methods in three layouts, and on two more architectures
    assert results[-1].check == "ordered pairs of methods, 2"


def test_runs_come_out_the_same_again_and_from_a_checkpoint() -> None:
    results = list(gpu_check.replay(CPU))
    assert len(results) == 4
    assert [str(result) for result in results if not result.passed] == []


def test_a_run_that_fails_is_named_and_the_checks_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise FinetuneBenchError("no luck\nmore")

    def broken(device: torch.device) -> Iterator[object]:
        yield gpu_check.Result("first", "a", "a", True)
        raise ValueError("nonsense")

    monkeypatch.setattr(registry, "names", lambda group: ["hype", "rdrop", "vanilla"])
    monkeypatch.setattr(gpu_check, "train_toy", refuse)
    monkeypatch.setitem(gpu_check.CHECKS, "replay", broken)
    results, late = gpu_check.perform(["pairs", "replay"], CPU, 600.0)
    assert [result.passed for result in results] == [False, True, False]
    assert "hype+rdrop: FinetuneBenchError: no luck" in results[0].found
    assert results[2].found == "ValueError: nonsense"
    assert late == []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU as a device that takes every call and computes nothing."""
    monkeypatch.setattr(gpu_check, "computes", lambda device: False)


def test_a_cpu_computes() -> None:
    assert gpu_check.computes(CPU)


@pytest.mark.parametrize("computes", [True, False])
def test_what_a_run_refuses_tells_nothing_where_there_are_no_numbers(
    computes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_check, "computes", lambda device: computes)
    refused, broken = {"swa": FinetuneBenchError("not finite")}, {"sam": RuntimeError("other device\nmore")}
    only_refused = gpu_check.judge("runs", "none", refused, CPU)
    assert only_refused.passed != computes
    assert ("for want of numbers: swa" in only_refused.found) != computes
    both = gpu_check.judge("runs", "none", refused | broken, CPU)
    assert both.passed is False
    assert "sam: RuntimeError: other device" in both.found
    assert ("swa: FinetuneBenchError" in both.found) == computes
    assert gpu_check.judge("runs", "none", {}, CPU) == gpu_check.Result("runs", "none", "none", True)


@pytest.mark.usefixtures("stand_in")
def test_a_device_that_computes_nothing_is_said_and_passes_nothing_of_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("replay", "pairs"):
        result = gpu_check.Result(name, "a", "a", True)
        monkeypatch.setitem(gpu_check.CHECKS, name, lambda device, result=result: iter([result]))
    results, _ = gpu_check.perform(["replay", "pairs"], CPU, 600.0)
    assert [result.passed for result in results] == [False, None, True]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("FAIL | 2 + 3 on the device | expected 5")
    assert printed[1].startswith("UNSEEN | replay")


@pytest.mark.parametrize("computes", [True, False])
def test_a_contract_broken_on_the_device_names_the_method(computes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_bench.methods.vanilla import Vanilla

    class Deaf(Vanilla):
        name = "deaf"

        def passes(self, inner: Passes) -> Passes:
            return Passes(inner.forwards + 1, inner.backwards)

    classes = {"deaf": Deaf, "vanilla": Vanilla}
    monkeypatch.setattr(registry, "names", lambda group: sorted(classes))
    monkeypatch.setattr(registry, "method_class", classes.__getitem__)
    monkeypatch.setattr(gpu_check, "computes", lambda device: computes)
    monkeypatch.setattr(gpu_check, "OF_THE_DEVICE", (testing.declares_its_passes, testing.evaluation_is_clean))
    passes, clean = gpu_check.contract(CPU)
    assert passes.passed is False  # of which numbers are no part
    assert "1 failed: deaf: AssertionError: declared" in passes.found
    assert clean.passed is (True if computes else None)


def test_a_run_that_fails_keeps_no_other_from_being_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"bytes": 100}

    def train(name: str, device: torch.device) -> None:
        if name == "mixout":
            raise RuntimeError("no luck")
        sizes["bytes"] += 8 * (name == "sam")

    monkeypatch.setattr(registry, "names", lambda group: ["mixout", "sam", "vanilla"])
    monkeypatch.setattr(gpu_check, "train_toy", train)
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda device: sizes["bytes"])
    monkeypatch.setattr(gpu_check.devices, "peak", lambda device: (sizes["bytes"], None))
    errors, left, peak = gpu_check.leftovers(CPU)
    assert "mixout: RuntimeError: no luck" in errors.found
    assert left.check == "bytes left behind by 2 runs"
    assert (left.found, left.passed) == ("{'sam': 8}", False)
    assert peak.passed


def test_the_grid_of_the_workers_has_as_many_runs_as_are_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A baseline or a control that a study adds by itself would be counted, too."""
    options = gpu_speed.grid_options(tiny_checkpoint, tiny_texts(tmp_path / "texts.jsonl"), CPU)
    flags = vars(make_parser().parse_args(["run", *options, "--out", str(tmp_path / "run")]))
    study = make_study({name: value for name, value in flags.items() if name != "command"}, registry.default_options)
    assert len(make_plan(study).cells) == gpu_speed.GRID


def test_a_grid_that_does_not_end_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(command: list[str], **options: object) -> None:
        raise gpu_speed.subprocess.TimeoutExpired(command, gpu_speed.PATIENCE)

    monkeypatch.setattr(gpu_speed.subprocess, "run", wait)
    (result,) = gpu_speed.workers(CPU)
    assert (result.check, result.found, result.passed) == (
        "runs done by 1 workers",
        f"0: not ready after {gpu_speed.PATIENCE} s",
        False,
    )


def test_a_step_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch is on while a step runs, and off after the block."""
    from finetune_bench.method.stack import Stack

    before = devices.StepClock.step, Stack.setup
    watched: list[torch.device] = []
    monkeypatch.setattr(gpu_check.devices, "waiting_forbidden", lambda device: watched.append(device) or nullcontext())
    with gpu_check.steps_watched():
        gpu_check.train_toy("vanilla", CPU)
    assert len(watched) == gpu_check.SHORT.steps + 1  # and the set-up, which puts the mode back
    assert (devices.StepClock.step, Stack.setup) == before


def test_the_watch_leaves_an_overflowing_step_out_as_the_scaler_does() -> None:
    """In fp16 the scaler may wait for an optimiser that can't tell by itself; what it then does is the same."""
    before = torch.amp.GradScaler._maybe_opt_step
    recipe = replace(gpu_check.SHORT, precision="fp16")
    usual = gpu_check.train_toy("schedule_free", CPU, recipe)
    with gpu_check.steps_watched():
        watched = gpu_check.train_toy("schedule_free", CPU, recipe)
        assert torch.amp.GradScaler._maybe_opt_step is not before
        scaler = torch.amp.GradScaler("cpu")
        weight = torch.nn.Parameter(torch.ones(2))
        weight.grad = torch.tensor([1.0, float("inf")])
        optimizer = torch.optim.SGD([weight], lr=1.0)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        assert weight.tolist() == [1.0, 1.0]
    assert torch.amp.GradScaler._maybe_opt_step is before
    assert usual is not None and watched is not None
    assert usual[1].tolist() == watched[1].tolist()


def test_no_check_begins_after_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.perform(["pairs", "waits"], CPU, -1.0) == ([], ["pairs", "waits"])
    assert "LEFT OUT | pairs | the time was over" in capsys.readouterr().out


def test_the_json_has_what_was_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "check.json"
    if not torch.cuda.is_available():
        assert gpu_check.main(["--json", str(path)]) == 3
        assert not path.exists()
    result = gpu_check.Result("pairs", "no error", "no error", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(gpu_check, "environment", lambda device: {"device": "a card"})
    monkeypatch.setattr(gpu_check, "perform", lambda names, device, seconds: ([result], []))
    assert gpu_check.main(["--json", str(path)]) == 0
    report = json.loads(path.read_text("utf-8"))
    assert report["results"] == [{"check": "pairs", "expected": "no error", "found": "no error", "passed": True}]
    assert report["environment"] == {"device": "a card"}
    monkeypatch.setattr(gpu_check, "perform", lambda names, device, seconds: ([result], ["waits"]))
    assert gpu_check.main(["--json", str(path)]) == 1
