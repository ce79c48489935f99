"""stdout and stderr that are closed, full, read by nobody, or shared with a plugin that prints."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import doctor
from finetune_bench.cli.console import say
from tests import ROOT

PLUGIN = """
import os
from finetune_bench.task import Task
print("hello from a plugin")
class Noisy(Task):
    def load(self, data_root):
        raise OSError
noisy = Noisy("noisy")
"""


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of bash in which PROGRAM is this program."""
    program = f"{sys.executable} -m finetune_bench"
    return subprocess.run(
        ["bash", "-c", command.replace("PROGRAM", program)], cwd=ROOT, capture_output=True, text=True, check=False
    )


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("words", "code"), [("list reports", 0), ("list nothing", 2), ("list reports --json", 0), ("", 2)]
)
def test_a_closed_stream_breaks_nothing(closed: str, words: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, closed, None)
    assert cli.main(words.split()) == code
    getattr(sys, closed).close()


@pytest.mark.parametrize("words", ["list reports", "list reports --json", "show rte"])
def test_a_full_disk_behind_stdout_is_told(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(errno.ENOSPC))
    assert cli.main(words.split()) == 3
    said = capsys.readouterr().err
    assert "can't be written to stdout: No space left on device" in said
    assert "run folder" not in said


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_talk_that_nobody_can_read_stops_no_run(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Refusing(number))
    say("nobody reads this")


@pytest.mark.parametrize("words", ["list tasks", "show noisy"])
def test_what_a_plugin_prints_is_in_no_document(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "_added", {"methods": {}, "tasks": {}, "reports": {}})
    path = tmp_path / "noisy.py"
    path.write_text(PLUGIN, "utf-8")
    assert cli.main([*words.split(), "--plugin", str(path), "--json"]) in (0, 3)
    shown = capsys.readouterr()
    assert "hello from a plugin" in shown.err
    assert not shown.out or json.loads(shown.out)["command"] == words.partition(" ")[0]
    assert cli.main(["list", "reports"]) == 0  # stdout is back
    assert capsys.readouterr().out.startswith("format")


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="there is no bash")
@pytest.mark.slow
def test_a_reader_that_goes_away() -> None:
    done = shell("set -o pipefail; PROGRAM list tasks --json | head -1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")


def test_doctor_without_a_place_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    monkeypatch.setattr(doctor, "_runs", nowhere)
    assert {name: state for name, state, _ in doctor.places()} == {
        "run folders": doctor.MISSING,
        "temporary files": doctor.MISSING,
    }
