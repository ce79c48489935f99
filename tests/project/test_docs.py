"""What the README and docs/ say is true: their commands parse, their links lead somewhere, their code runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import finetune_bench
from finetune_bench import registry, testing
from finetune_bench.cli.arguments import make_parser
from finetune_bench.errors import ParameterError
from finetune_bench.runner import execution
from finetune_bench.runner.dose import read_doses
from finetune_bench.spec import parse_call
from finetune_bench.store.store import Store
from finetune_bench.study import grid
from finetune_bench.study.sources import OPTIONS, make_study
from finetune_bench.study.study import Study
from finetune_bench.testing import toys
from scripts import architecture
from tests import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
README, GUIDE, METHODS = ROOT / "README.md", ROOT / "docs" / "using.md", ROOT / "docs" / "methods.md"
TUTORIAL = ROOT / "docs" / "first-method.md"
MY_DATA, PAPER = ROOT / "docs" / "compare-on-my-data.md", ROOT / "docs" / "paper-table.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Every `finetune-bench …` that a page tells to type, in blocks and in running text."""
    typed = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("finetune-bench")]
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return typed + re.findall(r"`(finetune-bench \w+ [^`]+)`", prose)


def mentioned(page: Path) -> list[str]:
    """The sub-commands that a page names without arguments."""
    return re.findall(r"`finetune-bench ([a-z]+)`", page.read_text("utf-8"))


def plugin(page: Path) -> str:
    """The plugin file that a page shows: its first block with a method."""
    return next(block for block in blocks(page, "python") if "(Method):" in block)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a plugin file and load it, for the length of one test."""
    monkeypatch.setattr(registry, "_added", {"methods": {}, "tasks": {}, "reports": {}})

    def load(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, "utf-8")
        registry.load_plugin(path)
        return path

    return load


def call(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetune_bench.cli", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


# --- the pages --------------------------------------------------------------------------------------------------------


def test_the_readme_opens_with_two_commands_and_ci_runs_the_second() -> None:
    """CI then runs the scripts for style and types, which no test does."""
    run, test = (block.strip() for block in blocks(README, "sh")[:2])
    setup, libraries = "python3 -m venv .venv && .venv/bin/pip install -q", "-c constraints.txt -e"
    assert run == f"{setup} --no-compile {libraries} '.[offline]' && .venv/bin/finetune-bench run"
    assert test == f"{setup} {libraries} '.[offline,test]' && .venv/bin/python -m pytest -n 2"
    script = ROOT / ".ci" / "run"
    lines = script.read_text("utf-8").splitlines()
    assert lines[-3:] == [test, "scripts/lint", "scripts/typecheck"]
    assert "set -euo pipefail" in lines
    scripts = [ROOT / "scripts" / name for name in ("check", "lint", "test", "typecheck")]
    assert all(os.access(path, os.X_OK) for path in (script, *scripts))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    inside = [link.partition("#")[0] for link in links if "://" not in link]
    assert [link for link in inside if link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(
    page: Path, load: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options, stacks, values and task names of every command on the page are right; nothing is run."""
    for source, name in ((METHODS, "entropy_bonus.py"), (TUTORIAL, "my_neftune.py")):
        load(name, plugin(source))
    toml, *_ = blocks(PAPER if page == PAPER else GUIDE, "toml")
    (tmp_path / "study.toml").write_text(toml, "utf-8")
    monkeypatch.chdir(tmp_path)
    known = [*registry.names("methods"), *registry.names("tasks"), "NAME"]
    for command in commands(page):
        if "--help" in command:
            check_help(shlex.split(command)[1:])
            continue
        try:
            parsed, rest = make_parser().parse_known_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(f"can't be parsed: {command}")
        if "dose" in command.split()[:2]:
            option, values = rest
            assert read_doses(parsed.method, option.removeprefix("--"), values), command
            continue
        assert rest == [], command
        if hasattr(parsed, "plugin") and parsed.plugin:
            assert Path(parsed.plugin).is_file(), command
        if hasattr(parsed, "methods"):
            flags = {option.name: getattr(parsed, option.name, None) for option in OPTIONS}
            study = make_study(flags, registry.default_options)
            assert grid.stacks(study)[0], command
            names = {parse_call(task).name for task in study.tasks}
            assert names <= {*registry.names("tasks"), "reviews.csv"}, command
        if hasattr(parsed, "name"):
            assert parsed.name in known or re.fullmatch("[0-9a-f]{6}", parsed.name), command
        if hasattr(parsed, "target"):
            assert parsed.target in registry.names("methods") or Path(parsed.target).is_file(), command
    for name in mentioned(page):
        check_help([name, "--help"])


