"""The types of a row are for readers of the code only: on disk its statuses are plain text."""

from __future__ import annotations

import json
from pathlib import Path

from finetune_bench.files import checksum
from finetune_bench.store import Retry, Status, Store
from tests.synthetic_store import bare_row


def test_statuses_are_written_as_text_and_read_back_as_equal(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write({}, bare_row(status=Status.FAILED, retry=Retry.ASKED))
    plain = bare_row(status="failed", retry="asked")
    text = (store.folder("a" * 16) / "row.json").read_text("utf-8")
    assert text == json.dumps(plain | {"sha256": checksum(plain)}, indent=1, sort_keys=True)
    row = store.row("a" * 16)
    assert row == plain
    assert row["status"] == Status.FAILED
    assert row["retry"] == Retry.ASKED
