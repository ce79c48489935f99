"""Beside the differences stand tests: sign flips, P(A > B), equivalence, McNemar, every score, the multi-bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_bench.errors import UsageError
from finetune_bench.reports.document import Entry, Paragraph, bullets, code, table
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Column, Data, Section
from finetune_bench.reports.text import difference_text, p_text
from finetune_bench.reports.topics.contrasts import cell_ids, suite_column
from finetune_bench.reports.topics.differences import Difference, reference_differences
from finetune_bench.reports.topics.topic import Topic, TopicBlock
from finetune_bench.stats import estimates, robust
from finetune_bench.stats.bootstrap import RESAMPLED_METRICS, multi_bootstrap
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuiteTest:
    """These tests are of a method's difference to the reference, on the suite or the only score; question (a).

    Attributes:
        section: Title of the section.
        method: Label of the method.
        estimate: The difference in points.
        sign_flip: The p by flipping the signs of the seeds' differences (the mean over tasks), from six seeds.
        better: P(A > B), the chance that a run beats one of the reference on the same task.
        equivalence: The p of the two one-sided tests at the reader's margin; NaN without a margin.
        mcnemar: McNemar's p that the method collapses as often as the reference.
    """

    section: str
    method: str
    estimate: Estimate
    sign_flip: float
    better: float
    equivalence: float
    mcnemar: float


@cached
def suite_tests(section: Section, margin: float | None) -> list[SuiteTest]:
    """Return one test per method; none without a reference.

    Args:
        section: Whose runs are compared.
        margin: Points within which methods count as equal; None for no such test.
    """
    tests: dict[str, SuiteTest] = {}
    for difference in reference_differences(section):
        on_suite = not difference.column.task or len(section.tasks) == 1
        if difference.question == "a" and on_suite and difference.method not in tests:
            tests[difference.method] = _suite_test(section, difference, margin)
    return list(tests.values())


def _suite_test(section: Section, difference: Difference, margin: float | None) -> SuiteTest:
    method, reference = difference.method, difference.reference
    pairs = [
        section.paired_scores(method, reference, column) - section.paired_scores(reference, reference, column)
        for column in section.suite
    ]
    collapsed = [
        np.concatenate([section.collapse_mask(label, task) for task in section.tasks]) for label in (method, reference)
    ]
    return SuiteTest(
        section=section.title,
        method=method,
        estimate=difference.estimate,
        sign_flip=estimates.sign_flip(np.mean(pairs, axis=0)),
        better=robust.probability_of_improvement(
            [section.scores(method, column) for column in section.suite],
            [section.scores(reference, column) for column in section.suite],
        ),
        equivalence=math.nan if margin is None else estimates.equivalence(difference.estimate, margin),
        mcnemar=estimates.mcnemar(*collapsed),
    )


@cached
def exploratory(section: Section) -> dict[tuple[str, Column], float]:
    """Return p-values of every method on every score, adjusted together by Benjamini and Hochberg; from five seeds."""
    if len(section.columns) < 2:
        return {}
    tested = [
        difference
        for difference in reference_differences(section)
        if difference.column.task
        and difference.question == "a"
        and difference.estimate.n >= estimates.SEEDS_FOR_P
        and not math.isnan(difference.estimate.p_value)
    ]
    adjusted = estimates.benjamini_hochberg([difference.estimate.p_value for difference in tested])
    return {(difference.method, difference.column): p for difference, p in zip(tested, adjusted, strict=True)}


def bootstraps(data: Data, section: Section) -> dict[tuple[str, Column], Estimate]:
    """Return differences with intervals over seeds and examples together, per score; reads every prediction."""
    reference = section.reference
    result: dict[tuple[str, Column], Estimate] = {}
    if reference is None:
        return result
    for column in section.columns:
        if column.metric not in RESAMPLED_METRICS or len(column.splits) != 1:
            continue
        for method in section.methods:
            seeds = [seed for seed in section.seeds if section.paired(method, reference, column.task, seed)]
            if method == reference or len(seeds) < estimates.SEEDS_FOR_P:
                continue
            (predictions, labels), (reference_predictions, _) = (
                _predictions(data, [section.runs[label, column.task, seed] for seed in seeds], column.splits[0])
                for label in (method, reference)
            )
            result[method, column] = multi_bootstrap(column.metric, predictions, reference_predictions, labels)
    return result


def most_pairs(section: Section, task: str) -> int:
    """Return the most seeds that any method of a section has paired with the reference's on a task."""
    reference = section.reference
    if reference is None:
        return 0
    others = [method for method in section.methods if method != reference]
    return max(
        (sum(section.paired(method, reference, task, seed) for seed in section.seeds) for method in others), default=0
    )


def refuse_few_seeds(data: Data) -> None:
    """Check that the multi-bootstrap, which reads every prediction, has anything to resample.

    Raises:
        UsageError: No method has seeds enough.
    """
    most = max((most_pairs(section, task) for section in data.sections for task in section.tasks), default=0)
    if most < estimates.SEEDS_FOR_P:
        raise UsageError(
            f"--bootstrap: expected a method with {estimates.SEEDS_FOR_P} seeds or more that are paired with the "
            f"reference's on a task, since fewer give intervals that are too short; the most here is {most}. Run more "
            "seeds, or leave --bootstrap out."
        )


