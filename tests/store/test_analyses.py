"""Results of analyses in their files: what comes back is what was written, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune_bench.store import analyses


def result(**changes: Any) -> Any:
    return {
        "schema": analyses.SCHEMA,
        "id": "cell",
        "analysis": "similarity",
        "version": 1,
        "parameters": {},
        "reason": None,
        "title": "",
        "about": "",
        "numbers": {"within": 1.0, "across": 2.0, "b": 3.0},
        "layers": {"within": [1.0], "across": [2.0]},
        "better": {},
        "notes": [],
        "facts": {},
        "seconds": 0.0,
    } | changes


def test_numbers_and_curves_come_back_in_the_order_of_the_analysis(tmp_path: Path) -> None:
    """A plot shows the first curves only, so that their order decides what a reader sees."""
    folder = tmp_path / "cell"
    folder.mkdir()
    analyses.write(folder, result(), {})
    read = analyses.read(folder, "similarity")
    assert read is not None
    assert list(read["numbers"]) == ["within", "across", "b"]
    assert list(read["layers"]) == ["within", "across"]
    assert read["numbers"] == result()["numbers"]


def test_a_result_of_before_has_the_order_of_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "cell"
    folder.mkdir()
    analyses.write_json(folder / "analysis-similarity.json", result())
    read = analyses.read(folder, "similarity")
    assert read is not None
    assert list(read["numbers"]) == ["across", "b", "within"]
