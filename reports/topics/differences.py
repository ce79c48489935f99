"""The differences of a section's methods to a reference."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, Entry, Paragraph, Table, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.reports.text import _bold_if_separated, _p_text, counted, ends
from finetune_bench.reports.topics.contrasts import (
    NEAR_TWIN,
    OVER_TASKS,
    WELCH,
    block,
    cell_ids,
    contrast,
    suite_column,
)
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate


@dataclass(frozen=True)
class Difference:
    """A method minus a reference, over pairs.

    Attributes:
        question: "a" for this suite and new seeds, "b" for new tasks.
        interval: what the interval is built on.
        rho: correlation of the two methods across seeds.
        refused: seeds at which both runs ended well but are no pair, since their hashes differ.
        detectable: the true difference that would be found four times in five.
        p: two-sided, on suite means from five seeds on; adjusted by Holm over the section's methods.
    """

    section: str
    column: Column
    method: str
    reference: str
    question: str
    estimate: Estimate
    interval: str
    rho: float = math.nan
    refused: int = 0
    detectable: float = math.nan
    p: float = math.nan


@once
def differences(section: Section, reference: str, methods: tuple[str, ...] | None = None) -> list[Difference]:
    """Every method minus `reference`: per column, over the suite (question a), and over tasks as units (question b)."""
    compared = [method for method in methods or section.methods if method != reference]
    blocks = {column: block(section, column, reference) for column in {*section.columns, *section.suite}}

    def difference(method: str, column: Column) -> tuple[Estimate, str]:
        return contrast(section, column, {method: 1, reference: -1}, reference, blocks[column])

    result = []
    for method, column in itertools.product(compared, section.columns):
        estimate, interval = difference(method, column)
        own, other = (section.paired_scores(label, reference, column) for label in (method, reference))
        result.append(
            Difference(
                section=section.title,
                column=column,
                method=method,
                reference=reference,
                question="a",
                estimate=estimate,
                interval=interval,
                rho=stats.pairing_correlation(own, other),
                refused=refused(section, method, reference, column.task),
                detectable=stats.minimum_detectable_effect(estimate.standard_error, estimate.df),
            )
        )
    over_suite, over_tasks = [], []
    for method in compared:
        estimates = [difference(method, column)[0] for column in section.suite]
        mean = stats.suite_mean(estimates)
        detectable = stats.minimum_detectable_effect(mean.standard_error, mean.df)
        common = (section.title, suite_column(section), method, reference)
        over_suite.append(Difference(*common, "a", mean, WELCH, detectable=detectable))
        if len(section.tasks) >= 3 and not math.isnan(mean.value):  # two tasks can't speak for others
            tasks = stats.t_interval([estimate.value for estimate in estimates])
            over_tasks.append(Difference(*common, "b", tasks, OVER_TASKS))
    return result + _with_p_values(over_suite) + over_tasks if len(section.tasks) > 1 else _single(result, section)


def _with_p_values(suite: list[Difference]) -> list[Difference]:
    """P-values for the methods with five pairs or more on every task; these are the family that Holm adjusts for."""
    p_values = [one.estimate.p_value if one.estimate.n >= stats.SEEDS_FOR_P else math.nan for one in suite]
    return [dataclasses.replace(one, p=p) for one, p in zip(suite, stats.holm(p_values), strict=True)]


def _single(result: list[Difference], section: Section) -> list[Difference]:
    """With one task and one split, that column is the suite."""
    return _with_p_values(result) if len(section.columns) == 1 else result


def noise_floors(section: Section, reference: str) -> dict[Column, Estimate]:
    """Per column and over the suite: 0 and the interval of a difference between two means of the reference's seeds.

    Question (a). Both means are of as many fresh seeds as the reference has; empty where it has one only.
    """
    floors = {column: stats.noise_floor(section.scores(reference, column)) for column in section.columns}
    suite = stats.suite_mean([stats.noise_floor(section.scores(reference, column)) for column in section.suite])
    floors[suite_column(section)] = suite
    return {} if all(math.isnan(one.high) for one in floors.values()) else floors


def refused(section: Section, method: str, reference: str, task: str) -> int:
    """Seeds at which both runs ended well but are no pair."""
    both = [
        seed
        for seed in section.seeds
        if all(
            (row := section.runs.get((label, task, seed))) is not None and row["status"] == "done"
            for label in (method, reference)
        )
    ]
    return sum(not section.paired(method, reference, task, seed) for seed in both)


@once
def control_differences(section: Section) -> list[Difference]:
    """Every method minus the vanilla control that has its dropout, where that isn't the baseline itself."""
    by_control: dict[str, list[str]] = {}
    for method in section.methods:
        control = section.control(method)
        if control is not None:
            by_control.setdefault(control, []).append(method)
    # Another family than that of the baseline: without p-values, for a second family would need its own declaration.
    return [
        dataclasses.replace(one, p=math.nan)
        for control, methods in by_control.items()
        for one in differences(section, control, tuple(methods))
    ]


def no_differences(section: Section) -> str:
    """Why a section has no differences."""
    if section.reference is None:
        return (
            "No difference can be given: vanilla with its default dropout is not in this run. Run it in the same "
            "folder; finished cells are kept."
        )
    if len(section.methods) == 1:
        return "No difference can be given: vanilla is the only method in this run."
    return "No difference can be given."


def unpaired(section: Section, reference: str, methods: Iterable[str]) -> list[str]:
    """Runs that were refused as pairs."""
    result = []
    for method in dict.fromkeys(methods):
        for task in section.tasks:
            count = refused(section, method, reference, task)
            if count:
                result.append(
                    f"{method} on {task}: {counted(count, 'seed')} refused as no pair of {reference}, since the hashes "
                    "of initial head, order or data differ or are missing; not in any difference."
                )
    return result


