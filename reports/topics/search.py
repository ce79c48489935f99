"""A search chooses settings under two protocols: on held-out training data, and on the reported scores themselves.

The first is honest: the scores that are reported had no part in the choice. The second is what papers do; how much
higher it comes out is its optimism. A method is chosen for only where as many of its settings ended well, on every
seed, as of the method with the most: methods with unequal budgets are not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from finetune_bench.reports.document import Block, Entry, Paragraph, bullets, code, table
from finetune_bench.reports.rows.sections import (
    SETTING,
    Column,
    Data,
    Section,
    bare,
    canonical,
    section_of,
    setting_of,
)
from finetune_bench.reports.text import interval, points
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row, Status
from finetune_bench.task import HELD_OUT

HONEST = "settings chosen on held-out training data"
# The label of a method with its parameters, and a learning rate.
Setting: TypeAlias = tuple[str, float]

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """A choice is the outcome of a search for one method on one task.

    Attributes:
        section: Title of the section that the honest choice is compared in.
        column: The score.
        method: Label of the method at its defaults.
        budget: Settings that ended well on every seed.
        honest: The setting chosen on held-out training data.
        optimistic: The setting chosen on the reported scores.
        honest_score: The honest setting's score in points, on the reported split.
        optimistic_score: The optimistic setting's score in points, on the reported split.
        optimism: Paired difference of the two over seeds.
        best_of: Expected best mean score of the first k settings drawn, for k from 1 to the budget, in points.
        cells: Ids of the runs that were chosen honestly.
    """

    section: str
    column: Column
    method: str
    budget: int
    honest: Setting
    optimistic: Setting
    honest_score: Estimate
    optimistic_score: Estimate
    optimism: Estimate
    best_of: tuple[float, ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Search:
    """A search has made these choices in one setting.

    Attributes:
        section: The honestly chosen runs, each method under the label of its default.
        choices: One per method and task.
        refused: Sentences about methods whose budget fell short.
        rates: The learning rates of its runs.
    """

    section: Section
    choices: tuple[Choice, ...]
    refused: tuple[str, ...]
    rates: tuple[float, ...]


def searches(data: Data) -> list[Search]:
    """Return every search in a store, one per model and recipe apart from the learning rate."""
    tried: Mapping[str, Sequence[Setting]] = {
        name: [(label, rate) for label, rate in settings]
        for name, settings in (data.study.get("searched") or {}).items()
    }
    groups: dict[str, list[Row]] = {}
    for row in data.rows:
        if row.get("held_out"):
            groups.setdefault(canonical({key: _without_rate(row, key) for key in SETTING}), []).append(row)
    return [_search(group, tried, data.study, several=len(groups) > 1) for group in groups.values() if tried]


def edge_of_search(found: Sequence[Search]) -> list[str]:
    """Return a warning where a search chose its highest or lowest learning rate most of the time."""
    result = []
    for search in found:
        chosen = [choice.honest[1] for choice in search.choices]
        for name, edge in (("lowest", min(search.rates, default=0.0)), ("highest", max(search.rates, default=0.0))):
            if len(set(search.rates)) > 1 and 2 * chosen.count(edge) > len(chosen):
                result.append(
                    f"The {name} learning rate tried, {edge:g}, was chosen {chosen.count(edge)} of {len(chosen)} "
                    f"times: a {name.replace('est', 'er')} one may be better still, and not for every method alike."
                )
    return result


def _without_rate(row: Row, key: str) -> Any:
    return {**row["recipe"], "lr": None} if key == "recipe" else row.get(key)


def _search(
    rows: Sequence[Row], tried: Mapping[str, Sequence[Setting]], study: Mapping[str, Any], *, several: bool
) -> Search:
    runs: dict[tuple[Setting, str], dict[int, Row]] = {}
    for row in rows:
        setting = (bare(row["method"]), row["recipe"]["lr"])
        runs.setdefault((setting, row["task"]), {})[row["seed"]] = row
    chosen: list[Row] = []
    choices: list[Choice] = []
    refused: list[str] = []
    title = HONEST + (f", {rows[0]['model']}" if several else "")
    for task in dict.fromkeys(row["task"] for row in rows):
        seeds = sorted({row["seed"] for row in rows if row["task"] == task})
        complete = {
            method: [setting for setting in settings if _complete(runs.get((setting, task), {}), seeds)]
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
            by_setting = {setting: [runs[setting, task][seed] for seed in seeds] for setting in settings}
            choice = _choose(by_setting, method, title)
            choices.append(choice)
            chosen += [_as_default(row, method) for row in by_setting[choice.honest]]
    section = section_of(chosen, setting_of(chosen), title, study)
    choices.sort(key=lambda choice: section.methods.index(choice.method))
    rates = tuple(sorted({row["recipe"]["lr"] for row in rows}))
    return Search(section, tuple(choices), tuple(refused), rates)


def _complete(runs: Mapping[int, Row], seeds: Sequence[int]) -> bool:
    """Return whether a setting's run ended well on every seed."""
    return all(seed in runs and runs[seed]["status"] == Status.DONE for seed in seeds)


