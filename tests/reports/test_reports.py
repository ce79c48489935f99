"""Reports of made-up stores: the numbers, and that every file can be read."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune_bench import stats
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown
from finetune_bench.reports.terminal import summary
from finetune_bench.reports.topics.contrasts import TWO_WAY
from finetune_bench.reports.topics.cost import costs, seconds
from finetune_bench.reports.topics.differences import control_differences, differences
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.topics.synergy import synergies
from finetune_bench.reports.verdict import verdict
from finetune_bench.store.store import Store
from tests import ROOT
from tests.reports.reading import of, only_section, text_of
from tests.synthetic_store import CONTROL, FIVE, make_row, make_store

# --- the usual case ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_files_are_all_there_and_the_first_is_the_report(tmp_path: Path):
    store = make_store(tmp_path / "run")
    folder = tmp_path / "report"
    folder.mkdir()
    files = Markdown().write(store, folder)
    assert files[0] == folder / "report.md"
    kinds = (
        "answer",
        "curves",
        "differences",
        "footprint",
        "hype_pairs",
        "memory",
        "profile",
        "scores",
        "synergy",
        "time",
    )
    assert sorted(path.name for path in files[1:]) == [f"{kind}.svg" for kind in kinds]
    assert all(path.stat().st_size > 1000 for path in files)
    for link in [line.split("](")[1][:-1] for line in files[0].read_text("utf-8").splitlines() if line[:2] == "!["]:
        assert (folder / link).is_file()


@pytest.mark.slow
def test_every_byte_is_the_same_again(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=FIVE[:2], tasks=["rte"], seeds=2)
    contents = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        contents.append({path.name: path.read_bytes() for path in [*Markdown().write(store, folder)]})
    assert contents[0] == contents[1]


def test_scores_are_means_over_seeds_in_points(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    expected = stats.t_interval(
        [100 * make_row("hype", "rte", seed)["metrics"]["validation"]["accuracy"] for seed in (1, 2, 3)]
    )
    (record,) = [record for record in scores(section) if (record.method, record.column.task) == ("hype", "rte")]
    assert record.estimate.value == pytest.approx(expected.value)
    assert (record.estimate.low, record.estimate.high) == pytest.approx((expected.low, expected.high))
    assert (record.done, record.failed, record.collapsed) == (3, 0, 0)


def test_differences_use_the_whole_block(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    records = differences(section, "vanilla")
    record = of(records, "hype", "rte")
    scores = np.stack([section.scores(method, record.column) for method in section.methods])
    weights = [{"hype": 1, "vanilla": -1}.get(method, 0) for method in section.methods]
    assert record.estimate == stats.two_way_contrast(scores, weights)
    assert (record.interval, record.estimate.n, record.estimate.df) == (TWO_WAY, 3, 8)
    suite = of(records, "hype", "")
    tasks = [of(records, "hype", task).estimate for task in ("cola", "rte")]
    assert suite.estimate == stats.suite_mean(tasks)


def test_a_method_with_other_dropout_is_held_against_its_control(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    records = control_differences(section)
    assert {(record.method, record.reference) for record in records} == {("hype", CONTROL), ("hype+rdrop", CONTROL)}
    assert all(math.isnan(record.p) for record in records)


def test_a_stack_with_rates_is_held_against_these_rates_alone(tmp_path: Path):
    def change(row: dict[str, Any]) -> None:
        if "dropout(" in row["method"]:
            row["dropout"] = dict.fromkeys(row["dropout"], 0.3)

    methods = ("vanilla", "rdrop", "dropout(hidden=0.3)", "rdrop+dropout(hidden=0.3)")
    section = only_section(make_store(tmp_path, methods=methods, change=change))
    records = control_differences(section)
    assert {(record.method, record.reference) for record in records} == {(methods[3], methods[2])}


def test_p_values_need_five_seeds_and_are_of_the_suite(tmp_path: Path):
    few = make_store(tmp_path / "few", seeds=4)
    assert all(math.isnan(record.p) for record in differences(only_section(few), "vanilla"))
    text = text_of(few)
    assert "Descriptive only: 4 seeds" in text
    assert "p (Holm)" not in text
    many = make_store(tmp_path / "many", seeds=5)
    records = differences(only_section(many), "vanilla")
    raw = [record.estimate.p_value for record in records if record.question == "a" and not record.column.task]
    assert [record.p for record in records if not math.isnan(record.p)] == stats.holm(raw)
    assert "p (Holm)" in text_of(many)
    assert "Descriptive only" not in text_of(many)


def test_question_b_takes_the_tasks_as_units(tmp_path: Path):
    two = differences(only_section(make_store(tmp_path / "two")), "vanilla")
    assert not [record for record in two if record.question == "b"]
    section = only_section(make_store(tmp_path / "three", tasks=["rte", "cola", "mrpc"]))
    records = differences(section, "vanilla")
    values = [of(records, "rdrop", task).estimate.value for task in section.tasks]
    assert of(records, "rdrop", "", "b").estimate == stats.t_interval(values)


def test_only_what_is_separated_is_bold(tmp_path: Path):
    assert not any(record.best for record in scores(only_section(make_store(tmp_path / "noisy", noise=0.05))))

    def lift(row: dict[str, Any]) -> None:
        if row["method"] == "hype+rdrop":
            row["metrics"] = {"validation": {row["metric"]: 0.99}}

    section = only_section(make_store(tmp_path / "clear", noise=0.002, change=lift))
    assert {record.method for record in scores(section) if record.best} == {"hype+rdrop"}
    assert "**99.0 [no spread]** n=3" in text_of(Store(tmp_path / "clear"))


def test_the_verdict_says_what_separated_and_what_did_not(tmp_path: Path):
    text = " ".join(verdict(only_section(make_store(tmp_path, noise=0.001))))
    assert "Clearly above vanilla on the mean over 2 tasks: " in text
    assert "hype+rdrop (+3.2 [" in text
    assert "that does not mean the same" in text
    assert "would be missed more often than one time in five; seeing half of that takes about 12 seeds" in text


def test_costs_are_paired_ratios(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    cost = next(cost for cost in costs(section) if cost.method == "rdrop")
    pairs = [
        make_row("rdrop", task, seed)["cost"]["train_cpu_seconds"]
        / make_row("vanilla", task, seed)["cost"]["train_cpu_seconds"]
        for task in ("rte", "cola")
        for seed in (1, 2, 3)
    ]
    assert cost.time.value == pytest.approx(math.exp(np.mean(np.log(pairs))))
    assert (cost.time.low, cost.time.high, cost.time.n) == pytest.approx((min(pairs), max(pairs), 6))
    assert (cost.forwards_per_step, cost.backwards_per_step) == (2, 1)


@pytest.mark.slow
def test_a_run_that_shared_its_training_has_its_own_costs(tmp_path: Path):
    def share(row: dict) -> None:
        if row["method"] in ("vanilla", "rdrop"):
            row["shared_training"] = 5
            row["cost"] |= {"others_seconds": 1.0, "others_bytes": 1000}

    section = only_section(make_store(tmp_path / "store", change=share))
    alone = only_section(make_store(tmp_path / "alone"))
    for cost, expected in zip(costs(section), costs(alone), strict=True):
        assert (cost.time, cost.memory, cost.seconds) == (expected.time, expected.memory, expected.seconds)
    (report, *_) = Markdown().write(Store(tmp_path / "store"), tmp_path)
    text = report.read_text("utf-8")
    assert "Runs of `vanilla`, `rdrop` were scored from trainings that they shared." in text
    assert "is not known" not in text


@pytest.mark.slow
def test_seconds_and_peaks_that_cannot_be_told_from_those_of_others_are_in_no_figure(tmp_path: Path):
    def share(row: dict) -> None:
        if row["method"] == "rdrop":
            row["shared_training"] = 5

    store = make_store(tmp_path / "store", change=share)
    cost = next(cost for cost in costs(only_section(store)) if cost.method == "rdrop")
    assert (cost.time.n, cost.memory.n) == (0, 0)
    assert math.isnan(cost.seconds)
    assert math.isnan(cost.peak_memory_bytes)
    assert (cost.forwards_per_step, cost.activations.n) == (2, 6)
    (report, *_) = Markdown().write(store, tmp_path)
    assert "What the others took is not known of runs of `rdrop`" in report.read_text("utf-8")


def test_on_a_gpu_time_is_the_wall_clocks(tmp_path: Path):
    section = only_section(make_store(tmp_path, change=lambda row: row.update(device="cuda", threads=0)))
    row = section.rows("vanilla")[0]
    assert seconds(row) == row["cost"]["train_seconds"]


def test_synergy(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    (record, *_) = synergies(section)
    values = {method: section.scores(method, record.column) for method in section.methods}
    per_seed = values["hype+rdrop"] - values["hype"] - values["rdrop"] + values["vanilla"]
    assert (record.first, record.second, record.baseline, record.note) == ("hype", "rdrop", "vanilla", "")
    assert record.estimate.value == pytest.approx(per_seed.mean())
    assert record.interval == TWO_WAY


def test_synergy_takes_the_part_with_the_same_parameters(tmp_path: Path):
    methods = ["vanilla", "hype", "r3f", "r3f(noise=none)", "hype+r3f(noise=none)"]
    exact = only_section(make_store(tmp_path / "exact", methods=methods))
    assert {record.second for record in synergies(exact)} == {"r3f(noise=none)"}
    near = make_store(tmp_path / "near", methods=[name for name in methods if name != "r3f(noise=none)"])
    assert {record.second for record in synergies(only_section(near))} == {"r3f"}
    assert "The part r3f was run alone at its default parameters only." in text_of(near)


def test_order_of_a_stack_makes_two_lines(tmp_path: Path):
    section = only_section(make_store(tmp_path, methods=["vanilla", "rdrop", "r3f", "rdrop+r3f", "r3f+rdrop"]))
    assert {record.method for record in synergies(section)} == {"rdrop+r3f", "r3f+rdrop"}


def test_synergy_without_its_parts_says_what_is_missing(tmp_path: Path):
    text = text_of(make_store(tmp_path, methods=["vanilla", "hype", "hype+rdrop", "hype+rdrop+mixout"]))
    assert "hype+rdrop: needs rdrop run alone in the same setting." in text
    assert "hype+rdrop+mixout: synergy is defined for stacks of two." in text


def test_parts_that_share_a_dropout_are_held_against_the_control(tmp_path: Path):
    methods = ["vanilla", CONTROL, "hype", "rdrop(dropout=hidden_off)", "hype+rdrop(dropout=hidden_off)"]
    assert {record.baseline for record in synergies(only_section(make_store(tmp_path / "a", methods=methods)))} == {
        CONTROL
    }
    methods.remove(CONTROL)
    (record, *_) = synergies(only_section(make_store(tmp_path / "b", methods=methods)))
    assert record.baseline == "vanilla"
    assert "counts twice" in record.note


# --- formats ----------------------------------------------------------------------------------------------------------


def test_csv_files_hold_the_tables(tmp_path: Path):
    store = make_store(tmp_path / "run")
    folder = tmp_path / "out"
    folder.mkdir()
    paths = Csv().write(store, folder)
    files = {path.name: pd.read_csv(path) for path in paths if path.suffix == ".csv"}
    assert set(files) == {
        f"{n}.csv"
        for n in (
            "comparison",
            "differences",
            "attribution",
            "cost",
            "synergy",
            "collapsed",
            "gradients",
            "interpolation",
            "analyses",
            "rows",
        )
    }
    assert len(files["rows.csv"]) == 30
    rows = pd.read_parquet(folder / "rows.parquet")
    assert list(rows.columns) == list(files["rows.csv"].columns)
    assert list(rows["metrics.validation.accuracy"]) == pytest.approx(
        list(files["rows.csv"]["metrics.validation.accuracy"]), nan_ok=True
    )
    for name in ("comparison.csv", "differences.csv", "synergy.csv"):
        for cells, n in zip(files[name]["cells"], files[name]["n"], strict=True):
            records = [store.row(cell) for cell in cells.split()]
            assert len(records) == len(set(cells.split())) >= n
            assert all(row is not None and row["status"] == "done" for row in records)
    assert json.loads(files["rows.csv"]["methods"][0])[0]["name"]
    assert len(files["comparison.csv"]) == 5 * 3
    table = files["differences.csv"]
    expected = differences(only_section(store), "vanilla")
    assert len(table) == len(expected) + len(control_differences(only_section(store)))
    assert table["value"][0] == pytest.approx(expected[0].estimate.value)
    assert files["collapsed.csv"].empty
    with open(folder / "collapsed.csv", encoding="utf-8") as file:
        assert "score_without_value" in next(csv.reader(file))


def test_summary_says_what_its_brackets_are(tmp_path: Path):
    text = summary(make_store(tmp_path))
    assert "±" not in text
    assert "brackets: 95 % interval for new seeds" in text
    assert re.search(r"hype .* \[.*, .*\] .* 6$", text, re.MULTILINE)


def test_no_plus_minus_in_the_report(tmp_path: Path):
    assert "±" not in text_of(make_store(tmp_path))


@pytest.mark.slow
def test_reports_need_no_torch(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=FIVE[:2], tasks=["rte"], seeds=2)
    (tmp_path / "out").mkdir()
    code = f"""
import sys
from pathlib import Path
import matplotlib
before = matplotlib.rcParams.copy()  # reading it item by item would import pyplot
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown
from finetune_bench.reports.terminal import summary
from finetune_bench.store import Store
store = Store({str(store.root)!r})
for report in (Markdown(), Csv()):
    report.write(store, Path({str(tmp_path / "out")!r}))
summary(store)
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
