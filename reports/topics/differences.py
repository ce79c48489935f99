"""The differences of methods to the reference are told each with an interval, on the noise floor."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.document import Entry, Paragraph, Table, bullets, code, table
from finetune_bench.reports.plots.intervals import Panel, forest
from finetune_bench.reports.plots.style import left_out_text, shown_methods
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.text import counted, difference_text, ends, p_text
from finetune_bench.reports.topics.contrasts import (
    NEAR_TWIN,
    OVER_TASKS,
    WELCH,
    cell_ids,
    complete_block,
    contrast,
    suite_column,
)
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """A difference is a method minus a reference, over pairs.

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the method.
        reference: Label of the method that it is held against.
        question: "a" for this suite and new seeds, "b" for new tasks.
        estimate: The mean of the paired differences in points.
        interval: What the interval is built on.
        rho: Correlation of the two methods across seeds.
        refused: Seeds at which both runs ended well but are no pair, since their hashes differ.
        detectable: The true difference that would be seen four times in five, in points.
        p: Two-sided p-value, on suite means from five seeds on; adjusted by Holm over the section's methods.
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


@cached
def differences(section: Section, reference: str, methods: tuple[str, ...] | None = None) -> list[Difference]:
    """Return every method minus `reference`: per column, over the suite (question a), and over tasks (question b).

    Args:
        section: Whose runs are compared.
        reference: Label of the method that is subtracted.
        methods: Labels of the methods to compare; None for all.
    """
    compared = [method for method in methods or section.methods if method != reference]
    blocks = {column: complete_block(section, column, reference) for column in {*section.columns, *section.suite}}

    def difference(method: str, column: Column) -> tuple[Estimate, str]:
        return contrast(section, column, {method: 1, reference: -1}, reference, blocks[column])

    per_column = []
    for method, column in itertools.product(compared, section.columns):
        estimate, interval = difference(method, column)
        scores, reference_scores = (section.paired_scores(label, reference, column) for label in (method, reference))
        per_column.append(
            Difference(
                section=section.title,
                column=column,
                method=method,
                reference=reference,
                question="a",
                estimate=estimate,
                interval=interval,
                rho=estimates.pairing_correlation(scores, reference_scores),
                refused=_refused(section, method, reference, column.task),
                detectable=estimates.minimum_detectable_effect(estimate.standard_error, estimate.df),
            )
        )
    if len(section.tasks) < 2:
        # With one task and one split, that column is the suite.
        return _with_p_values(per_column) if len(section.columns) == 1 else per_column
    over_suite, over_tasks = [], []
    for method in compared:
        per_task = [difference(method, column)[0] for column in section.suite]
        mean = estimates.suite_mean(per_task)
        detectable = estimates.minimum_detectable_effect(mean.standard_error, mean.df)
        labels = (section.title, suite_column(section), method, reference)
        over_suite.append(Difference(*labels, "a", mean, WELCH, detectable=detectable))
        # Two tasks can't speak for others.
        if len(section.tasks) >= 3 and not math.isnan(mean.value):
            tasks = estimates.t_interval([estimate.value for estimate in per_task])
            over_tasks.append(Difference(*labels, "b", tasks, OVER_TASKS))
    return per_column + _with_p_values(over_suite) + over_tasks


def _with_p_values(suite: list[Difference]) -> list[Difference]:
    """Give p-values to the methods with five pairs or more on every task, the family that Holm adjusts for."""
    p_values = [
        difference.estimate.p_value if difference.estimate.n >= estimates.SEEDS_FOR_P else math.nan
        for difference in suite
    ]
    adjusted = estimates.holm(p_values)
    return [dataclasses.replace(difference, p=p) for difference, p in zip(suite, adjusted, strict=True)]


def noise_floors(section: Section, reference: str) -> dict[Column, Estimate]:
    """Return per column and over the suite: 0, and the interval of a difference between two means of the reference.

    Question (a). Both means are of as many fresh seeds as the reference has; empty where it has one only.
    """
    floors = {column: estimates.noise_floor(section.scores(reference, column)) for column in section.columns}
    floors[suite_column(section)] = estimates.suite_mean(
        [estimates.noise_floor(section.scores(reference, column)) for column in section.suite]
    )
    return {} if all(math.isnan(floor.high) for floor in floors.values()) else floors


