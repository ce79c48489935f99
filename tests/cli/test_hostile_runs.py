"""A run goes on in a folder that was damaged, or made up by somebody: all of it is run again, and nothing hangs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_bench import cli
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.local import LocalExecutor
from finetune_bench.runner.executors.messages import EventStatus
from finetune_bench.runner.plan import make_plan
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study
from tests.cli.test_hostile_stores import FAULTS, SECRET, rewrite
from tests.synthetic_store import make_row, make_trace

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are made as on POSIX")
AGAIN = [name for name in FAULTS if name != "newer"]  # a newer version's row is not replaced
HEALTHY = 3


def write_done(store: Store, cell: Cell) -> None:
    """Write the row of a run that is done, as the store would have it."""
    made = make_row("hype", "rte", cell.seed)
    predictions = {"validation.labels": np.zeros(4, dtype=np.int64)}
    row: Any = made | {"id": cell.id, "task": cell.task, "status": "done"}
    store.write(cell.to_dict(), row, arrays={"trace": make_trace(made), "predictions": predictions})


@pytest.fixture
def words(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> list[str]:
    options = {
        "--methods": "hype",
        "--tasks": tiny_data,
        "--model": tiny_checkpoint,
        "--device": "cpu",
        "--out": tmp_path / "run",
        "--seeds": len(AGAIN) + HEALTHY,
        "--steps": 2,
    }
    return ["run", "--no-baseline", *(str(word) for pair in options.items() for word in pair)]


@pytest.fixture
def hostile(words: list[str], tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Store:
    """The folder of a study of which every run was done, with a fault in all but three of them."""
    from finetune_bench import registry
    from finetune_bench.cli.arguments import make_parser
    from finetune_bench.study.sources import OPTIONS, make_study

    parsed = make_parser().parse_args(words)
    study: Study = make_study(
        {option.name: getattr(parsed, option.name) for option in OPTIONS}, registry.default_options
    )
    plan = make_plan(study)
    for cell in plan.cells:
        write_done(plan.store, cell)
    for name, cell in zip(AGAIN, plan.cells, strict=False):
        folder = plan.store.folder(cell.id)
        rewrite(folder, seed=1)  # what some faults look for
        FAULTS[name][0](folder)
    first, second, third = (cell.id for cell in plan.cells[:3])
    for place in ("locks", "checkpoints"):
        (plan.store.root / place).mkdir()
        os.mkfifo(plan.store.root / place / f"{first}.0")
        (plan.store.root / place / f"{second}.0").symlink_to("/dev/zero")
        (plan.store.root / place / f"{third}.x").mkdir()
        (plan.store.root / place / f"{plan.cells[-1].id}.{'9' * 40}").write_bytes(b"\xff")
    os.mkfifo(plan.store.checkpoints / f"{first}-abc.safetensors")
    (plan.store.root / "study.json").write_text("[" * 10**5, "utf-8")
    (plan.store.root / "receipt.json").symlink_to("/dev/zero")
    (plan.store.root / "derived.parquet").write_bytes(b"PAR1 and no more")
    (plan.store.root / "victim").write_text("untouched", "utf-8")
    return plan.store


def test_what_is_damaged_is_run_again(
    words: list[str], hostile: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def execute(_: LocalExecutor, cells: list[Cell]) -> Iterator[Event]:
        for cell in cells:
            ran.append(cell.id)
            row = row_of(cell, Status.FAILED, "tried again")
            assert hostile.write_unfinished(cell.to_dict(), row)["reason"] == "tried again"
            yield Event(cell, EventStatus.FAILED, "tried again")

    monkeypatch.setattr(LocalExecutor, "run", execute)
    assert cli.main(words) == 1
    shown = capsys.readouterr()
    said = " ".join(shown.err.split())
    assert len(set(ran)) == len(ran) == len(AGAIN)
    gone = ("no row", "other name")  # of which nothing is left that could be told
    for name in set(AGAIN) - set(gone):
        assert FAULTS[name][1] in said, name
    assert SECRET not in shown.out + shown.err
    rows, damaged = hostile.read()
    assert {row["status"] for row, _ in rows.values()} == {"done", "failed"}
    assert len(rows) == len(AGAIN) + HEALTHY
    assert set(damaged) <= {"a copy"}
    assert (hostile.root / "victim").read_text("utf-8") == "untouched"
    assert (hostile.root.parent / "run" / "report" / "report.md").is_file()