def _predictions(data: Data, rows: list[Row], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (seeds, examples) predicted classes or numbers, and (examples,) labels."""
    arrays = [data.store.arrays(row["id"], "predictions") for row in rows]
    outputs = [recorded[f"{split}.predictions"] for recorded in arrays]
    classes = rows[0]["kind"] == "classification"
    predictions = [output.argmax(axis=1) if classes else output.reshape(-1) for output in outputs]
    return np.stack(predictions), arrays[0][f"{split}.labels"]


_NO_BOOTSTRAP = (
    f"No multi-bootstrap: no method has {estimates.SEEDS_FOR_P} seeds paired with the reference's on a score that can "
    "be resampled, and fewer seeds give intervals that are too short. Run more seeds."
)

# --- the tables -------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    return [
        *_suite_tests(section, data.options.margin),
        *_exploratory(section),
        *(_bootstraps(data, section) if data.options.bootstrap else []),
    ]


def _suite_tests(section: Section, margin: float | None) -> list[TopicBlock]:
    tests = suite_tests(section, margin)
    if not tests:
        return []
    reference = code(str(section.reference))
    header = [f"A, against {reference}", "P(A > B)", "sign-flip p", "McNemar p"]
    rows: list[list[str | Entry]] = []
    for test in tests:
        runs = cell_ids(section, [test.method, str(section.reference)], suite_column(section))
        p_values = [test.sign_flip, test.mcnemar, *([test.equivalence] if margin else [])]
        better = "—" if math.isnan(test.better) else f"{test.better:.2f}"
        p_entries = [Entry(p_text(p), p, runs) for p in p_values]
        rows.append([code(test.method), Entry(better, test.better, runs), *p_entries])
    notes = [
        f"P(A > B): the chance that a run beats one of {reference} on the same task, ties counting half.",
        "Sign-flip: exact, on the seeds' differences (mean over tasks), from six seeds; not adjusted.",
        "McNemar: exact, whether runs collapse as often as the reference's, from runs paired by task and seed.",
    ]
    if margin:
        header.append(f"equal within {margin:g}, p")
        notes.append(
            f"Equal within {margin:g} points: the larger p of two one-sided t tests; below 0.05 the method is the "
            "reference's equal for that purpose. A difference that isn't clear is not thereby equal."
        )
    return [table("tests", header, rows), *bullets(notes)]


def _exploratory(section: Section) -> list[TopicBlock]:
    p_values = exploratory(section)
    if not p_values:
        return []
    columns = [column for column in section.columns if any(key[1] == column for key in p_values)]
    rows: list[list[str | Entry]] = []
    for method in dict.fromkeys(key[0] for key in p_values):
        entries = []
        for column in columns:
            p = p_values.get((method, column), math.nan)
            entries.append(Entry(p_text(p), p, cell_ids(section, [method, str(section.reference)], column)))
        rows.append([code(method), *entries])
    note = (
        f"Exploratory: p of every method on every score, adjusted together by Benjamini and Hochberg over the "
        f"{len(p_values)} of them. Of those below 0.05, one in twenty is expected to be false."
    )
    header = ["score by score", *(column.title for column in columns)]
    return [table("exploratory", header, rows, in_paper=False), *bullets([note])]


def _bootstraps(data: Data, section: Section) -> list[TopicBlock]:
    resampled = bootstraps(data, section)
    left_out = [
        f"{column.title}: no multi-bootstrap; it resamples predicted classes and numbers, and this score takes more."
        for column in section.columns
        if column.splits and column.metric not in RESAMPLED_METRICS
    ]
    left_out += [
        f"{task}: no multi-bootstrap; no method has {estimates.SEEDS_FOR_P} seeds paired with the reference's there."
        for task in section.tasks
        if resampled and most_pairs(section, task) < estimates.SEEDS_FOR_P
    ]
    if not resampled:
        return [*([Paragraph(_NO_BOOTSTRAP)] if section.reference else []), *bullets(left_out)]
    columns = [column for column in section.columns if any(key[1] == column for key in resampled)]
    rows: list[list[str | Entry]] = [
        [code(method), *(_entry(section, resampled, method, column) for column in columns)]
        for method in dict.fromkeys(key[0] for key in resampled)
    ]
    note = (
        "Multi-bootstrap: seeds and examples resampled together, paired, 1,000 times, seed 0; questions (a) and "
        "(c) at once. Percentile intervals, from five seeds on."
    )
    header = ["difference", *(column.title for column in columns)]
    return [table("bootstrap", header, rows, in_paper=False), *bullets([note, *left_out])]


def _entry(section: Section, resampled: dict[tuple[str, Column], Estimate], method: str, column: Column) -> Entry:
    estimate = resampled.get((method, column), estimates.NOTHING)
    runs = cell_ids(section, [method, str(section.reference)], column)
    return Entry(difference_text(estimate), estimate.value, runs) if estimate.n else Entry("—")


TOPIC = Topic(title="Tests", blocks=_blocks)
