"""Stores of runs whose learning rates are chosen on held-out data, written without training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_bench.report import Options
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.search import Search, searches
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from tests.synthetic_store import make_row, put

# By task and method, the mean score on held-out data at each learning rate; reported scores are 0.1 below.
Scores = Mapping[tuple[str, str], Mapping[float, float]]
BOTH: Scores = {("rte", "vanilla"): {1e-5: 0.7, 2e-5: 0.6}, ("rte", "hype"): {1e-5: 0.6, 2e-5: 0.8}}
HONEST = {"vanilla": 1e-5, "hype": 2e-5}


def held_out_rows(scores: Scores, seeds: Sequence[int] = (1, 2, 3), **changes: Any) -> list[dict[str, Any]]:
    rows = []
    for (task, method), of_rates in scores.items():
        for rate, held_out in of_rates.items():
            for seed in seeds:
                row = make_row(method, task, seed)
                shift = 0.01 * (seed - 2)
                row["metrics"] = {
                    "validation": {row["metric"]: held_out - 0.1 + shift},
                    HELD_OUT: {row["metric"]: held_out + shift},
                }
                row |= {"held_out": 0.2} | changes
                row["recipe"] = row["recipe"] | {"lr": rate}
                row["id"] = hashlib.sha256(repr((task, method, rate, seed, row["model"])).encode()).hexdigest()[:16]
                rows.append(row)
    return rows


def write(folder: Path, rows: Sequence[dict[str, Any]], cells: Sequence[str] | None = None) -> Store:
    """Write rows with the study that asked for them."""
    store = Store(folder)
    searched: dict[str, list[Any]] = {}
    for row in rows:
        put(store, row)
        setting = [row["method"], row["recipe"]["lr"]]
        if setting not in searched.setdefault(row["method"], []):
            searched[row["method"]].append(setting)
    ids = [row["id"] for row in rows] if cells is None else list(cells)
    store.write_study({"methods": [*searched], "tasks": ["rte", "cola"], "searched": searched, "cells": ids})
    return store


def only(store: Store, options: Options | None = None) -> Search:
    (search,) = searches(load(store, options or Options()))
    return search
