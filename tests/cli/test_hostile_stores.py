"""Stores that were damaged, or made up by somebody: each fault is named, and no command hangs, breaks or obeys it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_bench import cli
from finetune_bench.files import sealed
from finetune_bench.store import row_index
from finetune_bench.store.reading import SCHEMA
from finetune_bench.store.store import Store
from tests.synthetic_store import change_index, make_store

SECRET = "a secret of this machine"
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes are made as on POSIX")


def rewrite(folder: Path, **changes: Any) -> None:
    """Change keys of a row and make its checksum anew, as a forger does; None takes a key away."""
    row = json.loads((folder / "row.json").read_text("utf-8")) | changes
    kept = {key: value for key, value in row.items() if value is not None or key not in changes}
    (folder / "row.json").write_text(json.dumps(sealed(kept)), "utf-8")


def replace_text(folder: Path, old: str, new: str) -> None:
    text = (folder / "row.json").read_text("utf-8")
    assert old in text
    (folder / "row.json").write_text(text.replace(old, new, 1), "utf-8")


def instead(path: Path, make: Callable[[Path], Any]) -> None:
    path.unlink()
    make(path)


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file; its size and time stay."""
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def bomb(folder: Path) -> None:
    """Put arrays of 64 MB into a file of 64 kB that the row knows the size of."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        array = io.BytesIO()
        np.save(array, np.zeros(2**23))
        packed.writestr("loss.npy", array.getvalue())
    (folder / "trace.npz").write_bytes(content.getvalue())
    rewrite(folder, files={"trace.npz": {"bytes": len(content.getvalue())}})


def link_folder(folder: Path) -> None:
    aside = folder.parent.parent / "aside"
    folder.rename(aside)
    folder.symlink_to(aside)


def secret(folder: Path) -> Path:
    path = folder.parent.parent / "secret"
    path.write_text(SECRET, "utf-8")
    return path


def unseal(folder: Path) -> None:
    row = json.loads((folder / "row.json").read_text("utf-8"))
    del row["sha256"]
    (folder / "row.json").write_text(json.dumps(row), "utf-8")


DEEP = '{"a":' * 200 + "1" + "}" * 200
# What is done to a cell's folder, and what is then said of it.
FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "list": (lambda f: (f / "row.json").write_text("[]"), "holds no table"),
    "text": (lambda f: (f / "row.json").write_text("what?"), "no JSON that was written here"),
    "empty": (lambda f: (f / "row.json").write_text(""), "no JSON that was written here"),
    "no UTF-8": (lambda f: (f / "row.json").write_bytes(b'{"id": "\xff"}'), "no JSON that was written here"),
    "half a character": (lambda f: replace_text(f, '"hype"', '"\\ud800"'), "no JSON that was written here"),
    "NaN": (lambda f: replace_text(f, '"seed": 1', '"seed": NaN'), "no JSON that was written here"),
    "5,000 digits": (lambda f: replace_text(f, '"seed": 1', '"seed": ' + "1" * 5000), "no JSON that was written here"),
    "20 digits": (lambda f: rewrite(f, seed=10**20), "seed of another type"),
    "very deep": (lambda f: (f / "row.json").write_text("[" * 10**6), "nested more than 30 levels deep"),
    "deep": (lambda f: replace_text(f, '"seed": 1', f'"seed": {DEEP}'), "nested more than 30 levels deep"),
    "huge": (lambda f: sparse(f / "row.json"), "has 1,099,511,627,776 bytes"),
    "link": (lambda f: instead(f / "row.json", lambda p: p.symlink_to(secret(f))), "row.json is a link"),
    "pipe": (lambda f: instead(f / "row.json", os.mkfifo), "no plain file"),
    "folder for a row": (lambda f: instead(f / "row.json", Path.mkdir), "row.json is a folder"),
    "no row": (lambda f: (f / "row.json").unlink(), "row.json is missing"),
    "changed number": (lambda f: replace_text(f, '"first_loss": 0.7', '"first_loss": 0.8'), "its checksum is another"),
    "no checksum": (unseal, "has no checksum"),
    "no schema": (lambda f: rewrite(f, schema=None), "says no schema"),
    "newer": (lambda f: rewrite(f, schema=SCHEMA + 1), "written by a newer version"),
    "traversal": (lambda f: rewrite(f, id="./../victim"), "the row of another cell"),
    "no method": (lambda f: rewrite(f, method=None), "has no method"),
    "status": (lambda f: rewrite(f, status="splendid"), "status of another type"),
    "scores of text": (lambda f: rewrite(f, metrics={"validation": "good"}), "metrics.validation that are no table"),
    "cost of text": (lambda f: rewrite(f, cost="cheap"), "cost that are no table"),
    "files elsewhere": (
        lambda f: rewrite(f, files={"../../secret": {"bytes": len(SECRET)}}),
        "names files that no cell has",
    ),
    "cut arrays": (lambda f: os.truncate(f / "trace.npz", 100), "trace.npz has 100 bytes"),
    "flipped bit": (lambda f: flip(f / "predictions.npz"), "predictions.npz was changed after it was written"),
    "arrays gone": (lambda f: (f / "trace.npz").unlink(), "trace.npz is missing"),
    "arrays of zeros": (lambda f: instead(f / "trace.npz", lambda p: p.symlink_to("/dev/zero")), "trace.npz is a link"),
    "linked folder": (link_folder, "is a link or a file, not a folder"),
    "other name": (lambda f: f.rename(f.parent / "a copy"), "a name that is no id"),
}
# These are seen when the arrays are read.
FORGED = {
    "bomb": (bomb, "packed as no file of this program is"),
    "no arrays": (lambda f: forge_trace(f, b"not a zip file"), "holds no arrays that can be read"),
    "other shape": (lambda f: forge_trace(f, np.zeros((2, 2))), "loss of another shape"),
    "texts": (lambda f: forge_trace(f, np.array(["a"])), "loss of another shape or type"),
}


def forge_trace(folder: Path, content: np.ndarray | bytes) -> None:
    if isinstance(content, bytes):
        (folder / "trace.npz").write_bytes(content)
    else:
        np.savez(folder / "trace.npz", loss=content)
    rewrite(folder, files={"trace.npz": {"bytes": (folder / "trace.npz").stat().st_size}})


@pytest.mark.parametrize("fault", FAULTS | FORGED)
def test_every_fault_is_named_and_only_its_row_is_lost(fault: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=1)
    (row,) = [row for row in store.rows() if row["method"] == "hype"]
    spoil, said = (FAULTS | FORGED)[fault]
    for is_indexed in (False, True):
        if is_indexed:  # the index of the store as it was is no way around
            store = make_store(tmp_path / "indexed", methods=("vanilla", "hype"), tasks=("rte",), seeds=1)
            row_index.read(store)
        spoil(store.folder(row["id"]))
        pairs, damaged = row_index.read(store)
        assert [row["method"] for row, _ in pairs] == ["vanilla"]
        assert len(damaged) == 1
        assert said in next(iter(damaged.values())).reason


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a cell of every fault, some that are whole, and strange files everywhere."""
    folder = tmp_path_factory.mktemp("hostile")
    store = make_store(folder / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=len(FAULTS | FORGED) + 4)
    cells = [row for row in store.rows() if row["method"] == "hype"]
    for (spoil, _), row in zip((FAULTS | FORGED).values(), cells, strict=False):
        rewrite(store.folder(row["id"]), seed=1)  # what some faults look for
        spoil(store.folder(row["id"]))
    (store.cells / ".DS_Store").write_bytes(b"\0")
    (store.cells / "Thumbs.db").write_bytes(b"\0")
    (store.root / "study.json").write_text("[" * 10**5, "utf-8")
    (store.root / "receipt.json").write_text("[" * 10**5, "utf-8")
    (store.root / "derived.parquet").write_bytes(b"PAR1 and no more")
    (folder / "victim").mkdir()
    (folder / "victim" / "file").write_text("untouched", "utf-8")
    return store


