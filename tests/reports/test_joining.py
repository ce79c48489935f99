"""Tasks that each have a recipe of their own are one comparison; settings of the same tasks are not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.store.store import Store
from tests.synthetic_store import make_row, put

Change = Callable[[str], dict[str, Any]]


def data_of(folder: Path, *changes: Change) -> Data:
    """Load a store of two methods on two tasks, once for each change, which gives what a task's rows have instead."""
    store = Store(folder)
    for number, change in enumerate(changes):
        for task in ("rte", "cola"):
            for method in ("vanilla", "hype"):
                for seed in (1, 2):
                    row = make_row(method, task, seed)
                    changed = change(task)
                    row |= changed | {"recipe": row["recipe"] | changed.get("recipe", {})}
                    row["id"] = hashlib.sha256(repr((method, task, seed, number)).encode()).hexdigest()[:16]
                    put(store, row)
    return load(store)


def test_tasks_with_recipes_of_their_own_are_one_section(tmp_path: Path) -> None:
    rates = {"rte": 1e-5, "cola": 2e-5}
    data = data_of(tmp_path, lambda task: {"recipe": {"lr": rates[task]}})
    (section,) = data.sections
    assert (section.title, sorted(section.tasks)) == ("", ["cola", "rte"])
    assert section.setting["lr"] == "1e-05 (rte) and 2e-05 (cola)"
    assert "mean over 2 tasks" in render(data)


def test_learning_rates_of_the_same_tasks_stay_apart(tmp_path: Path) -> None:
    data = data_of(tmp_path, lambda task: {"recipe": {"lr": 1e-5}}, lambda task: {"recipe": {"lr": 2e-5}})
    assert [section.title for section in data.sections] == ["lr 1e-05", "lr 2e-05"]


def test_of_each_learning_rate_tasks_are_joined_that_differ_in_something_else(tmp_path: Path) -> None:
    epochs = {"rte": 10, "cola": 3}
    changes = [lambda task, lr=lr: {"recipe": {"lr": lr, "epochs": epochs[task]}} for lr in (1e-5, 2e-5)]
    data = data_of(tmp_path, *changes)
    assert [section.setting["lr"] for section in data.sections] == [1e-5, 2e-5]
    assert {section.setting["epochs"] for section in data.sections} == {"3 (cola) and 10 (rte)"}


def test_models_and_optimisers_stay_apart(tmp_path: Path) -> None:
    models = data_of(tmp_path / "models", lambda task: {"model": f"model-of-{task}"})
    optimisers = {"rte": {"optimizer": "lion"}, "cola": {}}
    optimised = data_of(tmp_path / "optimisers", lambda task: {"recipe": optimisers[task]})
    assert [len(data.sections) for data in (models, optimised)] == [2, 2]


def test_seconds_and_peaks_of_two_devices_are_told_apart(tmp_path: Path) -> None:
    devices = {"rte": "cpu", "cola": "cuda"}
    text = render(data_of(tmp_path, lambda task: {"device": devices[task]}))
    assert "Time is wall-clock seconds, on a CPU the process's own, of training" in text
