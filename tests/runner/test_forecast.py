"""What a study will take: predictions against what it took, and a budget that keeps the design balanced."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_bench import cli
from finetune_bench.errors import UsageError
from finetune_bench.recipe import Recipe
from finetune_bench.runner.execution import execute
from finetune_bench.runner.forecast import Forecast, forecast, within_budget
from finetune_bench.runner.plan import make_plan
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study


@pytest.fixture
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Study:
    return Study(
        methods=("freelb", "child_tuning_d", "ema"),
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2, 3),
        recipe=Recipe(lr=1e-3, epochs=10, batch_size=4),
        out=tmp_path / "run",
        workers=1,
        device="cpu",
    )


@pytest.mark.slow
def test_cpu_time_memory_and_disk_are_foretold(study: Study) -> None:
    plan = make_plan(replace(study, seeds=(1,)))
    found = forecast(plan)
    assert set(found.seconds) == {cell.id for cell in plan.cells}
    assert not plan.store.cells.exists()  # nothing is run, nothing written
    execute(plan)
    rows = plan.store.rows()
    took = sum(row["cpu_seconds"] for row in rows)
    # Tests share the cores, and cells this small are noisy: docs/performance.md has the figures of real ones.
    assert sum(found.seconds.values()) == pytest.approx(took, rel=0.6)
    by_method = {cell.label: found.seconds[cell.id] for cell in plan.cells}
    assert by_method["freelb"] > 1.3 * by_method["vanilla"]  # its four passes a step are about four times the work
    size = sum(path.stat().st_size for path in Store(plan.store.root).cells.rglob("*") if path.is_file())
    assert found.disk_bytes == pytest.approx(size, rel=0.5)


def test_each_optimiser_is_timed_by_itself(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(study)
    plan.todo += [replace(cell, recipe=replace(cell.recipe, optimizer="muon")) for cell in plan.todo]

    class Asked(Exception):
        """Ends the forecast before anything is trained."""

    def ask(cells: list[Cell], *args: object, **options: object) -> None:
        raise Asked([cell.recipe.optimizer for cell in cells])

    monkeypatch.setattr("finetune_bench.runner.forecast.calibrations_of", ask)
    with pytest.raises(Asked, match=r"\['adamw', 'muon'\]"):
        forecast(plan)


def test_sums() -> None:
    found = Forecast({"a": 10.0, "b": 30.0, "c": 20.0}, 5.0, None, 0, 2)
    assert found.cpu_seconds == 70.0
    assert found.wall_seconds == 35.0  # two workers with half of the sixty each; none is longer by itself
    assert replace(found, workers=3).wall_seconds == 35.0  # the longest cell


def test_a_budget_takes_whole_comparisons_seed_by_seed(study: Study, tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(tiny_data.read_text("utf-8"), "utf-8")
    both = replace(study, tasks=(str(tiny_data), str(other)))
    plan = make_plan(both)
    assert len(plan.todo) == 5 * 2 * 3
    said = within_budget(plan, 27.0, {cell.id: 1.0 for cell in plan.todo})
    assert said == "The budget has time for 5 of 6 comparisons of all methods; 5 cells wait."
    counts = Counter((cell.seed, cell.task) for cell in plan.todo)
    assert set(counts.values()) == {5}  # every method
    assert sorted(seed for seed, _ in counts) == [1, 1, 2, 2, 3]
    plan = make_plan(both)
    with pytest.raises(UsageError, match="one comparison of all methods on one task and seed takes about 5 CPU"):
        within_budget(plan, 4.0, {cell.id: 1.0 for cell in plan.todo})


def test_the_dearest_of_a_comparison_comes_first(study: Study) -> None:
    first = make_plan(study).todo[:5]
    assert {cell.seed for cell in first} == {1}
    assert first[0].label == "freelb"


@pytest.mark.slow
def test_the_command_says_it_and_runs_nothing(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--methods",
        "rdrop",
        "--tasks",
        study.tasks[0],
        "--model",
        study.models[0],
        "--seeds",
        "1",
        "--device",
        "cpu",
    ]
    typed = [sys.executable, "-m", "finetune_bench.cli", "plan", *words, "--out", str(study.out)]
    shown = subprocess.run(typed, capture_output=True, text=True, check=True).stdout  # its memory is a fresh process's
    for word in ("rdrop", "CPU time", "wall time", "memory", "disk"):
        assert word in shown
    assert not Store(str(study.out)).cells.exists()
    assert cli.main(["run", *words, "--out", str(study.out), "--budget", "1h"]) == 0
    assert "The budget has time for 1 of 1 comparisons" in capsys.readouterr().err
    peak = max(row["cost"]["peak_memory_bytes"] for row in Store(str(study.out)).rows())
    assert float(shown.partition("memory")[2].split()[0]) * 2**20 == pytest.approx(peak, rel=0.25)
    assert cli.main(["run", *words, "--out", str(study.out), "--budget", "1h", "--executor", "ray"]) == 2
    assert cli.main(["plan", *words, "--executor", "ray"]) == 2


@pytest.mark.parametrize("command", ["plan", "run"])
def test_it_speaks_before_it_checks(
    command: str, study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []

    def checking(*_: object) -> None:
        said.append(capsys.readouterr().err)
        raise UsageError("enough")

    monkeypatch.setattr("finetune_bench.runner.plan.make_plan", checking)
    words = ["--methods", "ema", "--tasks", study.tasks[0], "--model", study.models[0], "--out", str(study.out)]
    assert cli.main([command, *words]) == 2
    assert said == ["Checking the study: methods, data, checkpoints ...\n"]