def run(capsys: Any, *words: object) -> tuple[int, str]:
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, " ".join((out + err).split())


COMMANDS = {
    "report": ("report", "{run}", "--format", "csv"),
    "report --check": ("report", "{run}", "--format", "csv", "--check"),
    "compare": ("compare", "{run}", "{run}"),
    "merge": ("merge", "{target}", "{run}"),
    "power": ("power", "{run}"),
    "report --json": ("report", "{run}", "--format", "csv", "--json"),
    "status": ("status", "{run}"),
    "status --json": ("status", "{run}", "--json"),
}
READS_NO_ARRAYS = ("merge", "status", "status --json")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_is_damaged_and_goes_on(
    command: str, hostile: Store, tmp_path: Path, capsys: Any
) -> None:
    (hostile.root / "report").mkdir(exist_ok=True)
    words = [word.format(run=hostile.root, target=tmp_path / "target") for word in COMMANDS[command]]
    code, said = run(capsys, *words)
    assert code == 1
    assert f"Damaged in '{hostile.root}', so left out: " in said
    count = len(FAULTS) + 1 - 5 + (command not in READS_NO_ARRAYS) * len(FORGED)
    assert f" and {count} more." in said
    assert (hostile.root.parent / "victim" / "file").read_text("utf-8") == "untouched"


