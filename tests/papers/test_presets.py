"""Presets: every one is a study that can be read at both scales, with the recipes that the paper printed."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli.arguments import make_parser
from finetune_bench.cli.reproduce import study_of
from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.papers.presets import SCALES, load_preset, preset_names
from finetune_bench.papers.published import AVERAGES, load_paper
from finetune_bench.study import grid
from finetune_bench.study.sources import OPTIONS, study_of_file
from finetune_bench.study.study import Study, as_dict

HYPE = load_paper("hype")
NAMES = preset_names()
TABLES = {name: int(name.removeprefix("hype-table")) for name in NAMES if name.startswith("hype-table")}


def study(name: str, scale: str = "full", **flags: Any) -> Study:
    return study_of_file(load_preset(name).at(scale), name, flags, registry.default_options)


def blocks(made: Study) -> tuple[Study, ...]:
    return made.blocks or (made,)


def test_every_table_and_figure_has_a_preset() -> None:
    assert sorted(TABLES.values()) == sorted({score.table for score in HYPE.scores})
    assert {"hype-figure2", "hype-figure3", "hype-figure4", "hype-memory"} <= set(NAMES)
    assert {"rdrop-paper", "modernbert-small-data"} <= set(NAMES)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", NAMES)
def test_every_preset_can_be_read(name: str, scale: str) -> None:
    made = study(name, scale)
    for block in blocks(made):
        methods, added = grid.stacks(block)
        assert registry.BASELINE in block.methods
        assert grid.CONTROL in added
        assert len(methods) == len(block.methods) + len(added)
        for task in block.tasks:
            registry.task(task)
    if scale == "small":
        assert set(made.models) <= {"minilm", "mpnet"}
        assert not made.blocks
        assert made.limit_train == 1000


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("hype-") and name != "hype-memory"])
def test_full_recipes_are_those_of_the_paper(name: str) -> None:
    for block in blocks(study(name)):
        (model, *_), recipe = block.models, block.recipe.to_dict()
        for task in block.tasks:
            expected = HYPE.recipe_of(model, task)
            assert {key: recipe[key] for key in expected} == expected
            assert set(HYPE.learning_rates) <= set(block.lrs)
            assert block.seeds == (1, 2, 3)


@pytest.mark.parametrize(
    "name", [name for name in TABLES if name not in ("hype-table6", "hype-table7", "hype-table12")]
)
def test_a_table_trains_each_of_its_numbers(name: str) -> None:
    """Every row of the table but those that the paper copied is a checkpoint, a task and a method of the preset."""
    made = study(name)
    trained = {
        (model, task, block.limit_train) for block in blocks(made) for model in block.models for task in block.tasks
    }
    for score in HYPE.scores:
        if score.table == TABLES[name] and score.task not in AVERAGES:
            task = "mnli" if score.task == "mnli_mm" else score.task
            assert (score.model, task, score.examples) in trained
    used = {call.split("(")[0] for method in made.methods for call in method.split("+")}
    rows = {score.method for score in HYPE.scores if score.table == TABLES[name]}
    needed = {part["name"] for method in rows if method in HYPE.methods for part in HYPE.methods[method]}
    assert needed <= used


def test_a_small_study_says_so_in_its_first_words() -> None:
    parsed = make_parser().parse_args(["reproduce", "hype-table1", "--scale", "small", "--seeds", "2"])
    made = study_of(load_preset("hype-table1"), "small", parsed)
    assert made.seeds == (1, 2)
    assert "It ran at a small scale: minilm in place of bert-large-cased, roberta-large" in made.preset
    assert as_dict(made)["preset"] == made.preset
    full = study_of(load_preset("hype-table1"), "full", make_parser().parse_args(["reproduce", "hype-table1"]))
    assert "Our choice, since it is not printed: the seeds are 1, 2 and 3" in full.preset
    assert full.blocks[2].recipe.epochs == 10 or full.blocks[3].recipe.epochs == 10


def test_the_list_shows_every_preset(capsys: Any) -> None:
    assert cli.main(["reproduce", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in NAMES)


@pytest.mark.skipif("analyses" in {option.name for option in OPTIONS}, reason="there are analyses")
def test_a_preset_of_analyses_is_refused_without_them() -> None:
    with pytest.raises(UsageError, match="made of the analyses transfer, and this version has no --analyses"):
        study_of(load_preset("hype-table7"), "small", make_parser().parse_args(["reproduce", "hype-table7"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hype-tabel1"], "There is no preset called 'hype-tabel1'. Did you mean 'hype-table1'"),
        ([], "reproduce: expected the name of a preset; got none."),
        (["hype-table1", "--scale", "tiny"], "--scale: expected full or small; got 'tiny'."),
        (["hype-table1", "--lr", "1"], "There is no option of 'finetune-bench reproduce' called '--lr'."),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], message: str, capsys: Any) -> None:
    assert cli.main(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(UnknownName):
        load_preset("../hype")
