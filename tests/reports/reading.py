"""What the tests of reports read from a store."""

from __future__ import annotations

from typing import Any

from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.sections import Section, read_data
from finetune_bench.reports.topics.differences import Difference
from finetune_bench.store.store import Store


def only_section(store: Store) -> Section:
    (section,) = read_data(store).sections
    return section


def text_of(store: Store) -> str:
    return render(read_data(store))


def of(differences: list[Difference], method: str, task: str, question: str = "a") -> Difference:
    (difference,) = [
        difference
        for difference in differences
        if (difference.method, difference.column.task, difference.question) == (method, task, question)
    ]
    return difference


def is_run(row: dict[str, Any], method: str, task: str, seed: int | None = None) -> bool:
    return (row["method"], row["task"]) == (method, task) and seed in (None, row["seed"])
