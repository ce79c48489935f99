"""`verify` reads every file of a run and names what is damaged; on cells whose ids are hashes of what they are."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_bench import cli
from finetune_bench.files import sealed
from finetune_bench.recipe import Recipe
from finetune_bench.runner.row import row_of
from finetune_bench.store import row_index
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from tests.synthetic_store import change_index, make_cell

Damage = Callable[[Path], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("verify") / "run")
    for seed in (1, 2):
        cell = make_cell(seed)
        arrays = {
            "trace": {"loss": np.arange(3.0), "sketch": np.ones((1, 4)), "sketch_steps": np.array([0])},
            "predictions": {"validation.labels": np.zeros(5), "validation.predictions": np.zeros((5, 2))},
        }
        store.write(cell.to_dict(), row_of(cell, Status.DONE), arrays=arrays)
    store.write_study({"methods": ["hype"]})
    row_index.read(store)
    return store


@pytest.fixture
def store(made: Store, tmp_path: Path) -> Store:
    shutil.copytree(made.root, tmp_path / "run")
    return Store(tmp_path / "run")


def verify(capsys: Any, store: Store) -> tuple[int, list[str]]:
    code = cli.main(["verify", str(store.root)])
    return code, capsys.readouterr().out.splitlines()


def test_a_whole_run_has_no_faults(store: Store, capsys: Any) -> None:
    assert verify(capsys, store) == (0, ["2 cells checked, 0 faults."])


@pytest.mark.parametrize("optimizer", ["lion", "muon"])
def test_a_run_with_another_optimiser_is_whole_too(tmp_path: Path, capsys: Any, optimizer: str) -> None:
    store = Store(tmp_path / "run")
    cell = dataclasses.replace(make_cell(1), recipe=Recipe(optimizer=optimizer))
    store.write(cell.to_dict(), row_of(cell, Status.DONE))
    store.write_study({"methods": ["hype"]})
    row_index.read(store)
    assert verify(capsys, store) == (0, ["1 cell checked, 0 faults."])
    row = store.folder(cell.id) / "row.json"
    edit_json(row, recipe=Recipe().to_dict())
    code, lines = verify(capsys, store)
    assert code == 1
    assert "row.json has another recipe than cell.json" in "\n".join(lines)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(sealed(json.loads(path.read_text("utf-8")) | changes)), "utf-8")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# What is done to the folder of the cell with seed 1, and what is then said.
FAULTS: dict[str, tuple[Damage, str]] = {
    "row": (lambda f: flip(f / "row.json"), "row.json"),
    "trace": (lambda f: flip(f / "trace.npz"), "trace.npz was changed after it was written"),
    "cell": (lambda f: edit_json(f / "cell.json", data="other"), "cell.json describes another cell"),
    "cell gone": (lambda f: (f / "cell.json").unlink(), "cell.json is missing"),
    "cell of junk": (lambda f: (f / "cell.json").write_text('{"recipe": 1}'), "cell.json describes no cell"),
    "seed": (lambda f: edit_json(f / "row.json", seed=3), "row.json has another seed than cell.json"),
    "method": (lambda f: edit_json(f / "row.json", method="rdrop"), "row.json has another method than cell.json"),
    "model": (lambda f: edit_json(f / "row.json", model="xlnet"), "row.json has another model than cell.json"),
    "recipe": (
        lambda f: edit_json(f / "row.json", recipe=Recipe(lr=1.0).to_dict()),
        "row.json has another recipe than cell.json",
    ),
    "strange file": (lambda f: (f / "notes").write_text("?"), "notes is no file of a cell"),
    "link": (lambda f: (f / "log.txt").symlink_to("/dev/zero"), "log.txt is a link"),
    "study": (lambda f: (f.parent.parent / "study.json").write_text("[]"), "study.json holds no table"),
    "receipt": (lambda f: (f.parent.parent / "receipt.json").write_text("{"), "receipt.json is no JSON"),
    "index": (lambda f: (f.parent.parent / "derived.parquet").write_text("?"), "derived.parquet: it can't be read"),
    "checkpoint": (
        lambda f: put_checkpoint(f.parent.parent / "checkpoints", f.name),
        "checkpoints: ",
    ),
}


def put_checkpoint(folder: Path, cell_id: str) -> None:
    folder.mkdir()
    (folder / f"{cell_id}-1.safetensors").write_bytes(b"cut")


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_named(fault: str, store: Store, capsys: Any) -> None:
    spoil, said = FAULTS[fault]
    spoil(store.folder(make_cell(1).id))
    code, lines = verify(capsys, store)
    assert code == 1
    assert len(lines) == 2
    assert said in lines[0]
    assert "1 fault." in lines[1]


def test_a_forged_line_of_the_index_is_named(store: Store, capsys: Any) -> None:
    change_index(store, digest=lambda _: "0")
    code, lines = verify(capsys, store)
    assert (code, len(lines)) == (1, 3)
    assert "isn't what its files give" in lines[0]


def test_rows_of_the_first_schema_are_read_and_counted(store: Store, capsys: Any) -> None:
    path = store.folder(make_cell(1).id) / "row.json"
    row = json.loads(path.read_text("utf-8"))
    del row["sha256"]
    old = row | {"schema": 1, "files": {name: facts["bytes"] for name, facts in row["files"].items()}}
    path.write_text(json.dumps(old), "utf-8")
    assert len(store.rows()) == 2
    assert np.array_equal(store.arrays(path.parent.name, "trace")["loss"], np.arange(3.0))
    code, lines = verify(capsys, store)
    assert code == 0
    assert "1 cells are of an earlier version and have no checksums" in lines[-1]