_CONTROL = (
    "These methods run with other dropout than the baseline, so part of their difference to it is dropout's. Here "
    "each is held against vanilla with the same realised dropout: what is left is the method's own."
)


def _differences(section: Section) -> list[Block]:
    found = differences(section, section.reference) if section.reference else []
    if not found:
        return [Paragraph(no_differences(section))]
    return [
        _difference_table(section, found),
        *bullets([*_difference_notes(section, found), *_unpaired(section, found)]),
    ]


def _control_differences(section: Section) -> list[Block]:
    found = control_differences(section)
    result: list[Block] = [Paragraph(_CONTROL)] if found else []
    for control in dict.fromkeys(one.reference for one in found):
        own = [one for one in found if one.reference == control]
        result += [_difference_table(section, own), *bullets(_unpaired(section, own))]
    return result


def _unpaired(section: Section, found: Sequence[Difference]) -> list[str]:
    return unpaired(section, found[0].reference, [one.method for one in found])


def _difference_table(section: Section, found: Sequence[Difference]) -> Table:
    reference = found[0].reference
    columns = list(dict.fromkeys((one.column, one.question) for one in found))
    cells = {(one.column, one.question, one.method): one for one in found}
    usual = {key: _usual([one for one in found if (one.column, one.question) == key]) for key in columns}
    with_p = any(not math.isnan(one.p) for one in found)
    header = [f"method − {code(reference)}"]
    header += [column.title + (f" ({question})" if not column.task else "") for column, question in columns]
    rows: list[list[str | Entry]] = []
    for method in dict.fromkeys(one.method for one in found):
        entries = [_difference_entry(section, cells.get((*key, method)), usual[key]) for key in columns]
        p_values = [one.p for one in found if one.method == method and not math.isnan(one.p)]
        rows.append([code(method), *entries, *([_p(p_values)] if with_p else [])])
    floors = noise_floors(section, reference)
    if floors:
        texts = [ends(floors[column]) if question == "a" else "—" for column, question in columns]
        rows.append([f"{code(reference)} − itself, other seeds", *texts, *([""] if with_p else [])])
    for name, text in (("n, df", usual), ("rho", {key: _rho(found, *key) for key in columns})):
        rows.append([name, *(text[key] or "—" for key in columns), *([""] if with_p else [])])
    return table("differences", [*header, *(["p (Holm)"] if with_p else [])], rows)


def _difference_notes(section: Section, found: Sequence[Difference]) -> list[str]:
    family = sum(not math.isnan(one.p) for one in found)
    seeds = max((one.estimate.n for one in found if one.question == "a"), default=0)
    notes = [
        "Mean of the paired differences, in brackets its t interval; question (a) for single tasks. Pairs started "
        "from the same head on the same examples in the same order, as their hashes prove. Bold: the interval "
        "excludes 0.",
        "Where methods share all seeds and none collapsed, the interval uses the residual variance of all of them "
        "(method + seed), df = (M − 1)(S − 1), and assumes that they scatter equally; elsewhere it uses the "
        "method's own differences, and n and df stand in the cell. Runs that did nearly the same as another method's, "
        f"their difference varying by less than {NEAR_TWIN:.0%} of the spread over seeds, count once "
        "in that variance; held against others, each takes its twin's place in it.",
    ]
    if seeds > 1:
        notes.append(
            "The noise floor, “itself, other seeds”: of two means of that many fresh seeds of the reference, the "
            "difference lies within it 95 times in 100. A gain inside it is what changing the seeds alone can do; "
            "pairing is what lets an interval above be narrower."
        )
    if len(section.tasks) > 1:
        notes.append(
            "Mean over tasks: (a) these tasks, by Welch and Satterthwaite; (b) new tasks, from the spread of the "
            "tasks' mean differences, from three tasks on. Only for methods with a pair on every task."
        )
    if seeds > 1:
        notes.append(
            "rho: median correlation with the reference across seeds"
            + (" (from three seeds on)" if seeds < 3 else "")
            + f". Pairing narrows an interval of {seeds} seeds if rho is above {stats.pairing_threshold(seeds):.2f}."
        )
    if family:
        notes.append(
            f"p: two-sided t test of (a), adjusted by Holm; the family is the {counted(family, 'method')} of this "
            f"table with {stats.SEEDS_FOR_P} pairs or more on every task."
        )
    elif 0 < seeds < stats.SEEDS_FOR_P:
        notes.append(f"Descriptive only: no p-values below {stats.SEEDS_FOR_P} seeds.")
    return notes


def _units(one: Difference) -> str:
    df = f"{one.estimate.df:.1f}".removesuffix(".0")
    return f"n={one.estimate.n}, df={df}" if one.estimate.df > 0 else f"n={one.estimate.n}"


def _usual(found: Sequence[Difference]) -> str:
    """The n and df that most cells of a column have, so that only the others need to say theirs."""
    units = [_units(one) for one in found if one.estimate.n]
    return max(dict.fromkeys(units), key=units.count) if units else ""


def _difference_entry(section: Section, one: Difference | None, usual: str) -> Entry:
    if one is None or one.estimate.n == 0:
        return Entry("—")
    text = _bold_if_separated(one.estimate)
    text = text if _units(one) == usual else f"{text} {_units(one)}"
    return Entry(text, one.estimate.value, cell_ids(section, [one.method, one.reference], one.column))


def _rho(found: Sequence[Difference], column: Column, question: str) -> str:
    values = [one.rho for one in found if (one.column, one.question) == (column, question) and not math.isnan(one.rho)]
    return f"{np.median(values):.2f}".replace("-", "−") if values else ""


def _p(values: Sequence[float]) -> str:
    return _p_text(values[0]) if values else "—"
