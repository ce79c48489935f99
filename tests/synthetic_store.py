"""A store of made-up rows that obey the schema, written through the real `Store.write`; seeded, no training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from finetune_bench import registry
from finetune_bench.recipe import Recipe
from finetune_bench.spec import parse_stack
from finetune_bench.store import analyses, row_index
from finetune_bench.store.reading import SCHEMA
from finetune_bench.store.row import MethodEntry
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell

CONTROL = "vanilla(dropout=hidden_off)"
FIVE = ("vanilla", CONTROL, "hype", "rdrop", "hype+rdrop")
THIRTEEN = (
    *FIVE[:4],
    "r3f",
    "mixout",
    "noisytune",
    "child_tuning_f",
    "child_tuning_d",
    "hype+rdrop",
    "hype+r3f(noise=none)",
    "rdrop+child_tuning_f(reserve_p=0.4)",
    "noisytune+mixout",
)
TASKS: dict[str, tuple[str, str, tuple[str, ...], float, int]] = {
    # kind, metric, splits, level, evaluation examples
    "cola": ("classification", "matthews", ("validation",), 0.58, 1043),
    "rte": ("classification", "accuracy", ("validation",), 0.66, 277),
    "mrpc": ("classification", "f1", ("validation",), 0.88, 408),
    "stsb": ("regression", "pearson_spearman", ("validation",), 0.87, 1500),
    "mnli": ("classification", "accuracy", ("validation_matched", "validation_mismatched"), 0.83, 500),
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "hype": {"dropout": "hidden_off", "eps": 1e-5, "noise": "normal"},
    "mixout": {"dropout": "all_off", "p": 0.7},
    "rdrop": {"dropout": "keep", "alpha": 1.0},
    "r3f": {"dropout": "keep", "noise": "uniform"},
}
RECIPE = {"lr": 2e-5, "batch_size": 16, "epochs": 3, "steps": None, "precision": "fp32", "clip": 1.0}
EFFECTS = {"hype": 0.012, "rdrop": 0.02, "r3f": 0.004, "mixout": -0.01, "noisytune": 0.002}
_OF_EVERY_ROW = (
    "schema", "id", "status", "reason", "method", "methods", "task", "kind", "metric", "model", "seed", "limit_train",
    "recipe", "device", "threads",
)  # fmt: skip
Change = Callable[[dict[str, Any]], Any]


def methods_of(label: str) -> list[MethodEntry]:
    """Return the row's `methods` for a label."""
    return [
        {
            "name": call.name,
            "version": 1,
            "parameters": {"dropout": "keep"} | DEFAULTS.get(call.name, {}) | call.arguments,
        }
        for call in parse_stack(label)
    ]


def make_row(method: str, task: str, seed: int, *, noise: float = 0.008) -> dict[str, Any]:
    """Return a row that is done; equal arguments give equal rows."""
    kind, metric, splits, level, _ = TASKS[task]
    parts = methods_of(method)
    names = [part["name"] for part in parts]
    rng = np.random.default_rng([seed, *method.encode(), *task.encode()])
    of_seed = np.random.default_rng([seed, *task.encode()]).normal(0, 0.015)
    score = level + of_seed + sum(EFFECTS.get(name, 0.0) for name in names) + rng.normal(0, noise)
    off = max((["keep", "hidden_off", "all_off"].index(part["parameters"]["dropout"]) for part in parts), default=0)
    forwards = 2.0 if {"rdrop", "r3f"} & set(names) else 1.0
    seconds = 40.0 * forwards * (1 + 0.05 * len(parts)) * float(rng.uniform(0.97, 1.03))
    saved = int(3.1e8 * (0.3 + 0.7 * forwards) * (1.25 if "mixout" in names else 1.0))
    return {
        "schema": SCHEMA,
        "id": "".join(f"{byte:02x}" for byte in rng.bytes(8)),
        "status": "done",
        "reason": None,
        "method": method,
        "methods": parts,
        "task": task,
        "kind": kind,
        "metric": metric,
        "model": "bert-base-cased",
        "seed": seed,
        "limit_train": None,
        "recipe": dict(RECIPE),
        "device": "cpu",
        "threads": 1,
        "data": f"d{task}",
        "weights": "0123456789abcdef",
        "metrics": {split: {metric: score + 0.003 * i} for i, split in enumerate(splits)},
        "majority": {split: {metric: 0.0 if metric != "accuracy" else 0.5} for split in splits},
        "collapsed": None,
        "subset": [],
        "notes": [],
        "training": {"steps": 120, "first_loss": 0.7, "last_loss": 0.3, "hardly_moved": False},
        "cost": {
            "train_seconds": seconds * 1.1,
            "train_cpu_seconds": seconds,
            "examples_per_second": 7500 / seconds,
            "forwards_per_step": forwards,
            "backwards_per_step": 1.0,
            "saved_activation_bytes": saved,
            "peak_memory_bytes": saved + int(1.6e9),
            "peak_reserved_bytes": None,
            "parameters": 108_311_810,
            "trainable_parameters": 108_311_810,
            "setup_seconds": 4.2 if "child_tuning_d" in names else 0.01,
            "setup_forwards": 120 if "child_tuning_d" in names else 0,
            "setup_backwards": 120 if "child_tuning_d" in names else 0,
            "evaluation_seconds": 2.5,
        },
        "hashes": {"init": f"i{seed}{task}", "order": f"o{seed}{task}", "data": f"d{task}"},
        "dropout": ({"layer.*.hidden": 0.1} if off == 0 else {}) | ({"layer.*.attention": 0.1} if off < 2 else {}),
        "environment": {
            "finetune_bench": "0.1.0",
            "torch": "2.9.0",
            "transformers": "5.0.0",
            "device": "one core",
            "commit": "abc123",
            "dirty": False,
        },
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "seconds": seconds + 5,
    }


