"""The command line: what is wrong is told in a sentence, with exit code 2, before anything is computed."""

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "hpye"], "There is no method called 'hpye'. Did you mean 'hype'?"),
        (["--methods", "hype(epz=1)"], "There is no parameter of HyPe called 'epz'. Did you mean 'eps'?"),
        (["--methods", "hype(eps=-1)"], "The 'eps' parameter of HyPe must be a float in [0, inf); got -1"),
        (["--methods", "hype+hype"], "'hype' stands twice in 'hype+hype'"),
        (["--methods", "hype,hype(eps=1e-5)"], "are the same method; give it once"),
        (["--tasks", "rtee"], "There is no task called 'rtee'. Did you mean 'rte'?"),
        (["--config", "broken.toml"], "is not valid TOML"),
        (["--tasks", "DATA(text=body)"], "body"),
        (["--tasks", "empty.csv"], "empty.csv"),
        (["--tasks", "lonely.csv"], "the class 'rare 0' occurs only once"),
        (["--tasks", "twice.csv(validation=lonely.csv)"], "the class 'rare 0' is not in the training file"),
        (["--methods", "hype", "--precision", "bf16"], "noise of 1e-05 is lost in bf16 arithmetic"),
        (["--methods", "r3f", "--precision", "bf16"], "is lost in bf16 arithmetic"),
        (["--methods", "rdrop(dropout=all_off)"], "its two passes would be identical"),
        (["--methods", "hype(where=both)", "--gradient-checkpointing"], "can't be repeated"),
        (["--model", "./nowhere"], "--model: expected a checkpoint's folder"),
        (["--data-root", "./nowhere"], "--data-root: expected a folder laid out like the hub"),
        (["--tasks", "rte", "--data-root", "."], "rte"),
        (["--precision", "fp16"], "needs a CUDA device"),
        (["--precision", "tf32"], "needs a CUDA device of compute capability 8.0 or more"),
        (["--device", "toaster"], "--device: expected cpu, cuda or cuda:N; got 'toaster'"),
        (["--limit-train", "100000"], "--limit-train 100000 was asked for"),
        (["--plugin", "absent.py"], "--plugin: expected a Python file"),
        (["--methods", "hype(top=3)"], "top=3 layers are more than the 2"),
        (["--max-length", "129"], "has positions for 128 tokens"),
        (["--warmup", "500"], "the learning rate would never come down"),
        (["--out", "empty.csv"], "expected a folder, but 'empty.csv' is a file"),
        (["--model", "mute"], "has no vocabulary, only"),
        (["--tasks", "twice.csv,./twice.csv"], "give it once"),
    ],
)
def test_bad_input_is_told_before_any_compute(
    base: list[str], options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.toml").write_text("methods = [\n", "utf-8")
    Path("empty.csv").write_text("", "utf-8")
    Path("lonely.csv").write_text("text,label\n" + "".join(f"text {i},rare {i}\n" for i in range(20)), "utf-8")
    Path("twice.csv").write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)), "utf-8")
    checkpoint, data = Path(base[base.index("--model") + 1]), base[base.index("--tasks") + 1]
    Path("mute").mkdir()  # a checkpoint that was saved without its tokenizer
    for name in ("config.json", "model.safetensors"):
        Path("mute", name).symlink_to(checkpoint / name)
    options = [option.replace("DATA", data) for option in options]
    assert cli.main([*base, "--methods", "vanilla", *options]) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not Path("run").exists()


def test_cuda_where_there_is_none_is_exit_code_3(base: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert cli.main([*base, "--device", "cuda"]) == 3
    assert "Use --device cpu" in capsys.readouterr().err


def test_list_show_and_their_errors(capsys: pytest.CaptureFixture[str]) -> None:
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
    assert cli.main(["show", "hyp"]) == 2
    assert "Did you mean 'hype'?" in capsys.readouterr().err


def test_report_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "holds no cells" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--format", "markdwon"]) == 2
    assert "Did you mean 'markdown'?" in capsys.readouterr().err


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
