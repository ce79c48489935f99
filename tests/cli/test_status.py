"""`status`: what is done, runs, failed and is left; by live leases, whatever else lies in their folder."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_bench import cli
from finetune_bench.store import lease
from finetune_bench.store.lease import DEAD_SECONDS, Leases, holders
from finetune_bench.store.store import Store
from tests.synthetic_store import fail, make_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A study of eight runs: five are done, one failed, and two have no row yet."""

    def change(row: dict[str, Any]) -> bool:
        row["seconds"] = 100.0
        if row["method"] == "hype" and row["seed"] == 3:
            fail(row, "out of \x1b[2J memory")
        return row["seed"] < 4

    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=4, change=change)
    store.write_study({"cells": [*store.names(), "a" * 16, "b" * 16]})
    return store


def status(capsys: pytest.CaptureFixture[str], store: Store, code: int = 1) -> tuple[dict[str, Any], str]:
    assert cli.main(["status", str(store.root), "--json"]) == code
    facts = json.loads(capsys.readouterr().out)
    assert cli.main(["status", str(store.root)]) == code
    return facts, capsys.readouterr().out


def test_nothing_runs(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    facts, text = status(capsys, store)
    assert [facts[name] for name in ("runs", "done", "failed", "left", "running")] == [8, 5, 1, 2, []]
    assert facts["seconds_left"] is None
    assert "8 runs: 5 done, 1 failed, 0 running, 2 left." in text
    assert "Nothing runs now" in text
    assert r"Failed: hype on rte, seed 3" in text
    assert r"out of \x1b[2J memory" in text


def test_a_run_that_goes_on(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    with store.claim("a" * 16), store.writing("a" * 16) as folder:
        began = time.time() - 40
        os.utime(folder, (began, began))
        facts, text = status(capsys, store)
        (running,) = facts["running"]
        assert (running["id"], running["process"], running["is_live"]) == ("a" * 16, os.getpid(), True)
        assert running["host"] == socket.gethostname()
        assert 40 <= running["seconds"] < 100
        assert 100 < facts["seconds_left"] <= 160  # two runs of 100 s, of which one has run for 40 s
        assert "1 running, 2 left." in text
        assert "About 2 min left, one at a time" in text or "About 3 min left, one at a time" in text
        raise_nothing = store.row("a" * 16)
        assert raise_nothing is None
        (folder / "row.json").write_text("{}", "utf-8")
        store._undoes = lambda *_: True  # type: ignore[method-assign]  # what was written is dropped
    assert status(capsys, store)[0]["running"] == []


def test_a_process_that_is_gone_does_not_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leases = Leases(store.root / "locks")
    with leases.hold("a" * 16):
        monkeypatch.setattr(lease, "_started", lambda process: "")
        facts, text = status(capsys, store)
    assert facts["running"][0]["is_live"] is False
    assert "Not running any more" in text
    assert "0 running, 2 left" in text


def test_a_holder_of_another_machine_lives_as_long_as_it_gives_signs(tmp_path: Path) -> None:
    lines = ["elsewhere", "another boot", "12", "34", "abcd", ""]
    path = tmp_path / f"{'a' * 16}.0"
    path.write_text("\n".join(lines), "utf-8")
    (holder,) = holders(tmp_path)
    assert (holder.host, holder.process, holder.is_live) == ("elsewhere", 12, True)
    quiet = time.time() - DEAD_SECONDS - 5
    os.utime(path, (quiet, quiet))
    assert not holders(tmp_path)[0].is_live
    ahead = time.time() + 3600  # another machine's clock
    os.utime(path, (ahead, ahead))
    assert holders(tmp_path)[0].quiet_seconds == 0


HOSTILE = {
    "pipe": os.mkfifo,
    "link": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "huge": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**40),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(b"\xff\x1b[2J\n" * 5),
    "number": lambda path: path.write_text(f"h\n{lease._machine()}\n{'9' * 3000}\n1\nx\n", "utf-8"),
    "no number": lambda path: path.write_text(f"h\n{lease._machine()}\nmany\n1\nx\n", "utf-8"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are made as on POSIX")
@pytest.mark.parametrize("made", HOSTILE)
@pytest.mark.parametrize("suffix", ["0", "x", "9" * 30])
def test_what_is_no_lease_stops_nobody(made: str, suffix: str, tmp_path: Path) -> None:
    """It is read without waiting; a name is taken beside it at once, or after the time that a silent holder has."""
    HOSTILE[made](tmp_path / f"name.{suffix}")
    assert all(holder.process < 10**18 for holder in holders(tmp_path))
    leases = Leases(tmp_path, dead=-1.0)
    with leases.hold("name") as is_held:
        assert is_held


def test_a_run_folder_without_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla",), tasks=("rte",), seeds=2)
    facts, text = status(capsys, store, code=0)
    assert (facts["runs"], facts["done"], facts["left"], facts["seconds_left"]) == (2, 2, 0, 0)
    assert "0 left." in text
    assert "Nothing runs now" not in text
    (tmp_path / "empty" / "cells").mkdir(parents=True)
    assert status(capsys, Store(tmp_path / "empty"), code=0)[0]["runs"] == 0


def test_other_commands_and_other_shards(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    first, *rest = [row["id"] for row in store.rows() if row["status"] == "done"]
    store.write_study({"cells": [first], "other_shards": [rest[0], "c" * 16]})
    facts, text = status(capsys, store, code=0)
    assert (facts["runs"], facts["other_shards"], facts["other_commands"]) == (1, 1, 5)
    assert "This is a shard: 1 more run of its study is left" in text
    assert "5 more runs, of other commands" in text
