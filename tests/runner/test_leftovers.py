"""What a plugin leaves behind in its process, or patches when it is imported, reaches no other cell."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetune_bench import registry
from finetune_bench.runner.leftovers import foreign_names, is_foreign
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell

LEAKY = """
import sys

import torch
from torch import nn
from finetune_bench.method import Method, Passes
from finetune_bench.parameters import parameter

original = nn.LayerNorm.forward
nn.LayerNorm.forward = lambda module, values: original(module, values) + 0.25  # at import already

class Leaky(Method):
    \"\"\"Leaves a patch, a hook, gradients and the default dtype behind.\"\"\"
    name = "leaky"
    how: str = parameter("leave", choices=("leave", "exit"), help="what it does")

    def passes(self, inner):
        return Passes(9, 9)  # so that it runs before everything else

    def setup(self, run):
        if self.how == "exit":
            sys.exit(0)

    def teardown(self, run):
        forward = nn.Linear.forward
        nn.Linear.forward = lambda module, values: 2 * forward(module, values)
        nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
        run.examples.labels.zero_()  # those that the worker keeps for the next cell
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_grad_enabled(False)
"""


def run(folder: Path, data: Path, model: Path, methods: str, *more: str) -> int:
    fixed = "--seeds 1, --epochs 1 --lr 1e-3 --device cpu --workers 1 --batch-layout padded"
    paths = ["--tasks", str(data), "--model", str(model), "--out", str(folder)]
    typed = [sys.executable, "-m", "finetune_bench.cli", "run", "--methods", methods, *paths, *fixed.split(), *more]
    return subprocess.run(typed, capture_output=True, check=False).returncode


@pytest.mark.slow
def test_other_cells_never_see_what_a_plugin_left(tmp_path: Path, tiny_data: Path, tiny_checkpoint: Path) -> None:
    plugin = tmp_path / "leaky.py"
    plugin.write_text(LEAKY, "utf-8")
    clean, beside = Store(tmp_path / "clean"), Store(tmp_path / "beside")
    assert run(clean.root, tiny_data, tiny_checkpoint, "rdrop") == 0
    methods = "leaky,leaky(how=exit),rdrop"
    assert run(beside.root, tiny_data, tiny_checkpoint, methods, "--plugin", str(plugin)) == 1
    rows = {row["id"]: row for row in beside.rows()}
    assert len(clean.rows()) == 3  # vanilla, its control and R-Drop
    for row in clean.rows():
        assert rows[row["id"]]["metrics"] == row["metrics"]
        arrays = [store.arrays(row["id"], "predictions") for store in (clean, beside)]
        assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    left = {row["method"]: row for row in rows.values() if row["method"].startswith("leaky")}
    assert left["leaky"]["status"] == "done"
    assert "its code called sys.exit(0)" in left["leaky(how=exit)"]["reason"]


def test_foreign_is_what_no_entry_of_this_package_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_added", {group: {} for group in registry._added})  # of other tests
    groups = ("methods", "tasks", "task_files", "task_sources", "analyses")
    assert foreign_names() == {group: [] for group in groups}
    foreign = {"methods": ["leaky"], "tasks": ["my/task"], "task_files": ["xlsx"], "task_sources": ["zoo"]}

    def of(method: str, task: str) -> bool:
        values = dict.fromkeys(Cell.__dataclass_fields__, 0) | {"method": method, "task": task, "analyses": ()}
        return is_foreign(Cell(**values), foreign)  # type: ignore[arg-type]

    assert of("rdrop(alpha=1)+leaky(how=leave)", "rte")
    assert of("rdrop", "my/task")
    assert of("rdrop", "data/reviews.xlsx(text=a)")
    assert of("rdrop", "zoo:lions")
    assert not of("rdrop+hype", "reviews.csv(text=leaky)")
    own = {"method": "rdrop", "task": "rte", "analyses": ("drift",)}
    cell = Cell(**dict.fromkeys(Cell.__dataclass_fields__, 0) | own)  # type: ignore[arg-type]
    assert not is_foreign(cell, foreign | {"analyses": ["strange"]})
    analysed = dataclasses.replace(cell, analyses=("drift", "strange(x=1)"))
    assert is_foreign(analysed, foreign | {"analyses": ["strange"]})
    monkeypatch.setitem(registry._added["methods"], "leaky", object)
    assert foreign_names()["methods"] == ["leaky"]
