"""Reports of made-up stores that are not whole: refusals, holes, collapsed runs, odd labels, several settings."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from finetune_bench import stats
from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown, inline, render
from finetune_bench.reports.rows.sections import read_data
from finetune_bench.reports.rows.twins import twins
from finetune_bench.reports.terminal import score_table, summary
from finetune_bench.reports.topics.collapse import collapse_effects
from finetune_bench.reports.topics.contrasts import PAIRED, TWO_WAY, complete_block
from finetune_bench.reports.topics.cost import costs
from finetune_bench.reports.topics.differences import differences
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.verdict import verdict
from finetune_bench.store.store import Store
from tests.reports.reading import is_run, of, only_section, text_of
from tests.synthetic_store import CONTROL, FIVE, fail, make_row, make_store, make_trace, put


def score_tables(store: Store) -> str:
    return "\n".join(map(score_table, read_data(store).sections))


def test_rows_with_other_hashes_are_refused_as_pairs(tmp_path: Path):
    def shuffle(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "rte", 2):
            row["hashes"]["order"] = "another"
        if is_run(row, "rdrop", "rte"):
            row["hashes"]["init"] = None

    store = make_store(tmp_path, change=shuffle)
    section = only_section(store)
    records = differences(section, "vanilla")
    hype, rdrop = of(records, "hype", "rte"), of(records, "rdrop", "rte")
    assert (hype.estimate.n, hype.refused, hype.interval) == (2, 1, PAIRED)
    column = hype.column
    expected = (section.scores("hype", column) - section.scores("vanilla", column))[[0, 2]]
    assert hype.estimate == stats.t_interval(expected)
    assert (rdrop.estimate.n, rdrop.refused) == (0, 3)
    assert of(records, "rdrop", "").estimate.n == 0
    assert of(records, CONTROL, "rte").interval == TWO_WAY
    text = text_of(store)
    assert "hype on rte: 1 seed refused as no pair of vanilla" in text
    assert "rdrop on rte: 3 seeds refused as no pair of vanilla" in text
    assert next(record for record in costs(section) if record.method == "rdrop").time.n == 3


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
    by_cell = {(record.method, record.column.task): record for record in scores(section)}
    assert (by_cell["rdrop", "rte"].estimate.n, by_cell["rdrop", "rte"].failed) == (2, 1)
    assert by_cell["hype", ""].missing == ("cola",)
    assert by_cell["hype", ""].estimate.n == 0
    records = differences(section, "vanilla")
    assert of(records, "rdrop", "rte").interval == PAIRED
    assert of(records, "hype+rdrop", "rte").interval == TWO_WAY
    text = text_of(store)
    assert "| 25 done, 1 failed, 3 skipped, 1 interrupted |" in text
    assert "1 run: diverged at step 12: the training loss was not finite — rdrop on rte (seed 2)" in text
    assert "3 runs: hype: no layers \\| found — hype on cola (seeds 1, 2 and 3)" in text
    assert "—, 3 skipped" in text
    assert "hype has no mean over tasks: no score on cola." in text
    assert "n=2, 1 failed" in score_tables(store)


def test_a_run_that_was_never_made_is_no_score(tmp_path: Path):
    store = make_store(tmp_path, change=lambda row: not is_run(row, "hype", "cola"))
    assert "—, not run" in score_tables(store)


@pytest.mark.parametrize("lost", [None, math.nan, "absent"])
def test_a_done_row_without_a_score_is_a_hole(tmp_path: Path, lost: object):
    def lose(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "rte", 1):
            row["metrics"] = {"validation": {} if lost == "absent" else {"accuracy": lost}}

    section = only_section(make_store(tmp_path, change=lose))
    (record,) = [record for record in scores(section) if (record.method, record.column.task) == ("hype", "rte")]
    assert (record.done, record.estimate.n, record.unscored) == (3, 2, 1)
    assert "n=2, 1 without a score" in score_tables(Store(tmp_path))


def test_collapsed_runs_are_shown_with_and_without(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        if is_run(row, "hype", "cola", 1):
            row.update(collapsed="predicts one class only", metrics={"validation": {"matthews": 0.0}})
            row["training"]["hardly_moved"] = True

    store = make_store(tmp_path, change=collapse)
    section = only_section(store)
    (record,) = collapse_effects(section)
    assert (record.method, record.collapsed, record.score.n, record.score_without.n) == ("hype", 1, 3, 2)
    assert record.difference.value < -10 < record.difference_without.value
    column = record.column
    residuals = complete_block(section, column, "vanilla")
    assert residuals is not None
    assert "hype" not in residuals.methods  # so its collapse doesn't widen the others' intervals
    assert of(differences(section, "vanilla"), "rdrop", "cola").interval == TWO_WAY
    text = text_of(store)
    assert "1 collapsed" in text
    assert "`hype`: 1 of 6 runs collapsed, 17 % [0, 64] (Clopper–Pearson, n=6" in text
    assert "Collapsed: predicts one class only — hype on cola (seed 1)" in text
    assert "The training loss hardly moved: hype on cola (seed 1)." in text


@pytest.mark.slow
def test_when_every_run_is_the_same_nothing_is_claimed(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        row.update(collapsed="predicts one class only", metrics={"validation": {"accuracy": 0.527}})

    store = make_store(tmp_path / "run", methods=FIVE[:3], tasks=["rte"], seeds=2, change=collapse)
    (tmp_path / "out").mkdir()
    Markdown().write(store, tmp_path / "out")
    assert "52.7 n=2, 2 collapsed" in score_tables(store)
    said = " ".join(verdict(only_section(store)))
    assert "Clearly" not in said
    assert "6 of 6 runs collapsed: where most runs don't train" in said


def test_a_collapsed_baseline_is_shown_for_every_method(tmp_path: Path):
    def collapse(row: dict[str, Any]) -> None:
        if is_run(row, "vanilla", "cola", 1):
            row.update(collapsed="predicts one class only", metrics={"validation": {"matthews": 0.0}})

    section = only_section(make_store(tmp_path, change=collapse))
    assert {record.method for record in collapse_effects(section)} == set(FIVE)
    assert of(differences(section, "vanilla"), "rdrop", "cola").interval == PAIRED


def test_no_effect_is_found_against_vanilla_and_parts(tmp_path: Path):
    store = make_store(tmp_path, methods=FIVE[:4], tasks=["rte"], seeds=2)
    same_as = {"hype": CONTROL, "hype+rdrop": "rdrop"}
    for seed in (1, 2):
        for method, twin in same_as.items():
            put(store, make_row(method, "rte", seed), trace=make_trace(make_row(twin, "rte", seed)))
    data = read_data(store)
    records = twins(data, data.sections[0])
    assert {(record.method, record.twin, record.seed) for record in records} == {
        (m, t, s) for m, t in same_as.items() for s in (1, 2)
    }
    text = render(data)
    assert (
        f"No effect: hype equals {CONTROL} at every recorded step, in loss and weights, on rte (seeds 1 and 2)." in text
    )


@pytest.mark.slow
def test_one_seed_has_no_interval_and_says_so(tmp_path: Path):
    store = make_store(tmp_path / "run", seeds=1)
    text = text_of(store)
    assert "Descriptive only: one seed, so there is no interval" in text
    assert "n=1" in text
    assert not any(record.estimate.separated for record in differences(only_section(store), "vanilla"))
    assert "[" not in summary(store)
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


@pytest.mark.slow
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
    assert ("No run ended well" if rows == "failed" else "Nothing has been run yet.") in text
    assert {path.name for path in Csv().write(store, folder)} >= {"rows.csv", "comparison.csv", "synergy.csv"}
    assert ("No run ended well" if rows == "failed" else "Nothing has been run yet.") in summary(store)


@pytest.mark.slow
def test_learning_rates_and_models_are_sections(tmp_path: Path):
    store = make_store(tmp_path / "run", methods=FIVE[:2], tasks=["rte"], seeds=2)
    for number, (model, lr) in enumerate([("bert-base-cased", 4e-5), ("roberta-base", 2e-5)]):
        for method in FIVE[:2]:
            for seed in (1, 2):
                row = make_row(method, "rte", seed)
                row.update(model=model, id=f"{number}{row['id'][1:]}")
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
    assert score_tables(store).count("vanilla(dropout=hidden_off)") == 3


def test_subsets_are_named(tmp_path: Path):
    text = text_of(make_store(tmp_path, change=lambda row: row.update(subset=["validation"], notes=["Labels moved."])))
    assert "rte: the validation split is a subset" in text
    assert text.count("rte: Labels moved.") == 1
    assert "| 277 | 50.0 |" in text


def test_markup_in_labels_and_reasons_is_shown_as_it_is(tmp_path: Path):
    assert inline("a | b *c* _d_ e_f <g>\n`h`") == "a \\| b \\*c\\* \\_d\\_ e_f \\<g\\> \\`h\\`"

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
    row.update(id="0" * 16, finished="2025-01-01T00:00:00+00:00", metrics={"validation": {"accuracy": 0.01}})
    put(store, row)
    row = make_row(CONTROL, "rte", 1)
    row.update(id="1" * 16, metrics={"validation": {"accuracy": 0.99}})
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
