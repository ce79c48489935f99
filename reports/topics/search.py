"""A search chooses settings under two protocols: on held-out training data, and on the reported scores themselves.

The first is honest: the scores that are reported had no part in the choice. The second is what papers do; how much
higher it comes out is its optimism. On each task a method is chosen for only where as many of its settings, at the same
learning rates, ended well on every seed as of the baseline: methods with unequal budgets are not compared. Of settings
with the same mean the one with the lowest learning rate counts, whatever the order in which they were asked for or run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_bench.reports.document import Block, Entry, Paragraph, bullets, clean, code, table
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import (
    SETTING,
    Column,
    Data,
    Section,
    bare,
    canonical,
    is_baseline,
    referring,
    section_of,
    setting_of,
    titles_of,
    without_rate,
)
from finetune_bench.reports.text import counted, interval, listed, points, seeds_text
from finetune_bench.reports.topics.choosing import Setting, best_settings, those_that_learned, unfinished_seeds
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.merge import joined_settings
from finetune_bench.store.row import Row, Status
from finetune_bench.task import HELD_OUT

HONEST = "settings chosen on held-out training data"
_MOST_NAMED = 6  # methods or learning rates are named in a sentence, the others counted
_MOST_REASON = 120  # characters of the reason why runs failed


@dataclass(frozen=True)
class Choice:
    """A choice is the outcome of a search for one method on one task.

    Attributes:
        section: Title of the section that the honest choice is compared in.
        column: The score.
        method: Label of the method at its defaults.
        budget: Settings that ended well on every seed.
        rates: Their learning rates, ascending.
        honest: The setting chosen on held-out training data.
        tied: All settings with its mean on held-out data, itself among them.
        passed_over: Settings with a higher mean there of which half of the runs or more learned nothing.
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
    rates: tuple[float, ...]
    honest: Setting
    tied: tuple[Setting, ...]
    passed_over: tuple[Setting, ...]
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
        title: What the choice is by, and what sets this search apart where there are several.
        where: What sets it apart, as the beginning of a sentence; "" where it is the only one.
        section: The honestly chosen runs, each method under the label of its default; None where nothing is chosen.
        choices: One per method and task.
        refused: Sentences about methods that nothing is chosen for, and about choices among fewer settings than have
            runs.
    """

    title: str
    where: str
    section: Section | None
    choices: tuple[Choice, ...]
    refused: tuple[str, ...]


@dataclass(frozen=True)
class _Trials:
    """What was tried of one method on one task.

    Attributes:
        method: Label of the method at its defaults.
        complete: Runs by seed of the settings that ended well on every seed, the lowest learning rate first.
        incomplete: The other settings that have a run, in the same order.
        rows: All runs.
    """

    method: str
    complete: Mapping[Setting, list[Row]]
    incomplete: tuple[Setting, ...]
    rows: list[Row]


# --- the choice -------------------------------------------------------------------------------------------------------


@cached
def searches(data: Data) -> list[Search]:
    """Return every search in a store, one per model and recipe apart from the learning rate."""
    groups: dict[str, list[Row]] = {}
    for row in data.rows:
        if row.get("held_out"):
            groups.setdefault(canonical({key: without_rate(row, key) for key in SETTING}), []).append(row)
    settings = [{**setting_of(group), "lr": None} for group in groups.values()]
    return [_search(group, apart, data) for group, apart in zip(groups.values(), titles_of(settings), strict=True)]


def all_sections(data: Data) -> list[Section]:
    """Return every section of a report: those of a grid, then those of what searches chose."""
    return [*data.sections, *(search.section for search in searches(data) if search.section is not None)]


def _search(rows: Sequence[Row], apart: str, data: Data) -> Search:
    title, where = (f"{HONEST}, {apart}", f"{apart}: ") if apart else (HONEST, "")
    chosen: list[Row] = []
    choices: list[Choice] = []
    refused: list[str] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        if late := unfinished_seeds(of_task, *missing_runs(data)):
            of_task = [row for row in of_task if row["seed"] not in late]
            refused.append(f"{where}{task}: chosen without {seeds_text(late)}, whose runs are not finished.")
        tried = _tried(of_task, _searched(data))
        standard = _standard(tried, data.options.baseline)
        rates = _rates(standard.complete)
        compared = [trials for trials in tried if trials.complete and _rates(trials.complete) == rates]
        seeds = {row["seed"] for row in of_task}
        refused += [where + text for text in _refusals(task, tried, compared, standard, seeds)]
        for trials in compared:
            choice = _choose(trials.complete, trials.method, title)
            choices.append(choice)
            chosen += [_as_default(row, trials.method) for row in trials.complete[choice.honest]]
    if not chosen:
        return Search(title, where, None, (), tuple(refused))
    section = section_of(chosen, setting_of(chosen), title, data.study)
    if data.options.baseline is not None:
        section = referring(section, data.options.baseline)
    choices.sort(key=lambda choice: section.methods.index(choice.method))
    return Search(title, where, section, tuple(choices), tuple(refused))


def _tried(rows: Sequence[Row], searched: Mapping[str, list[list[Any]]]) -> list[_Trials]:
    """Return what was tried of every method with a run on a task, the baseline first.

    Only settings that have a run count: commands of one folder, and blocks of one file, may try others elsewhere. A run
    that no list of settings has is of a method of its own.
    """
    methods: dict[str, list[str]] = {}
    for method, settings in searched.items():
        for tried_setting in settings:
            methods.setdefault(canonical(tried_setting), []).append(method)
    seeds = sorted({row["seed"] for row in rows})
    runs: dict[str, dict[Setting, dict[int, Row]]] = {}
    for row in rows:
        setting = (bare(row["method"]), float(row["recipe"]["lr"]))
        for method in methods.get(canonical(setting), [setting[0]]):
            runs.setdefault(method, {}).setdefault(setting, {})[row["seed"]] = row
    tried = []
    for method, of_method in runs.items():
        by_seed = {setting: of_method[setting] for setting in sorted(of_method, key=lambda setting: setting[::-1])}
        complete = {
            setting: [of_setting[seed] for seed in seeds]
            for setting, of_setting in by_seed.items()
            if all(seed in of_setting and _is_scored(of_setting[seed]) for seed in seeds)
        }
        incomplete = tuple(setting for setting in by_seed if setting not in complete)
        tried.append(_Trials(method, complete, incomplete, [row for of in by_seed.values() for row in of.values()]))
    return sorted(tried, key=lambda trials: (not _is_baseline(trials), trials.method))


def _searched(data: Data) -> Mapping[str, list[list[Any]]]:
    """Return what was tried of each method by the commands that the report covers."""
    searched = data.study.get("searched") or {}
    before = (data.study.get("searched_before") or {}) if data.options.all_cells else {}
    return joined_settings(before, searched)


def _is_baseline(trials: _Trials) -> bool:
    return is_baseline(trials.rows[0].get("methods") or [])


def _is_scored(row: Row) -> bool:
    """Return whether a run ended well, with numbers to choose by and to report."""
    of_splits = (row.get("metrics") or {}) if row["status"] == Status.DONE else {}
    scores = {split: value for split, metrics in of_splits.items() if (value := metrics.get(row["metric"])) is not None}
    return HELD_OUT in scores and len(scores) > 1 and all(map(math.isfinite, scores.values()))


def _standard(tried: Sequence[_Trials], baseline: str | None) -> _Trials:
    """Return the method whose budget the others are held to: the baseline, or the one with the most settings."""
    for trials in tried:
        is_asked = trials.method == baseline if baseline is not None else _is_baseline(trials)
        if is_asked and trials.complete:
            return trials
    return max(tried, key=lambda trials: len(trials.complete))


def _rates(settings: Mapping[Setting, object] | Sequence[Setting]) -> tuple[float, ...]:
    return tuple(sorted(rate for _, rate in settings))


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

    held_out = {setting: float(scores(setting, [HELD_OUT]).mean()) for setting in by_setting}
    reported = {setting: float(scores(setting, splits).mean()) for setting in by_setting}
    able = those_that_learned(by_setting)
    tied = best_settings({setting: held_out[setting] for setting in able})
    honest = tied[0]
    best_reported = best_settings(reported)
    optimistic = honest if honest in best_reported else best_reported[0]
    return Choice(
        section=title,
        column=Column(first["task"], splits, metric, f"{first['task']} {metric}"),
        method=method,
        budget=len(by_setting),
        rates=_rates(by_setting),
        honest=honest,
        tied=tuple(tied),
        passed_over=tuple(setting for setting in best_settings(held_out) if setting not in able),
        optimistic=optimistic,
        honest_score=estimates.t_interval(scores(honest, splits)),
        optimistic_score=estimates.t_interval(scores(optimistic, splits)),
        optimism=estimates.paired_difference(scores(optimistic, splits), scores(honest, splits)),
        best_of=tuple(estimates.expected_maximum(list(reported.values()), k) for k in range(1, len(reported) + 1)),
        cells=tuple(row["id"] for row in by_setting[honest]),
    )


# --- what is said of it -----------------------------------------------------------------------------------------------


def ties_of(search: Search) -> list[str]:
    """Return where several settings had the same mean on held-out data, and which of them counts."""
    return [
        f"{search.where}{choice.method} on {choice.column.task}: {len(choice.tied)} of {choice.budget} settings have "
        f"the best mean on held-out data (learning rates {_named(_rates(choice.tied))}); of these the lowest learning "
        "rate counts."
        for choice in search.choices
        if len(choice.tied) > 1
    ]


def passed_over_of(search: Search) -> list[str]:
    """Return where the setting with the best mean on held-out data is not the one that counts."""
    return [
        f"{search.where}{choice.method} on {choice.column.task}: the best mean on held-out data is that of learning "
        f"rate {_named(_rates(choice.passed_over))}, but half of its runs or more learned nothing there: their loss "
        "hardly moved, or one answer to everything scores as well. Chosen is the best of the others, "
        f"{choice.honest[1]:g}."
        for choice in search.choices
        if choice.passed_over
    ]


def missing_runs(data: Data) -> tuple[set[str], set[str]]:
    """Return the ids of the runs that were asked for and have no result, and of all that were asked for."""
    asked = set(data.study.get("cells") or () if data.options.cells is None else data.options.cells)
    return asked - {row["id"] for row in data.stored}, asked


def _refusals(
    task: str, tried: Sequence[_Trials], compared: Sequence[_Trials], standard: _Trials, seeds: Set[int]
) -> list[str]:
    """Return a sentence for the methods of which nothing is chosen on a task, or not among all that have runs."""
    methods: dict[str, list[str]] = {}
    for trials in tried:
        number = len(trials.complete)
        if compared and all(row["status"] == Status.SKIPPED for row in trials.rows):
            continue  # It can't run there, which is said of its runs.
        if number == 0:
            reason = f"no setting ended well on every seed, so nothing is chosen ({_what_ended(trials.rows, seeds)})"
        elif trials not in compared:
            reason = f"{_budgets(trials, standard)}, so they are not compared ({_missing_rates(trials, standard)})"
        elif number == 1:
            reason = (
                f"only one setting ended well on every seed (learning rate {_named(_rates(trials.complete))}), so "
                "nothing was chosen on held-out data"
            )
        elif trials.incomplete:
            reason = (
                f"chosen among {number} of {number + len(trials.incomplete)} settings: not every seed ended well at "
                f"{_named(_rates(trials.incomplete))}"
            )
        else:
            continue
        methods.setdefault(reason, []).append(trials.method)
    return [f"{listed(names, _MOST_NAMED)} on {task}: {reason}." for reason, names in methods.items()]


def _budgets(trials: _Trials, standard: _Trials) -> str:
    only_rates = all(label == of.method for of in (trials, standard) for label, _ in (*of.complete, *of.incomplete))
    noun = "learning rate" if only_rates else "setting"
    return f"tuned among {counted(len(trials.complete), noun)}, {standard.method} among {len(standard.complete)}"


def _missing_rates(trials: _Trials, standard: _Trials) -> str:
    """Return at which learning rates only one of two methods has a setting that ended well, and why."""
    parts = []
    for lacking, other, whose in ((trials, standard, ""), (standard, trials, f" of {standard.method}")):
        only_other = Counter(_rates(other.complete)) - Counter(_rates(lacking.complete))
        unended = Counter(_rates(lacking.incomplete)) & only_other
        never = only_other - unended
        parts += [f"no runs{whose} at {_named(sorted(never.elements()))}"] if never else []
        parts += [f"not every seed{whose} ended well at {_named(sorted(unended.elements()))}"] if unended else []
    return "; ".join(parts)


def _what_ended(rows: Sequence[Row], seeds: Set[int]) -> str:
    """Return what became of most runs that did not end well, or which of the task's seeds a method was not run with."""
    reasons = Counter((row["status"], clean(row.get("reason") or "")) for row in rows if row["status"] != Status.DONE)
    for (status, reason), number in reasons.most_common(1):
        short = reason if len(reason) <= _MOST_REASON else f"{reason[:_MOST_REASON]}…"
        return f"{number} of {counted(len(rows), 'run')} {status}" + (f": {short.rstrip('.')}" if short else "")
    if never := seeds - {row["seed"] for row in rows}:
        return f"no runs of {seeds_text(never)}, which others have"
    return "runs of some seeds are missing, or have no score"


