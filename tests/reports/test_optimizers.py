"""Runs of several optimisers in one report: a section for each, and what each keeps in memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.papers.published import load_paper
from finetune_bench.recipe import Recipe
from finetune_bench.reports.answer import edge_of_rates
from finetune_bench.reports.markdown import render
from finetune_bench.reports.published.own import Chosen, standing
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.cost import footprints
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put

TRAINED, OF_MUON = 1000, 600


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("optimizers") / "run")
    for number, optimizer in enumerate(("adamw", "lion", "muon")):
        for method in ("vanilla", "hype"):
            for seed in (1, 2, 3):
                row: dict[str, Any] = make_row(method, "rte", seed)
                row["id"] = f"{number}{row['id'][1:]}"
                row["recipe"] = Recipe(optimizer=optimizer).to_dict()
                row["cost"] |= {"trainable_parameters": TRAINED}
                if optimizer == "muon":
                    row["cost"] |= {"muon_parameters": OF_MUON}
                put(store, row)
    return store


def test_each_optimiser_has_a_section_that_names_it(store: Store) -> None:
    """AdamW's name is not in its rows, and is told all the same."""
    sections = load(store).sections
    assert [section.title for section in sections] == ["optimizer adamw", "optimizer lion", "optimizer muon"]
    assert [len(section.runs) for section in sections] == [6, 6, 6]
    text = render(load(store))
    assert "optimizer adamw and lion and muon" in text
    assert text.count("Muon stepped 600 of the trained parameters, matrices of the layers, and AdamW the others") == 1


def test_a_best_rate_at_the_edge_is_told_with_its_optimiser(tmp_path: Path) -> None:
    """One warning for each, and they were all alike."""
    store = Store(tmp_path)
    for number, optimizer in enumerate(("adamw", "lion")):
        for place, rate in enumerate((1e-5, 2e-5)):
            row: Any = make_row("vanilla", "rte", 1)
            row["id"] = f"{number}{place}{row['id'][2:]}"
            row["recipe"] = Recipe(optimizer=optimizer, lr=rate).to_dict()
            row["metrics"]["validation"]["accuracy"] += 0.1 * place
            put(store, row)
    found = edge_of_rates(load(store).sections)
    assert [text.partition(" scores")[0] for text in found] == ["The baseline with adamw", "The baseline with lion"]


def test_an_optimisers_moments_are_counted_as_it_has_them(store: Store) -> None:
    kept = {section.setting["optimizer"]: footprints(section)[0].optimiser for section in load(store).sections}
    assert kept == {"adamw": 8 * TRAINED, "lion": 4 * TRAINED, "muon": 8 * TRAINED - 4 * OF_MUON}


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_papers_adamw_is_no_other_optimiser(optimizer: str) -> None:
    paper = load_paper("hype")
    score = next(score for score in paper.scores if score.task == "rte")
    row: Any = make_row("vanilla", "rte", 1) | {"model": score.model}
    row["recipe"] = Recipe(optimizer=optimizer).to_dict()
    told = standing(paper, score, Chosen("vanilla", 2e-5, {1: row}, "validation", "accuracy", 1, 1, "", math.nan, 0))
    assert ("optimizer lion instead of adamw" in told.differing) is (optimizer == "lion")
