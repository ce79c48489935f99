"""Learning rates chosen on held-out data stay honest: after another command, a merge, a kill, and between blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune_bench import cli
from finetune_bench.report import Options
from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.submission import Submission
from finetune_bench.reports.terminal import summary
from finetune_bench.reports.topics.divergence import divergences
from finetune_bench.reports.topics.search import Search, all_sections, passed_over_of, searches, ties_of
from finetune_bench.reports.topics.search_warnings import edges_of_searches
from finetune_bench.store import analyses
from finetune_bench.store.merge import joined_settings, merge
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from tests.study.held_out_store import BOTH, HONEST, held_out_rows, only, write
from tests.synthetic_store import fail


def chosen(search: Search) -> dict[tuple[str, str], float]:
    return {(choice.column.task, choice.method): choice.honest[1] for choice in search.choices}


# --- budgets ----------------------------------------------------------------------------------------------------------

FEWER = "hype on rte: tuned among 1 learning rate, vanilla among 2, so they are not compared (no runs at 2e-05)."


def test_methods_tuned_among_different_rates_are_not_compared_and_every_output_says_so(
    tmp_path: Path, capsys: Any
) -> None:
    scores = {("rte", "vanilla"): {1e-5: 0.7, 2e-5: 0.6}, ("rte", "hype"): {1e-5: 0.6}}
    store = write(tmp_path, held_out_rows(scores))
    search = only(store)
    assert chosen(search) == {("rte", "vanilla"): 1e-5}
    assert search.refused == (FEWER,)
    page = render(load(store)).replace("`", "")
    assert page.count(FEWER) == 3  # before all tables, in short, and beside what was chosen
    assert page.index(FEWER) < page.index("## In short")
    assert FEWER in " ".join(summary(store).split())
    assert cli.main(["report", str(store.root), "--format", "html", "--json"]) == 0
    assert FEWER in json.loads(capsys.readouterr().out)["notes"]
    assert "so they are not compared (no runs at 2e-05)" in (store.root / "report" / "report.html").read_text("utf-8")


def test_as_many_other_rates_are_no_equal_budget(tmp_path: Path) -> None:
    scores = {("rte", "vanilla"): {1e-5: 0.7, 2e-5: 0.6}, ("rte", "hype"): {1e-5: 0.6, 4e-5: 0.9}}
    search = only(write(tmp_path, held_out_rows(scores)))
    assert search.refused == (
        "hype on rte: tuned among 2 learning rates, vanilla among 2, so they are not compared (no runs at 2e-05; no "
        "runs of vanilla at 4e-05).",
    )


def test_a_method_with_more_rates_than_the_baseline_is_not_compared(tmp_path: Path) -> None:
    scores = {("rte", "vanilla"): {1e-5: 0.7}, ("rte", "hype"): {1e-5: 0.6, 2e-5: 0.9}}
    search = only(write(tmp_path, held_out_rows(scores)))
    assert chosen(search) == {("rte", "vanilla"): 1e-5}
    assert "hype on rte: tuned among 2 learning rates, vanilla among 1" in search.refused[1]
    assert "vanilla on rte: only one setting ended well on every seed (learning rate 1e-05)" in search.refused[0]


def test_without_the_baseline_the_method_with_the_most_rates_is_the_measure(tmp_path: Path) -> None:
    scores = {("rte", "rdrop"): {1e-5: 0.7, 2e-5: 0.6}, ("rte", "hype"): {1e-5: 0.6}}
    search = only(write(tmp_path, held_out_rows(scores)))
    assert "hype on rte: tuned among 1 learning rate, rdrop among 2" in search.refused[0]


def test_another_baseline_is_the_measure_where_the_reader_asks_for_it(tmp_path: Path) -> None:
    scores = {**BOTH, ("rte", "rdrop"): {1e-5: 0.7}}
    store = write(tmp_path, held_out_rows(scores))
    search = only(store, Options(baseline="rdrop"))
    assert chosen(search) == {("rte", "rdrop"): 1e-5}
    assert search.section is not None and search.section.reference == "rdrop"
    assert len(search.refused) == 2


def test_blocks_with_other_methods_and_rates_for_each_task_refuse_nothing(tmp_path: Path) -> None:
    """A block without a method is no method without a setting, and a task with more rates is no other budget."""
    scores = {
        **BOTH,
        ("cola", "vanilla"): {1e-5: 0.5, 3e-5: 0.4, 4e-5: 0.3},
        ("cola", "rdrop"): {1e-5: 0.4, 3e-5: 0.6, 4e-5: 0.3},
    }
    store = write(tmp_path, held_out_rows(scores))
    search = only(store)
    assert search.refused == ()
    assert chosen(search) == {
        ("rte", "vanilla"): 1e-5,
        ("rte", "hype"): 2e-5,
        ("cola", "vanilla"): 1e-5,
        ("cola", "rdrop"): 3e-5,
    }
    assert {choice.column.task: choice.budget for choice in search.choices} == {"rte": 2, "cola": 3}
    assert "among 2 or 3 settings" in render(load(store))


# --- several commands and stores --------------------------------------------------------------------------------------


def test_settings_of_two_commands_are_joined() -> None:
    former = {"hype": [["hype", 1e-5]], "vanilla": [["vanilla", 1e-5]]}
    assert joined_settings(former, {"hype": [["hype", 2e-5], ["hype", 1e-5]], "rdrop": [["rdrop", 2e-5]]}) == {
        "hype": [["hype", 1e-5], ["hype", 2e-5]],
        "vanilla": [["vanilla", 1e-5]],
        "rdrop": [["rdrop", 2e-5]],
    }
    assert former == {"hype": [["hype", 1e-5]], "vanilla": [["vanilla", 1e-5]]}


def test_merged_stores_are_chosen_among_all_of_their_rates(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    first = write(tmp_path / "first", [row for row in rows if row["recipe"]["lr"] == 1e-5])
    second = write(tmp_path / "second", [row for row in rows if row["recipe"]["lr"] == 2e-5])
    merged = Store(tmp_path / "merged")
    merge(merged.root, [first.root, second.root])
    assert merged.study()["searched"]["hype"] == [["hype", 1e-5], ["hype", 2e-5]]
    assert chosen(only(merged)) == {("rte", "vanilla"): 1e-5, ("rte", "hype"): 2e-5}


def test_merged_stores_of_other_rates_are_not_compared(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    few = write(tmp_path / "few", [row for row in rows if row["recipe"]["lr"] == 1e-5])
    more = write(tmp_path / "more", [row for row in rows if row["method"] == "vanilla"])  # 1e-05 in common
    merged = Store(tmp_path / "merged")
    merge(merged.root, [few.root, more.root])
    assert only(merged).refused == (FEWER,)


def test_rows_that_no_list_names_are_of_a_method_of_their_own(tmp_path: Path) -> None:
    """A damaged study file is replaced by the next command, without what others had asked for."""
    store = write(tmp_path, held_out_rows(BOTH))
    store.write_study({"searched": {"vanilla": [["vanilla", 1e-5]]}})
    assert chosen(only(store)) == {("rte", "vanilla"): 1e-5, ("rte", "hype"): 2e-5}
    store.write_study({})
    assert chosen(only(store)) == {("rte", "vanilla"): 1e-5, ("rte", "hype"): 2e-5}


def test_what_a_former_search_tried_is_no_setting_of_the_last_command(tmp_path: Path) -> None:
    """A search tried hype(eps=0.01) as a setting of hype, which the last command has as a method of its own."""
    label = "hype(eps=0.01)"
    store = write(tmp_path, held_out_rows({**BOTH, ("rte", label): {1e-5: 0.5, 2e-5: 0.6}}))
    store.write_study({**store.study(), "searched_before": {"hype": [["hype", 1e-5], [label, 2e-5]]}})
    search = only(store)
    assert (search.refused, chosen(search)["rte", label]) == ((), 2e-5)
    (refused,) = only(store, Options(all_cells=True)).refused
    assert refused.startswith("hype on rte: tuned among 3 settings, vanilla among 2")


def test_an_edited_plugin_is_not_chosen_among_rates_of_both_its_sources(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    for row in rows:
        if row["method"] == "hype":
            day = 1 if row["recipe"]["lr"] == 1e-5 else 2
            row |= {"sources": [f"hype {day}"], "finished": f"2026-01-0{day}T00:00:00+00:00"}
    search = only(write(tmp_path, rows))
    assert search.refused == (FEWER.replace("2e-05", "1e-05"),)  # what was run before the edit no longer counts


def test_a_search_is_of_one_version_of_a_method_whatever_its_parameters(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    for row in rows:
        if row["method"] == "hype" and row["recipe"]["lr"] == 2e-5:
            row["methods"] = [{**part, "version": 2} for part in row["methods"]]
            row["method"] = "hype(eps=0.01)"
    store = write(tmp_path, rows)
    store.write_study({**store.study(), "searched": {"hype": [["hype", 1e-5], ["hype(eps=0.01)", 2e-5]]}})
    (refused,) = only(store).refused
    assert "hype on rte: tuned among 1 setting, vanilla among 2" in refused


# --- seeds and runs that are missing ----------------------------------------------------------------------------------


def test_rates_without_all_seeds_are_no_part_of_the_choice_and_are_named(tmp_path: Path) -> None:
    three = {key: {**rates, 4e-5: 0.9} for key, rates in BOTH.items()}
    rows = [row for row in held_out_rows(three, (1, 2, 3, 4)) if row["recipe"]["lr"] != 4e-5 or row["seed"] < 3]
    store = write(tmp_path, rows)
    assert only(store).refused == (
        "vanilla and hype on rte: chosen among 2 of 3 settings: not every seed ended well at 4e-05.",
    )
    assert chosen(only(store)) == {("rte", "vanilla"): 1e-5, ("rte", "hype"): 2e-5}


def test_seeds_that_only_other_methods_have_are_named(tmp_path: Path) -> None:
    rows = [row for row in held_out_rows(BOTH) if row["method"] == "vanilla" or row["seed"] == 1]
    assert only(write(tmp_path, rows)).refused == (
        "hype on rte: no setting ended well on every seed, so nothing is chosen (no runs of seeds 2 and 3, which "
        "others have).",
    )


def test_sentences_of_several_models_say_of_which(tmp_path: Path) -> None:
    """One of two models lacks a rate of a method, and its best rates tie."""
    first = held_out_rows({("rte", "vanilla"): {1e-5: 0.6, 2e-5: 0.6}, ("rte", "hype"): {1e-5: 0.6}})
    second = held_out_rows(BOTH, model="mpnet", weights="f" * 16)
    store = write(tmp_path, [*first, *second])
    by_model = {search.where: search for search in searches(load(store))}
    assert set(by_model) == {"bert-base-cased: ", "mpnet: "}
    assert by_model["bert-base-cased: "].refused == (f"bert-base-cased: {FEWER}",)
    assert ties_of(by_model["bert-base-cased: "])[0].startswith("bert-base-cased: vanilla on rte: 2 of 2 settings")
    page = render(load(store))
    assert "## Search: settings chosen on held-out training data, mpnet" in page
    assert edges_of_searches([by_model["bert-base-cased: "]]) == []  # a tie of all rates tells nothing of lower ones


def test_a_run_that_was_killed_says_that_a_choice_is_among_fewer(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    store = write(tmp_path, [row for row in rows if row["recipe"]["lr"] == 1e-5], [row["id"] for row in rows])
    text = " ".join(summary(store).split())
    assert "6 of 12 runs that were asked for have no result yet, so a choice may be among fewer settings" in text
    assert (
        "vanilla and hype on rte: only one setting ended well on every seed (learning rate 1e-05), so nothing was "
        "chosen on held-out data." in text
    )


def test_a_run_that_was_stopped_chooses_by_the_seeds_that_are_finished(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    ended = [row for row in rows if row["seed"] != 3 and (row["seed"], row["method"]) != (2, "hype")]
    search = only(write(tmp_path / "stopped", ended, [row["id"] for row in rows]))
    assert search.refused == ("rte: chosen without seed 2, whose runs are not finished.",)
    first = only(write(tmp_path / "first", [row for row in rows if row["seed"] == 1]))
    assert [choice.honest for choice in search.choices] == [choice.honest for choice in first.choices]
    assert [choice.honest_score.n for choice in search.choices] == [1, 1]
    for row in ended:  # runs that failed are finished
        if row["seed"] == 1 and row["method"] == "hype":
            fail(row, "out of memory")
    search = only(write(tmp_path / "failed", ended, [row["id"] for row in rows]))
    assert [choice.method for choice in search.choices] == ["vanilla"]


def test_a_method_of_which_all_runs_failed_is_named_with_the_reason(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    for row in rows:
        if row["method"] == "hype":
            fail(row, "the loss is not finite at step 3")
    store = write(tmp_path, rows)
    assert only(store).refused == (
        "hype on rte: no setting ended well on every seed, so nothing is chosen (6 of 6 runs failed: the loss is not "
        "finite at step 3).",
    )


def test_where_nothing_is_chosen_there_is_no_empty_section(tmp_path: Path) -> None:
    """Each setting has a seed that failed: runs ended well, and "no run ended well" would be false."""
    rows = held_out_rows(BOTH)
    for row in rows:
        if row["seed"] == 2:
            fail(row, "out of memory")
    store = write(tmp_path, rows)
    search = only(store)
    assert (search.section, search.choices) == (None, ())
    assert all_sections(load(store)) == []
    for text in (render(load(store)), summary(store)):
        assert "No run ended well" not in text
        assert "(2 of 6 runs failed: out of memory)" in " ".join(text.split())
    assert cli.main(["report", str(store.root)]) == 0


def test_a_run_without_a_number_to_choose_by_did_not_end_well(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    for row in rows:
        if row["method"] == "hype" and row["recipe"]["lr"] == 2e-5 and row["seed"] == 1:
            row["metrics"][HELD_OUT]["accuracy"] = None
    assert "not every seed ended well at 2e-05" in only(write(tmp_path, rows)).refused[0]


# --- ties and edges ---------------------------------------------------------------------------------------------------

TIE = (
    "hype on rte: 2 of 3 settings have the best mean on held-out data (learning rates 1e-05 and 2e-05); of these the "
    "lowest learning rate counts."
)


@pytest.mark.parametrize("order", [(1e-5, 2e-5, 4e-5), (4e-5, 2e-5, 1e-5)])
def test_of_settings_that_tie_the_lowest_rate_counts_in_whatever_order_they_ran(
    tmp_path: Path, order: Sequence[float]
) -> None:
    levels = {1e-5: 0.8, 2e-5: 0.8, 4e-5: 0.6}
    scores = {
        ("rte", "vanilla"): {rate: 0.5 + rate for rate in order},
        ("rte", "hype"): {rate: levels[rate] for rate in order},
    }
    rows = held_out_rows(scores)
    for row in rows:  # the same three scores, of other seeds: their sums may differ in the last digit
        if row["method"] == "hype" and row["recipe"]["lr"] == 2e-5:
            shift = 0.01 * ((row["seed"] % 3) - 1)
            row["metrics"][HELD_OUT]["accuracy"] = 0.8 + shift
    store = write(tmp_path, rows)
    search = only(store)
    assert chosen(search)["rte", "hype"] == 1e-5
    assert ties_of(search) == [TIE]
    assert TIE in render(load(store))
    assert TIE in " ".join(summary(store).split())
    (hype,) = [choice for choice in search.choices if choice.method == "hype"]
    assert hype.optimistic == hype.honest  # as good as any on the reported scores: no optimism to tell of


PASSED_OVER = (
    "hype on rte: the best mean on held-out data is that of learning rate 4e-05, but half of its runs or more learned "
    "nothing there: their loss hardly moved, or one answer to everything scores as well. Chosen is the best of the "
    "others, 2e-05."
)


@pytest.mark.parametrize("sign", ["one answer", "loss"])
def test_a_setting_that_learned_nothing_is_passed_over_however_good_one_answer_is(tmp_path: Path, sign: str) -> None:
    """By F1 a run that collapsed can have the best held-out mean, as on MRPC."""
    levels = {1e-5: 0.6, 2e-5: 0.7, 4e-5: 0.8}
    rows = held_out_rows({("rte", name): levels for name in ("vanilla", "hype")}, seeds=(1, 2, 3, 4))
    for row in rows:
        row["majority"][HELD_OUT] = {"accuracy": 0.5}
        if row["method"] == "hype" and row["recipe"]["lr"] == 4e-5 and row["seed"] <= 2:
            if sign == "loss":
                row["training"] = row["training"] | {"hardly_moved": True}
            else:
                row["majority"] = {HELD_OUT: dict(row["metrics"][HELD_OUT])}
    store = write(tmp_path, rows)
    search = only(store)
    assert chosen(search) == {("rte", "vanilla"): 4e-5, ("rte", "hype"): 2e-5}
    assert passed_over_of(search) == [PASSED_OVER]
    assert PASSED_OVER in render(load(store))
    assert PASSED_OVER in " ".join(summary(store).split())
    (hype,) = [choice for choice in search.choices if choice.method == "hype"]
    assert hype.optimistic == ("hype", 4e-5)  # as papers choose


def test_where_no_setting_learned_anything_the_best_mean_counts(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    for row in rows:
        row["training"] = row["training"] | {"hardly_moved": True}
    search = only(write(tmp_path, rows))
    assert chosen(search) == {("rte", method): rate for method, rate in HONEST.items()}
    assert passed_over_of(search) == []


def test_the_edge_is_that_of_the_rates_that_were_chosen_among(tmp_path: Path) -> None:
    """One block tries higher rates for a task: the other's best rate lies at its own edge, the lowest of all."""
    scores = {
        ("rte", "vanilla"): {1e-5: 0.6, 2e-5: 0.7},
        ("rte", "hype"): {1e-5: 0.6, 2e-5: 0.7},
        ("cola", "vanilla"): {1e-4: 0.6, 2e-4: 0.7},
        ("cola", "hype"): {1e-4: 0.6, 2e-4: 0.7, 4e-4: 0.9},  # is not compared: its rates are no part of any choice
    }
    (text,) = edges_of_searches([only(write(tmp_path, held_out_rows(scores)))])
    assert text.startswith("The highest learning rate tried, 2e-05 or 0.0002 by task, was chosen 3 of 3 times")


