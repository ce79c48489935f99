"""`doctor`: what it finds, what is missing, and that it waits for nothing for long."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import doctor
from finetune_bench.errors import MachineError
from finetune_bench.model import hub


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str], code: int) -> dict[str, dict[str, Any]]:
    assert cli.main(["doctor", "--json"]) == code
    return {line["name"]: line for line in json.loads(capsys.readouterr().out)["findings"]}


@pytest.mark.offline
def test_a_machine_that_has_everything(capsys: pytest.CaptureFixture[str], minilm: Path) -> None:
    found = findings(capsys, 0)
    assert [line for line in found.values() if line["state"] == doctor.MISSING] == []
    assert {"python", "torch", "extra offline", "cores", "memory", "hub", "hub cache", "run folders"} <= found.keys()
    assert str(minilm) in found["default study"]["detail"]
    assert cli.main(["doctor"]) == 0
    assert "The study without --tasks can run here." in capsys.readouterr().out


def broken() -> dict[str, Any]:
    raise MachineError("The embedded study is broken.")


def test_what_is_missing_is_exit_code_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "default_options", broken)
    assert findings(capsys, 1)["default study"]["detail"] == "The embedded study is broken."
    assert cli.main(["doctor"]) == 1
    assert "Missing: default study." in capsys.readouterr().out


def test_libraries_that_every_process_compiles_anew(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    package = folder / "lib" / "transformers"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    find = importlib.machinery.PathFinder.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name, [str(package.parent)]))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    assert list(doctor.bytecode()) == [("bytecode", doctor.OK, "kept from the first import on")]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    ((_, state, detail),) = doctor.bytecode()
    assert state == doctor.NOTE
    assert "PYTHONDONTWRITEBYTECODE is set" in detail
    # What it says to do is enough, with the variable set.
    command = detail.partition("for it: ")[2].split()
    subprocess.run(command, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert list(doctor.bytecode()) == [("bytecode", doctor.OK, "kept")]


def test_a_study_that_needs_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "default_options", lambda: {"tasks": ["rte"], "model": "bert-base-cased"})
    for reason, state in ((None, doctor.NOTE), ("it can't be reached", doctor.MISSING)):
        monkeypatch.setattr(doctor, "_hub", lambda reason=reason: reason)
        ((_, found, detail),) = doctor.default_study()
        assert found == state
        assert "finetune-bench[offline]" in detail


def test_an_old_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: {"torch": "1.0", "numpy": None}.get(name, "999"))
    found = {name: (state, detail) for name, state, detail in doctor.packages()}
    assert found["torch"][0] == doctor.MISSING
    assert found["torch"][1].startswith("1.0; needed: torch>=")
    assert found["numpy"][1].startswith("not installed; needed: numpy")


def test_places_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "runs").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "runs" not in str(path))
    found = {name: (state, detail) for name, state, detail in doctor.places()}
    assert found["run folders"] == (doctor.MISSING, f"{folder / 'runs'} can't be written to")


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(doctor, "HUB_SECONDS", 0.05)
    answers = threading.Event()

    def slow(*_: object, **__: object) -> None:
        answers.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(hub, "ask", slow)
    assert "did not answer within" in str(doctor._hub())
    answers.set()


def test_a_hub_that_is_out_of_reach_or_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    assert doctor._hub() == "HF_HUB_OFFLINE is set" or not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as closed:  # a port where nobody listens
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert "can't be reached" in str(doctor._hub())
    monkeypatch.setattr(constants, "ENDPOINT", "no address")
    assert "can't be reached" in str(doctor._hub())
