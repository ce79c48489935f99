"""Commands on finished runs: compare, merge, power, show CELL, report --check; on made-up stores."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune_bench import cli, stats
from finetune_bench.reports.runs import as_text, compare
from finetune_bench.store.store import Store
from tests.synthetic_store import fail, make_row, make_store, put

FORMATS = "markdown,html,csv,latex"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte", "cola"), seeds=3)


def run(capsys: Any, *words: object) -> tuple[int, str, str]:
    code = cli.main([str(word) for word in words])
    return code, *capsys.readouterr()


# --- compare ----------------------------------------------------------------------------------------------------------


def test_a_run_against_its_copy_is_equal(store: Store, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(store.root, tmp_path / "copy")
    code, out, _ = run(capsys, "compare", store.root, tmp_path / "copy")
    assert code == 0
    lines = [line for line in out.splitlines() if line.startswith(("hype", "vanilla"))]
    assert len(lines) == 4
    assert all(line.split()[2:4] == ["3", "3"] and line.rstrip().endswith("0.0 [no spread] n=3") for line in lines)


def test_a_difference_is_second_minus_first_in_points(store: Store, tmp_path: Path) -> None:
    gains = {1: 0.01, 2: 0.02, 3: 0.03}

    def change(row: dict[str, Any]) -> None:
        if row["method"] == "hype" and row["task"] == "rte":
            row["metrics"]["validation"]["accuracy"] += gains[row["seed"]]

    other = make_store(tmp_path / "other", methods=("vanilla", "hype"), change=change)
    comparison = compare(store, other)
    lines, notes = comparison.lines, comparison.notes
    (moved,) = [record for record in lines if record.equal < record.both]
    assert (moved.method, moved.task, moved.both, moved.equal) == ("hype", "rte", 3, 0)
    expected = stats.t_interval([1, 2, 3])
    assert (moved.difference.value, moved.difference.low) == pytest.approx((expected.value, expected.low))
    assert notes == []


def test_rows_of_other_data_are_no_pairs(store: Store, tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["task"] == "cola":
            row["hashes"]["data"] = "other"

    lines = compare(store, make_store(tmp_path / "other", methods=("vanilla", "hype"), change=change)).lines
    assert {(record.task, record.unpaired, record.difference.n) for record in lines} == {("cola", 3, 0), ("rte", 0, 3)}


def test_what_is_in_one_only_and_other_environments_are_told(store: Store, tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["environment"]["torch"] = "2.13.0"
        if row["seed"] == 3 and row["method"] == "hype":
            fail(row, "out of memory")

    comparison = compare(store, make_store(tmp_path / "other", methods=("vanilla", "hype"), change=change))
    text = as_text(comparison.lines, comparison.notes)
    assert f"In '{store.root}' only: 2 finished cells." in text
    assert "Environment, torch: 2.9.0 in the first, 2.13.0 in the second." in text


def test_runs_without_a_common_cell(store: Store, tmp_path: Path, capsys: Any) -> None:
    make_store(tmp_path / "other", methods=("rdrop",))
    code, out, _ = run(capsys, "compare", store.root, tmp_path / "other")
    assert code == 0
    assert "Nothing is done in both runs." in out
    code, _, err = run(capsys, "compare", store.root, tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err


# --- merge ------------------------------------------------------------------------------------------------------------


def test_two_machines_stores_make_one(tmp_path: Path, capsys: Any) -> None:
    first = make_store(tmp_path / "a", methods=("vanilla",))
    second = make_store(tmp_path / "b", methods=("hype",))
    first.write_study({"methods": ["vanilla"], "tasks": ["rte"], "cells": ["1"]})
    second.write_study({"methods": ["hype"], "tasks": ["rte", "cola"], "cells": ["2"]})
    code, out, _ = run(capsys, "merge", tmp_path / "c", first.root, second.root)
    assert (code, out) == (0, f"12 cells copied to '{tmp_path / 'c'}', 0 were there already.\n")
    merged = Store(tmp_path / "c")
    assert merged.rows() == sorted(first.rows() + second.rows(), key=lambda row: row["id"])
    assert merged.study() == {"methods": ["vanilla", "hype"], "tasks": ["rte", "cola"], "cells": ["1", "2"]}
    cell = merged.rows()[0]["id"]
    source = first if first.row(cell) else second
    for path in source.folder(cell).iterdir():
        assert (merged.folder(cell) / path.name).read_bytes() == path.read_bytes()
    code, out, _ = run(capsys, "merge", tmp_path / "c", first.root, second.root)
    assert "0 cells copied" in out
    assert "12 were there already" in out


def test_a_finished_cell_wins_over_a_failed_one(store: Store, tmp_path: Path, capsys: Any) -> None:
    failed = make_store(tmp_path / "failed", methods=("vanilla", "hype"), change=lambda row: fail(row, "out of memory"))
    for order in ([failed, store], [store, failed]):
        target = tmp_path / f"to-{order[0].root.name}"
        assert run(capsys, "merge", target, *(record.root for record in order))[0] == 0
        assert {row["status"] for row in Store(target).rows()} == {"done"}


def test_cells_with_other_numbers_are_told(store: Store, tmp_path: Path, capsys: Any) -> None:
    def change(row: dict[str, Any]) -> None:
        row["cost"]["train_seconds"] += 1  # a measurement: may differ
        if row["method"] == "hype" and row["task"] == "rte" and row["seed"] == 1:
            row["metrics"]["validation"]["accuracy"] += 0.1

    other = make_store(tmp_path / "other", methods=("vanilla", "hype"), change=change)
    code, out, err = run(capsys, "merge", tmp_path / "c", store.root, other.root)
    assert code == 1
    assert "12 cells copied" in out
    told = " ".join(err.split())
    assert f"hype on rte, seed 1 ({make_row('hype', 'rte', 1)['id']}) has other numbers in" in told
    assert told.count("has other numbers") == 1
    kept = Store(tmp_path / "c").row(make_row("hype", "rte", 1)["id"])
    assert kept is not None
    assert kept["metrics"] == make_row("hype", "rte", 1)["metrics"]


def test_a_source_must_be_another_store(store: Store, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "merge", store.root, store.root)
    assert code == 2
    assert "is to be made from other stores" in err
    code, _, err = run(capsys, "merge", tmp_path / "c", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere" in err
    assert not (tmp_path / "c").exists()


# --- power ------------------------------------------------------------------------------------------------------------


def test_power_by_hand(store: Store, capsys: Any) -> None:
    code, out, _ = run(capsys, "power", store.root, "--difference", "2")
    assert code == 0
    differences = [
        100 * (make_row("hype", "rte", seed)["metrics"]["validation"]["accuracy"]
               - make_row("vanilla", "rte", seed)["metrics"]["validation"]["accuracy"])
        for seed in (1, 2, 3)
    ]  # fmt: skip
    sd = float(np.std(differences, ddof=1))
    (line,) = [line for line in out.splitlines() if line.startswith("hype") and "rte" in line]
    words = line.split()
    assert words[3] == f"{sd:.2f}"
    assert f"{stats.detectable_with(5, sd):.1f}" in words
    assert words[-1] == str(stats.seeds_for(2, sd))
    assert "mean over 2 tasks" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--difference", "0"], "--difference: expected a number of points above 0; got 0"),
        (["--power", "1"], "--power: expected a share between 0.05 and 1; got 1"),
    ],
)
def test_power_refuses(store: Store, capsys: Any, words: list[str], said: str) -> None:
    code, _, err = run(capsys, "power", store.root, *words)
    assert code == 2
    assert said in " ".join(err.split())


def test_power_of_one_seed_says_what_is_missing(tmp_path: Path, capsys: Any) -> None:
    make_store(tmp_path / "run", seeds=1)
    code, _, err = run(capsys, "power", tmp_path / "run")
    assert code == 2
    assert "no method has two seeds that are paired with vanilla" in " ".join(err.split())


# --- show CELL --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_any_number_leads_to_its_cells(store: Store, tmp_path: Path, capsys: Any) -> None:
    assert run(capsys, "report", store.root)[0] == 0
    table = pd.read_csv(store.root / "report" / "differences.csv")
    cells = table["cells"][0].split()
    assert len(cells) == 6  # three seeds of a method and of its reference
    for cell in cells:
        code, out, _ = run(capsys, "show", cell, "--run", store.root)
        assert code == 0
        row = store.row(cell)
        assert row is not None
        assert out.startswith(f"{row['method']} on {row['task']}, seed {row['seed']}")
        assert f"{row['metrics']['validation'][row['metric']]:.6g}" in out
        assert str(store.folder(cell)) in out


def test_a_cell_by_its_first_digits_or_its_folder(store: Store, capsys: Any, monkeypatch: Any, tmp_path: Path) -> None:
    cell = store.rows()[0]["id"]
    (tmp_path / "here").mkdir()
    shutil.copytree(store.root, tmp_path / "here" / "runs" / "one")
    monkeypatch.chdir(tmp_path / "here")
    whole = run(capsys, "show", cell)
    assert whole[0] == 0
    assert run(capsys, "show", cell[:8]) == whole
    assert run(capsys, "show", f"runs/one/cells/{cell}")[1].splitlines()[0] == whole[1].splitlines()[0]


def test_the_log_of_a_failed_cell_is_shown(store: Store, capsys: Any) -> None:
    row = make_row("rdrop", "rte", 1)
    fail(row, "RuntimeError: too bad")
    store.write({"id": row["id"]}, row, log="first\n" * 100 + "RuntimeError: too bad\n")
    code, out, _ = run(capsys, "show", row["id"], "--run", store.root)
    assert code == 0
    assert "reason" in out
    assert out.count("first") == 39
    assert out.count("RuntimeError: too bad") == 2


def test_what_is_no_cell(store: Store, capsys: Any) -> None:
    code, _, err = run(capsys, "show", "deadbeef00", "--run", store.root)
    assert code == 2
    assert "deadbeef00" in err
    ids = sorted(row["id"] for row in store.rows())
    for letter in "0123456789abcdef":
        fitting = [record for record in ids if record.startswith(letter)]
        if len(fitting) > 1:
            code, _, err = run(capsys, "show", letter, "--run", store.root)
            assert code == 2
            assert f"'{letter}' fits {len(fitting)} cells" in " ".join(err.split())
            break
    else:
        raise AssertionError("no two cells begin alike; use other rows")


# --- report --check ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_written_report_is_what_its_store_gives(store: Store, capsys: Any) -> None:
    assert run(capsys, "report", store.root, "--format", FORMATS)[0] == 0
    code, out, _ = run(capsys, "report", store.root, "--format", FORMATS, "--check")
    assert code == 0
    assert out.splitlines()[-1].endswith("files recomputed, 0 differ.")
    assert int(out.split()[0]) > 25


@pytest.mark.slow
def test_a_changed_number_is_found(store: Store, capsys: Any) -> None:
    run(capsys, "report", store.root)
    folder = store.root / "report"
    page = (folder / "report.md").read_text("utf-8")
    first = next(line for line in page.splitlines() if line.startswith("| `hype` |") and "n=3" in line)
    (folder / "report.md").write_text(page.replace(first, first.replace("n=3", "n=4", 1)), "utf-8")
    (folder / "cost.csv").unlink()
    (folder / "rows.parquet").write_bytes(b"x")
    code, out, _ = run(capsys, "report", store.root, "--check")
    assert code == 1
    lines = out.splitlines()
    assert lines[0].startswith(f"{folder / 'report.md'}: line ")
    assert "n=4" in lines[0].partition("is written")[0]
    assert "n=3" in lines[0].partition("is written")[2]
    assert f"{folder / 'cost.csv'}: missing" in lines
    assert f"{folder / 'rows.parquet'}: differs" in lines
    assert lines[-1].endswith(" 3 differ.")


@pytest.mark.slow
def test_a_report_of_older_rows_is_found(store: Store, capsys: Any) -> None:
    run(capsys, "report", store.root)
    row = make_row("hype", "rte", 1)
    row["metrics"]["validation"]["accuracy"] += 0.05
    put(store, row)
    code, out, _ = run(capsys, "report", store.root, "--check")
    assert code == 1
    assert "report.html" in out
    assert "comparison.csv" in out


def test_nothing_to_check(store: Store, capsys: Any) -> None:
    code, _, err = run(capsys, "report", store.root, "--check")
    assert code == 2
    assert "there is no such folder" in " ".join(err.split())