def test_a_method_at_an_edge_where_vanilla_is_not_is_named(tmp_path: Path) -> None:
    """What it lost may be the rates that were tried and not the method."""
    scores = {
        ("rte", "vanilla"): {1e-5: 0.6, 2e-5: 0.7, 4e-5: 0.6},
        ("rte", "rdrop"): {1e-5: 0.6, 2e-5: 0.7, 4e-5: 0.6},
        ("rte", "lora"): {1e-5: 0.1, 2e-5: 0.2, 4e-5: 0.3},
    }
    store = write(tmp_path / "one", held_out_rows(scores))
    text = (
        "The highest learning rate tried, 4e-05, was chosen for lora, and not for vanilla: a higher one may be better "
        "still there, and what tells them apart may be the rates that were tried."
    )
    assert edges_of_searches([only(store)]) == [text]
    assert text in render(load(store))
    assert text in " ".join(summary(store).split())
    # Of several tasks each is named; where vanilla lies at the edge, too, methods of that task are not.
    scores |= {
        ("cola", "vanilla"): {1e-5: 0.1, 2e-5: 0.2, 4e-5: 0.3},
        ("cola", "hype"): {1e-5: 0.1, 2e-5: 0.2, 4e-5: 0.3},
    }
    scores |= {("cola", "rdrop"): {1e-5: 0.4, 2e-5: 0.2, 4e-5: 0.3}, ("rte", "hype"): {1e-5: 0.4, 2e-5: 0.5, 4e-5: 0.3}}
    several = edges_of_searches([only(write(tmp_path / "two", held_out_rows(scores)))])
    assert [text.split(":")[0] for text in several] == [
        "The lowest learning rate tried, 1e-05, was chosen for rdrop on cola, and not for vanilla",
        "The highest learning rate tried, 4e-05, was chosen for lora on rte, and not for vanilla",
    ]