def _named(rates: Sequence[float]) -> str:
    return listed([f"{rate:g}" for rate in rates], _MOST_NAMED)


# --- the tables -------------------------------------------------------------------------------------------------------


def search_blocks(search: Search) -> list[Block]:
    """Return what a search chose, how optimistic the other protocol is, and what a smaller budget would bring."""
    if not search.choices:
        return [*bullets(search.refused, findings=True)]
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
    budgets = sorted({choice.budget for choice in search.choices})
    sizes = sorted({1, *(2**power for power in range(1, 12) if 2**power < budgets[-1]), *budgets})
    best: list[list[str | Entry]] = [
        [
            code(choice.method),
            choice.column.title,
            *(points(choice.best_of[size - 1]) if size <= choice.budget else "—" for size in sizes),
        ]
        for choice in search.choices
    ]
    optimism = [choice.optimism.value for choice in search.choices]
    notes = [
        f"Chosen per method and task by the mean over the seeds, among {' or '.join(map(str, budgets))} settings: on a "
        "task as many for every method, at the same learning rates. Of settings with the same mean the one with the "
        "lowest learning rate counts.",
        "Honest: chosen on held-out training data, reported on the evaluation split. Optimistic: chosen on the "
        "evaluation split it is reported on, as papers do. The difference is the optimism of that protocol, "
        f"{points(float(np.mean(optimism)), sign=True)} points on average here; every comparison here uses the honest "
        "one.",
    ]
    under = "Under a tuning budget: the expected best mean score of k settings drawn from those tried, unbiased, chosen"
    header = ("method", "score", "honest choice", "its score", "optimistic choice", "its score", "optimism")
    return [
        table("choices", header, rows, align="left"),
        *bullets([*search.refused, *ties_of(search), *passed_over_of(search)], findings=True),
        *bullets(notes),
        Paragraph(f"{under} on the reported scores."),
        table("budget", ("method", "score", *(f"k = {size}" for size in sizes)), best),
    ]
