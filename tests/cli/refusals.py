"""What every refusal of the command line has in common: one sentence, exit code 2, no compute, nothing left behind."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.printable import UNPRINTABLE
from finetune_bench.runner import cell
from finetune_bench.runner.executors.local import LocalExecutor

LONGEST = 700  # characters of a sentence
TALK = "Checking the study: methods, data, checkpoints ...\n"  # what a run says before it checks anything
STUDIES = ("run", "plan")  # commands that take a study's options

Refused = Callable[..., str]


def never(*_: object, **__: object) -> None:
    raise AssertionError("a cell was about to run")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below a folder, with its size and time of change, but for caches of plugins and rows."""
    paths = [path for path in folder.rglob("*") if not {"__pycache__", "derived.parquet"} & {*path.parts}]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in paths if not path.is_dir()} | {
        str(path): (0, 0) for path in paths if path.is_dir()
    }


@pytest.fixture
def refused(
    tiny_checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refused:
    """Give a command that is refused to the command line, and return its sentence.

    The command runs in a folder with the checkpoint `model` and the data `data.jsonl`; a study has them, the method
    vanilla and the run folder `out` as options before its own.
    """
    monkeypatch.setattr(LocalExecutor, "run", never)
    monkeypatch.setattr(cell.loop, "train", never)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_added", {"methods": {}, "tasks": {}, "reports": {}})
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "model").symlink_to(tiny_checkpoint)
    shutil.copy(tiny_data, "data.jsonl")

    def refuse(command: str, *more: str) -> str:
        first, *rest = shlex.split(command)
        base = shlex.split("--model model --tasks data.jsonl --methods vanilla --out out") if first in STUDIES else []
        before = tree(tmp_path)
        code = cli.main([first, *base, *rest, *more])
        shown = capsys.readouterr()
        assert code == 2, shown
        assert shown.out == ""
        sentence = shown.err.removeprefix(TALK)
        assert sentence.startswith("finetune-bench: ")
        assert sentence.count("\n") == 1 and sentence.endswith("\n")
        assert not UNPRINTABLE.search(sentence)
        assert "Traceback" not in sentence
        assert len(sentence) < LONGEST
        assert tree(tmp_path) == before
        return sentence

    return refuse
