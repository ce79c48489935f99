"""Reports of made-up stores: the numbers, the refusals, the holes, and that every file can be read."""

from __future__ import annotations

import csv
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune_bench import stats
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown, _text, render, summary_table
from finetune_bench.reports.rows.sections import Section, read_data
from finetune_bench.reports.rows.twins import twins
from finetune_bench.reports.topics.collapse import collapse_effects
from finetune_bench.reports.topics.contrasts import PAIRED, TWO_WAY, complete_block
from finetune_bench.reports.topics.cost import costs, seconds
from finetune_bench.reports.topics.differences import Difference, control_differences, differences
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.topics.synergy import synergies
from finetune_bench.reports.verdict import verdict
from finetune_bench.store.store import Store
from tests import ROOT
from tests.synthetic_store import CONTROL, FIVE, fail, make_row, make_store, make_trace, put


def only_section(store: Store) -> Section:
    (section,) = read_data(store).sections
    return section


def text_of(store: Store) -> str:
    return render(read_data(store))


def of(differences: list[Difference], method: str, task: str, question: str = "a") -> Difference:
    (found,) = [one for one in differences if (one.method, one.column.task, one.question) == (method, task, question)]
    return found


def is_run(row: dict[str, Any], method: str, task: str, seed: int | None = None) -> bool:
    return (row["method"], row["task"]) == (method, task) and seed in (None, row["seed"])


# --- the usual case ---------------------------------------------------------------------------------------------------


def test_files_are_all_there_and_the_first_is_the_report(tmp_path: Path):
    store = make_store(tmp_path / "run")
    folder = tmp_path / "report"
    folder.mkdir()
    files = Markdown().write(store, folder)
    assert files[0] == folder / "report.md"
    kinds = (
        "curves",
        "differences",
        "footprint",
        "hype_pairs",
        "memory",
        "profile",
        "ranks",
        "scores",
        "synergy",
        "time",
    )
    assert sorted(path.name for path in files[1:]) == [f"{kind}.svg" for kind in kinds]
    assert all(path.stat().st_size > 1000 for path in files)
    for link in [line.split("](")[1][:-1] for line in files[0].read_text("utf-8").splitlines() if line[:2] == "!["]:
        assert (folder / link).is_file()


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
    (found,) = [one for one in scores(section) if (one.method, one.column.task) == ("hype", "rte")]
    assert found.estimate.value == pytest.approx(expected.value)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((expected.low, expected.high))
    assert (found.done, found.failed, found.collapsed) == (3, 0, 0)


