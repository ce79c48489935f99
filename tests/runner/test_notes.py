"""What a run tells of its data, its folder has from then on: it is told once, but for warnings."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetune_bench.runner.execution import execute
from finetune_bench.runner.plan import make_plan, untold
from finetune_bench.store.store import Store
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
