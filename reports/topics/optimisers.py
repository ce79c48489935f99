"""What a section's optimiser steps and keeps is told here: its moments, and the weights that are Muon's."""

from __future__ import annotations

from finetune_bench.reports.document import code
from finetune_bench.reports.rows.sections import Section
from finetune_bench.store.row import Status


def moments(section: Section, method: str, trained: float) -> float:
    """Return how many numbers the optimiser keeps: AdamW two of each weight, Lion and Muon one.

    Args:
        section: the runs of one optimiser.
        method: the label of a method.
        trained: the number of weights that it trains.
    """
    if section.setting.get("optimizer") == "lion":
        return trained
    return 2 * trained - sum(_of_muon(section, method)[:1])


def notes_on_muon(section: Section) -> list[str]:
    """Say how many of the trained weights Muon stepped, for the methods together that have the same number."""
    methods: dict[int, list[str]] = {}
    for method in section.methods:
        for count in _of_muon(section, method):
            methods.setdefault(count, []).append(code(method))
    return [
        f"Muon stepped {count:,} of the trained parameters, matrices of the layers, and AdamW the others: "
        f"{', '.join(names)}."
        for count, names in methods.items()
    ]


def _of_muon(section: Section, method: str) -> list[int]:
    """Return how many weights Muon stepped in a method's runs, each count once; empty with another optimiser."""
    counts = {(row.get("cost") or {}).get("muon_parameters") for row in section.rows(method, status=Status.DONE)}
    return sorted(count for count in counts if count is not None)
