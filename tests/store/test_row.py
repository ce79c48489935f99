"""The types of a row are for readers of the code only: on disk its statuses are plain text."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_bench.store import Retry, Status, Store


def test_statuses_are_written_as_text_and_read_back_as_equal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, {"id": "a", "status": Status.FAILED, "retry": Retry.ASKED})
    plain = {"id": "a", "status": "failed", "retry": "asked"}
    text = (store.folder("a") / "row.json").read_text("utf-8")
    assert text == json.dumps(plain, indent=1, sort_keys=True)
    row = store.row("a")
    assert row == plain
    assert row["status"] == Status.FAILED
    assert row["retry"] == Retry.ASKED