def _refused(section: Section, method: str, reference: str, task: str) -> int:
    """Return the number of seeds at which both runs ended well but are no pair."""
    both = section.done_mask(method, task) & section.done_mask(reference, task)
    return int((both & ~section.paired_mask(method, reference, task)).sum())


@cached
def control_differences(section: Section) -> list[Difference]:
    """Return every method minus the vanilla control that has its dropout, where that isn't the baseline itself."""
    by_control: dict[str, list[str]] = {}
    for method in section.methods:
        control = section.control(method)
        if control is not None:
            by_control.setdefault(control, []).append(method)
    # Another family than that of the baseline: without p-values, for a second family would need its own declaration.
    return [
        dataclasses.replace(difference, p=math.nan)
        for control, methods in by_control.items()
        for difference in differences(section, control, tuple(methods))
    ]


def reference_differences(section: Section) -> list[Difference]:
    """Return every method minus the section's reference; nothing where there is none."""
    return differences(section, section.reference) if section.reference else []


def suite_differences(section: Section, rows: Sequence[Difference]) -> list[Difference]:
    """Return those of some differences that a verdict rests on: over the suite, or on the only task's first split."""
    if len(section.tasks) > 1:
        return [row for row in rows if row.question == "a" and not row.column.task]
    return [row for row in rows if row.column == section.columns[0]]


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    alt = "Forest plot of the paired differences with intervals, on the noise floor"
    plot = Drawing("differences", alt, partial(draw_differences, section))
    rows = reference_differences(section)
    if not rows:
        return [Paragraph(no_differences(section)), plot]
    refused = bullets(refused_notes(section, rows), findings=True)
    return [difference_table(section, rows), *refused, *bullets(_notes(section, rows)), plot]


def no_differences(section: Section) -> str:
    """Return why a section has no differences."""
    if section.reference is None:
        return (
            "No difference can be given: vanilla with its default dropout is not in this run. Run it in the same "
            "folder; finished cells are kept."
        )
    if len(section.methods) == 1:
        return "No difference can be given: vanilla is the only method in this run."
    return "No difference can be given."


def difference_table(section: Section, rows: Sequence[Difference]) -> Table:
    """Return the table of differences to one reference, with the noise floor, n, df and correlations below.

    Args:
        section: Whose runs are compared.
        rows: Differences to the same reference, at least one.
    """
    reference = rows[0].reference
    columns = list(dict.fromkeys((row.column, row.question) for row in rows))
    cells = {(row.column, row.question, row.method): row for row in rows}
    usual = {key: _usual_units([row for row in rows if (row.column, row.question) == key]) for key in columns}
    with_p = any(not math.isnan(row.p) for row in rows)
    header = [f"method − {code(reference)}"]
    header += [column.title + (f" ({question})" if not column.task else "") for column, question in columns]
    lines: list[list[str | Entry]] = []
    for method in dict.fromkeys(row.method for row in rows):
        entries = [_entry(section, cells.get((*key, method)), usual[key]) for key in columns]
        p_values = [row.p for row in rows if row.method == method and not math.isnan(row.p)]
        lines.append([code(method), *entries, *([p_text(p_values[0]) if p_values else "—"] if with_p else [])])
    floors = noise_floors(section, reference)
    footer: list[list[str]] = []
    if floors:
        texts = [ends(floors[column]) if question == "a" else "—" for column, question in columns]
        footer.append([f"{code(reference)} − itself, other seeds", *texts, *([""] if with_p else [])])
    correlations = {key: _correlation_text(rows, *key) for key in columns}
    for name, text in (("n, df", usual), ("correlation over seeds", correlations)):
        footer.append([name, *(text[key] or "—" for key in columns), *([""] if with_p else [])])
    return table("differences", [*header, *(["p (Holm)"] if with_p else [])], lines, footer=footer)


def _entry(section: Section, row: Difference | None, usual: str) -> Entry:
    if row is None or row.estimate.n == 0:
        return Entry("—")
    text = difference_text(row.estimate)
    text = text if _units(row) == usual else f"{text} {_units(row)}"
    return Entry(text, row.estimate.value, cell_ids(section, [row.method, row.reference], row.column))


def _units(row: Difference) -> str:
    df = f"{row.estimate.df:.1f}".removesuffix(".0")
    return f"n={row.estimate.n}, df={df}" if row.estimate.df > 0 else f"n={row.estimate.n}"


