"""The source of a plugin is part of the cells that run it: what is edited never answers with old numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_bench import registry
from finetune_bench.recipe import Recipe
from finetune_bench.runner import execution
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import WorkerSettings
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.runner.plan import make_plan
from finetune_bench.runner.row import refused_row, row_of
from finetune_bench.store.row import Retry, Status
from finetune_bench.store.store import Store
from finetune_bench.study import grid
from finetune_bench.study.grid import Cell
from finetune_bench.study.study import Study

HEAD = "from finetune_bench.method import Method\nfrom finetune_bench.methods.rdrop import RDrop\n"
METHOD = "class {owner}({base}):\n    'Does nothing.'\n    name = '{name}'\n"
TASK = """
from dataclasses import dataclass
from finetune_bench.task import Task
@dataclass(frozen=True)
class Mine(Task):
    def load(self, data_root=None): raise NotImplementedError
mine = Mine('mine', labels=('a', 'b'), metrics=('accuracy',))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path, whose plugins are forgotten after the test."""
    monkeypatch.setattr(registry, "_added", {"methods": {}, "tasks": {}, "reports": {}})
    monkeypatch.setattr(registry, "_added_from", {})
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    return folder


def plugin(folder: Path, name: str, base: str = "Method", before: str = "") -> Path:
    path = folder / f"{name}.py"
    path.write_text(HEAD + before + METHOD.format(owner=name.title(), base=base, name=name), "utf-8")
    registry.load_plugin(path)
    return path


def ids(*methods: str, task: str = "rte") -> dict[str, str]:
    study = Study(methods=methods, tasks=(task,), models=("m",), seeds=(1,))
    return {cell.label: cell.id for cell in grid.cells(study, {task: "data"}, {"m": "weights"}, "cpu")}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {label for label in before if before[label] != after[label]}


def test_cells_of_this_package_keep_their_ids() -> None:
    cell = Cell(
        *("vanilla(dropout=keep)", (1,), "rte", "data", "model", "weights", 1, Recipe(), None, "cpu", 1),
        libraries=("torch 2", "transformers 5", "tokenizers 0"),
    )
    assert cell.id == "a98ee0d053cdfeaf"  # as it was before cells had sources, and recipes an optimiser
    others = {replace(cell, recipe=Recipe(optimizer=name)).id for name in ("adamw", "lion", "muon")}
    assert len(others) == 3
    assert cell.id in others
    assert {
        cell.sources for cell in grid.cells(Study(("hype+rdrop",), ("rte",), ("m",)), {"rte": ""}, {"m": ""}, "cpu")
    } == {()}


def test_an_edit_changes_the_cells_that_run_it_and_no_others(folder: Path) -> None:
    path = plugin(folder, "quiet")
    before = ids("quiet", "rdrop", "quiet+rdrop")
    content = path.read_text("utf-8")
    path.write_text(content + "    # edited\n", "utf-8")
    after = ids("quiet", "rdrop", "quiet+rdrop")
    assert changed(before, after) == {"quiet", "quiet+rdrop"}
    path.write_text(content, "utf-8")
    assert ids("quiet", "rdrop", "quiet+rdrop") == before


def test_two_plugins_share_a_module(folder: Path) -> None:
    shared = folder / "shared_by_two.py"
    shared.write_text("value = 1\n", "utf-8")
    plugin(folder, "first", before="import shared_by_two\n")
    plugin(folder, "second", before="from shared_by_two import value\n")
    plugin(folder, "third")
    before = ids("first", "second", "third")
    shared.write_text("value = 2\n", "utf-8")
    assert changed(before, ids("first", "second", "third")) == {"first", "second"}


def test_a_base_class_in_the_file_of_another_plugin_counts_however_it_came(folder: Path) -> None:
    base = plugin(folder, "base")
    plugin(folder, "child", "registry.method_class('base')", "from finetune_bench import registry\n")
    before = ids("child", "rdrop")
    base.write_text(base.read_text("utf-8") + "    # edited\n", "utf-8")
    assert changed(before, ids("child", "rdrop")) == {"child"}


def test_the_version_of_a_base_class_of_this_package_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin(folder, "child", "RDrop", "")
    child = registry.method_class("child")
    child.version = 7  # its own, whatever becomes of the base
    before = ids("child")
    monkeypatch.setattr(child.__mro__[1], "version", 99)
    assert changed(before, ids("child")) == {"child"}


def test_the_source_of_a_task_counts_for_every_method(folder: Path) -> None:
    path = folder / "mine.py"
    path.write_text(TASK, "utf-8")
    assert registry.load_plugin(path) == ["mine"]
    before = ids("rdrop", task="mine")
    path.write_text(TASK.replace("'accuracy'", "'f1'"), "utf-8")
    assert changed(before, ids("rdrop", task="mine")) == set(before)


def test_the_package_of_an_entry_point_counts(folder: Path, request: pytest.FixtureRequest) -> None:
    package, information = folder / "site-packages" / "lab_of_mine", folder / "lab_of_mine-1.0.dist-info"
    for path in (package, information):
        path.mkdir(parents=True)
    (folder / "lab_of_mine").symlink_to(package)  # installed, as far as its place says
    (package / "__init__.py").write_text("", "utf-8")
    (package / "util.py").write_text("value = 1\n", "utf-8")
    method = HEAD + "from lab_of_mine.util import value\n" + METHOD.format(owner="Lab", base="Method", name="lab")
    (package / "method.py").write_text(method, "utf-8")
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: lab_of_mine\nVersion: 1.0\n", "utf-8")
    entry = "[finetune_bench.methods]\nlab = lab_of_mine.method:Lab\n"
    (information / "entry_points.txt").write_text(entry, "utf-8")
    registry._installed.cache_clear()
    request.addfinalizer(registry._installed.cache_clear)
    before = ids("lab", "rdrop")
    (package / "util.py").write_text("value = 2\n", "utf-8")
    assert changed(before, ids("lab", "rdrop")) == {"lab"}


class InThisProcess:
    """Run cells with a worker of this process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.running: dict[int, Cell] = {}
        self.worker = Worker(settings)

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        for cell in cells:
            yield Event.from_answer(cell, self.worker.work(cell))


