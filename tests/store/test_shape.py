"""What of a JSON file's values isn't of its declared type is named by the keys that lead to it."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_bench.store.row import Row, StudyRecord
from finetune_bench.store.shape import misfit
from tests.synthetic_store import bare_row, make_row


@pytest.mark.parametrize("row", [make_row("hype+rdrop", "mnli", 1), bare_row(), bare_row(status="failed")])
def test_a_row_fits(row: dict[str, Any]) -> None:
    assert misfit(row, Row) == ""


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1.0}, "seed of another type"),
        ({"seed": 2**63}, "seed of another type"),
        ({"seed": None}, "seed of another type"),
        ({"reason": 3}, "reason of another type"),
        ({"status": "splendid"}, "status of another type"),
        ({"recipe": []}, "recipe that are no table"),
        ({"metrics": {"": 1}}, "metrics that are no table"),
        ({"metrics": {"validation": {"f1": "high"}}}, "metrics.validation.f1 of another type"),
        ({"methods": {}}, "methods that are no list"),
        ({"methods": [{"name": "hype", "version": 1}]}, "no methods.parameters"),
        ({"notes": ["text", 1]}, "notes of another type"),
        ({"files": {"trace.npz": {"sha256": "a"}}}, "no files.trace.npz.bytes"),
        ({"cost": {"parameters": True}}, ""),
        ({"cost": {"train_seconds": None, "energy_joules": None}, "metrics": None, "dropout": {"a": 1}}, ""),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], text: str) -> None:
    assert misfit(bare_row() | change, Row) == text


def test_lists_within_lists_and_missing_keys() -> None:
    assert misfit({key: value for key, value in bare_row().items() if key != "model"}, Row) == "no model"
    assert misfit({"searched": {"hype": [["hype", 1e-5]]}, "effects": {"hype": [["a"], ["b"]]}}, StudyRecord) == ""
    assert misfit({"effects": {"hype": ["a"]}}, StudyRecord) == "effects.hype that are no list"
    assert misfit([], StudyRecord) == " that are no table"
