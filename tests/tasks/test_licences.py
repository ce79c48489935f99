"""The licence of a task's data: named by every built-in task, kept in rows, printed at a report's end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune_bench import registry
from finetune_bench.model import packaged
from finetune_bench.packages import LICENCES
from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.checks import notes_on_licences
from finetune_bench.runner.execution import execute
from finetune_bench.runner.plan import Plan, make_plan, untold
from finetune_bench.store.row import Row
from finetune_bench.study.study import Study
from tests.reports.reading import text_of
from tests.synthetic_store import make_store

PLUGIN = """
from finetune_bench.task import Split, Task, TaskData

class Free(Task):
    def load(self, data_root):
        split = Split([f"a text of number {i}" for i in range(8)], None, [i % 2 for i in range(8)])
        return TaskData(split, {"validation": split})

licensed = Free("licensed", labels=("a", "b"), licence="CC0 1.0")
unlicensed = Free("unlicensed", labels=("a", "b"))
"""


@pytest.mark.parametrize("name", sorted(set(registry.names("tasks")) - set(registry.foreign("tasks"))))
def test_every_task_names_one(name: str) -> None:
    assert registry.task(name).licence


def test_a_data_set_that_a_user_names_says_where_to_look() -> None:
    task = registry.task("hub:ag_news")
    assert task.licence == "not stated; see the data set's page"


def test_packaged_checkpoints_have_one() -> None:
    assert notes_on_licences(Study(tasks=("wordnet_isa",), models=("mpnet", "bert-base-uncased")))[-1] == (
        "Licence of the weights of mpnet: Apache-2.0."
    )
    assert {name: model.licence for name, model in packaged.MODELS.items()} == LICENCES


def test_a_users_file_has_none(tiny_data: Path) -> None:
    assert registry.task(str(tiny_data)).licence == ""


def plan_of(task: str, checkpoint: Path, folder: Path) -> Plan:
    plugin = folder / "licensed_tasks.py"
    plugin.write_text(PLUGIN, "utf-8")
    return make_plan(
        Study(
            tasks=(task,),
            models=(str(checkpoint),),
            plugins=(str(plugin),),
            recipe=Recipe(steps=1, epochs=None),
            out=folder / "run",
            device="cpu",
        )
    )


def row_of(task: str, checkpoint: Path, folder: Path) -> Row:
    plan = plan_of(task, checkpoint, folder)
    return run_cell(plan.cells[0], WorkerContext(plan.store, torch.device("cpu")))


def test_a_row_keeps_it_and_a_run_folder_is_told_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plan = plan_of("licensed", tiny_checkpoint, tmp_path)
    assert "Licence of the data of licensed: CC0 1.0." in untold(plan)
    plan.todo = []
    execute(plan)
    assert not [note for note in untold(plan) if "icence" in note]
    assert row_of("licensed", tiny_checkpoint, tmp_path)["licence"] == "CC0 1.0"
    assert not [note for note in plan_of("unlicensed", tiny_checkpoint, tmp_path).notes if "icence" in note]
    assert "licence" not in row_of("unlicensed", tiny_checkpoint, tmp_path)


def test_a_report_ends_with_it(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        row["licence"] = {"rte": "CC BY 4.0", "cola": "CC BY 4.0", "mrpc": "unclear"}[row["task"]]
        row["model"] = "minilm"

    text = text_of(make_store(tmp_path / "run", tasks=["rte", "cola", "mrpc"], seeds=2, change=change))
    end = text[text.index("Settings and environment") :]
    assert end.count("Licence of the data of `cola` and `rte`: CC BY 4.0.") == 1
    assert end.count("Licence of the data of `mrpc`: unclear.") == 1
    assert end.count("Licence of the weights of `minilm`: Apache-2.0.") == 1


def test_a_report_of_earlier_rows_says_nothing_of_it(tmp_path: Path) -> None:
    assert "Licence" not in text_of(make_store(tmp_path / "run", seeds=2))