def _usual_units(rows: Sequence[Difference]) -> str:
    """Return the n and df that most cells of a column have, so that only the others need to say theirs."""
    units = [_units(row) for row in rows if row.estimate.n]
    return max(dict.fromkeys(units), key=units.count) if units else ""


def _correlation_text(rows: Sequence[Difference], column: Column, question: str) -> str:
    values = [row.rho for row in rows if (row.column, row.question) == (column, question) and not math.isnan(row.rho)]
    return f"{np.median(values):.2f}".replace("-", "−") if values else ""


def _notes(section: Section, rows: Sequence[Difference]) -> list[str]:
    family = sum(not math.isnan(row.p) for row in rows)
    seeds = max((row.estimate.n for row in rows if row.question == "a"), default=0)
    notes = [
        "Mean of the paired differences, in brackets its t interval; question (a) for single tasks. Pairs started "
        "from the same head on the same examples in the same order, as their hashes prove. Bold: the interval "
        "excludes 0.",
        "Where methods share all seeds and none collapsed, the interval uses the residual variance of all of them "
        "(method + seed), df = (M − 1)(S − 1), and assumes that they scatter equally; elsewhere it uses the "
        "method's own differences, and n and df stand in the cell. Runs that did nearly the same as another method's, "
        f"their difference varying by less than {NEAR_TWIN:.0%} of the spread over seeds, count once "
        "in that variance; held against others, each takes the other's place in it.",
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
            "Correlation over seeds: of a method's scores with the reference's, the median over methods"
            + (" (from three seeds on)" if seeds < 3 else "")
            + f". Pairing narrows an interval of {seeds} seeds if it is above "
            f"{estimates.pairing_threshold(seeds):.2f}."
        )
    if family:
        notes.append(
            f"p: two-sided t test of (a), adjusted by Holm; the family is the {counted(family, 'method')} of this "
            f"table with {estimates.SEEDS_FOR_P} pairs or more on every task."
        )
    elif 0 < seeds < estimates.SEEDS_FOR_P:
        notes.append(f"Descriptive only: no p-values below {estimates.SEEDS_FOR_P} seeds.")
    return notes


def refused_notes(section: Section, rows: Sequence[Difference]) -> list[str]:
    """Return sentences about the runs that were refused as pairs of the reference.

    Args:
        section: Whose runs are compared.
        rows: Differences to the same reference, at least one.
    """
    reference = rows[0].reference
    result = []
    for method, task in itertools.product(dict.fromkeys(row.method for row in rows), section.tasks):
        count = _refused(section, method, reference, task)
        if count:
            result.append(
                f"{method} on {task}: {counted(count, 'seed')} refused as no pair of {reference}, since the hashes "
                "of initial head, order or data differ or are missing; not in any difference."
            )
    return result


# --- the plot ---------------------------------------------------------------------------------------------------------


def draw_differences(section: Section) -> Figure | None:
    """Draw the forest plot: every method minus the reference, per score and over the suite, on the noise floor."""
    if section.reference is None:
        return None
    floors = noise_floors(section, section.reference)
    shown = shown_methods(section)
    by_panel: dict[str, dict[str, Estimate]] = {}
    bands: dict[str, float] = {}
    for row in reference_differences(section):
        if row.method in shown and row.estimate.n:
            title = row.column.title + ("" if row.column.task else f" ({row.question})")
            by_panel.setdefault(title, {})[row.method] = row.estimate
            if row.question == "a" and row.column in floors:
                bands[title] = floors[row.column].high
    if not by_panel:
        return None
    methods = [method for method in shown if any(method in by_method for by_method in by_panel.values())]
    panels = [
        Panel(
            title,
            [(method, by_method.get(method, estimates.NOTHING)) for method in methods],
            bands.get(title, math.nan),
        )
        for title, by_method in by_panel.items()
    ]
    label = f"difference to {section.reference} (points)"
    band = "band: what other seeds alone do to a mean of as many" if bands else ""
    return forest(panels, label, band, left_out_text(section))


TOPIC = Topic(
    title="Differences to the baseline",
    blocks=_blocks,
    frame=Frame(
        file="differences",
        record=Difference,
        records=lambda data, section: [*reference_differences(section), *control_differences(section)],
        methods=lambda difference: [difference.method, difference.reference],
    ),
)