def _as_default(row: Row, method: str) -> Row:
    """Return a row under the label of the method at its defaults, without a learning rate."""
    return row | {"method": method, "recipe": {**row["recipe"], "lr": None}}


def _choose(by_setting: Mapping[Setting, list[Row]], method: str, title: str) -> Choice:
    first = next(iter(by_setting.values()))[0]
    metric = first["metric"]
    splits = tuple(split for split, scores in first["metrics"].items() if split != HELD_OUT and metric in scores)

    def scores(setting: Setting, names: Sequence[str]) -> np.ndarray:
        return np.array(
            [100 * np.mean([row["metrics"][name][metric] for name in names]) for row in by_setting[setting]]
        )

    honest = max(by_setting, key=lambda setting: float(scores(setting, [HELD_OUT]).mean()))
    optimistic = max(by_setting, key=lambda setting: float(scores(setting, splits).mean()))
    means = [float(scores(setting, splits).mean()) for setting in by_setting]
    return Choice(
        section=title,
        column=Column(first["task"], splits, metric, f"{first['task']} {metric}"),
        method=method,
        budget=len(by_setting),
        honest=honest,
        optimistic=optimistic,
        honest_score=estimates.t_interval(scores(honest, splits)),
        optimistic_score=estimates.t_interval(scores(optimistic, splits)),
        optimism=estimates.paired_difference(scores(optimistic, splits), scores(honest, splits)),
        best_of=tuple(estimates.expected_maximum(means, k) for k in range(1, len(means) + 1)),
        cells=tuple(row["id"] for row in by_setting[honest]),
    )


# --- the tables -------------------------------------------------------------------------------------------------------


def search_blocks(search: Search) -> list[Block]:
    """Return what a search chose, how optimistic the other protocol is, and what a smaller budget would bring."""
    rows: list[list[str | Entry]] = []
    for choice in search.choices:
        settings = [f"{code(label)} at {rate:g}" for label, rate in (choice.honest, choice.optimistic)]
        difference = interval(choice.optimism, sign=True) if choice.honest != choice.optimistic else "same setting"
        rows.append(
            [
                code(choice.method),
                choice.column.title,
                settings[0],
                Entry(interval(choice.honest_score), choice.honest_score.value, choice.cells),
                settings[1],
                Entry(interval(choice.optimistic_score), choice.optimistic_score.value),
                Entry(difference, choice.optimism.value),
            ]
        )
    budget = max((choice.budget for choice in search.choices), default=0)
    sizes = sorted({1, *(2**power for power in range(1, 12) if 2**power < budget), budget})
    best = [
        [code(choice.method), choice.column.title, *(points(choice.best_of[size - 1]) for size in sizes)]
        for choice in search.choices
    ]
    optimism = [choice.optimism.value for choice in search.choices]
    notes = [
        f"{budget} settings per method, the same number for all, the first its default; the learning rates are the "
        "same for all methods. A setting is chosen per method and task by its mean over the seeds.",
        "Honest: chosen on held-out training data, reported on the evaluation split. Optimistic: chosen on the "
        "evaluation split it is reported on, as papers do. The difference is the optimism of that protocol, "
        f"{points(float(np.mean(optimism)), sign=True)} points on average here; every comparison here uses the honest "
        "one."
        if optimism
        else "No method has a setting that ended well on every seed.",
    ]
    under = "Under a tuning budget: the expected best mean score of k settings drawn from those tried, unbiased, chosen"
    header = ("method", "score", "honest choice", "its score", "optimistic choice", "its score", "optimism")
    return [
        table("choices", header, rows, align="left"),
        *bullets(search.refused, findings=True),
        *bullets(notes),
        Paragraph(f"{under} on the reported scores."),
        table("budget", ("method", "score", *(f"k = {size}" for size in sizes)), best),
    ]