def test_differences_use_the_whole_block(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    found = differences(section, "vanilla")
    one = of(found, "hype", "rte")
    scores = np.stack([section.scores(method, one.column) for method in section.methods])
    weights = [{"hype": 1, "vanilla": -1}.get(method, 0) for method in section.methods]
    assert one.estimate == stats.two_way_contrast(scores, weights)
    assert (one.interval, one.estimate.n, one.estimate.df) == (TWO_WAY, 3, 8)
    suite = of(found, "hype", "")
    tasks = [of(found, "hype", task).estimate for task in ("cola", "rte")]
    assert suite.estimate == stats.suite_mean(tasks)


def test_a_method_with_other_dropout_is_held_against_its_control(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    found = control_differences(section)
    assert {(one.method, one.reference) for one in found} == {("hype", CONTROL), ("hype+rdrop", CONTROL)}
    assert all(math.isnan(one.p) for one in found)


def test_p_values_need_five_seeds_and_are_of_the_suite(tmp_path: Path):
    few = make_store(tmp_path / "few", seeds=4)
    assert all(math.isnan(one.p) for one in differences(only_section(few), "vanilla"))
    text = text_of(few)
    assert "Descriptive only: 4 seeds" in text
    assert "p (Holm)" not in text
    many = make_store(tmp_path / "many", seeds=5)
    found = differences(only_section(many), "vanilla")
    raw = [one.estimate.p_value for one in found if one.question == "a" and not one.column.task]
    assert [one.p for one in found if not math.isnan(one.p)] == stats.holm(raw)
    assert "p (Holm)" in text_of(many)
    assert "Descriptive only" not in text_of(many)


def test_question_b_takes_the_tasks_as_units(tmp_path: Path):
    two = differences(only_section(make_store(tmp_path / "two")), "vanilla")
    assert not [one for one in two if one.question == "b"]
    section = only_section(make_store(tmp_path / "three", tasks=["rte", "cola", "mrpc"]))
    found = differences(section, "vanilla")
    values = [of(found, "rdrop", task).estimate.value for task in section.tasks]
    assert of(found, "rdrop", "", "b").estimate == stats.t_interval(values)


def test_only_what_is_separated_is_bold(tmp_path: Path):
    assert not any(one.best for one in scores(only_section(make_store(tmp_path / "noisy", noise=0.05))))

    def lift(row: dict[str, Any]) -> None:
        if row["method"] == "hype+rdrop":
            row["metrics"] = {"validation": {row["metric"]: 0.99}}

    section = only_section(make_store(tmp_path / "clear", noise=0.002, change=lift))
    assert {one.method for one in scores(section) if one.best} == {"hype+rdrop"}
    assert "**99.0 [no spread]** n=3" in text_of(Store(tmp_path / "clear"))


def test_the_verdict_says_what_separated_and_what_did_not(tmp_path: Path):
    said = " ".join(verdict(only_section(make_store(tmp_path, noise=0.001))))
    assert "Separated above vanilla on the mean over 2 tasks: " in said
    assert "hype+rdrop (+3.2 [" in said
    assert "that does not mean the same" in said
    assert "would be missed more often than one time in five" in said


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


def test_on_a_gpu_time_is_the_wall_clocks(tmp_path: Path):
    section = only_section(make_store(tmp_path, change=lambda row: row.update(device="cuda", threads=0)))
    row = section.rows("vanilla")[0]
    assert seconds(row) == row["cost"]["train_seconds"]


def test_synergy(tmp_path: Path):
    section = only_section(make_store(tmp_path))
    (one, *_) = synergies(section)
    values = {method: section.scores(method, one.column) for method in section.methods}
    per_seed = values["hype+rdrop"] - values["hype"] - values["rdrop"] + values["vanilla"]
    assert (one.first, one.second, one.baseline, one.note) == ("hype", "rdrop", "vanilla", "")
    assert one.estimate.value == pytest.approx(per_seed.mean())
    assert one.interval == TWO_WAY


def test_synergy_takes_the_part_with_the_same_parameters(tmp_path: Path):
    methods = ["vanilla", "hype", "r3f", "r3f(noise=none)", "hype+r3f(noise=none)"]
    exact = only_section(make_store(tmp_path / "exact", methods=methods))
    assert {one.second for one in synergies(exact)} == {"r3f(noise=none)"}
    near = make_store(tmp_path / "near", methods=[name for name in methods if name != "r3f(noise=none)"])
    assert {one.second for one in synergies(only_section(near))} == {"r3f"}
    assert "The part r3f was run alone at its default parameters only." in text_of(near)


def test_order_of_a_stack_makes_two_lines(tmp_path: Path):
    section = only_section(make_store(tmp_path, methods=["vanilla", "rdrop", "r3f", "rdrop+r3f", "r3f+rdrop"]))
    assert {one.method for one in synergies(section)} == {"rdrop+r3f", "r3f+rdrop"}


def test_synergy_without_its_parts_says_what_is_missing(tmp_path: Path):
    text = text_of(make_store(tmp_path, methods=["vanilla", "hype", "hype+rdrop", "hype+rdrop+mixout"]))
    assert "hype+rdrop: needs rdrop run alone in the same setting." in text
    assert "hype+rdrop+mixout: synergy is defined for stacks of two." in text


def test_parts_that_share_a_dropout_are_held_against_the_control(tmp_path: Path):
    methods = ["vanilla", CONTROL, "hype", "rdrop(dropout=hidden_off)", "hype+rdrop(dropout=hidden_off)"]
    assert {one.baseline for one in synergies(only_section(make_store(tmp_path / "a", methods=methods)))} == {CONTROL}
    methods.remove(CONTROL)
    (one, *_) = synergies(only_section(make_store(tmp_path / "b", methods=methods)))
    assert one.baseline == "vanilla"
    assert "counts twice" in one.note


# --- refusals and holes -----------------------------------------------------------------------------------------------


def test_rows_with_other_hashes_are_refused_as_pairs(tmp_path: Path):
    def shuffle(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "rte", 2):
            row["hashes"]["order"] = "another"
        if is_run(row, "rdrop", "rte"):
            row["hashes"]["init"] = None

    store = make_store(tmp_path, change=shuffle)
    section = only_section(store)
    found = differences(section, "vanilla")
    hype, rdrop = of(found, "hype", "rte"), of(found, "rdrop", "rte")
    assert (hype.estimate.n, hype.refused, hype.interval) == (2, 1, PAIRED)
    column = hype.column
    expected = (section.scores("hype", column) - section.scores("vanilla", column))[[0, 2]]
    assert hype.estimate == stats.t_interval(expected)
    assert (rdrop.estimate.n, rdrop.refused) == (0, 3)
    assert of(found, "rdrop", "").estimate.n == 0
    assert of(found, CONTROL, "rte").interval == TWO_WAY
    text = text_of(store)
    assert "hype on rte: 1 seed refused as no pair of vanilla" in text
    assert "rdrop on rte: 3 seeds refused as no pair of vanilla" in text
    assert next(one for one in costs(section) if one.method == "rdrop").time.n == 3


def test_holes_are_counted_and_never_averaged_over(tmp_path: Path):
    def break_some(row: dict[str, Any]) -> None:
        if is_run(row, "rdrop", "rte", 2):
            fail(row, "diverged at step 12: the training loss was not finite")
        if is_run(row, "hype", "cola"):
            fail(row, "hype: no layers | found", "skipped")
        if is_run(row, CONTROL, "cola", 1):
            fail(row, "interrupted", "interrupted")

    store = make_store(tmp_path, change=break_some)
    section = only_section(store)
    by_cell = {(one.method, one.column.task): one for one in scores(section)}
    assert (by_cell["rdrop", "rte"].estimate.n, by_cell["rdrop", "rte"].failed) == (2, 1)
    assert by_cell["hype", ""].missing == ("cola",)
    assert by_cell["hype", ""].estimate.n == 0
    found = differences(section, "vanilla")
    assert of(found, "rdrop", "rte").interval == PAIRED
    assert of(found, "hype+rdrop", "rte").interval == TWO_WAY
    text = text_of(store)
    assert "| 25 done, 1 failed, 3 skipped, 1 interrupted |" in text
    assert "1 cell: diverged at step 12: the training loss was not finite — rdrop on rte (seed 2)" in text
    assert "3 cells: hype: no layers \\| found — hype on cola (seeds 1, 2, 3)" in text
    assert "—, 3 skipped" in text
    assert "hype has no mean over tasks: no score on cola." in text
    assert "n=2, 1 failed" in summary_table(store)


def test_a_run_that_was_never_made_is_no_score(tmp_path: Path):
    store = make_store(tmp_path, change=lambda row: not is_run(row, "hype", "cola"))
    assert "—, not run" in summary_table(store)


@pytest.mark.parametrize("lost", [None, math.nan, "absent"])
def test_a_done_row_without_a_score_is_a_hole(tmp_path: Path, lost: object):
    def lose(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "rte", 1):
            row["metrics"] = {"validation": {} if lost == "absent" else {"accuracy": lost}}

    section = only_section(make_store(tmp_path, change=lose))
    (found,) = [one for one in scores(section) if (one.method, one.column.task) == ("hype", "rte")]
    assert (found.done, found.estimate.n, found.unscored) == (3, 2, 1)
    assert "n=2, 1 without a score" in summary_table(Store(tmp_path))


def test_collapsed_runs_are_shown_with_and_without(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "cola", 1):
            row.update(collapsed="predicts one class only", metrics={"validation": {"matthews": 0.0}})
            row["training"]["hardly_moved"] = True

    store = make_store(tmp_path, change=collapse)
    section = only_section(store)
    (one,) = collapse_effects(section)
    assert (one.method, one.collapsed, one.score.n, one.score_without.n) == ("hype", 1, 3, 2)
    assert one.difference.value < -10 < one.difference_without.value
    column = one.column
    residuals = complete_block(section, column, "vanilla")
    assert residuals is not None
    assert "hype" not in residuals.methods  # so its collapse doesn't widen the others' intervals
    assert of(differences(section, "vanilla"), "rdrop", "cola").interval == TWO_WAY
    text = text_of(store)
    assert "1 collapsed" in text
    assert "`hype`: 1 of 6 runs collapsed, 17 % [0, 64] (Clopper–Pearson, n=6" in text
    assert "Collapsed: predicts one class only — hype on cola (seed 1)" in text
    assert "The training loss hardly moved: hype on cola (seed 1)." in text


def test_when_every_run_is_the_same_nothing_is_claimed(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        row.update(collapsed="predicts one class only", metrics={"validation": {"accuracy": 0.527}})

    store = make_store(tmp_path / "run", methods=FIVE[:3], tasks=["rte"], seeds=2, change=collapse)
    (tmp_path / "out").mkdir()
    Markdown().write(store, tmp_path / "out")
    assert "52.7 [no spread] n=2, 2 collapsed" in summary_table(store)
    said = " ".join(verdict(only_section(store)))
    assert "Separated" not in said
    assert "6 of 6 runs collapsed: where most runs don't train" in said


def test_a_collapsed_baseline_is_shown_for_every_method(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        if is_run(row, "vanilla", "cola", 1):
            row.update(collapsed="predicts one class only", metrics={"validation": {"matthews": 0.0}})

    section = only_section(make_store(tmp_path, change=collapse))
    assert {one.method for one in collapse_effects(section)} == set(FIVE)
    assert of(differences(section, "vanilla"), "rdrop", "cola").interval == PAIRED


def test_no_effect_is_found_against_vanilla_and_parts(tmp_path: Path):
    store = make_store(tmp_path, methods=FIVE[:4], tasks=["rte"], seeds=2)
    same_as = {"hype": CONTROL, "hype+rdrop": "rdrop"}
    for seed in (1, 2):
        for method, twin in same_as.items():
            put(store, make_row(method, "rte", seed), trace=make_trace(make_row(twin, "rte", seed)))
    data = read_data(store)
    found = twins(data, data.sections[0])
    assert {(one.method, one.twin, one.seed) for one in found} == {
        (m, t, s) for m, t in same_as.items() for s in (1, 2)
    }
    text = render(data)
    assert f"No effect: hype equals {CONTROL} at every recorded step, in loss and weights, on rte (seeds 1, 2)." in text


def test_one_seed_has_no_interval_and_says_so(tmp_path: Path):
    store = make_store(tmp_path / "run", seeds=1)
    text = text_of(store)
    assert "Descriptive only: one seed, so there is no interval" in text
    assert "n=1" in text
    assert not any(one.estimate.separated for one in differences(only_section(store), "vanilla"))
    assert "[" not in summary_table(store).partition("Mean score")[0]
    (tmp_path / "out").mkdir()
    Markdown().write(store, tmp_path / "out")


def test_one_task_has_no_mean_over_tasks(tmp_path: Path):
    store = make_store(tmp_path, tasks=["rte"], seeds=5)
    text = text_of(store)
    assert "mean over 1" not in text
    assert "Mean over tasks" not in text
    assert "on rte" in text
    assert "p (Holm)" in text


def test_only_vanilla(tmp_path: Path):
    text = text_of(make_store(tmp_path, methods=["vanilla"]))
    assert "No difference can be given: vanilla is the only method in this run." in text
    assert "Compatibility" not in text


def test_no_baseline(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=[CONTROL, "hype", "rdrop", "hype+rdrop"])
    text = text_of(store)
    assert "vanilla with its default dropout is not in this run" in text
    assert "No ratios" in text
    assert "hype+rdrop: needs vanilla run alone" in text
    assert "Differences to vanilla with the same dropout" in text
    (tmp_path / "out").mkdir()
    Markdown().write(store, tmp_path / "out")
    Csv().write(store, tmp_path / "out")


def test_regression_and_several_splits(tmp_path: Path):
    store = make_store(tmp_path / "run", tasks=["stsb", "mnli"])
    section = only_section(store)
    titles = [column.title for column in section.columns]
    assert titles == ["mnli matched accuracy", "mnli mismatched accuracy", "stsb pearson_spearman"]
    suite = section.suite[0]
    row = section.rows("vanilla", "mnli")[0]["metrics"]
    mean = 50 * (row["validation_matched"]["accuracy"] + row["validation_mismatched"]["accuracy"])
    assert section.score("vanilla", suite, 1) == pytest.approx(mean)
    assert "averages different metrics" in text_of(store)


def test_one_metric_needs_no_warning(tmp_path: Path):
    assert "averages different metrics" not in text_of(make_store(tmp_path, tasks=["rte", "mnli"]))


@pytest.mark.parametrize("rows", ["none", "failed"])
def test_nothing_done(tmp_path: Path, rows: str):
    methods = FIVE if rows == "failed" else ()
    store = make_store(tmp_path / "run", methods=methods, change=lambda row: fail(row, "out of memory"))
    folder = tmp_path / "out"
    folder.mkdir()
    (path,) = Markdown().write(store, folder)
    text = path.read_text("utf-8")
    assert ("No run ended well" if rows == "failed" else "No cell has been run.") in text
    assert {path.name for path in Csv().write(store, folder)} >= {"rows.csv", "comparison.csv", "synergy.csv"}
    summary_table(store)


def test_learning_rates_and_models_are_sections(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=FIVE[:2], tasks=["rte"], seeds=2)
    for number, (model, lr) in enumerate([("bert-base-cased", 4e-5), ("roberta-base", 2e-5)]):
        for method in FIVE[:2]:
            for seed in (1, 2):
                row = make_row(method, "rte", seed)
                row.update(model=model, id=f"{number}{row['id']}")
                row["recipe"]["lr"] = lr
                put(store, row)
    data = read_data(store)
    assert [section.title for section in data.sections] == [
        "bert-base-cased, lr 2e-05",
        "bert-base-cased, lr 4e-05",
        "roberta-base, lr 2e-05",
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    names = {path.name for path in Markdown().write(store, folder)}
    assert {"scores-1.svg", "scores-3.svg"} <= names
    assert summary_table(store).count("vanilla(dropout=hidden_off)") == 3


def test_subsets_are_named(tmp_path: Path):
    text = text_of(make_store(tmp_path, change=lambda row: row.update(subset=["validation"], notes=["Labels moved."])))
    assert "rte: the validation split is a subset" in text
    assert text.count("rte: Labels moved.") == 1
    assert "| 277 | 50.0 |" in text


def test_markup_in_labels_and_reasons_is_shown_as_it_is(tmp_path: Path):
    assert _text("a | b *c* _d_ e_f <g>\n`h`") == "a \\| b \\*c\\* \\_d\\_ e_f \\<g\\> \\`h\\`"

    def odd(row: dict[str, Any]) -> None:
        row["task"] = "rte"
        if row["method"] == "hype":
            row["method"] = "hype(noise=a|b)"
        if row["seed"] == 3:
            fail(row, "expected <pad> | got *nothing*\nat all")

    text = text_of(make_store(tmp_path, methods=FIVE[:3], tasks=["rte"], change=odd))
    tables_only = [line for line in text.splitlines() if line.startswith("|")]
    assert "`hype(noise=a\\|b)`" in text
    assert "expected \\<pad\\> \\| got \\*nothing\\* at all" in text
    for line, following in itertools.pairwise(tables_only):
        if set(following) <= set("|-: "):
            assert line.replace("\\|", "").count("|") == following.count("|")


def test_older_rows_of_a_run_are_left_out(tmp_path: Path):
    store = make_store(tmp_path, methods=FIVE[:2], tasks=["rte"])
    row = make_row("vanilla", "rte", 1)
    row.update(id="00", finished="2025-01-01T00:00:00+00:00", metrics={"validation": {"accuracy": 0.01}})
    put(store, row)
    row = make_row(CONTROL, "rte", 1)
    row.update(id="01", metrics={"validation": {"accuracy": 0.99}})
    row["methods"][0]["version"] = 2
    put(store, row)
    data = read_data(store)
    (section,) = data.sections
    assert section.score("vanilla", section.columns[0], 1) > 50
    assert section.scores(CONTROL, section.columns[0]) == pytest.approx([99.0, math.nan, math.nan], nan_ok=True)
    assert "4 older rows of the same runs left out" in render(data)


def test_rows_from_several_versions_are_named(tmp_path: Path):
    def update(row: dict[str, Any]) -> None:
        if row["seed"] == 2:
            row["environment"]["torch"] = "2.10.0"

    text = text_of(make_store(tmp_path, change=update))
    assert "Rows differ in their environment, torch: 2.10.0, 2.9.0." in text


def test_the_study_gives_the_order(tmp_path: Path):
    store = make_store(tmp_path)
    store.write_study({"methods": ["rdrop", "hype"], "tasks": ["rte", "cola"], "models": ["bert-base-cased"]})
    section = only_section(store)
    assert section.tasks == ("rte", "cola")
    assert section.methods == ("vanilla", CONTROL, "rdrop", "hype", "hype+rdrop")


# --- formats ----------------------------------------------------------------------------------------------------------


def test_csv_files_hold_the_tables(tmp_path: Path):
    store = make_store(tmp_path / "run")
    folder = tmp_path / "out"
    folder.mkdir()
    paths = Csv().write(store, folder)
    files = {path.name: pd.read_csv(path) for path in paths if path.suffix == ".csv"}
    assert set(files) == {
        f"{n}.csv" for n in ("comparison", "differences", "attribution", "cost", "synergy", "collapsed", "rows")
    }
    assert len(files["rows.csv"]) == 30
    rows = pd.read_parquet(folder / "rows.parquet")
    assert list(rows.columns) == list(files["rows.csv"].columns)
    assert list(rows["metrics.validation.accuracy"]) == pytest.approx(
        list(files["rows.csv"]["metrics.validation.accuracy"]), nan_ok=True
    )
    for name in ("comparison.csv", "differences.csv", "synergy.csv"):
        for cells, n in zip(files[name]["cells"], files[name]["n"], strict=True):
            found = [store.row(cell) for cell in cells.split()]
            assert len(found) == len(set(cells.split())) >= n
            assert all(row is not None and row["status"] == "done" for row in found)
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
    text = summary_table(make_store(tmp_path))
    assert "±" not in text
    assert "95 % t interval" in text
    assert text.count("n=3") == 15


def test_no_plus_minus_in_the_report(tmp_path: Path):
    assert "±" not in text_of(make_store(tmp_path))


def test_reports_need_no_torch(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=FIVE[:2], tasks=["rte"], seeds=2)
    (tmp_path / "out").mkdir()
    code = f"""
import sys
from pathlib import Path
import matplotlib
before = matplotlib.rcParams.copy()  # reading it item by item would import pyplot
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown, summary_table
from finetune_bench.store import Store
store = Store({str(store.root)!r})
for report in (Markdown(), Csv()):
    report.write(store, Path({str(tmp_path / "out")!r}))
summary_table(store)
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
assert matplotlib.rcParams.copy() == before
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
