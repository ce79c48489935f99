"""A preset's page, and own pairs on AdvGLUE: what was published stands beside what a run measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_bench.papers.presets import Printed, load_preset
from finetune_bench.papers.published import load_paper
from finetune_bench.report import Options
from finetune_bench.reports.document import Table
from finetune_bench.reports.markdown import as_markdown
from finetune_bench.reports.published.adversarial import own_pair_blocks, own_pairs
from finetune_bench.reports.published.beside import beside_blocks
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.store.store import Store
from tests.reports.test_published import as_published, make_store, verify
from tests.synthetic_store import put_analysis

HYPE = load_paper("hype")


def data_of(store: Store) -> Data:
    return load(store, Options(all_cells=True))


def analysed(
    store: Store, name: str, numbers: Mapping[str, float], layers: Mapping[str, list[float]] | None = None
) -> None:
    """Write the same result of an analysis beside every row of a store; rows of HyPe have one more hundredth."""
    for row in data_of(store).rows:
        better = 0.01 * row["seed"] if row["method"] != "vanilla" else 0.0
        put_analysis(store, row, name, {key: value + better for key, value in numbers.items()}, layers)


def lines_of(blocks: list[Any], name: str) -> list[list[str]]:
    (found,) = [block for block in blocks if isinstance(block, Table) and block.name == name]
    return [[entry.text for entry in line] for line in found.rows]


def test_the_papers_table_stands_beside_the_runs(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=["rte", "mrpc"], seeds=3, model="minilm")
    lines = lines_of(beside_blocks(load_preset("hype-table1"), data_of(store)), "beside")
    of_rte = {line[0]: line for line in lines if line[1] == "rte"}
    assert len(of_rte["Vanilla"]) == 2 + 4 + 1  # four checkpoints of the paper, one of ours
    assert of_rte["Vanilla"][2] == "72.24 ± 2.18"
    assert of_rte["HyPe-N"][2] == "74.37 ± 1.64 (+2.13)"
    assert of_rte["HyPe-N"][-1].endswith("n = 3")
    assert "(+2.1" in of_rte["HyPe-N"][-1]
    assert of_rte["HyPe-U"][-1] == "—"
    assert {line[-1] for line in lines if line[1] in ("stsb", "cola")} == {"—"}
    assert not [line for line in lines if line[1].startswith("average")]


def test_numbers_of_transfer_stand_in_their_table(tmp_path: Path) -> None:
    store = make_store(tmp_path, lambda *what: 80.0, tasks=["mnli", "rte"], seeds=2, model="minilm")
    analysed(store, "transfer", {"adv_mnli: accuracy": 0.4, "adv_rte: accuracy": 0.5, "adv_rte: majority": 0.9})
    lines = lines_of(beside_blocks(load_preset("hype-table6"), data_of(store)), "beside")
    here = {(line[0], line[1]): line[-1] for line in lines}
    assert here["Vanilla", "adv_rte"].startswith("50.00")
    assert here["HyPe-N", "adv_mnli"].startswith("41.50")
    assert "(+1.50)" in here["HyPe-N", "adv_mnli"]
    assert here["HyPe-N", "adv_qqp"] == "—"


def test_a_set_of_another_task_belongs_to_what_was_trained_on(tmp_path: Path) -> None:
    store = make_store(tmp_path, lambda *what: 60.0, tasks=["mnli"], seeds=2, model="minilm")
    analysed(store, "transfer", {"sick: accuracy": 0.7, "snli: accuracy": 0.3})
    here = {
        tuple(line[:2]): line[-1]
        for line in lines_of(beside_blocks(load_preset("hype-table7"), data_of(store)), "beside")
    }
    assert here["Vanilla", "sick after mnli, 5,000 examples"].startswith("70.00")
    assert here["Vanilla", "snli after mnli, 5,000 examples"].startswith("30.00")
    assert here["Vanilla", "sick after snli, 5,000 examples"] == "—"


def test_contested_numbers_stand_beside_the_best_setting(tmp_path: Path) -> None:
    store = make_store(
        tmp_path,
        lambda method, *_: 50.0 + (method != "vanilla"),
        methods=["vanilla", "rdrop(alpha=0.25)"],
        tasks=["rte"],
    )
    preset = load_preset("rdrop-paper")
    assert Printed("a public report", "rdrop", "rte", "accuracy", 66.4) in preset.published
    lines = lines_of(beside_blocks(preset, data_of(store)), "beside")
    assert [line[-1].partition(" ±")[0] for line in lines if line[2] == "rte"] == ["51.00", "51.00"]
    assert {line[-1] for line in lines if line[2] != "rte"} == {"—"}


def test_a_picture_without_numbers_has_ours_by_layer(tmp_path: Path) -> None:
    store = make_store(tmp_path, lambda *what: 60.0, tasks=["rte"], seeds=2, model="minilm")
    analysed(store, "similarity", {}, {"within texts": [0.1, 0.2], "within texts, before training": [0.1, 0.3]})
    blocks = beside_blocks(load_preset("hype-figure4"), data_of(store))
    assert "mean cosine of the tokens" in as_markdown(blocks)
    lines = lines_of(blocks, "beside-similarity")
    assert [line[-2:] for line in lines] == [["0.100", "0.200"], ["0.100", "0.200"], ["0.100", "0.300"]]
    assert lines[-1][2] == "before training"


def test_own_pairs_on_advglue_are_judged_on_the_development_set(tmp_path: Path) -> None:
    """The paper's rows are of two sets; ours are held against each other, seed by seed, and against nothing printed."""
    store = make_store(tmp_path, lambda *what: 80.0, tasks=["mnli", "rte"], seeds=5, model="minilm")
    analysed(store, "transfer", {"adv_mnli: accuracy": 0.4, "adv_rte: accuracy": 0.5})
    pairs = own_pairs(HYPE, data_of(store))
    assert [(pair.score.method, pair.score.task) for pair in pairs] == [("HyPe-N", "adv_mnli"), ("HyPe-N", "adv_rte")]
    assert all(round(pair.gain.value, 6) == 3.0 and pair.gain.n == 5 for pair in pairs)
    assert {pair.sign for pair in pairs} == {"supported"}
    lines = lines_of(own_pair_blocks(pairs), "adversarial")
    assert [line[0] for line in lines] == ["HyPe-N on adv_mnli", "HyPe-N on adv_rte", "mean of these sets"]
    assert lines[0][2] == "32.51"
    assert "adversarial" in {block.name for block in verify(store).blocks if isinstance(block, Table)}


def test_where_there_is_no_pair_the_way_to_one_is_told(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=["rte"])
    assert own_pairs(HYPE, data_of(store)) == []
    assert "run --analyses transfer" in as_markdown(verify(store).blocks)


def test_runs_that_learned_nothing_are_counted_beside_their_mean(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=["rte"], seeds=2, collapsed="one class for all 20 examples")
    lines = lines_of(beside_blocks(load_preset("hype-table1"), data_of(store)), "beside")
    assert [line[-1].partition("n = ")[2] for line in lines if line[:2] == ["Vanilla", "rte"]] == ["2, 2 collapsed"]


def test_a_run_without_any_result_says_so(tmp_path: Path) -> None:
    store = make_store(tmp_path, as_published, tasks=["rte"], status="failed")
    blocks = beside_blocks(dataclasses.replace(load_preset("hype-table1")), data_of(store))
    assert "No run has ended well" in as_markdown(blocks)
