"""Whatever an error says, a row's reason is one line that can be shown; the log has the whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_bench.runner import cell
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.testing.toys import CPU
from tests.model.checkpoints import planned


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    ("error", "start", "logged"),
    [
        (lambda: ValueError("begin" + "y" * 5_000_000 + "end"), "ValueError: beginyyy", "y" * 5_000_000),
        (lambda: ValueError("\x1b[2J\u202etxt\nsecond line"), r"ValueError: \x1b[2J\u202etxt", "second line"),
        (Mute, "Mute: a value of type Mute that can't be written", "Mute"),
    ],
)
def test_a_reason_is_short_and_the_log_whole(  # noqa: PLR0917 — fixtures
    error: Callable[[], Exception],
    start: str,
    logged: str,
    tiny_checkpoint: Path,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise error()

    plan = planned(tiny_checkpoint, tiny_data, tmp_path / "run", baseline=False)
    monkeypatch.setattr(cell.loop, "train", fails)
    row = run_cell(plan.cells[0], WorkerContext(plan.store, CPU))
    reason = row["reason"]
    assert reason is not None and reason.startswith(start)
    assert len(reason) <= 2_000 and "\n" not in reason and "\x1b" not in reason
    assert plan.store.row(row["id"]) is not None
    assert logged in (plan.store.folder(row["id"]) / "log.txt").read_text("utf-8")