@pytest.fixture
def study(
    folder: Path, tiny_data: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Study:
    """A study of one cell, that of a plugin with a helper, whose worker is this process."""
    monkeypatch.setattr(execution, "make_executor", lambda study, devices, settings, logs: InThisProcess(settings))
    (folder / "helper_of_quiet.py").write_text("value = 1\n", "utf-8")
    path = plugin(folder, "quiet", before="import helper_of_quiet\n")
    recipe = Recipe(lr=1e-3, epochs=None, steps=1)
    fixed = Study(("quiet",), (str(tiny_data),), (str(tiny_checkpoint),), seeds=(1,), recipe=recipe, baseline=False)
    return replace(fixed, device="cpu", plugins=(str(path),), out=tmp_path / "run")


@pytest.mark.parametrize("edited", ["helper_of_quiet", "quiet"])
def test_a_file_that_is_edited_during_the_run_fails_its_cells(study: Study, folder: Path, edited: str) -> None:
    plan = make_plan(study)
    path = folder / f"{edited}.py"
    content = path.read_text("utf-8")
    path.write_text(content + "# edited\n", "utf-8")
    assert execution.execute(plan).failed == 1
    (row,) = plan.store.rows()
    assert row["reason"] == "the source of quiet changed after the run was planned; start it again"
    assert (row["status"], row["retry"]) == (Status.FAILED, Retry.ALWAYS)
    assert {cell.id for cell in make_plan(study).todo}.isdisjoint({row["id"]})
    path.write_text(content, "utf-8")
    assert [cell.id for cell in make_plan(study).todo] == [row["id"]]  # it runs again by itself


def test_a_file_that_is_broken_during_the_run_fails_its_cells(study: Study, folder: Path) -> None:
    plan = make_plan(study)
    (folder / "quiet.py").write_text("def (", "utf-8")
    assert execution.execute(plan).failed == 1
    (row,) = plan.store.rows()
    assert "SyntaxError" in str(row["reason"])
    assert "Start the run again" in str(row["reason"])
    assert [(part["name"], part["version"]) for part in row["methods"]] == [("quiet", 1)]
    assert (row["retry"], row["task"], row["sources"]) == (Retry.ALWAYS, study.tasks[0], list(plan.cells[0].sources))


def test_a_refused_row_can_be_made_without_the_plugin(study: Study) -> None:
    (cell,) = make_plan(study).cells
    whole = refused_row(cell, "edited")
    registry._added["methods"].clear()
    bare = refused_row(cell, "edited")
    assert whole["method"] == "quiet"
    assert bare["method"] == "quiet(dropout=keep)"
    assert bare | {"method": "", "methods": []} == whole | {"method": "", "methods": []}


def test_a_finished_row_of_another_source_is_never_reused(study: Study, folder: Path) -> None:
    plan = make_plan(study)
    (cell,) = plan.cells
    row = row_of(cell, Status.DONE)
    assert row["sources"] == list(cell.sources) == [f"quiet {registry.source('methods', 'quiet')}"]
    assert (row["data"], row["weights"]) == (cell.data, cell.weights)
    assert Cell.from_dict(cell.to_dict()) == cell
    Store(plan.store.root).write(cell.to_dict(), row)
    assert make_plan(study).cached == [cell.id]
    (folder / "helper_of_quiet.py").write_text("value = 2\n", "utf-8")
    again = make_plan(study)
    assert not again.cached
    assert len(again.todo) == 1
