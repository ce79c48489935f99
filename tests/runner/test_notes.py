"""What a run tells of its data, its folder has from then on: it is told once, but for warnings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.recipe import Recipe
from finetune_bench.runner.execution import execute
from finetune_bench.runner.plan import make_plan, untold
from finetune_bench.store.store import Store
from scripts import method_pages
from tests.model.checkpoints import planned


def test_notes_on_data_are_told_once_a_folder(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "run")
    assert untold(plan) == plan.notes != []
    plan.todo = []
    execute(plan)
    plan.notes += ["A note of another run.", "Warning: 'hype': no effect.", "Damaged, so run again: x (y)."]
    assert untold(plan) == plan.notes[-3:]
    execute(plan)
    assert untold(plan) == plan.notes[-2:]
    again: Any = SimpleNamespace(store=Store(tmp_path / "elsewhere"), notes=plan.notes)
    assert untold(again) == plan.notes
    assert untold(make_plan(plan.study)) == []


@pytest.mark.slow
def test_muon_says_what_it_steps_and_that_a_rate_is_its_own(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def notes(optimizer: str, **options: Any) -> list[str]:
        recipe = Recipe(optimizer=optimizer, lr=1e-3)
        return planned(tiny_checkpoint, tiny_data, tmp_path / "run", recipe=recipe, **options).notes

    told = notes("muon")
    (counted,) = [note for note in told if "muon steps the" in note]
    assert "AdamW steps the others: embeddings, norms, biases, pooler and head." in counted
    for name in ("lion", "muon"):
        said = [note for note in notes(name) if note.startswith(f"{name} is to be compared at its own learning rate")]
        assert len(said) == 1
        assert f"{said[0]} --lr gives 1e-05 to 0.0001." in notes(name, lrs=(1e-5, 1e-4))
        assert f"{said[0]} --search tries 0.25 to 4 times --lr." in notes(name, search=2)
    assert not [note for note in notes("adamw") if "muon" in note or "own learning rate" in note]


def test_a_method_that_needs_adamw_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is shown, and on its page."""
    assert cli.main(["show", "rdrop+sage"]) == 0
    said = "it makes the steps of some weights itself, by AdamW's moments."
    assert f"sage needs --optimizer adamw: {said}" in capsys.readouterr().out
    assert f"It needs `--optimizer adamw`: {said}" in method_pages.page("sage")
    assert "--optimizer adamw" not in method_pages.page("rdrop")


def test_a_method_with_a_learning_rate_of_its_own_says_so(
    tiny_checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the plan of a study, with the rates that it tries, where it is shown, and on its page."""
    why = "it trains little, which 10 times vanilla's rate suits"
    monkeypatch.setattr(registry.method_class("sam"), "own_learning_rate", why)
    said = f"sam is to be compared at its own learning rate, by --search or several of --lr: {why}."

    def notes(*methods: str, **options: Any) -> list[str]:
        return planned(tiny_checkpoint, tiny_data, tmp_path / "run", methods, **options).notes

    assert notes("sam", "hype+sam").count(said) == 1
    assert f"{said} --lr gives 1e-05 to 0.0001." in notes("sam", lrs=(1e-5, 1e-4))
    assert f"{said} --search tries 0.25 to 4 times --lr." in notes("sam", search=2)
    assert said not in notes("hype")
    assert cli.main(["show", "hype+sam"]) == 0
    assert f"sam is to be compared at its own learning rate: {why}." in capsys.readouterr().out
    assert f"It is to be compared at its own learning rate: {why}." in method_pages.page("sam")
    assert cli.main(["show", "hype"]) == 0
    assert "own learning rate" not in capsys.readouterr().out


def test_a_warning_names_a_method_once(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    notes = planned(tiny_checkpoint, tiny_data, tmp_path / "run", ["kl_anchor", "hype+kl_anchor"]).notes
    said = [note.partition(" its reference")[0] for note in notes if note.startswith("Warning: ")]
    assert said == ["Warning: 'kl_anchor':", "Warning: 'hype+kl_anchor': kl_anchor:"]


def test_rates_of_dropout_without_a_run_of_their_own_are_said(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def warned(*methods: str) -> list[str]:
        notes = planned(tiny_checkpoint, tiny_data, tmp_path / "run", methods).notes
        return [note for note in notes if "dropout rates" in note]

    stack = "rdrop+dropout(hidden=0.3)"
    (note,) = warned("rdrop", stack)
    assert note.startswith(f"Warning: '{stack}': part of its difference to vanilla")
    assert "with 'dropout(hidden=0.3)' among --methods" in note
    assert warned(stack, "dropout(hidden=0.3)") == warned("dropout(hidden=0.3)") == warned("rdrop", "hype") == []
    assert len(warned(stack, "dropout(hidden=0.2)")) == 1