def check_help(arguments: list[str]) -> None:
    """These arguments print a help page, as they do for commands that exist."""
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(arguments)
    assert end.value.code == 0, arguments


def test_pages_have_commands_at_all() -> None:
    assert len(commands(GUIDE)) > 10
    assert len(commands(README)) > 2
    assert min(len(commands(page)) for page in (TUTORIAL, MY_DATA, PAPER)) > 4


def test_the_readme_is_short() -> None:
    words = [word for word in README.read_text("utf-8").split() if re.search(r"\w", word)]
    assert len(words) < 900


def test_the_pages_name_every_method_task_and_format() -> None:
    readme, text = README.read_text("utf-8"), MY_DATA.read_text("utf-8")
    assert [name for name in registry._installed("methods") if f"`{name}`" not in readme] == []
    assert [name for name in registry._installed("tasks") if f"`{name}`" not in text] == []
    assert [name for name in registry._installed("task_files") if name.casefold() not in text.casefold()] == []


def test_the_readme_counts_right() -> None:
    """Its second sentence names five methods, vanilla among them; the others and the tasks are counted in words."""
    text = README.read_text("utf-8")
    assert "HyPe, R-Drop, R3F, Mixout and forty-one more methods" in text
    assert len(registry._installed("methods")) == 5 + 41
    assert "one of twenty built-in tasks" in text
    assert len(registry._installed("tasks")) == 20


def test_the_python_call_of_the_guide(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks(GUIDE, "python") if "run(study)" in block]
    seen: list[Study] = []

    def fake(study: Study) -> pd.DataFrame:
        seen.append(study)
        return pd.DataFrame({"method": ["hype", "hype"], "metrics.validation.accuracy": [0.5, 0.7]})

    monkeypatch.setattr(execution, "run", fake)
    assert finetune_bench.run is fake
    exec(code, {})
    assert "0.6" in capsys.readouterr().out
    assert len(grid.stacks(seen[0])[0]) == 4  # with the baseline and its control


@pytest.mark.slow
def test_the_plugin_of_the_methods_page(load: Callable[[str, str], Path]) -> None:
    load("entropy_bonus.py", plugin(METHODS))
    owner = registry.method_class("entropy_bonus")
    for check in (
        testing.has_a_card,
        testing.neutral_is_vanilla,
        testing.is_alive,
        testing.is_deterministic,
        testing.leaves_a_plain_model,
        testing.declares_its_passes,
        testing.accumulates,
    ):
        check(owner)
    assert "entropy" in str(toys.unsupported(owner(), kind="regression"))


