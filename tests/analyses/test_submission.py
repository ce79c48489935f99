"""Submission: the files of GLUE's server, row by row, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_bench import cli, registry
from finetune_bench.analyses import submission
from finetune_bench.analyses.submission import Submission, load
from finetune_bench.errors import DataError, UsageError
from finetune_bench.reports.submission import Submission as Zips
from finetune_bench.reports.submission import as_text, predicted_texts
from finetune_bench.store import analyses
from finetune_bench.store.store import Store
from finetune_bench.tasks.glue_files import FILES, GlueFile
from tests.synthetic_store import make_store

BY_NAME = {file.name: file for file in FILES}
ROWS = {
    "CoLA": 1063, "SST-2": 1821, "MRPC": 1725, "STS-B": 1379, "QQP": 390965, "MNLI-m": 9796, "MNLI-mm": 9847,
    "QNLI": 5463, "RTE": 3000, "WNLI": 146, "AX": 1104,
}  # fmt: skip


def test_the_server_takes_these_files_of_so_many_rows() -> None:
    assert {file.name: file.rows for file in FILES} == ROWS
    for file in FILES:
        task = registry.task(file.task)
        assert set(file.texts) == set(task.labels)
        assert file.constant in file.texts.values() or (not file.texts and 0 <= float(file.constant) <= 5)
    assert BY_NAME["RTE"].texts == {"entailment": "entailment", "not_entailment": "not_entailment"}
    assert BY_NAME["CoLA"].texts == {"unacceptable": "0", "acceptable": "1"}


def small(name: str, rows: int) -> GlueFile:
    file = BY_NAME[name]
    return GlueFile(file.name, file.task, file.config, file.split, rows, file.texts, file.constant)


def test_a_file_has_a_header_tabs_and_line_feeds() -> None:
    texts = predicted_texts(np.array([[0.0, 1], [1, 0]]), ["unacceptable", "acceptable"], small("CoLA", 2))
    assert as_text(texts) == "index\tprediction\n0\t1\n1\t0\n"
    named = predicted_texts(np.array([[0.0, 1, 2]]), ["contradiction", "entailment", "neutral"], small("MNLI-m", 1))
    assert named == ["neutral"]  # by name, whatever the order of the model's classes


def test_numbers_are_clipped_and_have_three_decimals() -> None:
    texts = predicted_texts(np.array([[-0.3], [2.34567], [7.0]]), [], small("STS-B", 3))
    assert texts == ["0.000", "2.346", "5.000"]


def test_wrong_rows_and_classes_are_refused() -> None:
    with pytest.raises(UsageError, match="CoLA.tsv takes 1063 rows; 2 were predicted"):
        predicted_texts(np.zeros((2, 2)), ["unacceptable", "acceptable"], BY_NAME["CoLA"])
    with pytest.raises(UsageError, match="takes unacceptable, acceptable"):
        predicted_texts(np.zeros((2, 2)), ["bad", "acceptable"], small("CoLA", 2))
    assert "no predictions" in str(Submission().unsupported(registry.task("snli")))
    assert Submission().unsupported(registry.task("mnli")) is None


def write_test_set(root: Path, rows: int, order: list[int] | None = None) -> None:
    folder = root / "nyu-mll" / "glue" / "rte"
    folder.mkdir(parents=True)
    index = order or list(range(rows))
    columns: dict[str, Any] = {
        "sentence1": [f"text {i}" for i in index], "sentence2": ["a"] * rows, "label": [-1] * rows, "idx": index,
    }  # fmt: skip
    pq.write_table(pa.table(columns), folder / "test-00000-of-00001.parquet")


def test_a_test_set_of_another_size_is_refused_before_any_compute(tmp_path: Path) -> None:
    write_test_set(tmp_path, 5)
    with pytest.raises(DataError, match="RTE needs the 3000 rows") as error:
        Submission().check(registry.task("rte"), tmp_path, "tiny")
    assert "5 came" in str(error.value)
    with pytest.raises(DataError, match="cola"):
        Submission().check(registry.task("cola"), tmp_path, "tiny")  # there is none at all


@pytest.mark.parametrize("rows", [5, 3001])
def test_a_run_with_a_test_set_of_another_size_ends_before_any_compute(
    rows: int, tmp_path: Path, tiny_checkpoint: Path, capsys: Any
) -> None:
    folder = tmp_path / "nyu-mll" / "glue" / "rte"
    write_test_set(tmp_path, rows)
    labelled = {"sentence1": ["a", "b"] * 4, "sentence2": ["c"] * 8, "label": [0, 1] * 4, "idx": list(range(8))}
    for split in ("train", "validation"):
        pq.write_table(pa.table(labelled), folder / f"{split}-00000-of-00001.parquet")
    words = ["--tasks", "rte", "--data-root", str(tmp_path), "--model", str(tiny_checkpoint), "--methods", "vanilla"]
    for command in ("plan", "run"):
        assert cli.main([command, *words, "--analyses", "submission", "--out", str(tmp_path / "run")]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert f"RTE needs the 3000 rows of the split test of nyu-mll/glue, config rte; {rows} came from" in said
    assert not (tmp_path / "run").exists()


def test_rows_are_in_the_order_of_the_official_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "FILES", (small("RTE", 4),))
    write_test_set(tmp_path, 4, [2, 0, 3, 1])
    load.cache_clear()
    assert list(load("RTE", tmp_path).texts) == ["text 0", "text 1", "text 2", "text 3"]
    load.cache_clear()


def test_a_doubled_index_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "FILES", (small("RTE", 4),))
    write_test_set(tmp_path, 4, [2, 0, 2, 1])
    load.cache_clear()
    with pytest.raises(DataError, match="holds a number twice"):
        load("RTE", tmp_path)
    load.cache_clear()


def test_the_test_sets_beside_the_project_have_the_servers_rows(shared: Path) -> None:
    for task in ("cola", "rte", "stsb"):
        Submission().check(registry.task(task), shared / "datasets", "tiny")
    with pytest.raises(DataError, match="test_matched"):
        Submission().check(registry.task("mnli"), shared / "datasets", "tiny")


def result(store: Store, cell_id: str, labels: list[str], arrays: dict[str, np.ndarray]) -> None:
    record: analyses.Result = {
        "schema": 1, "id": cell_id, "analysis": "submission", "version": 1, "parameters": {}, "reason": None,
        "title": "", "about": "", "numbers": {}, "layers": {}, "better": {}, "notes": [], "facts": {"labels": labels},
        "seconds": 0.0,
    }  # fmt: skip
    analyses.write(store.folder(cell_id), record, arrays)


def test_a_zip_has_every_file_and_says_which_were_not_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype+rdrop"), tasks=("rte", "cola"), seeds=2)
    rows = [row for row in store.rows() if row["method"] == "hype+rdrop" and row["task"] == "rte"]
    for row in rows:
        logits = np.tile([0.0, 1.0] if row["seed"] == 1 else [1.0, 0.0], (3000, 1))
        result(store, row["id"], ["entailment", "not_entailment"], {"RTE": logits})
    (tmp_path / "out").mkdir()
    summary, path = Zips().write(store, tmp_path / "out")
    assert path.name == "glue-hype_rdrop.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{name}.tsv" for name in ROWS]
        files = {name: archive.read(f"{name}.tsv").decode().split("\n") for name in ROWS}
    assert {name: len(lines) - 2 for name, lines in files.items()} == ROWS  # less the header and what ends the last
    assert files["RTE"][:2] == ["index\tprediction", "0\tnot_entailment"]
    assert files["QNLI"][1] == "0\tnot_entailment"
    assert files["AX"][-2] == "1103\tcontradiction"
    text = summary.read_text("utf-8")
    (first,) = [row["id"] for row in rows if row["seed"] == 1]
    assert f"RTE.tsv: run {first}, seed 1: the lowest seed of 2" in text
    assert "CoLA.tsv: NOT PREDICTED, 1 in every row" in text
    assert text.count("NOT PREDICTED") == 10
    before = path.read_bytes()
    Zips().write(store, tmp_path / "out")
    assert path.read_bytes() == before
    assert cli.main(["report", str(store.root), "--format", "submission"]) == 0
    assert cli.main(["report", str(store.root), "--format", "submission", "--check"]) == 0
    assert "2 files recomputed, 0 differ" in capsys.readouterr().out


def test_a_run_without_predictions_has_no_zip(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla",), tasks=("rte",), seeds=1)
    with pytest.raises(UsageError, match="run --analyses submission"):
        Zips().write(store, tmp_path)