def make_trace(row: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return losses that fall, and a sketch of the weights."""
    rng = np.random.default_rng([row["seed"], *row["method"].encode(), *row["task"].encode(), 1])
    steps = np.arange(row["training"]["steps"])
    start = 0.69 * (1 + 0.25 * (row["cost"]["forwards_per_step"] - 1))
    loss = 0.25 + (start - 0.25) * np.exp(-steps / rng.uniform(30, 55)) + rng.normal(0, 0.05, len(steps))
    return {
        "loss": loss.astype(np.float32),
        "task_loss": (loss / (start / 0.69)).astype(np.float32),
        "sketch": rng.normal(size=(10, 16)).astype(np.float32),
        "sketch_steps": np.linspace(0, len(steps) - 1, 10).astype(np.int64),
    }


def bare_row(cell_id: str = "a" * 16, status: str = "done", **more: Any) -> dict[str, Any]:
    """Return a row with what every row has, and nothing that came of its run."""
    row = {key: value for key, value in make_row("hype", "rte", 1).items() if key in _OF_EVERY_ROW}
    return row | {"id": cell_id, "status": status} | more


def put(store: Store, row: dict[str, Any], trace: dict[str, np.ndarray] | None = None) -> None:
    """Write one row, with its arrays if it is done."""
    arrays = {}
    if row["status"] == "done":
        _, _, splits, _, examples = TASKS[row["task"]]
        arrays = {
            "trace": make_trace(row) if trace is None else trace,
            "predictions": {f"{split}.labels": np.zeros(examples, dtype=np.int64) for split in splits},
        }
    store.write({"id": row["id"]}, row, arrays=arrays)


def put_analysis(
    store: Store,
    row: dict[str, Any],
    name: str,
    numbers: Mapping[str, float],
    layers: Mapping[str, list[float]] | None = None,
) -> None:
    """Write the result of an analysis beside a row."""
    result: Any = {
        "schema": analyses.SCHEMA,
        "id": row["id"],
        "analysis": name,
        "version": 1,
        "parameters": {},
        "reason": None,
        "title": name,
        "about": "",
        "numbers": dict(numbers),
        "layers": dict(layers or {}),
        "better": {},
        "notes": [],
        "facts": {},
        "seconds": 0.0,
    }
    analyses.write(store.folder(row["id"]), result, {})


def make_store(
    folder: Path,
    *,
    methods: Sequence[str] = FIVE,
    tasks: Sequence[str] = ("rte", "cola"),
    seeds: int = 3,
    change: Change | None = None,
    noise: float = 0.008,
) -> Store:
    """Write a store of methods × tasks × seeds.

    Args:
        change: gets a copy of each row and alters it in place (fail it, collapse it, ...); a row for which it returns
            False is left out.
    """
    store = Store(folder)
    store.cells.mkdir(parents=True)
    for method in methods:
        for task in tasks:
            for seed in range(1, seeds + 1):
                row = copy.deepcopy(make_row(method, task, seed, noise=noise))
                if change is None or change(row) is not False:
                    put(store, row)
    return store


def change_index(store: Store, **changes: Callable[[Any], Any]) -> None:
    """Change columns of a store's index, and make the checksums of its lines anew, as a forger does."""
    path = store.root / "derived.parquet"
    table = parquet.read_table(path)
    lines = table.to_pylist()
    for line in lines:
        line.update({name: change(line[name]) for name, change in changes.items()})
        line["checksum"] = row_index.checksum_of_line(line)
    parquet.write_table(pa.Table.from_pylist(lines, schema=table.schema), path)


def fail(row: dict[str, Any], reason: str, status: str = "failed") -> None:
    """Turn a done row into one that isn't."""
    row.update(status=status, reason=reason, metrics=None, majority=None, training=None, cost=None, collapsed=None)
    row.update(dropout=None, hashes=None)


def make_cell(seed: int) -> Cell:
    """Return a cell of HyPe whose id is the hash of what it is."""
    stack = registry.make_stack("hype")
    return Cell(
        method=registry.describe(stack, full=True),
        versions=tuple(method.version for method in stack.methods),
        task="rte",
        data="d" * 16,
        model="bert-base-cased",
        weights="w" * 16,
        seed=seed,
        recipe=Recipe(),
        limit_train=None,
        device="cpu",
        threads=1,
        libraries=("torch 2.9",),
    )
