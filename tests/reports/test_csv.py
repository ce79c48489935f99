"""No cell of a CSV file is a formula, and every text comes back."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from finetune_bench.reports.csv import Csv, as_texts
from tests.synthetic_store import fail, make_store

FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "'=1", "''", "--", "-−1"]
PLAIN = ["text", "a=b", " =1", "", "-1.5", "+3", "-inf", "1e-5", "−1.5", 1, -1.5, None, True]


@pytest.mark.parametrize("value", FORMULAS)
def test_a_formula_is_marked_and_comes_back(value: str) -> None:
    marked = as_texts(pd.DataFrame({value: [value]}))
    assert marked.columns[0] == marked.iloc[0, 0] == f"'{value}"


@pytest.mark.parametrize("value", PLAIN)
def test_numbers_and_other_texts_stay(value: object) -> None:
    frame = pd.DataFrame({"a": [value]}, dtype=object)
    assert as_texts(frame).iloc[0, 0] == value or value is None


def test_the_files_of_a_report_hold_no_formula(tmp_path: Path) -> None:
    def hostile(row: dict[str, Any]) -> None:
        row["model"] = "=model"
        row["notes"] = ["@note"]
        if row["method"] == "hype":
            fail(row, '=HYPERLINK("http://example.org")')

    store = make_store(tmp_path / "run", methods=("vanilla", "hype", "rdrop"), tasks=("rte",), change=hostile)
    paths = Csv().write(store, tmp_path)
    files = [path.read_text("utf-8").splitlines() for path in paths if path.suffix == ".csv"]
    cells = [cell for lines in files for line in csv.reader(lines) for cell in line]
    assert "'=model" in cells and '\'=HYPERLINK("http://example.org")' in cells
    for cell in cells:
        assert not cell.startswith(("=", "+", "-", "@", "\t")) or isinstance(float(cell), float)
    rows = pd.read_parquet(tmp_path / "rows.parquet")
    assert '=HYPERLINK("http://example.org")' in set(rows["reason"])
