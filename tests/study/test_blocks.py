"""Study files with several grids and with recipes of single tasks: what they mean, and how what is wrong is told."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_bench.errors import UsageError
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.execution import cell_name
from finetune_bench.runner.forecast import forecast
from finetune_bench.runner.plan import make_plan
from finetune_bench.store.analyses import names
from finetune_bench.study import grid
from finetune_bench.study.blocks import join
from finetune_bench.study.grid import Cell
from finetune_bench.study.sources import make_study
from finetune_bench.study.study import Study, as_dict, run_name
from tests import ROOT

TWO = """
seeds = 2
epochs = 3

[[grid]]
tasks = ["rte", "mrpc"]
model = "small"
methods = ["hype"]

[[grid]]
tasks = ["cola"]
model = "large"
methods = ["rdrop"]
steps = 50
lr = [1e-5, 2e-5]

[recipe.rte]
epochs = 10
"""


def embedded() -> dict[str, Any]:
    return {"tasks": ["one"], "model": "tiny", "methods": ["vanilla"], "seeds": 3, "lr": 1e-4}


def read(folder: Path, text: str, **flags: Any) -> Study:
    (folder / "study.toml").write_text(text, "utf-8")
    return make_study({"config": str(folder / "study.toml"), **flags}, embedded)


def cells(study: Study) -> list[Cell]:
    data = {task: f"d {task}" for task in study.tasks}
    return grid.cells(study, data, {model: f"w {model}" for model in study.models}, "cpu")


def test_blocks_are_not_searched_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--search: leave it out with \[\[grid\]\] blocks or \[recipe.TASK\]"):
        read(tmp_path, TWO.replace("lr = [1e-5, 2e-5]", ""), search="4")


def test_each_block_is_a_study_of_its_own(tmp_path: Path) -> None:
    study = read(tmp_path, TWO)
    blocks = [
        (block.tasks, block.models, block.methods, block.recipe.epochs, block.recipe.steps) for block in study.blocks
    ]
    assert blocks == [
        (("mrpc",), ("small",), ("hype",), 3, None),
        (("rte",), ("small",), ("hype",), 10, None),
        (("cola",), ("large",), ("rdrop",), None, 50),
    ]
    assert [block.lrs for block in study.blocks] == [(2e-5,), (2e-5,), (1e-5, 2e-5)]
    assert {block.seeds for block in study.blocks} == {(1, 2)}
    assert (study.tasks, study.models, study.methods) == (
        ("mrpc", "rte", "cola"),
        ("small", "large"),
        ("hype", "rdrop"),
    )


def test_a_runs_name_has_what_its_block_trains_otherwise(tmp_path: Path) -> None:
    """Two runs of one method, task and seed went by one name."""
    text = 'seeds = 1\ntasks = ["rte"]\nmethods = ["hype"]\nno_baseline = true\nepochs = 3\n'
    study = read(tmp_path, f'{text}[[grid]]\nepochs = 1\n[[grid]]\noptimizer = "lion"\n')
    names = [cell_name(cell, study) for block in study.blocks for cell in cells(block)]
    assert names == ["hype · rte · seed 1 · epochs 1", "hype · rte · seed 1 · epochs 3 · optimizer lion"]


def test_a_blocks_cells_have_the_ids_that_they_have_alone(tmp_path: Path) -> None:
    study = read(tmp_path, TWO)
    alone = make_study({"tasks": "rte", "model": "small", "methods": "hype", "seeds": 2, "epochs": 10}, embedded)
    assert [cell.id for cell in cells(study.blocks[1])] == [cell.id for cell in cells(alone)]
    both = read(tmp_path, '[[grid]]\ntasks = ["rte"]\nmodel = "small"\nmethods = ["hype"]\nseeds = 2\nepochs = 10\n')
    assert both == dataclasses.replace(alone)  # one block is a plain study
    assert run_name(both) == run_name(alone)


def test_a_plain_study_keeps_its_name_and_what_is_written_of_it(tmp_path: Path) -> None:
    plain = make_study({"tasks": "rte", "model": "small"}, embedded)
    assert "blocks" not in as_dict(plain)
    assert run_name(plain) == "rte-b263af"
    study = read(tmp_path, TWO)
    assert run_name(study).startswith("mrpc-rte-cola-")
    assert run_name(study) != run_name(read(tmp_path, TWO.replace("epochs = 10", "epochs = 11")))
    assert run_name(study) == run_name(read(tmp_path, TWO.replace("seeds = 2", "seeds = 5")))
    json.dumps(as_dict(study))


def test_recipes_of_tasks_need_no_grid(tmp_path: Path) -> None:
    study = read(tmp_path, 'tasks = ["rte", "cola"]\nmodel = "small"\n[recipe.cola]\nbatch_size = 32\nlr = [1e-5]\n')
    assert [(block.tasks, block.recipe.batch_size, block.lrs) for block in study.blocks] == [
        (("rte",), 16, (2e-5,)),
        (("cola",), 32, (1e-5,)),
    ]


def test_a_blocks_recipe_of_a_task_wins_over_the_files(tmp_path: Path) -> None:
    text = (
        "[recipe.rte]\nepochs = 10\nwarmup = 0.2\n[[grid]]\ntasks = 'rte'\nmodel = 'a'\n[grid.recipe.rte]\nsteps = 7\n"
    )
    recipe = read(tmp_path, text).recipe
    assert (recipe.epochs, recipe.steps, recipe.warmup) == (None, 7, 0.2)


def test_flags_win_over_what_no_block_says_itself(tmp_path: Path) -> None:
    assert read(tmp_path, TWO, seeds=4).blocks[2].seeds == (1, 2, 3, 4)
    assert all(block.out == tmp_path for block in read(tmp_path, TWO, out=str(tmp_path)).blocks)
    assert read(tmp_path, TWO, batch_size=8).blocks[0].recipe.batch_size == 8


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            {"tasks": "rte"},
            "--tasks: study.toml, [[grid]] block 1 says its own; change it there, or leave the flag out.",
        ),
        ({"lr": "1e-5"}, "--lr: study.toml, [[grid]] block 2 says its own"),
        ({"steps": "5"}, "--steps: study.toml, [[grid]] block 2 says its own"),
        ({"epochs": "5"}, "--epochs: study.toml, [[grid]] block 1, task 'rte' says its own"),
    ],
)
def test_a_flag_that_would_change_single_blocks_is_refused(flags: dict[str, str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, TWO, **flags)
    assert told in str(caught.value).replace(str(tmp_path) + "/", "")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("grid = 3\n", "study.toml: expected 'grid' as [[grid]], one table or more; got 3."),
        ("grid = []\n", "expected 'grid' as [[grid]]"),
        ("[grid]\ntasks = ['rte']\n", "expected 'grid' as [[grid]]"),
        ("[[grid]]\nmodel = 'a'\n", 'study.toml, [[grid]] block 1: expected its tasks, as tasks = ["rte"]; got none.'),
        (
            "[[grid]]\ntasks = 'a'\n[[grid]]\ntaks = 'b'\n",
            "in study.toml, [[grid]] block 2 called 'taks'. Did you mean 'tasks'",
        ),
        (
            "[[grid]]\ntasks = 'a'\n[[grid]]\ntasks = 'b'\nepochs = 0\n",
            "study.toml, [[grid]] block 2: key 'epochs': expected a whole number of at least 1; got '0'.",
        ),
        (
            "[[grid]]\ntasks = 'a'\nout = 'x'\n",
            "study.toml, [[grid]] block 1: key 'out' holds for the whole study; put it above the first block.",
        ),
        ("[[grid]]\ntasks = 'a'\nplugin = 'x.py'\n", "key 'plugin' holds for the whole study"),
        ("tasks = 'a'\n[recipe.b]\nepochs = 2\n", "study.toml: [recipe.b]: no block runs 'b'."),
        ("[[grid]]\ntasks = 'a'\n[grid.recipe.b]\nepochs = 2\n", "block 1: [recipe.b]: the block doesn't run 'b'."),
        (
            "tasks = 'a'\n[recipe.a]\nseeds = 2\n",
            "[recipe.a]: key 'seeds' is no part of a recipe; put it into a [[grid]]",
        ),
        ("tasks = 'a'\n[recipe.a]\nout = 'x'\n", "[recipe.a]: key 'out' holds for the whole study"),
        ("tasks = 'a'\n[recipe.a]\nepoch = 2\n", "task 'a' called 'epoch'. Did you mean 'epochs'"),
        ("tasks = 'a'\nrecipe = 3\n", "study.toml: expected 'recipe' as tables [recipe.TASK]; got 3."),
        ("tasks = 'a'\n[recipe]\nepochs = 3\n", "expected 'recipe' as tables [recipe.TASK]"),
        (
            "[[grid]]\ntasks = 'a'\nmodel='m'\n[[grid]]\ntasks = 'b'\nmodel='m'\nbatch_size = 3\naccumulation = 2\n",
            "study.toml, [[grid]] block 2: --accumulation must divide --batch-size",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_block(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value).replace(str(tmp_path) + "/", "")


@pytest.fixture
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Study:
    other = tmp_path / "other.jsonl"
    other.write_text(tiny_data.read_text("utf-8"), "utf-8")
    text = f"""
