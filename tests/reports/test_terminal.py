"""What ends a run on the terminal: the answer, differences within 100 columns, and the logs of what failed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_bench.reports.terminal import WIDTH, summary
from tests.synthetic_store import FIVE, TASKS, fail, make_store

LONG = "/data/of/somebody/of/this/year/reviews.csv(text=body,label=stars,validation=/data/of/somebody/dev.csv)"
TEN = (*FIVE, "mixout", "r3f", "ema", "vanilla(dropout=hidden_off)", "child_tuning_f+hype+rdrop+mixout+r3f+ema")


@pytest.mark.parametrize("seeds", [1, 2, 6])
def test_ten_methods_fit_a_hundred_columns(tmp_path: Path, seeds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, LONG, TASKS["cola"])

    def change(row: dict[str, Any]) -> None:
        if row["method"] == "hype" and row["seed"] == 1:
            fail(row, "out of memory " * 50)

    text = summary(make_store(tmp_path, methods=TEN, tasks=["rte", LONG], seeds=seeds, change=change))
    assert max(map(len, text.splitlines())) <= WIDTH
    lines = text.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("method"))
    assert lines[header].split() == ["method", "difference", "verdict", "time", "memory", "runs"]
    methods = len({*TEN} - {"vanilla"})
    assert all("×" in line or "—" in line for line in lines[header + 2 : header + 2 + methods])
    assert any(line.startswith("reviews: /data/of/somebody") for line in lines)
    assert LONG not in text


def test_a_failed_run_names_its_log(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["method"] == "hype":
            fail(row, "diverged at step 3")

    store = make_store(tmp_path, methods=FIVE[:3], tasks=["rte"], seeds=8, change=change)
    failed = [row["id"] for row in store.rows() if row["status"] == "failed"]
    for cell_id in failed:
        (store.folder(cell_id) / "log.txt").write_text("a traceback")
    text = summary(store)
    assert text.count("failed: hype · rte · seed") == 5
    assert f"        {store.folder(failed[0])}/log.txt" in text
    assert "3 more failed; the report has all of them." in text


def test_without_a_baseline_the_scores_are_shown(tmp_path: Path) -> None:
    text = summary(make_store(tmp_path, methods=["hype", "rdrop"], tasks=["rte"]))
    assert "No difference can be given" in text
    assert "rte accuracy" in text and text.count("n=3") == 2
