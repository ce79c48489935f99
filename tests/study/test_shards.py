"""`--shard K/N`: the parts of a grid are together the grid, each run is in one, and they cost alike."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from pathlib import Path

import pytest

from finetune_bench import cli, registry
from finetune_bench.errors import UsageError
from finetune_bench.reports.rows.load import load
from finetune_bench.runner import execution
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.plan import make_plan
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell, in_shard, relative_passes, training_ids
from finetune_bench.study.sources import read_options
from finetune_bench.study.study import Study, run_name
from tests.synthetic_store import make_cell

METHODS = ("vanilla", "hype", "rdrop", "smart", "freelb")


def grid(methods: tuple[str, ...] = METHODS, tasks: tuple[str, ...] = ("rte", "mnli"), seeds: int = 5) -> list[Cell]:
    spelt_out = {name: registry.describe(registry.make_stack(name), full=True) for name in methods}
    return [
        dataclasses.replace(make_cell(seed), method=spelt_out[name], task=task, data=f"d{task}")
        for task, seed, name in itertools.product(tasks, range(1, seeds + 1), methods)
    ]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 10, 25, 49, 50])
def test_together_they_are_the_grid(count: int) -> None:
    cells = grid()
    shards = [in_shard(cells, (index, count)) for index in range(1, count + 1)]
    assert Counter(cell.id for shard in shards for cell in shard) == Counter(cell.id for cell in cells)
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    for task in ("rte", "mnli"):
        of_task = [sum(cell.task == task for cell in shard) for shard in shards]
        assert max(of_task) - min(of_task) <= 1
    position = {cell.id: index for index, cell in enumerate(cells)}
    assert all(shard == sorted(shard, key=lambda cell: position[cell.id]) for shard in shards)


def test_they_cost_alike() -> None:
    """Of any two shards, one has at most one run of the dearest method more of every task."""
    cells = grid()
    passes = {cell.method: relative_passes(registry.make_stack(cell.method)) for cell in cells}
    for count in (2, 3, 5, 8, 25):
        loads = [sum(passes[cell.method] for cell in in_shard(cells, (i, count))) for i in range(1, count + 1)]
        assert max(loads) - min(loads) <= 2 * max(passes.values()), count


def test_the_order_of_options_and_the_machine_change_nothing() -> None:
    cells = grid()
    wanted = [{(cell.method, cell.task, cell.seed) for cell in in_shard(cells, (index, 4))} for index in (1, 2, 3, 4)]
    shuffled = random.Random(1).sample(cells, len(cells))
    elsewhere = [
        dataclasses.replace(cell, device="cuda", threads=0, libraries=("torch 3.0",), model="another/path")
        for cell in shuffled
    ]
    assert not {cell.id for cell in elsewhere} & {cell.id for cell in cells}
    for others in (shuffled, elsewhere):
        for index in (1, 2, 3, 4):
            facts = {(cell.method, cell.task, cell.seed) for cell in in_shard(others, (index, 4))}
            assert facts == wanted[index - 1]


def test_an_empty_shard_is_refused() -> None:
    cells = grid(methods=("vanilla",), tasks=("rte",), seeds=3)
    assert len(in_shard(cells, (3, 9))) == 1
    with pytest.raises(UsageError, match="the study has 3 runs, so this shard has none"):
        in_shard(cells, (4, 9))


def test_runs_of_one_training_stay_together() -> None:
    averages = ("vanilla", "ema(beta=0.99)", "wise_ft(alpha=0.5)", "hype", "hype+swa", "rdrop")
    cells = grid(methods=averages, tasks=("rte",), seeds=3)
    trainings = training_ids(cells)
    assert len(set(trainings.values())) == 9
    for count in (2, 4, 9):
        shards = [in_shard(cells, (index, count)) for index in range(1, count + 1)]
        assert Counter(cell.id for shard in shards for cell in shard) == Counter(cell.id for cell in cells)
        parts = [{trainings[cell.id] for cell in shard} for shard in shards]
        assert sum(map(len, parts)) == 9, count
    with pytest.raises(UsageError, match="the study has 18 runs of 9 trainings, so this shard has none; give 9 "):
        in_shard(cells, (10, 10))


@pytest.mark.parametrize("text", ["2/8", " 2/8 ", [2, 8], (2, 8)])
def test_a_shard_is_read(text: object) -> None:
    assert read_options({"shard": text}) == {"shard": (2, 8)}
    assert Study(shard=text).shard == (2, 8)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["0/8", "9/8", "a/b", "2", "2/", "/8", "-1/8", "2/8/9", "1.0/2", "2/0", [2], [True, 2], 2]
)
def test_what_is_no_shard_is_refused(text: object) -> None:
    with pytest.raises(UsageError, match="expected a part of so many, as 2/8"):
        read_options({"shard": text})


def test_every_shard_has_a_folder_of_its_own_and_the_study_keeps_its_name() -> None:
    study = Study(tasks=("rte",), models=("bert-base-cased",))
    assert run_name(study) == run_name(dataclasses.replace(study, seeds=(9,)))
    assert run_name(dataclasses.replace(study, shard=(2, 8))) == f"{run_name(study)}-shard-2-of-8"


@pytest.fixture
def shards(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """The folders of two shards of a study of ten runs: each run has a row, of which none was trained."""
    monkeypatch.setattr(LocalExecutor, "run", lambda *_: iter(()))
    stores = []
    for index in (1, 2):
        study = Study(
            methods=("vanilla", "rdrop"),
            tasks=(str(tiny_data),),
            models=(str(tiny_checkpoint),),
            device="cpu",
            baseline=False,
            shard=(index, 2),
            out=tmp_path / f"shard-{index}",
        )
        plan = make_plan(study)
        assert len(plan.todo) == len(plan.cells) == len(plan.other_shards) == 5
        assert f"Shard {index} of 2: 5 of 10 runs of the study." in plan.notes
        execution.execute(plan)
        for cell in plan.cells:
            plan.store.write(cell.to_dict(), row_of(cell, Status.FAILED, "not trained"))
        stores.append(plan.store)
    return stores


def test_a_report_of_a_shard_says_so_and_that_of_all_does_not(
    shards: list[Store], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "This covers a part of a study that was run in shards: 5 runs more of it are in other shards"
    assert any(note.startswith(said) for note in load(shards[0]).notes)
    assert cli.main(["status", str(shards[0].root)]) == 1
    assert "5 more runs of its study" in capsys.readouterr().out
    assert cli.main(["merge", str(tmp_path / "one"), str(shards[0].root)]) == 0
    assert any(note.startswith(said) for note in load(Store(tmp_path / "one")).notes)
    assert cli.main(["merge", str(tmp_path / "all"), *(str(store.root) for store in shards)]) == 0
    merged = Store(tmp_path / "all")
    assert len(merged.rows()) == 10
    assert load(merged).notes == []
    assert "shard" not in merged.study()
    assert cli.main(["report", str(shards[0].root), "--format", "markdown"]) == 0
    assert said in (shards[0].root / "report" / "report.md").read_text("utf-8")


def test_shards_in_one_folder_are_covered_by_all(shards: list[Store], capsys: pytest.CaptureFixture[str]) -> None:
    """As eight jobs that were given the same --out leave it: the last command's study, and all rows."""
    study = shards[0].study()
    assert cli.main(["merge", str(shards[0].root), str(shards[1].root)]) == 0
    shards[0].write_study(study)
    capsys.readouterr()
    assert cli.main(["report", str(shards[0].root), "--format", "csv"]) == 0
    told = capsys.readouterr().out
    assert "5 runs more of it are in other shards" in told
    assert "'finetune-bench report RUN --all' covers them too" in told
    assert cli.main(["report", str(shards[0].root), "--format", "csv", "--all"]) == 0
    assert "other shards" not in capsys.readouterr().out


def test_what_no_run_of_a_shard_can_do_is_skipped_there(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what can work in no run of the whole study is an error."""
    from finetune_bench.runner import checks

    seen = []

    def check(cells: list[Cell]) -> list[tuple[Cell, str]]:
        seen.append(len(cells))
        return [(cell, "a reason") for cell in cells if cell.seed == 1]

    monkeypatch.setattr(checks, "check_methods", check)
    study = Study(tasks=(str(tiny_data),), models=(str(tiny_checkpoint),), device="cpu", methods=("vanilla",))
    study = dataclasses.replace(study, baseline=False, seeds=(1, 2), shard=(1, 2), out=tmp_path / "run")
    plan = make_plan(study)
    assert seen == [2]
    assert [cell.seed for cell, _ in plan.skipped] == [1]
    assert plan.todo == []
