"""A run that is done answers at once, and only while nothing that it rests on has changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import result_cache
from finetune_bench.study.sources import make_study

PLUGIN = """
import pathlib, sys
sys.path.append(str(pathlib.Path(__file__).parent))
import helper_of_own
from finetune_bench.method import Method

class Own(Method):
    'Does nothing.'
    name = 'own'
"""


pytestmark = pytest.mark.slow  # the study that all of them read is trained first


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with copies of all that it read, so that each can be changed."""
    from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

    folder = tmp_path_factory.mktemp("result_cache")
    tiny_checkpoint(folder / "tiny")
    tiny_texts(folder / "toy.jsonl")
    (folder / "own.py").write_text(PLUGIN, "utf-8")
    (folder / "helper_of_own.py").write_text("value = 1\n", "utf-8")
    assert cli.main(["run", *options(folder)]) == 0
    return folder


def options(folder: Path) -> list[str]:
    words = ["--methods", "own", "--no-baseline", "--seeds", "2", "--steps", "1", "--device", "cpu"]
    words += ["--tasks", str(folder / "toy.jsonl"), "--model", str(folder / "tiny"), "--plugin", str(folder / "own.py")]
    return [*words, "--out", str(folder / "run")]


def given(folder: Path, *more: str) -> bool:
    words = [*options(folder), *more]
    flags = {
        word.removeprefix("--").replace("-", "_"): words[i + 1] for i, word in enumerate(words) if word[:2] == "--"
    }
    return result_cache.look_up(make_study(flags | {"no_baseline": True}, registry.default_options)) is not None


def test_the_same_command_answers_without_loading_anything(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", *options(place)]) == 0
    first = capsys.readouterr()
    assert "2 cells in" in first.err
    assert "2 cached: nothing to do." in first.err
    code = (
        "import sys\nfrom finetune_bench import cli\ncode = cli.main(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'pandas', 'datasets'} & set(sys.modules), 'something heavy was loaded'\n"
        "sys.exit(code)"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, "run", *options(place)], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == first.out
    assert "own" in again.stdout


def touch(path: Path) -> Callable[[], None]:
    found = path.stat()
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    return lambda: os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


@pytest.mark.parametrize(
    "name",
    [
        "toy.jsonl",
        "own.py",
        "helper_of_own.py",
        "tiny/config.json",
        "run/study.json",
        "run/report/report.md",
        "run/cells/*/row.json",
        "run/cells/*/trace.npz",
    ],
)
def test_whatever_changes_ends_it(place: Path, name: str) -> None:
    assert given(place)
    path = sorted(place.glob(name))[0]
    undo = touch(path)
    assert not given(place)
    undo()
    assert given(place)
    aside = path.rename(path.with_name("aside"))
    assert not given(place)
    aside.rename(path)
    assert given(place)


def test_another_study_has_none(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not given(place, "--lr", "1e-4")
    assert not given(place, "--seeds", "1")
    monkeypatch.setattr(result_cache, "_version", lambda name: "another")
    assert not given(place)


def test_a_broken_file_is_none(place: Path) -> None:
    path = place / "run" / "receipt.json"
    content = path.read_bytes()
    broken = [
        b"",
        b"{}",
        b"[]",
        b"[" * 10**5,
        b'{"state": ' + b"1" * 5000 + b"}",
        b'{"reports": 1}',
        content[:50],
        b"\xff",
    ]
    broken.append(content.replace(b"nothing to do", b"nothing is ok"))  # another answer for the same state
    for text in broken:
        path.write_bytes(text)
        assert not given(place)
    path.write_bytes(content)
    assert given(place)


def test_a_strange_file_among_the_cells_is_no_cell(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "run" / "cells" / ".DS_Store").write_bytes(b"")
    (place / "run" / "receipt.json").unlink()
    assert cli.main(["run", *options(place)]) == 0
    assert "2 cached: nothing to do." in capsys.readouterr().err
    assert given(place)


def test_every_file_of_the_package_counts() -> None:
    """A checkout has three of its folders behind links, with folders of their own."""
    files = {path.as_posix() for path in result_cache._code()}
    for name in ("study/grid.py", "methods/hype.py", "tasks/glue.py", "reports/markdown.py", "reports/topics/dose.py"):
        assert any(file.endswith(f"finetune_bench/{name}") for file in files), name