seeds = 1
lr = 1e-3
no_baseline = true
device = "cpu"
workers = 1
batch_layout = "padded"
out = "{tmp_path / "run"}"
model = "{tiny_checkpoint}"
[[grid]]
tasks = ["{tiny_data}"]
methods = ["vanilla", "ema"]
steps = 2
[[grid]]
tasks = ["{other}", "{tiny_data}"]
methods = ["vanilla"]
steps = 2
[recipe."{other}"]
steps = 3
batch_size = 4
"""
    return read(tmp_path, text)


def test_blocks_are_planned_for_one_store(study: Study, tmp_path: Path) -> None:
    plan = make_plan(study)
    steps = sorted((cell.label, Path(cell.task).name, cell.recipe.steps) for cell in plan.cells)
    first = Path(study.blocks[0].tasks[0]).name
    # Vanilla on the first task is in both blocks, and runs once.
    assert steps == sorted([("ema", first, 2), ("vanilla", first, 2), ("vanilla", "other.jsonl", 3)])
    assert {block.tasks for block in study.blocks} == {(study.tasks[0],), (str(tmp_path / "other.jsonl"),)}
    alone = dataclasses.replace(study.blocks[0], out=tmp_path / "alone")
    assert {cell.id for cell in make_plan(alone).cells} <= {cell.id for cell in plan.cells}
    assert [block["recipe"]["steps"] for block in as_dict(plan.study)["blocks"]] == [2, 2, 3]


@pytest.mark.slow
def test_every_block_is_calibrated_with_its_own_recipe(study: Study) -> None:
    plan = make_plan(study)
    assert set(forecast(plan).seconds) == {cell.id for cell in plan.cells}


@pytest.mark.slow
def test_of_every_block_is_measured_what_it_asks_for(study: Study) -> None:
    """Once all blocks were measured by the first one's list, without a word."""
    first, *others = study.blocks
    blocks = (
        dataclasses.replace(first, analyses=("similarity",)),
        *(dataclasses.replace(block, analyses=("drift",)) for block in others),
    )
    plan = make_plan(join(blocks))
    assert plan.study.analyses == ("similarity", "drift")
    context = WorkerContext(plan.store, torch.device("cpu"))
    for cell in plan.todo:
        run_cell(Cell.from_dict(json.loads(json.dumps(cell.to_message()))), context)
    made = {(cell.label, Path(cell.task).name): names(plan.store.folder(cell.id)) for cell in plan.cells}
    data = Path(first.tasks[0]).name
    assert made == {
        ("ema", data): ["calibration", "similarity"],
        ("vanilla", data): ["calibration", "drift", "similarity"],  # of both blocks
        ("vanilla", "other.jsonl"): ["calibration", "drift"],
    }
    assert not make_plan(join(blocks)).todo
    more = (blocks[0], *(dataclasses.replace(block, analyses=("drift", "similarity")) for block in others))
    assert [Path(cell.task).name for cell in make_plan(join(more)).todo] == ["other.jsonl"]


