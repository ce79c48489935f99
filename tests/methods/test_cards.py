"""What cards say of the official codes, where these were measured against the methods here."""

from __future__ import annotations

import importlib

import pytest

from finetune_bench import registry


def card(module: str) -> str:
    return " ".join((importlib.import_module(f"finetune_bench.methods.{module}").__doc__ or "").split())


@pytest.mark.parametrize("module", ["child_tuning", "recadam", "sage"])
def test_the_official_optimisers_are_told_from_adamw(module: str) -> None:
    """All three are transformers' former AdamW, whose epsilon, decay and decay groups differ from torch's."""
    for said in ("former AdamW", "adds ε before the second moment's bias correction", "`LayerNorm.weight`", "XLNet"):
        assert said in card(module)


def test_hype_u_of_the_paper_is_symmetric() -> None:
    assert "(`uniform_symmetric`, HyPe-U of the paper" in card("hype")
    assert "(`uniform_onesided`, HyPe-U as the official code draws it" in card("hype")
    # What a search tries are the paper's two.
    assert registry.method_class("hype").search_space["noise"] == ("normal", "uniform_symmetric")


def test_smart_tells_how_its_weight_compares() -> None:
    assert "its weight of 1 is about strength=0.5 here" in card("smart")


def test_freelb_tells_the_two_counts_apart() -> None:
    assert "(that of the RoBERTa runs, 3 on STS-B) is K − 1" in card("freelb")
