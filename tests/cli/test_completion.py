"""Completion: what is offered for each argument, and that a real shell gets it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import completion
from finetune_bench.cli.arguments import make_parser
from finetune_bench.errors import MachineError
from finetune_bench.study.sources import OPTIONS
from tests import ROOT

Offer = Callable[[str, str, str], list[str]]


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Return what is offered for the beginning of an argument's value, in a folder with some runs and files."""
    for name in ("runs/rte-abc/cells", "runs/none", "other/deep/cells", ".hidden/cells", "cells-only"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("reviews.csv", "study.toml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    parser = make_parser()
    completion.prepare(parser)
    (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]

    def offered(command: str, argument: str, prefix: str) -> list[str]:
        (action,) = [a for a in commands.choices[command]._actions if a.dest == argument and a.help != "==SUPPRESS=="]
        completer = getattr(action, "completer", None)
        return list(completer(prefix=prefix)) if completer else list(action.choices or ())

    return offered


def test_methods_in_lists_and_stacks(offer: Offer) -> None:
    assert offer("run", "methods", "") == registry.names("methods")
    assert offer("run", "methods", "hype,rd") == ["hype,rdrop"]
    assert offer("run", "methods", "hype(eps=1e-4)+rd") == ["hype(eps=1e-4)+rdrop"]
    assert offer("run", "methods", "hype(no") == offer("run", "methods", "hype(eps=1,r") == []
    assert offer("dose", "method", "hy") == offer("check", "target", "hy") == ["hype"]
    assert offer("report", "baseline", "van") == ["vanilla"]


def test_a_plugin_that_was_installed_is_offered(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._added["methods"], "my_method", object)
    assert offer("run", "methods", "my") == ["my_method"]

    def broken(group: str) -> list[str]:
        raise MachineError("Two installed packages offer one name.")

    monkeypatch.setattr(registry, "names", broken)
    assert offer("run", "methods", "my") == []


def test_tasks_formats_and_files(offer: Offer) -> None:
    assert offer("run", "tasks", "rte,mr") == ["rte,mrpc"]
    assert offer("run", "tasks", "re") == ["reviews.csv"]
    assert offer("report", "format", "csv,ht") == ["csv,html"]
    assert offer("run", "config", "st") == ["study.toml"]
    assert offer("run", "out", "ru") == ["runs/"]
    assert offer("run", "precision", "f") == ["fp32", "fp16"]
    assert offer("list", "group", "") == ["methods", "tasks", "models", "analyses", "reports"]
    assert offer("completion", "shell", "") == ["bash", "zsh", "fish"]


def test_words_are_those_that_the_options_take(offer: Offer) -> None:
    for name, reader in ((option.name, option.read) for option in OPTIONS):
        for word in offer("run", name, "") if name in ("executor", "precision", "batch_layout", "device") else ():
            assert reader(word) == word


def test_runs(offer: Offer) -> None:
    assert offer("report", "run", "") == ["cells-only/", "other/", "runs/", "runs/none/", "runs/rte-abc"]
    assert offer("status", "run", "runs/r") == ["runs/rte-abc"]
    assert offer("merge", "runs", "other/") == ["other/deep"]
    assert offer("verify", "run", ".h") == [".hidden"]
    assert offer("verify", "paper", "hy") == ["hype"]
    assert offer("verify", "paper", "runs/r") == ["runs/rte-abc"]
    assert offer("reproduce", "preset", "hype-table1")[0] == "hype-table1"
    assert {"hype", "html"} == set(offer("show", "name", "h"))
    for strange in ("\0", "x" * 5000, "nowhere/", "~nobody/", "reviews.csv/"):
        assert offer("report", "run", strange) == []


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_code_for_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("argcomplete")
    assert cli.main(["completion", shell]) == 0
    assert "finetune-bench" in capsys.readouterr().out


def test_without_argcomplete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert cli.main(["completion", "bash"]) == 3
    assert "pip install argcomplete" in capsys.readouterr().err
    monkeypatch.setenv(completion.ASKED_BY_A_SHELL, "1")
    assert cli.main(["list", "reports"]) == 0  # nothing can be answered, and nothing breaks


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    program = tmp_path / "finetune-bench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m finetune_bench "$@"\n', "utf-8")
    program.chmod(0o755)
    script = """
        eval "$(finetune-bench completion bash)"
        COMP_LINE='finetune-bench run --methods hype,rd'; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
        _python_argcomplete finetune-bench
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    places = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": places}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["hype,rdrop"], done.stderr