# --- the tutorial -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tutorials_method_passes_its_check(tmp_path: Path) -> None:
    (tmp_path / "my_neftune.py").write_text(plugin(TUTORIAL), "utf-8")
    done = call("check", "my_neftune.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0] == "my_neftune:"
    assert len(lines) == 1 + len(testing.CHECKS)
    assert not [line for line in lines if line.startswith("FAIL")]


def test_the_tutorials_second_file_keeps_the_contract(load: Callable[[str, str], Path]) -> None:
    (text,) = [block for block in blocks(TUTORIAL, "python") if "class ZLoss(Method):" in block]
    load("z_loss.py", text)
    quick = [testing.has_a_card, testing.neutral_is_vanilla, testing.is_alive, testing.gradient_is_that_of_the_loss]
    outcomes = list(testing.check_method(registry.method_class("z_loss"), checks=quick))
    assert [(check.outcome, check.detail) for check in outcomes] == [("ok", "")] * len(quick)
    assert "z_loss: a regression task" in str(toys.unsupported(registry.method_class("z_loss")(), kind="regression"))


def test_the_pages_count_the_tiny_models_right() -> None:
    assert len(toys.ARCHITECTURES) == 13
    assert all("on thirteen architectures" in page.read_text("utf-8") for page in (README, TUTORIAL))


def test_the_tutorials_mistake_is_found(load: Callable[[str, str], Path]) -> None:
    page = TUTORIAL.read_text("utf-8")
    right, wrong = "torch.rand(embeds.shape, generator=generator, device=embeds.device)", "torch.rand_like(embeds)"
    assert f"`{right}`" in page
    assert f"`{wrong}`" in page
    load("my_neftune.py", plugin(TUTORIAL).replace(right, wrong))
    with pytest.raises(AssertionError) as failure:
        testing.neutral_is_vanilla(registry.method_class("my_neftune"))
    assert f"    FAIL  neutral is vanilla: {failure.value}\n" in page


def test_the_tutorials_message_is_the_one_that_comes(load: Callable[[str, str], Path]) -> None:
    load("my_neftune.py", plugin(TUTORIAL))
    with pytest.raises(ParameterError) as error:
        registry.make_stack("my_neftune(alpha=-1)")
    assert str(error.value) in " ".join(TUTORIAL.read_text("utf-8").split())


def test_the_tutorial_lists_every_hook() -> None:
    from finetune_bench.method.base import Method

    declared = {"passes", "memory", "noise_scale", "warning", "effects"}  # told to the core, not called while training
    hooks = {name for name in vars(Method) if not name.startswith("_") and callable(getattr(Method, name))} - declared
    for page in (TUTORIAL, ROOT / "docs" / "architecture.md"):
        told = re.findall(r"^\| `(\w+)\(", page.read_text("utf-8"), flags=re.MULTILINE)
        assert sorted(told) == sorted(hooks), page.name


def test_the_architecture_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    modules = [path for room in ("finetune_bench", "tasks", "reports") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in modules if path.name != "__init__.py" and path.name not in text] == []


def test_the_architecture_is_up_to_date() -> None:
    """Its picture, its table of hooks and its list of files are those of the code."""
    page = architecture.PAGE.read_text("utf-8")
    assert architecture.render(page) == page, "run: python -m scripts.architecture"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Names with a folder, from the top of the checkout or within the package."""
    text, _, _ = page.read_text("utf-8").partition("## Every file")
    named = sorted(set(re.findall(r"(?<![\w/])\w+(?:/\w+)+\.py", text)))
    assert len(named) > 20 or page != architecture.PAGE
    folders = (ROOT, ROOT / "finetune_bench")
    assert [name for name in named if not any((folder / name).is_file() for folder in folders)] == []


def test_the_tutorials_own_test_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_neftune.py").write_text(plugin(TUTORIAL), "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (code,) = [block for block in blocks(TUTORIAL, "python") if "def test_" in block]
    names: dict[str, Any] = {}
    try:
        exec(code, names)
        names["test_noise_is_bounded_and_centred"]()
    finally:
        sys.modules.pop("my_neftune", None)


@pytest.mark.slow
def test_the_tutorials_grid_runs(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The tutorial's comparison, on a tiny checkpoint and a CSV file."""
    (tmp_path / "my_neftune.py").write_text(plugin(TUTORIAL), "utf-8")
    lines = [f"word{i % 40} word{(7 * i) % 40} {'good' if i % 2 else 'bad'},{i % 2}" for i in range(40)]
    (tmp_path / "toy.csv").write_text("\n".join(["body,stars", *lines]), "utf-8")
    (command,) = [line for line in commands(TUTORIAL) if "rdrop+my_neftune" in line and "--plugin" in line]
    typed = shlex.split(command)[1:]
    typed[typed.index("--seeds") + 1] = "1"
    small = ["--tasks", "toy.csv(text=body,label=stars)", "--model", str(tiny_checkpoint), "--steps", "4"]
    done = call(
        *typed, *small, "--batch-size", "8", "--workers", "1", "--device", "cpu", "--out", "first", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr

    rows = Store.open(tmp_path / "first").frame()
    assert set(rows["status"]) == {"done"}
    methods = {
        "vanilla",
        "vanilla(dropout=hidden_off)",
        "my_neftune",
        "my_neftune(alpha=10)",
        "rdrop",
        "rdrop+my_neftune",
    }
    assert set(rows["method"]) == methods
    assert len(rows) == len(methods)
    report = (tmp_path / "first" / "report" / "report.md").read_text("utf-8")
    assert "`rdrop+my_neftune`" in report
    assert "my_neftune(alpha=10)" in done.stdout

    again = call(
        *typed, *small, "--batch-size", "8", "--workers", "1", "--device", "cpu", "--out", "first", cwd=tmp_path
    )
    assert again.returncode == 0
    assert "nothing to do" in again.stderr


@pytest.mark.slow
def test_the_tutorials_package_is_found(tmp_path: Path) -> None:
    (toml,) = blocks(TUTORIAL, "toml")
    assert tomllib.loads(toml)["project"]["name"] == "my-regularisers"
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text(toml, "utf-8")
    (source / "my_neftune.py").write_text(plugin(TUTORIAL), "utf-8")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    shown = call("show", "my_neftune", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("NEFTune: noise on the token embeddings")
    assert "alpha" in shown.stdout


@pytest.mark.slow
def test_the_tutorials_for_my_data_and_for_a_paper_run(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file as the first page shows it, but longer; its comparison on a tiny checkpoint; the second page's table."""
    from finetune_bench.cli import main

    monkeypatch.chdir(tmp_path)
    (shown,) = blocks(MY_DATA, "csv")
    lines = [f"word{i % 40} word{(7 * i) % 40},{'good' if i % 2 else 'bad'}" for i in range(40)]
    (tmp_path / "reviews.csv").write_text("\n".join([*shown.splitlines(), *lines]), "utf-8")
    (command,) = [line for line in commands(MY_DATA) if line.startswith("finetune-bench run") and "--seeds 5" in line]
    typed = shlex.split(command)[1:]
    for flag, value in (("--model", str(tiny_checkpoint)), ("--seeds", "2"), ("--lr", "1e-3")):
        typed[typed.index(flag) + 1] = value
    small = ["--steps", "2", "--batch-size", "8", "--workers", "1", "--device", "cpu", "--out", "runs/paper"]
    assert main([*typed, *small]) == 0
    rest = [shlex.split(line)[1:] for line in commands(PAPER) if "runs/paper" in line]
    rest = [arguments for arguments in rest if arguments[0] != "run"]
    assert [arguments[0] for arguments in rest] == ["report", "power", "verify", "report"]
    for arguments in rest:
        assert main(arguments) == 0, capsys.readouterr().err
    written = {path.name for path in (tmp_path / "runs" / "paper" / "report").rglob("*")}
    assert {"report.html", "comparison.csv"} <= written
    assert [name for name in written if re.fullmatch(r"main.*\.tex", name)]


# --- take it home -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("example", [0, 1], ids=["own-loop", "trainer"])
def test_take_it_home_runs(
    example: int, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    from transformers import AutoModelForSequenceClassification

    code = blocks(ROOT / "docs" / "take-it-home.md", "python")[example]
    assert code.count('"bert-base-uncased"') == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")  # Trainer asks for it also without an accelerator
        exec(code.replace("bert-base-uncased", str(tiny_checkpoint)), names := {})
    expected = {name: tensor.cpu() for name, tensor in names["model"].state_dict().items()}
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned").state_dict()
    start = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint).state_dict()
    assert kept.keys() == expected.keys() == start.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in kept)
    assert not all(torch.equal(kept[name], start[name]) for name in kept)
    assert capfd.readouterr().out


def test_the_pinned_torch_is_named() -> None:
    (pinned,) = re.findall(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), flags=re.MULTILINE)
    assert f"`torch=={pinned}`" in (ROOT / "docs" / "installing.md").read_text("utf-8")
