"""The command that checks a CUDA device, as far as a CPU can stand for one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.testing.toys import CPU

gpu_check = pytest.importorskip("benchmarks.gpu_check", reason="the benchmarks are in a checkout only")


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


def test_a_step_that_waits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch is on while a step runs, and off after the block."""
    from finetune_bench.method.stack import Stack
    from finetune_bench.training import measure

    before = measure.StepClock.step, Stack.setup
    watched: list[torch.device] = []
    monkeypatch.setattr(gpu_check.devices, "waiting_forbidden", lambda device: watched.append(device) or nullcontext())
    with gpu_check.steps_watched():
        gpu_check.train_toy("vanilla", CPU)
    assert len(watched) == gpu_check.SHORT.steps + 1  # and the set-up, which puts the mode back
    assert (measure.StepClock.step, Stack.setup) == before


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
