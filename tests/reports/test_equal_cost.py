"""Gains at equal cost, on made-up stores and on a real tiny run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_bench import cli, stats
from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.equal_cost import PASSES, SECONDS, STEPS, FairDifference, fair_differences
from finetune_bench.store.store import Store
from tests.synthetic_store import fail, make_row, make_store, put

GAIN = {2.0: 0.03, 3.0: 0.05}  # of vanilla by training so many times longer


def store_with_longer_runs(folder: Path, lengths: tuple[float, ...] = (2.0, 3.0), change: Any = None) -> Store:
    """Vanilla, HyPe and R-Drop, and vanilla for more steps; R-Drop takes exactly 2.5 times vanilla's seconds."""

    def cost(row: dict[str, Any]) -> None:
        row["cost"]["train_cpu_seconds"] = 100.0 if row["method"] == "rdrop" else 40.0

    store = make_store(folder, methods=("vanilla", "hype", "rdrop"), tasks=("rte",), change=cost)
    for place, length in enumerate(lengths):
        for seed in (1, 2, 3):
            row = make_row("vanilla", "rte", seed)
            row["id"] = f"{place}{seed:015x}"
            row["method"] = f"vanilla ×{length:g} steps"
            row["stretch"] = length
            row["metrics"]["validation"]["accuracy"] += GAIN[length]
            row["hashes"]["order"] = f"longer{length}{seed}"
            if change is None or change(row) is not False:
                put(store, row)
    return store


def of(store: Store, method: str, basis: str) -> FairDifference:
    (section,) = load(store).sections
    (record,) = [record for record in fair_differences(section) if (record.method, record.basis) == (method, basis)]
    return record


def scores(method: str) -> np.ndarray:
    return np.array([100 * make_row(method, "rte", seed)["metrics"]["validation"]["accuracy"] for seed in (1, 2, 3)])


def test_a_dearer_method_is_compared_at_equal_steps_passes_and_seconds(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path)
    gap = scores("rdrop") - scores("vanilla")
    expected = {STEPS: (1.0, 0.0), PASSES: (2.0, 3.0), SECONDS: (2.5, 4.0)}  # at 2.5 halfway between 3 and 5 points
    for basis, (factor, longer) in expected.items():
        record = of(store, "rdrop", basis)
        assert record.factor == pytest.approx(factor)
        by_hand = stats.t_interval(gap - longer)
        assert record.estimate.value == pytest.approx(by_hand.value)
        assert (record.estimate.low, record.estimate.n) == (pytest.approx(by_hand.low), 3)


def test_longer_runs_are_in_no_other_table(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path)
    (section,) = load(store).sections
    assert section.methods == ("vanilla", "hype", "rdrop")
    text = render(load(store))
    before, _, after = text.partition("## At equal cost")
    assert "×2 steps" not in before.partition("## Scores")[2]
    assert "| `rdrop` | equal passes | ×2.00 |" in after
    assert "`hype` | equal" not in after  # costs as many passes as vanilla


def test_beyond_the_longest_run_nothing_is_said(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path, (2.0,))
    assert math.isnan(of(store, "rdrop", SECONDS).estimate.value)
    assert of(store, "rdrop", PASSES).estimate.n == 3
    assert "| `rdrop` | equal seconds | ×2.50 | — |" in render(load(store))


def test_seconds_a_hair_beyond_the_longest_run_are_those_of_that_run(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path, (2.0,))
    for seconds, known in ((40.0 * 2.1, False), (40.0 * 2.01, True)):
        for seed in (1, 2, 3):
            row = make_row("rdrop", "rte", seed)
            row["cost"]["train_cpu_seconds"] = seconds
            put(store, row)
        assert (of(store, "rdrop", SECONDS).estimate.n == 3) is known


def test_without_a_run_of_that_length_equal_passes_are_unknown(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path, (3.0,))
    assert math.isnan(of(store, "rdrop", PASSES).estimate.value)
    assert of(store, "rdrop", SECONDS).estimate.n == 3  # between the usual length and ×3


def test_other_heads_or_data_are_left_out_and_failed_runs_are_holes(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["seed"] == 1:
            row["hashes"]["init"] = "other"
        if row["seed"] == 2 and row["stretch"] == 3.0:
            fail(row, "out of memory")

    store = store_with_longer_runs(tmp_path, change=change)
    assert of(store, "rdrop", PASSES).estimate.n == 2
    assert of(store, "rdrop", SECONDS).estimate.n == 1


def test_without_longer_runs_there_is_no_table(tmp_path: Path) -> None:
    store = store_with_longer_runs(tmp_path, ())
    (section,) = load(store).sections
    assert fair_differences(section) == []
    assert "At equal cost" not in render(load(store))


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_a_real_run(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, capsys: Any) -> None:
    words = ["--methods", "rdrop,smart", "--fair-cost", "--tasks", str(tiny_data), "--model", str(tiny_checkpoint)]
    words += ["--seeds", "2", "--steps", "4", "--warmup", "0", "--lr", "1e-3", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main(["run", *words]) == 0
    capsys.readouterr()
    rows = Store(tmp_path).rows()
    longer = {row["stretch"]: row["training"]["steps"] for row in rows if row["stretch"] != 1}
    assert longer == {2.0: 8, 4.0: 16}
    by_seed = {(row["method"], row["stretch"], row["seed"]): row for row in rows}
    usual, long = by_seed["vanilla", 1.0, 1], by_seed["vanilla ×2 steps", 2.0, 1]
    assert usual["hashes"]["init"] == long["hashes"]["init"]
    assert usual["id"] != long["id"]
    assert long["cost"]["forwards_per_step"] == 1
    (section,) = load(Store(tmp_path)).sections
    records = {(record.method, record.basis): record for record in fair_differences(section)}
    assert records["rdrop", PASSES].estimate.n == 2
    assert records["smart", PASSES].factor == 4
