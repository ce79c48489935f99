"""`--json`: one document on stdout, with the keys and types that are declared, whatever the command finds."""

from __future__ import annotations

import inspect
import json
import math
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from finetune_bench import cli
from finetune_bench.cli import documents, plan_document
from finetune_bench.cli.documents import DOCUMENTS, SCHEMA, show_document
from finetune_bench.runner import forecast
from finetune_bench.store.shape import misfit
from finetune_bench.store.store import Store
from tests import ROOT
from tests.synthetic_store import fail, make_store


def document(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> dict[str, Any]:
    """Run a command, and return its document after holding it against its declared type."""
    assert cli.main([*map(str, words), "--json"]) == code
    read = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert isinstance(read, dict)
    kind = DOCUMENTS[read["command"]]
    assert misfit(read, kind) == ""
    assert list(undeclared(read, kind)) == []
    assert read["schema"] == SCHEMA
    return read


def undeclared(value: Any, kind: Any, name: str = "") -> Any:
    """Yield the keys that no type declares."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        for key, item in value.items():
            if key in hints:
                yield from undeclared(item, hints[key], f"{name}.{key}")
            else:
                yield f"{name}.{key}"
    elif origin is NotRequired:
        yield from undeclared(value, arguments[0], name)
    elif origin is list:
        for item in value:
            yield from undeclared(item, arguments[0], name)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two methods, of which a run failed and a score is not a number."""

    def change(row: dict[str, Any]) -> None:
        if row["method"] == "rdrop" and row["seed"] == 2:
            fail(row, "killed \x1b[31m by \x7f someone")
        if row["method"] == "hype" and row["seed"] == 3:
            row["metrics"]["validation"]["accuracy"] = math.nan

    folder = tmp_path_factory.mktemp("json") / "run"
    return make_store(folder, methods=("vanilla", "hype", "rdrop"), tasks=("rte",), seeds=3, change=change).root


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    methods = {entry["name"]: entry for entry in document(capsys, "list", "methods")["methods"]}
    assert methods["rdrop"]["forwards"] == 2
    tasks = {entry["name"]: entry for entry in document(capsys, "list", "tasks")["tasks"]}
    assert tasks["mnli"]["labels"] == ["entailment", "neutral", "contradiction"]
    assert {"csv", "html"} <= {entry["name"] for entry in document(capsys, "list", "reports")["reports"]}


def test_show(run: Path, tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stack = document(capsys, "show", "hype(eps=1e-4)+rdrop")["stack"]
    assert [method["name"] for method in stack["methods"]] == ["hype", "rdrop"]
    assert {line["name"]: line["value"] for line in stack["methods"][0]["parameters"]}["eps"] == "0.0001"
    task = document(capsys, "show", "rte")["task"]
    assert (task["examples"], task["is_read"]) == ({"train": 2490, "validation": 277}, False)
    assert document(capsys, "show", tiny_data)["task"]["is_read"]
    assert document(capsys, "show", "csv")["report"]["name"] == "csv"
    shown = document(capsys, "show", run)["run"]
    assert shown["statuses"] == {"done": 8, "failed": 1}
    cell = sorted(path.name for path in (run / "cells").iterdir())[0]
    assert document(capsys, "show", cell, "--run", run)["cell"]["row"]["id"] == cell


@pytest.mark.slow
def test_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = document(capsys, "report", run, "--format", "csv,markdown", "--out", tmp_path / "report")
    assert all(Path(path).is_file() for paths in read["files"].values() for path in paths)
    (section,) = read["sections"]
    scores = {score["method"]: score for score in section["scores"]}
    assert (scores["rdrop"]["done"], scores["rdrop"]["failed"]) == (2, 1)
    assert scores["hype"]["n"] == 2  # the third is not a number
    assert {line["method"] for line in section["differences"]} == {"hype", "rdrop"}
    assert section["answer"]
    again = document(capsys, "report", run, "--out", tmp_path / "report", "--check")
    assert (again["differing"], again["checked"] > 3) == ([], True)
    (tmp_path / "report" / "comparison.csv").write_text("changed", "utf-8")
    (differing,) = document(capsys, "report", run, "--out", tmp_path / "report", "--check", code=1)["differing"]
    assert differing["file"].endswith("comparison.csv")


def test_numbers_are_those_of_the_tables(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    read = document(capsys, "report", run, "--format", "csv", "--out", tmp_path / "report")
    table = pd.read_csv(tmp_path / "report" / "comparison.csv").set_index("method")
    for score in read["sections"][0]["scores"]:
        assert score["value"] == pytest.approx(table.loc[score["method"], "value"], rel=1e-12)
        assert score["low"] == pytest.approx(table.loc[score["method"], "low"], rel=1e-12)


def test_power_and_compare(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    power = document(capsys, "power", run, "--difference", "2")
    assert (power["difference"], power["power"]) == (2, 0.8)
    assert {line["method"] for line in power["differences"]} >= {"hype"}
    compared = document(capsys, "compare", run, run)["compared"]
    assert {line["method"]: line["both"] for line in compared} == {"vanilla": 3, "hype": 3, "rdrop": 2}


def test_status(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = document(capsys, "status", run, code=1)
    assert (read["done"], read["failed"], read["left"]) == (8, 1, 0)
    assert read["failures"][0]["reason"] == "killed \x1b[31m by \x7f someone"


def test_plan(
    tiny_checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fake(plan: Any, tell: Any) -> forecast.Forecast:
        return forecast.Forecast({cell.id: 2.0 for cell in plan.todo}, math.inf, None, 1000, 2)

    monkeypatch.setattr(forecast, "forecast", fake)
    words = ["--model", tiny_checkpoint, "--tasks", tiny_data, "--methods", "vanilla", "--seeds", 2, "--no-baseline"]
    read = document(capsys, "plan", *words, "--out", tmp_path / "run", "--device", "cpu")
    assert (read["runs"], read["to_run"], read["workers"]) == (2, 2, 2)
    method = {"method": "vanilla", "runs": 2, "seconds_each": 2.0, "seconds": 4.0, "timed_with": None}
    assert read["methods"] == [method]
    assert read["wall_seconds"] is None  # infinity
    assert not (tmp_path / "run").exists()


def test_a_plan_with_nothing_to_do() -> None:
    cells: dict[str, Any] = {"cells": [1], "todo": [], "trainings": [], "cached": ["a"], "skipped": [], "failed": []}
    plan = SimpleNamespace(store=Store("run"), notes=[], devices=["cpu"], **cells)
    values = plan_document.plan_values(plan, None)  # type: ignore[arg-type]
    whole = {"schema": 1, "version": "0", "command": "plan", **values}
    assert misfit(whole, documents.PlanDocument) == ""
    assert (values["to_run"], values["device"], values["wall_seconds"]) == (0, None, None)


def test_a_document_is_ascii_without_what_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"text": "\x1b[2J \x7f \u202e \ud800 é", "numbers": [math.nan, math.inf, -math.inf, 1.5], "none": None}
    show_document("list", values)
    out = capsys.readouterr().out
    assert out.isascii()
    assert not set(out) & {"\x1b", "\x7f"}
    read = json.loads(out)
    assert read["text"] == values["text"]
    assert read["numbers"] == [None, None, None, 1.5]


@pytest.mark.parametrize(
    "command", ["report nowhere", "power nowhere", "compare a b", "show nothing", "status nowhere", "plan --seeds 0"]
)
def test_where_nothing_comes_of_it_stdout_is_empty(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("finetune-bench: ")


def test_damage_is_in_the_document_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=3)
    spoilt = store.names()[0]
    (store.folder(spoilt) / "trace.npz").unlink()
    assert document(capsys, "report", store.root, "--format", "csv", code=1)["damaged"].keys() == {spoilt}
    assert document(capsys, "power", store.root, code=1)["damaged"].keys() == {spoilt}
    assert document(capsys, "compare", store.root, store.root, code=1)["damaged"][0].keys() == {spoilt}
    read = document(capsys, "status", store.root, code=1)
    assert (read["damaged"], read["left"], read["done"]) == (1, 1, 5)
    assert document(capsys, "show", store.root)["run"]["damaged"] == [spoilt]


def test_the_page_declares_what_the_code_does() -> None:
    source = inspect.getsource(documents)
    declared = source[source.index("class Document(") : source.index("DOCUMENTS: ")].strip()
    page = (ROOT / "docs" / "command-line.md").read_text("utf-8")
    assert f"```python\n{declared}\n```" in page, "copy the types of finetune_bench/cli/documents.py there"
    assert typing.get_type_hints(documents.Document).keys() == {"schema", "version", "command"}
