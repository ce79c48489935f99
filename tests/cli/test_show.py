"""`show`: stacks, tasks with their texts and licences, report formats and runs; what is none of them is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import shown
from finetune_bench.files import sealed
from finetune_bench.store.store import Store
from finetune_bench.task import Split, Task, TaskData
from tests.synthetic_store import make_store


def text(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    assert cli.main(["show", *map(str, words)]) == code
    return capsys.readouterr().out


def test_a_stack_shows_what_its_methods_cost_together(capsys: pytest.CaptureFixture[str]) -> None:
    told = text(capsys, "hype(eps=1e-4)+rdrop")
    assert "hype(eps=0.0001)+rdrop: a stack of 2 methods" in told
    assert "2 forward + 1 backward" in told
    assert "eps           0.0001" in " ".join(told.split(" ")) or "0.0001      1e-05" in told
    assert "weight of the divergence" in told
    single = text(capsys, "hype(eps=1e-4)")
    assert "Cost model, with these parameters" in single
    assert "**Formula.**" in single
    assert "Cost model, at the defaults" in text(capsys, "hype")


@pytest.mark.parametrize(("name", "said"), [("hype+hyp", "called 'hyp'"), ("hype(eps=-1)", "must be a float in")])
def test_a_wrong_stack_is_refused(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", name]) == 2
    shown_text = capsys.readouterr()
    assert said in shown_text.err
    assert shown_text.out == ""


def test_a_task_of_the_hub_is_shown_without_the_hub(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune_bench.tasks.hub.HubTask.load", lambda *_: pytest.fail("the data are read"))
    told = text(capsys, "mnli")
    assert "classes, from id 0: entailment, neutral, contradiction" in told
    assert "train 392,702, validation_matched 9,815, validation_mismatched 9,832" in told
    assert "examples, as published" in told
    assert "https://huggingface.co/datasets/nyu-mll/glue" in told
    assert "--data-root" in told


def test_a_task_of_a_file_is_read(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = text(capsys, tiny_data)
    assert "the first training examples:" in told
    assert f"source: the file {tiny_data}" in told
    assert "as published" not in told


class Pairs(Task):
    """A plugin's task."""

    def load(self, data_root: Path | None) -> TaskData:
        split = Split(["a \x1b[2J " + "x" * 10**6, "b"], ["second", "other"], [0, 1])
        return TaskData(split, {"validation": split}, ("A note.",))


def test_texts_of_a_plugin_fit_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry._added["tasks"], "pairs", Pairs("pairs", labels=("no", "yes")))
    told = text(capsys, "pairs")
    assert "\x1b" not in told
    assert len(told) < 1000
    assert " | second\n" in told
    assert "licence: not stated by the task" in told
    assert "A note." in told


def test_data_that_cannot_be_read_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = text(capsys, "rte", "--data-root", tmp_path)
    assert "The data can't be read: " in told
    assert "2,490" in told  # what was published is known


def test_a_format_and_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "report.md" in text(capsys, "markdown")
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=2)
    told = text(capsys, store.root)
    assert f"{store.root}: 4 runs (4 done)" in told
    assert "methods: hype, vanilla" in told
    assert "seeds: 1, 2" in told
    assert "report: none yet" in told
    store.write_study({"methods": ["vanilla", "hype"], "cells": store.names(), "other_shards": ["f" * 16]})
    told = text(capsys, store.root)
    assert "methods: vanilla, hype" in told
    assert "left to other shards: 1 more run of its study" in told


def test_a_run_without_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "cells").mkdir(parents=True)
    assert "0 runs (none)" in text(capsys, tmp_path / "run")


def test_what_other_shards_have() -> None:
    study = sealed({"cells": ["a", "b"], "other_shards": ["b", "c", "d"]})
    assert shown.other_shards(study, {"d": None}) == {"c"}
    assert shown.other_shards({}, {}) == set()


def test_a_name_goes_before_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "hype", methods=("vanilla",), tasks=("rte",), seeds=1)
    assert "**Formula.**" in text(capsys, "hype")
    assert "1 run (1 done)" in text(capsys, "./hype")
    assert Store.open("hype").names()
