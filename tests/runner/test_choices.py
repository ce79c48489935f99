"""What `--hold-out` has to choose among is said before any compute, and kept over the commands of a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from finetune_bench.errors import UsageError
from finetune_bench.model import pretrained
from finetune_bench.recipe import Recipe
from finetune_bench.report import Options
from finetune_bench.runner.execution import execute
from finetune_bench.runner.plan import make_plan
from finetune_bench.store.store import Store
from finetune_bench.study.blocks import join
from finetune_bench.study.study import Study
from tests.study.held_out_store import held_out_rows, only
from tests.synthetic_store import put


@pytest.fixture
def toy(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Study:
    return Study(
        methods=("vanilla", "noisytune"), tasks=(str(tiny_data),), models=(str(tiny_checkpoint),), seeds=(1,),
        lrs=(1e-4, 1e-3), hold_out=True, baseline=False, recipe=Recipe(epochs=1, warmup=0), out=tmp_path / "run",
        workers=1,
    )  # fmt: skip


def test_one_learning_rate_is_refused_before_any_compute(toy: Study) -> None:
    with pytest.raises(UsageError, match="several learning rates of a method to choose among; got one, 0.0001. Give"):
        make_plan(dataclasses.replace(toy, lrs=(1e-4,)))
    with pytest.raises(UsageError, match="got one, 0.0001. Take --scale full; or leave"):
        make_plan(dataclasses.replace(toy, lrs=(1e-4,), preset="a table"))
    assert not (toy.out or Path()).exists()
    assert [note for note in make_plan(toy).notes if "--hold-out" in note] == []


def test_blocks_of_which_nothing_or_not_every_method_is_chosen_are_told_before_any_compute(toy: Study) -> None:
    single = dataclasses.replace(toy, lrs=(1e-4,), recipe=dataclasses.replace(toy.recipe, weight_decay=0.5))
    fewer = dataclasses.replace(toy, methods=("top_k",), lrs=(1e-4,))
    plan = make_plan(join([toy, single, fewer]))
    task, model = toy.tasks[0], pretrained.label(toy.models[0])
    assert [note for note in plan.notes if "--hold-out" in note] == [
        f"Warning: --hold-out: for {task} on {model} not every method has the learning rates of vanilla (0.0001, "
        "0.001), and with other rates it is not compared: top_k.",
        f"Warning: --hold-out: for {task} on {model} there is one learning rate only, so nothing is chosen.",
    ]


def test_a_resumption_with_other_rates_keeps_those_that_were_tried(toy: Study) -> None:
    for rates in ((1e-4, 1e-3), (1e-3, 1e-2)):
        study = dataclasses.replace(toy, lrs=rates)
        plan = make_plan(study)
        for cell in plan.cells:
            (row,) = held_out_rows({("rte", cell.label): {cell.recipe.lr: 0.7 + cell.recipe.lr}}, [1])
            put(plan.store, row | {"id": cell.id})
        execute(make_plan(study))  # all is done, so that nothing is trained
    store = Store(toy.out or Path())
    assert store.study()["searched"]["noisytune"] == [["noisytune", 1e-3], ["noisytune", 1e-2]]
    assert store.study()["searched_before"]["noisytune"] == [["noisytune", 1e-4], ["noisytune", 1e-3]]
    assert {choice.rates for choice in only(store).choices} == {(1e-3, 1e-2)}  # a report covers one command
    assert {choice.rates for choice in only(store, Options(all_cells=True)).choices} == {(1e-4, 1e-3, 1e-2)}
