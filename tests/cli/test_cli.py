"""The command line: what it lists and shows, and what it adds to a study; its refusals are in `test_bad_*.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_bench import cli
from finetune_bench.runner import execution
from finetune_bench.runner.executors.local import LocalExecutor


@pytest.fixture
def base(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def never(*_: object) -> None:
        raise AssertionError("a cell was about to run")

    monkeypatch.setattr(LocalExecutor, "run", never)
    monkeypatch.chdir(tmp_path)
    return ["run", "--model", str(tiny_checkpoint), "--tasks", str(tiny_data), "--out", str(tmp_path / "run")]


def test_cuda_where_there_is_none_is_exit_code_3(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main([*base, "--device", "cuda"]) == 3
    assert "Use --device cpu" in capsys.readouterr().err


def test_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods"]) == 0
    listed = capsys.readouterr().out
    assert "rdrop" in listed
    assert "2 + 1" in listed
    assert cli.main(["list", "tasks"]) == 0
    assert "stsb" in capsys.readouterr().out
    assert cli.main(["list", "reports"]) == 0
    assert "markdown" in capsys.readouterr().out
    assert cli.main(["show", "hype"]) == 0
    card = capsys.readouterr().out
    assert "**Formula.**" in card
    assert "uniform_symmetric" in card
    assert cli.main(["show", "mnli"]) == 0
    assert "entailment, neutral, contradiction" in capsys.readouterr().out


def test_the_baseline_and_its_control_are_added(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="about to run"):
        cli.main([*base, "--methods", "hype"])
    assert "Added for comparison: vanilla, vanilla(dropout=hidden_off)" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="about to run"):
        cli.main([*base, "--methods", "hype", "--no-baseline"])
    assert "Added" not in capsys.readouterr().err


def test_the_python_door_stays_a_function() -> None:
    """A module called `run` would take the function's place in the package as soon as it is imported."""
    import importlib

    import finetune_bench

    for module in Path(finetune_bench.__file__).parent.glob("[a-z]*.py"):
        importlib.import_module(f"finetune_bench.{module.stem}")
    assert finetune_bench.run is execution.run
