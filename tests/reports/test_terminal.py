"""What ends a run on the terminal: the answer, differences within 100 columns, and the logs of what failed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_bench.cli import console
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


COLUMNS = ["method", "difference", "verdict", "time", "memory", "runs"]
ENDING = "fisher=example)+layerwise_lr_decay(decay=0.9)"
LONG_NAMES = tuple(f"child_tuning_d(reserve_p=0.{n},{ENDING}" for n in range(1, 11))


@pytest.mark.parametrize(
    ("width", "left_out"), [(60, ["time", "memory", "runs"]), (80, ["memory"]), (100, []), (120, [])]
)
def test_a_table_leaves_whole_columns_out(tmp_path: Path, width: int, left_out: list[str]) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["method"] == "vanilla" and row["seed"] == 2:
            fail(row, "out of memory " * 50)

    store = make_store(tmp_path, methods=("vanilla", *LONG_NAMES), tasks=["rte", "cola"], change=change)
    text = summary(store, width=width)
    lines = text.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("method"))
    assert max(map(len, lines[header:])) <= width
    assert lines[header].split() == [name for name in COLUMNS if name not in left_out]
    rows = lines[header + 2 : header + 2 + len(LONG_NAMES)]
    assert len({row.split()[0] for row in rows}) == len(LONG_NAMES)  # however short, each is another
    told = f"Left out, for want of room: {', '.join(left_out)}; the report has all columns."
    assert (told in text.replace("\n", " ")) is bool(left_out)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_table_of_scores_leaves_its_last_tasks_out(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, LONG, TASKS["cola"])
    text = summary(make_store(tmp_path, methods=LONG_NAMES, tasks=["rte", "cola", "mrpc", LONG]), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "Left out, for want of room: " in text
    assert text.count(LONG) == (width == 120)  # in the note that says what the short name stands for


@pytest.mark.parametrize(("columns", "expected"), [("80", 80), ("20", 60), ("300", 120)])
def test_a_text_is_as_wide_as_the_terminal(columns: str, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert console.terminal_width() == 100  # a pipe
    monkeypatch.setenv("COLUMNS", columns)
    assert console.terminal_width() == 100
    monkeypatch.setattr(console, "_data", SimpleNamespace(isatty=lambda: True))
    assert console.terminal_width() == expected
