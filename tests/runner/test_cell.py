"""What a cell hands to its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.plan import make_plan
from finetune_bench.study.study import Study
from finetune_bench.training import loop
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.run import TrainingRun


def test_a_checkpoint_names_its_cell_and_its_micro_batches(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(
        methods=("vanilla",),
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2),
        recipe=Recipe(steps=2, batch_size=8),
        baseline=False,
        out=tmp_path / "run",
        device="cpu",
    )
    plan = make_plan(study)
    owners = []

    def train(run: TrainingRun, checkpoints: Checkpoints) -> None:
        owners.append(checkpoints.owner)
        raise torch.OutOfMemoryError  # it is tried again, in smaller micro-batches

    monkeypatch.setattr(loop, "train", train)
    for cell in plan.todo:
        run_cell(cell, WorkerContext(plan.store, torch.device("cpu")))
    assert owners == [f"{cell.id}-{parts}" for cell in plan.todo for parts in (1, 2)]
