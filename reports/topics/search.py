"""Settings chosen by a search, under two protocols: on held-out training data, and on the reported scores themselves.

The first is honest: the scores that are reported had no part in the choice. The second is what papers do; how much
higher it comes out is its optimism. A method is chosen for only where as many of its settings ended well, on every
seed, as of the method with the most: methods with unequal budgets are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_bench.reports.rows.sections import (
    SETTING,
    Column,
    Data,
    Row,
    Section,
    bare,
    by_setting,
    canonical,
    section_of,
)
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate
from finetune_bench.task import HELD_OUT

HONEST = "settings chosen on held-out training data"
Settings = Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Choice:
    """What a search chose of one method on one task.

    Attributes:
        section: title of the section that the honest choice is compared in.
        budget: settings that ended well on every seed.
        honest, optimistic: label and learning rate, chosen on held-out training data and on the reported scores.
        honest_score, optimistic_score: in points, on the reported split.
        optimism: paired difference of the two over seeds.
        best_of: expected best mean score of the first k settings drawn, for k from 1 to the budget, in points.
        cells: ids of the runs that were chosen honestly.
    """

    section: str
    column: Column
    method: str
    budget: int
    honest: tuple[str, float]
    optimistic: tuple[str, float]
    honest_score: Estimate
    optimistic_score: Estimate
    optimism: Estimate
    best_of: tuple[float, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """A search in one setting.

    Attributes:
        section: the honestly chosen runs, each method under the label of its default.
        choices: one per method and task.
        refused: sentences about methods whose budget fell short.
    """

    section: Section
    choices: tuple[Choice, ...]
    refused: tuple[str, ...]


def searches(data: Data) -> list[Search]:
    """Every search in a store, one per model and recipe apart from the learning rate."""
    tried: Mapping[str, Settings] = {
        name: [(label, rate) for label, rate in found] for name, found in (data.study.get("searched") or {}).items()
    }
    rows = [row for row in data.rows if row.get("held_out")]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(canonical({key: _without_rate(row, key) for key in SETTING}), []).append(row)
    return [_search(group, tried, data.study, several=len(groups) > 1) for group in groups.values() if tried]


def _without_rate(row: Row, key: str) -> Any:
    return {**row[key], "lr": None} if key == "recipe" else row.get(key)


def _search(rows: Sequence[Row], tried: Mapping[str, Settings], study: Mapping[str, Any], *, several: bool) -> Search:
    runs: dict[tuple[str, float, str], dict[int, Row]] = {}
    for row in rows:
        key = (bare(row["method"]), row["recipe"]["lr"], row["task"])
        runs.setdefault(key, {})[row["seed"]] = row
    chosen: list[Row] = []
    choices: list[Choice] = []
    refused: list[str] = []
    title = HONEST + (f", {rows[0]['model']}" if several else "")
    for task in dict.fromkeys(row["task"] for row in rows):
        seeds = sorted({row["seed"] for row in rows if row["task"] == task})
        complete = {
            method: [one for one in settings if _complete(runs.get((*one, task), {}), seeds)]
            for method, settings in tried.items()
        }
        budget = max(map(len, complete.values()), default=0)
        for method, settings in complete.items():
            if len(settings) < budget or not settings:
                refused.append(
                    f"{method} on {task}: {len(settings)} settings ended well on every seed, {budget} of the method "
                    "with the most; with unequal budgets nothing is chosen."
                )
                continue
            own = {one: [runs[(*one, task)][seed] for seed in seeds] for one in settings}
            choice = _choose(own, method, title)
            choices.append(choice)
            chosen += [row | {"method": method} for row in own[choice.honest]]
    without = [{**row, "recipe": {**row["recipe"], "lr": None}} for row in chosen]
    section = section_of(without, by_setting(without), title, study)
    choices.sort(key=lambda choice: section.methods.index(choice.method))
    return Search(section, tuple(choices), tuple(refused))


def _complete(found: Mapping[int, Row], seeds: Sequence[int]) -> bool:
    return all(seed in found and found[seed]["status"] == "done" for seed in seeds)


def _choose(own: Mapping[tuple[str, float], list[Row]], method: str, title: str) -> Choice:
    first = next(iter(own.values()))[0]
    metric = first["metric"]
    splits = tuple(split for split, scores in first["metrics"].items() if split != HELD_OUT and metric in scores)

    def scores(one: tuple[str, float], names: Sequence[str]) -> np.ndarray:
        return np.array([100 * np.mean([row["metrics"][name][metric] for name in names]) for row in own[one]])

    honest = max(own, key=lambda one: float(scores(one, [HELD_OUT]).mean()))
    optimistic = max(own, key=lambda one: float(scores(one, splits).mean()))
    means = [float(scores(one, splits).mean()) for one in own]
    return Choice(
        section=title,
        column=Column(first["task"], splits, metric, f"{first['task']} {metric}"),
        method=method,
        budget=len(own),
        honest=honest,
        optimistic=optimistic,
        honest_score=stats.t_interval(scores(honest, splits)),
        optimistic_score=stats.t_interval(scores(optimistic, splits)),
        optimism=stats.paired_difference(scores(optimistic, splits), scores(honest, splits)),
        best_of=tuple(stats.expected_maximum(means, k) for k in range(1, len(means) + 1)),
        cells=tuple(row["id"] for row in own[honest]),
    )
