"""What a cell does on an accelerator: how its model is set up, and what becomes of it where the device fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from finetune_bench import device as devices
from finetune_bench.model import unpadding
from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.inputs import initial_model
from finetune_bench.store.row import Retry, Row
from finetune_bench.testing.toys import CPU
from finetune_bench.training import loop
from tests.model.checkpoints import planned

SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=2, max_length=32)
NO_HANDLE = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def failed_row(error: Exception, model: Path, data: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> Row:
    def fail(*args: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(loop, "train", fail)
    plan = planned(model, data, out, recipe=SHORT)
    return run_cell(plan.cells[0], WorkerContext(plan.store, CPU))


def test_a_library_without_room_is_out_of_memory(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = failed_row(NO_HANDLE, tiny_checkpoint, tiny_data, tmp_path / "run", monkeypatch)
    assert row["reason"] == "out of memory, also with accumulation 2"
    assert row["retry"] == Retry.ALWAYS
    assert "broken" not in row


@pytest.mark.parametrize("error", [NO_HANDLE, torch.OutOfMemoryError("no room")])
def test_a_device_that_is_gone_after_it_ran_out_of_memory_is_not_tried_again(
    error: Exception, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "is_broken", lambda device, error: True)
    row = failed_row(error, tiny_checkpoint, tiny_data, tmp_path / "run", monkeypatch)
    assert row["reason"] == "out of memory"
    assert row["broken"]


def test_a_fault_that_another_error_hides_costs_the_worker(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "is_broken", lambda device, error: True)
    row = failed_row(ValueError("nonsense"), tiny_checkpoint, tiny_data, tmp_path / "run", monkeypatch)
    assert row["reason"] == "the device failed: ValueError: nonsense"
    assert row["retry"] == Retry.ALWAYS
    assert row["broken"]


def test_a_padded_cell_off_the_cpu_makes_its_masks_without_a_look_at_the_padding(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    cell = planned(tiny_checkpoint, tiny_data, tmp_path, recipe=SHORT).cells[0]
    cell = replace(cell, recipe=replace(cell.recipe, batch_layout="padded"))
    for device, implementation in {CPU: "sdpa", torch.device("meta"): unpadding.NAME}.items():
        model: Any = initial_model(cell, cell.make_stack(), device)
        assert model.config._attn_implementation == implementation