def test_what_holds_for_all_blocks_is_read_from_all_of_them(study: Study) -> None:
    first, *others = study.blocks
    joined = join((first, *(dataclasses.replace(block, hold_out=True, trust_plugins=True) for block in others)))
    assert joined.hold_out
    assert not joined.trust_plugins


def test_a_shard_is_a_part_of_all_blocks_together(study: Study) -> None:
    parts = [make_plan(dataclasses.replace(study, shard=(number, 2))) for number in (1, 2)]
    assert sorted(len(part.cells) for part in parts) == [1, 2]
    assert {cell.id for part in parts for cell in part.cells} == {cell.id for cell in make_plan(study).cells}


def test_what_a_plan_refuses_names_the_block(study: Study) -> None:
    broken = dataclasses.replace(study.blocks[1], methods=("nothing",))
    with pytest.raises(UsageError, match=r"called 'nothing'.* This is in the block of .* on .*"):
        make_plan(dataclasses.replace(study, blocks=(study.blocks[0], broken)))


def test_the_example_of_the_guide_is_read(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "using.md").read_text("utf-8")
    (example,) = [text for text in re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL) if "[[grid]]" in text]
    study = read(tmp_path, example)
    assert [(block.tasks, block.recipe.epochs, block.recipe.batch_size) for block in study.blocks] == [
        (("mrpc",), 3, 16),
        (("rte",), 10, 16),
        (("cola",), 3, 32),
    ]
