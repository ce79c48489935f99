"""NLL, ECE and Brier beside the scores, where a method changes the loss."""

from __future__ import annotations

from pathlib import Path

from finetune_bench.reports.document import Table
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.likelihood import likelihood_blocks
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put, put_analysis


def store_of(folder: Path, *, marked: bool) -> Store:
    store = Store(folder)
    for seed in (1, 2):
        for method in ("vanilla", "hype"):
            row = make_row(method, "rte", seed)
            if method == "hype" and marked:
                row["methods"][0]["changes_losses"] = True
            put(store, row)
            numbers = {"validation: NLL": 0.4 + seed / 10, "validation: Brier": 0.2, "validation: ECE": 0.05}
            put_analysis(store, row, "calibration", numbers)
    return store


def test_likelihoods_stand_beside_scores_where_a_method_changes_the_loss(tmp_path: Path) -> None:
    data = load(store_of(tmp_path, marked=True))
    table, *_ = likelihood_blocks(data, data.sections[0])
    assert isinstance(table, Table)
    assert table.header == ("method", "rte: NLL ↓", "rte: ECE ↓", "rte: Brier ↓")
    assert [[entry.text for entry in row[1:]] for row in table.rows] == [["0.550 n=2", "0.050 n=2", "0.200 n=2"]] * 2


def test_without_such_a_method_there_is_no_table(tmp_path: Path) -> None:
    data = load(store_of(tmp_path, marked=False))
    assert likelihood_blocks(data, data.sections[0]) == []
