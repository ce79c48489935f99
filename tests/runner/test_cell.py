"""What a cell hands to its training, and what is left of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune_bench.recipe import Recipe
from finetune_bench.runner import cell as cells
from finetune_bench.runner import execution
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.execution import execute
from finetune_bench.runner.plan import make_plan
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Status
from finetune_bench.study.study import Study
from finetune_bench.training import loop
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.run import TrainingRun


@pytest.fixture
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Study:
    return Study(
        methods=("vanilla",),
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2),
        recipe=Recipe(steps=2, batch_size=8),
        baseline=False,
        out=tmp_path / "run",
        device="cpu",
    )


def test_what_a_process_left_that_was_killed_after_its_row_is_cleared_up(study: Study) -> None:
    plan = make_plan(study)
    store, (done, undone) = plan.store, plan.todo
    store.write(done.to_dict(), row_of(done, Status.DONE))
    store.checkpoints.mkdir()
    names = [f"{done.id}-1.safetensors", f".{done.id}-2.safetensors-01234567", f"{undone.id}-1.safetensors"]
    for name in names:
        (store.checkpoints / name).touch()
    with store.claim(done.id):
        (lease,) = (store.root / "locks").iterdir()
        lines = lease.read_text("utf-8").splitlines()
    lines[3] = "0".ljust(20)  # a process of that number that began at another time
    lease.write_text("\n".join([*lines, ""]), "utf-8")
    plan = make_plan(study)
    assert (plan.cached, plan.todo) == ([done.id], [undone])
    plan.todo = []
    execute(plan)
    assert [path.name for path in store.checkpoints.iterdir()] == names[2:]
    assert list((store.root / "locks").iterdir()) == []


@pytest.mark.slow
def test_a_checkpoint_that_is_overwritten_during_the_run_fails_its_cells(study: Study, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(study.models[0], tmp_path / "checkpoint"))
    plan = make_plan(dataclasses.replace(study, models=(str(folder),)))
    first, second = plan.todo
    context = WorkerContext(plan.store, torch.device("cpu"))
    assert run_cell(first, context)["status"] == Status.DONE
    path = folder / "model.safetensors"
    status, weights = path.stat(), load_file(path)
    save_file({key: value + 0.01 for key, value in weights.items()}, path, {"format": "pt"})
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    row = run_cell(second, context)
    assert (row["status"], row["reason"]) == (
        Status.FAILED,
        f"ModelError: the checkpoint '{folder}' changed after the run was planned; start it again",
    )


@pytest.mark.slow
def test_a_run_has_the_dropout_that_its_row_names(study: Study) -> None:
    rates = ("dropout(hidden=0.5)", "dropout(attention=0.5)", "dropout(head=0.9)")
    methods = ("vanilla", *rates, "lora+dropout(head=0.9)")
    plan = make_plan(dataclasses.replace(study, methods=methods, seeds=(1,)))
    for cell in plan.todo:
        run_cell(cell, WorkerContext(plan.store, torch.device("cpu")))
    by_method = {row["method"]: row for row in plan.store.rows()}
    rows = [by_method[method] for method in methods]
    plain, hidden, attention, head, adapters = (row["dropout"] for row in rows)
    probabilities, of_head = "bert.encoder.layer.*.attention.self.dropout", "dropout"
    assert set(plain.values()) == {0.1}
    assert hidden == {place: 0.1 if place in (probabilities, of_head) else 0.5 for place in plain}
    assert attention == plain | {probabilities: 0.5}
    assert head == adapters == plain | {of_head: 0.9}
    assert len({row["files"]["predictions.npz"]["sha256"] for row in rows}) == len(rows)


@pytest.mark.slow
def test_a_checkpoint_names_its_cell_and_its_micro_batches(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(study)
    owners = []

    def train(run: TrainingRun, checkpoints: Checkpoints, *_: object) -> None:
        owners.append(checkpoints.owner)
        raise torch.OutOfMemoryError  # it is tried again, in smaller micro-batches

    monkeypatch.setattr(loop, "train", train)
    for cell in plan.todo:
        run_cell(cell, WorkerContext(plan.store, torch.device("cpu")))
    assert owners == [f"{cell.id}-{parts}" for cell in plan.todo for parts in (1, 2)]


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_energy_of_a_shared_device_is_no_cells(
    study: Study, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    """Each of the workers would count what all of them used."""
    readings = iter([100.0, 350.0])
    monkeypatch.setattr(cells.devices, "energy", lambda device: next(readings))
    plan = make_plan(study)
    row = run_cell(plan.cells[0], WorkerContext(plan.store, torch.device("cpu"), shares_device=is_shared))
    assert row["cost"]["energy_joules"] == (None if is_shared else 250.0)


@pytest.mark.parametrize(("devices", "is_shared"), [(["cuda:0", "cuda:1"], False), (["cuda:0", "cuda:0"], True)])
def test_workers_are_told_that_they_share_a_device(study: Study, devices: list[str], is_shared: bool) -> None:
    plan = dataclasses.replace(make_plan(study), devices=devices)
    assert execution._worker_settings(plan).shares_device is is_shared


def test_a_process_that_is_told_to_end_leaves_no_row(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """SLURM's handler of a job's last signal ends it by `sys.exit`, in the middle of a cell, which runs again."""
    plan = make_plan(study)
    monkeypatch.setattr(cells, "PROCESS_ENDS", threading.Event())

    def end(*_: object) -> None:
        cells.PROCESS_ENDS.set()
        sys.exit(144)

    monkeypatch.setattr(loop, "train", end)
    with pytest.raises(SystemExit, match="144"):
        run_cell(plan.cells[0], WorkerContext(plan.store, torch.device("cpu")))
    assert plan.store.rows() == []
    assert not list(plan.store.cells.iterdir())