@pytest.mark.parametrize("as_json", [False, True])
def test_show_tells_of_a_hostile_run(as_json: bool, hostile: Store, capsys: Any) -> None:
    code, said = run(capsys, "show", hostile.root, *["--json"] * as_json)
    assert code == 0
    assert SECRET not in said
    if as_json:
        assert len(json.loads(said)["run"]["damaged"]) == len(FAULTS) + 1
    else:
        assert "`finetune-bench verify` names all that is" in said


def test_verify_names_every_fault_of_a_hostile_store(hostile: Store, capsys: Any) -> None:
    code, said = run(capsys, "verify", hostile.root)
    assert code == 1
    assert [name for name, (_, told) in FAULTS.items() if told not in said] == []
    assert SECRET not in said
    assert (hostile.root.parent / "victim" / "file").read_text("utf-8") == "untouched"


def test_merge_takes_plain_files_of_known_names_only(hostile: Store, tmp_path: Path, capsys: Any) -> None:
    healthy = next(row["id"] for row in hostile.rows())
    (hostile.folder(healthy) / "notes.txt").write_text("not a file of a cell", "utf-8")
    run(capsys, "merge", tmp_path / "target", hostile.root)
    files = [path for path in (tmp_path / "target").rglob("*") if not path.is_dir()]
    assert {path.name for path in files} <= {"study.json", "cell.json", "row.json", "trace.npz", "predictions.npz"}
    assert not any(path.is_symlink() for path in files)
    assert not any(SECRET.encode() in path.read_bytes() for path in files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["target"]


@pytest.mark.parametrize("name", ["cell.json", "log.txt", "model", "model/weights"])
def test_a_cell_with_a_link_is_not_merged(name: str, tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla",), tasks=("rte",), seeds=1)
    (row,) = store.rows()
    path = store.folder(row["id"]) / name
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(secret(store.folder(row["id"])))
    code, said = run(capsys, "merge", tmp_path / "target", store.root)
    assert (code, Store(tmp_path / "target").rows()) == (1, [])
    assert f"{path.name} is a link" in said
    assert [path.name for path in (tmp_path / "target" / "cells").iterdir()] == []


def test_a_damaged_row_of_the_target_is_replaced_by_a_whole_one(tmp_path: Path, capsys: Any) -> None:
    stores = [make_store(tmp_path / name, methods=("vanilla",), tasks=("rte",), seeds=2) for name in ("a", "b")]
    first, second = (row["id"] for row in stores[0].rows())
    flip(stores[0].folder(first) / "trace.npz")
    code, said = run(capsys, "merge", stores[0].root, stores[1].root)
    assert (code, stores[0].damage(first)) == (0, None)
    assert "1 cells copied" in said
    rewrite(stores[0].folder(second), schema=SCHEMA + 1)
    code, said = run(capsys, "merge", stores[0].root, stores[1].root)
    assert code == 1
    assert "was written by a newer version" in said
    assert stores[0].damage(second) is not None


def test_show_says_what_is_wrong_with_a_cell(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("hype",), tasks=("rte",), seeds=1)
    (row,) = store.rows()
    os.mkfifo(store.folder(row["id"]) / "log.txt")
    code, said = run(capsys, "show", row["id"], "--run", store.root)
    assert code == 0
    assert "log.txt is no plain file" in said
    flip(store.folder(row["id"]) / "trace.npz")
    code, said = run(capsys, "show", row["id"], "--run", store.root)
    assert code == 2
    assert "trace.npz was changed after it was written" in said


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_replaces_links_and_follows_none(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=2)
    formats = ("--format", "markdown,html,csv,latex")
    assert run(capsys, "report", store.root, *formats)[0] == 0
    files = [path for path in (store.root / "report").rglob("*") if path.is_file()]
    victim = tmp_path / "victim"
    victim.write_text("untouched", "utf-8")
    for path in [*files, store.root / "derived.parquet"]:
        path.unlink()
        path.symlink_to(victim)
    assert run(capsys, "report", store.root, *formats)[0] == 0
    assert victim.read_text("utf-8") == "untouched"
    assert not any(path.is_symlink() for path in files)


@pytest.mark.parametrize("name", ["report", "report/plots", "cells", "locks"])
def test_a_linked_folder_is_refused(name: str, tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla",), tasks=("rte",), seeds=1)
    (store.root / "report").mkdir()
    (tmp_path / "elsewhere").mkdir()
    folder = store.root / name
    if folder.exists():
        folder.rename(store.root / "aside")
    folder.symlink_to(tmp_path / "elsewhere")
    code, said = run(capsys, "report", store.root, "--format", "markdown")
    assert code == 2
    assert f"'{folder}' is a link" in said
    assert list((tmp_path / "elsewhere").iterdir()) == []


# --- the index --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_flipped_bit_in_the_index_changes_no_number(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=2)
    index = store.root / "derived.parquet"

    def numbers() -> list[Any]:
        return [(row["id"], trace.digest, trace.examples, trace.arrays()["loss"].tolist()) for row, trace in pairs()]

    def pairs() -> list[Any]:
        return row_index.read(Store(store.root))[0]

    expected = numbers()
    content = index.read_bytes()
    for position in range(0, len(content), max(1, len(content) // 150)):
        flipped = bytearray(content)
        flipped[position] ^= 1
        index.write_bytes(flipped)
        assert numbers() == expected


def forge_index(store: Store) -> None:
    """Halve the losses in the index, and make the checksums of its lines anew."""

    def halved(loss: bytes) -> bytes:
        return (np.frombuffer(loss) / 2).tobytes()

    change_index(store, loss=halved, task_loss=halved)


@pytest.mark.slow
def test_a_forged_index_does_not_pass_the_check(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=2)
    row_index.read(store)
    forge_index(store)
    assert run(capsys, "report", store.root, "--format", "markdown")[0] == 0
    code, said = run(capsys, "report", store.root, "--format", "markdown", "--check")
    assert code == 1
    assert "0 differ" not in said


def test_an_index_that_vouches_for_a_row_does_not_make_it_one(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=("hype",), tasks=("rte",), seeds=1)
    (pair,) = row_index.read(store)[0]
    folder = store.folder(pair[0]["id"])
    rewrite(folder, seed="one")
    forged = hashlib.sha256((folder / "row.json").read_bytes()).hexdigest()
    change_index(store, row_file=lambda _: forged)
    pairs, damaged = row_index.read(store)
    assert pairs == []
    assert "seed of another type" in damaged[folder.name].reason


def test_a_row_that_is_rewritten_within_one_tick_of_the_clock_is_read_again(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=("hype",), tasks=("rte",), seeds=1)
    (pair,) = row_index.read(store)[0]
    path = store.folder(pair[0]["id"]) / "row.json"
    before = path.stat()
    replace_text(path.parent, '"first_loss": 0.7', '"first_loss": 0.9')
    rewrite(path.parent)
    text = path.read_text("utf-8")
    path.write_text(text.ljust(before.st_size), "utf-8")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    (pair,) = row_index.read(store)[0]
    assert pair[0]["training"]["first_loss"] == 0.9
