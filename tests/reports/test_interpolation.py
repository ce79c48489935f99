"""The line between pre-trained and fine-tuned weights, as a report tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_bench.reports.csv import Csv
from finetune_bench.reports.markdown import Markdown
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.interpolation import draw_interpolation, interpolation_points
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put, put_analysis

ALPHAS = (0.0, 0.4, 0.8)


def row_of(alpha: float, seed: int) -> dict[str, Any]:
    row = make_row("vanilla", "rte", seed)
    if alpha < 1:
        entry = {"name": "wise_ft", "version": 1, "parameters": {"dropout": "keep", "alpha": alpha, "head": "final"}}
        cell = f"{seed}{int(10 * alpha)}".ljust(16, "0")
        row |= {"method": f"wise_ft(alpha={alpha:g})", "methods": [entry], "id": cell}
    row["metrics"]["validation"]["accuracy"] = 0.5 + 0.3 * alpha + 0.01 * seed
    return row


def store_of(folder: Path, alphas: tuple[float, ...]) -> Store:
    store = Store(folder / "store")
    for seed in (1, 2, 3):
        for alpha in alphas:
            put(store, row := row_of(alpha, seed))
            numbers = {"validation: NLL": 1 - alpha / 2, "validation: ECE": 0.1}
            put_analysis(store, row, "calibration", numbers)
    return store


def test_score_and_likelihood_stand_against_alpha(tmp_path: Path) -> None:
    store = store_of(tmp_path, (*ALPHAS, 1.0))
    data = load(store)
    (section,) = data.sections
    points = interpolation_points(data, section)
    assert {point.line for point in points} == {"vanilla, head final"}
    scores = {point.alpha: point.value for point in points if point.quantity == "score"}
    assert scores == pytest.approx({alpha: 52 + 30 * alpha for alpha in (*ALPHAS, 1.0)})
    assert {point.alpha: point.value for point in points if point.quantity == "NLL"} == pytest.approx(
        {alpha: 1 - alpha / 2 for alpha in (*ALPHAS, 1.0)}
    )
    assert all(point.n == 3 and point.low < point.value < point.high for point in points if point.quantity == "score")
    assert draw_interpolation(data, section) is not None
    (report, *_) = Markdown().write(store, tmp_path)
    text = report.read_text("utf-8")
    assert "## Between pre-trained and fine-tuned" in text
    assert "| vanilla, head final | 0.4 | 64.0 | 0.800 |" in " ".join(text.split()).replace("| ", "| ")
    assert "interpolation.csv" in {path.name for path in Csv().write(store, tmp_path)}


def test_one_alpha_is_no_line(tmp_path: Path) -> None:
    data = load(store_of(tmp_path, (0.4, 1.0)))
    assert interpolation_points(data, data.sections[0]) == []