def test_rates_in_the_middle_are_no_edge(tmp_path: Path) -> None:
    scores = {("rte", name): {1e-5: 0.6, 2e-5: 0.7, 4e-5: 0.6} for name in ("vanilla", "hype")}
    assert edges_of_searches([only(write(tmp_path, held_out_rows(scores)))]) == []


# --- every output -----------------------------------------------------------------------------------------------------


def test_every_output_holds_what_was_chosen(tmp_path: Path, capsys: Any) -> None:
    """The runs are in no section of a grid; a table, a file or a key without them would look as if nothing had run."""
    store = write(tmp_path / "run", held_out_rows(BOTH))
    assert cli.main(["report", str(store.root), "--format", "csv", "--json"]) == 0
    (section,) = json.loads(capsys.readouterr().out)["sections"]
    assert section["title"] == "settings chosen on held-out training data"
    assert [line["value"] for line in section["differences"]] == pytest.approx([10.0])
    scores = pd.read_csv(store.root / "report" / "comparison.csv")
    assert dict(zip(scores["method"], scores["value"], strict=True)) == pytest.approx({"vanilla": 60.0, "hype": 70.0})
    page = render(load(store))
    assert "| rte | validation | accuracy | 277 |" in page
    assert "No run left a score" not in page
    assert "this report selects no checkpoint; it chooses settings as “Search” says" in page
    assert cli.main(["power", str(store.root), "--difference", "1"]) == 0
    assert "hype" in capsys.readouterr().out


