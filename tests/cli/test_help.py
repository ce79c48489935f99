"""Help pages: what they tell, that their examples parse, and that nothing heavy is loaded for them."""

from __future__ import annotations

import io
import re
import runpy
import shlex
import subprocess
import sys

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli.arguments import make_parser
from finetune_bench.errors import MachineError
from finetune_bench.study.sources import OPTIONS
from tests import ROOT

HEAVY = ("torch", "transformers", "datasets", "pandas", "scipy", "sklearn", "matplotlib", "tabulate", "rich", "pyarrow")


def commands() -> list[str]:
    (action,) = [action for action in make_parser()._actions if action.dest == "==SUPPRESS==" and action.choices]
    return list(action.choices or ())


def page(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out


def test_no_arguments_print_the_help_and_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == make_parser().format_help()
    assert all(f"\n    {name}" in shown.err for name in commands())


@pytest.mark.parametrize("command", ["", *commands()])
def test_every_page_has_examples_that_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, end = page(*command.split(), capsys=capsys).partition("\nexamples:\n")
    lines = end.splitlines()
    assert lines
    for line in lines:
        program, *typed = shlex.split(line)
        assert program == "finetune-bench"
        assert not command or typed[0] == command
        parsed, rest = make_parser().parse_known_args(typed)
        assert parsed.command is not None
        assert rest == [] or command == "dose"


def test_the_defaults_of_the_study_without_tasks_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"tasks": ["rte"], "model": "some/model", "seeds": 3, "lr": 1e-4, "max_length": 32, "methods": ["hype"]}
    monkeypatch.setattr(registry, "default_options", lambda: options)
    for command in ("run", "plan", "dose"):
        text = " ".join(page(command, capsys=capsys).split())
        assert "[default: rte]" in text
        assert "[default: some/model]" in text
        assert "(default 2e-5); several are an axis of the grid [without --tasks: 0.0001]" in text
        assert "(default 5) [without --tasks: 3]" in text
        assert "[without --tasks: 32]" in text
        assert ("[without --tasks: hype]" in text) == (command != "dose")


def test_a_broken_installation_shows_its_help(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> dict[str, object]:
        raise MachineError("Two installed packages offer one name.")

    monkeypatch.setattr(registry, "default_options", broken)
    assert "--methods" in page("run", capsys=capsys)


def test_every_option_of_a_study_is_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = page("run", capsys=capsys)
    assert [option.flag for option in OPTIONS if f"\n  {option.flag}" not in text] == []


@pytest.mark.parametrize("columns", ["20", "1", "400", "-3", "x"])
def test_a_page_fits_any_width(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "--format" in page("report", capsys=capsys)


def test_a_page_is_printed_in_the_characters_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding="ascii"))
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    assert b"methods \\xd7 tasks" in output.getvalue()


def test_help_loads_nothing_heavy() -> None:
    """This is why help is there at once; what a process has loaded is the same on every machine, its time is not."""
    code = (
        "import sys; from finetune_bench import cli; from finetune_bench.cli import arguments, completion\n"
        "def complete(parser):\n"
        "    for action in parser._actions:\n"
        "        getattr(action, 'completer', lambda prefix: None)(prefix='')\n"
        "        for below in (action.choices or {}).values() if isinstance(action.choices, dict) else ():\n"
        "            complete(below)\n"
        "parser = arguments.make_parser(); completion.prepare(parser); complete(parser)\n"
        "for words in ([], ['--help'], ['run', '--help'], ['status', '--help'], ['list', 'x']):\n"
        "    try:\n        cli.main(words)\n    except SystemExit:\n        pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("module", ["finetune_bench", "finetune_bench.cli"])
def test_the_package_runs_as_a_program(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune-bench", "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__")
    assert end.value.code == 0
    assert re.fullmatch(r"finetune-bench \d+\.\d+\S*\n", capsys.readouterr().out)
