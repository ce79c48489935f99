"""Presets: every one is a study that can be read at both scales, with the recipes that the paper printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.cli import preset_plan
from finetune_bench.cli.arguments import make_parser
from finetune_bench.cli.reproduce import study_of
from finetune_bench.errors import DataError, UnknownName, UsageError
from finetune_bench.papers.presets import SCALES, checkpoint_sizes, load_preset, preset_names
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
        # Minutes on two cores: few runs, of few examples, on tasks with few texts to evaluate.
        assert made.limit_train == 100
        assert len(methods) * len(made.tasks) * len(made.seeds) * len(made.lrs) * len(made.models) <= 48
        assert not {"mnli", "qnli"} & set(made.tasks)


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
    assert "hype(eps=1e-4), hype(eps=1e-4,noise=uniform_symmetric) left out" in made.preset
    assert as_dict(made)["preset"] == made.preset
    full = study_of(load_preset("hype-table1"), "full", make_parser().parse_args(["reproduce", "hype-table1"]))
    assert "Our choice, since it is not printed: the seeds are 1, 2 and 3" in full.preset
    assert full.blocks[2].recipe.epochs == 10 or full.blocks[3].recipe.epochs == 10


def test_a_preset_may_replace_its_analyses_at_the_small_scale() -> None:
    preset = load_preset("hype-figure3")
    assert preset.analyses_at("full") == ["probe"]
    parsed = make_parser().parse_args(["reproduce", "hype-figure3", "--scale", "small"])
    assert study_of(preset, "small", parsed).analyses == ("probe(on=rte+mrpc,train=200,checked=100)",)


# --- what it takes ----------------------------------------------------------------------------------------------------


def test_every_checkpoint_of_a_preset_has_its_size() -> None:
    sizes = checkpoint_sizes()
    assert {model for name in NAMES for block in blocks(study(name)) for model in block.models} == set(sizes)
    for size in sizes.values():
        assert size.bytes == 4 * size.parameters
        assert 0.6 < size.body / size.parameters < 1


def test_needs_are_those_of_a_small_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    """BERT-large on RTE: two steps of sixteen texts of 128 tokens, and the 277 texts of evaluation."""
    monkeypatch.setattr(preset_plan, "_is_to_be_had", lambda model: False)
    values = {"tasks": ["rte"], "model": "bert-large-cased", "methods": ["vanilla", "rdrop"], "steps": 2, "seeds": 3}
    made = study_of_file(values | {"lr": [1e-5, 2e-5], "no_baseline": True}, "file", {}, registry.default_options)
    (need,) = preset_plan.needs(made)
    body = 303_887_360
    vanilla = 6 * body * 2 * 16 * 128 + 2 * body * 277 * 128
    rdrop = 2 * 6 * body * 2 * 16 * 128 + 2 * body * 277 * 128
    assert (need.cells, need.missing) == (2 * 2 * 3, True)
    assert need.gpu_hours == pytest.approx(6 * (vanilla + rdrop) / 5e13 / 3600)
    states = 16 * 128 * 1024 * 24
    assert need.memory_bytes == pytest.approx(16 * 333_579_264 + 2 * 88 * states)


def test_two_passes_take_as_much_more_memory_as_the_paper_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """11 GB for HyPe and 16 GB for R-Drop at a batch of 16 on BERT-large."""
    monkeypatch.setattr(preset_plan, "_is_to_be_had", lambda model: False)

    def memory(method: str) -> float:
        values = {"tasks": ["rte"], "model": "bert-large-cased", "methods": [method], "no_baseline": True}
        (need,) = preset_plan.needs(study_of_file(values, "file", {}, registry.default_options))
        return need.memory_bytes / 1e9

    assert memory("rdrop") / memory("hype") == pytest.approx(16 / 11, abs=0.05)


@pytest.mark.parametrize("name", ["hype-table4", "hype-table7"])
def test_a_plan_needs_neither_checkpoints_nor_data(name: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(preset_plan, "_is_to_be_had", lambda model: False)
    assert cli.main(["reproduce", name, "plan", "--data-root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    made = study(name)
    for model in made.models:
        assert f"missing: checkpoint {model} (" in shown
    (total,) = [line.split() for line in shown.splitlines() if line.startswith("all ")]
    runs = sum(
        len(block.models) * len(block.tasks) * len(grid.stacks(block)[0]) * len(block.lrs) * 3 for block in blocks(made)
    )
    assert int(total[1]) == runs
    assert float(total[2]) > 1
    assert all(f"missing: data of {task}: " in shown for task in made.tasks)
    assert str(tmp_path) in shown


def test_all_that_is_missing_is_told_at_once(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(made: Study) -> int:
        raise DataError("the data of cola are missing")

    monkeypatch.setattr("finetune_bench.cli.reproduce.run_study", refuse)
    words = ["reproduce", "hype-table9", "--scale", "small", "--data-root", str(tmp_path), "--out", str(tmp_path / "r")]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert "reproduce hype-table9: expected its checkpoints and data; missing are:" in told
    assert "data of cola: " in told
    assert "data of rte: " in told
    assert not (tmp_path / "r").exists()


def test_the_data_of_an_analysis_are_missed_too(tmp_path: Path) -> None:
    """SST-2 is there to train on, and its adversarial set is not."""
    made = study_of(
        load_preset("hype-table6"),
        "small",
        make_parser().parse_args(["reproduce", "hype-table6", "--data-root", str(tmp_path)]),
    )

    class There(type(registry.task("sst2"))):  # type: ignore[misc]
        def load(self, data_root: Path | None) -> None:
            return None

    there = There("sst2", labels=("negative", "positive"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._added["tasks"], "sst2", there)
        missing = preset_plan.missing_data(made)
    assert set(missing) == {"rte", "transfer of sst2"}
    assert "AI-Secure/adv_glue" in missing["transfer of sst2"]


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