def test_a_submission_is_of_the_chosen_setting_and_its_best_seed_on_held_out_data(tmp_path: Path) -> None:
    rows = held_out_rows(BOTH)
    store = write(tmp_path / "run", rows)
    for row in rows:
        record: analyses.Result = {
            "schema": 1, "id": row["id"], "analysis": "submission", "version": 1, "parameters": {}, "reason": None,
            "title": "", "about": "", "numbers": {}, "layers": {}, "better": {}, "notes": [],
            "facts": {"labels": ["entailment", "not_entailment"]}, "seconds": 0.0,
        }  # fmt: skip
        analyses.write(store.folder(row["id"]), record, {"RTE": np.zeros((3000, 2), dtype=np.float32)})
    (tmp_path / "out").mkdir()
    summary_file, *zips = Submission().write(store, tmp_path / "out")
    assert [path.name for path in zips] == ["glue-vanilla.zip", "glue-hype.zip"]
    text = summary_file.read_text("utf-8")
    best = {
        row["method"]: row["id"] for row in rows if row["seed"] == 3 and row["recipe"]["lr"] == HONEST[row["method"]]
    }
    for cell_id in best.values():
        assert cell_id in text
    assert "the best of 3 on held-out examples" in text


def test_a_method_does_not_seem_to_act_by_another_learning_rate(tmp_path: Path) -> None:
    """R-Drop keeps dropout, so that its runs are held against vanilla's step by step; on one task at another rate."""
    low, high = {1e-5: 0.7, 2e-5: 0.6}, {1e-5: 0.6, 2e-5: 0.7}
    scores = {(task, "vanilla"): low for task in ("rte", "cola")} | {("rte", "rdrop"): high, ("cola", "rdrop"): low}
    data = load(write(tmp_path, held_out_rows(scores)))
    (section,) = all_sections(data)
    assert {divergence.task for divergence in divergences(data, section)} == {"cola"}
