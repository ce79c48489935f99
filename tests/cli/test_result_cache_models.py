"""A finished run with a checkpoint from Python packages, or of one file, answers at once, as with a folder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_bench import registry
from finetune_bench.cli import result_cache
from finetune_bench.model import packaged, pretrained
from finetune_bench.study.sources import make_study
from finetune_bench.study.study import Study


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """One file of each checkpoint, by the name that --model takes, all in a cache and packages of this test."""
    monkeypatch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "package_folder", lambda name: tmp_path / "package")
    monkeypatch.setattr(packaged, "converted", lambda file: tmp_path / "converted")
    monkeypatch.setattr(pretrained, "converted", lambda file: tmp_path / "converted")
    found = {
        "minilm": tmp_path / "package" / "model" / "config.json",
        "mpnet": tmp_path / "cache" / packaged._folder_name(packaged.MODELS["mpnet"]) / "config.json",
        "smollm2": tmp_path / "cache" / packaged._folder_name(packaged.MODELS["smollm2"]) / "model.gguf",
        str(tmp_path / "mine.gguf"): tmp_path / "mine.gguf",
    }
    for file in (
        *found.values(),
        tmp_path / "converted" / "config.json",
        tmp_path / "run" / "cells" / "a" / "row.json",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}", "utf-8")
    (tmp_path / "toy.jsonl").write_text("", "utf-8")
    return found


@pytest.fixture
def study(tmp_path: Path) -> Callable[[str], Study]:
    """The study of a model, whose run has left nothing to do."""
    flags = {"methods": ["ema"], "tasks": [str(tmp_path / "toy.jsonl")], "out": str(tmp_path / "run")}
    return lambda model: make_study(flags | {"model": [model]}, registry.default_options)


@pytest.mark.parametrize("name", ["minilm", "mpnet", "smollm2", "mine.gguf"])
def test_it_answers_until_a_file_changes(
    name: str, files: dict[str, Path], study: Callable[[str], Study], tmp_path: Path
) -> None:
    model = str(tmp_path / name) if name == "mine.gguf" else name
    result_cache.keep(study(model), "talk", "answer", [])
    assert result_cache.look_up(study(model)) == ("talk", "answer")
    changed = [files[model], *([tmp_path / "converted" / "config.json"] if files[model].suffix == ".gguf" else [])]
    for file in changed:
        content = file.read_bytes()
        file.write_text("another", "utf-8")
        assert result_cache.look_up(study(model)) is None
        file.unlink()
        assert result_cache.look_up(study(model)) is None
        file.write_bytes(content)
        result_cache.keep(study(model), "talk", "answer", [])
        assert result_cache.look_up(study(model)) is not None


def test_another_checkpoint_of_the_name_is_another(
    files: dict[str, Path], study: Callable[[str], Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result_cache.keep(study("mpnet"), "talk", "answer", [])
    with monkeypatch.context() as patch:
        patch.setenv("FINETUNE_BENCH_CACHE", str(tmp_path / "elsewhere"))
        assert result_cache.look_up(study("mpnet")) is None
    assert result_cache.look_up(study("mpnet")) is not None
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mpnet").mkdir()  # a folder of that name comes first
    (tmp_path / "mpnet" / "config.json").write_text("{}", "utf-8")
    assert result_cache.look_up(study("mpnet")) is None


def test_a_hub_name_never_answers(files: dict[str, Path], study: Callable[[str], Study]) -> None:
    result_cache.keep(study("bert-base-uncased"), "talk", "answer", [])
    assert result_cache.look_up(study("bert-base-uncased")) is None


def test_to_look_up_finds_no_checkpoint_anew(
    files: dict[str, Path], study: Callable[[str], Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    result_cache.keep(study("minilm"), "talk", "answer", [])
    monkeypatch.setitem(sys.modules, "finetune_bench.model.pretrained", None)  # which would load torch
    assert result_cache.look_up(study("minilm")) is not None
