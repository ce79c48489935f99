"""Beside the differences: sign flips, P(A > B), equivalence, ranks, normalised scores and the multi-bootstrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, Entry, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Data, Row, Section
from finetune_bench.reports.text import _bold_if_separated, _p_text, listed
from finetune_bench.reports.topics.differences import Difference, differences
from finetune_bench.stats import estimates as stats
from finetune_bench.stats import robust
from finetune_bench.stats.bootstrap import METRICS, multi_bootstrap
from finetune_bench.stats.estimates import Estimate


@dataclass(frozen=True)
class SuiteTest:
    """What else is known of a method's difference to the reference, on the suite or the only score; question (a).

    Attributes:
        sign_flip: p by flipping the signs of the seeds' differences (the mean over tasks), from six seeds.
        better: P(A > B), the chance that a run beats one of the reference on the same task.
        equivalence: p of the two one-sided tests at the reader's margin.
        collapses: McNemar's p that it collapses as often as the reference.
    """

    section: str
    method: str
    estimate: Estimate
    sign_flip: float
    better: float
    equivalence: float
    collapses: float


@once
def suite_tests(section: Section, margin: float | None) -> list[SuiteTest]:
    """One per method; empty without a reference."""
    if section.reference is None:
        return []
    found = differences(section, section.reference)
    main = [one for one in found if one.question == "a" and (not one.column.task or len(section.tasks) == 1)]
    return [_suite_test(section, one, margin) for one in {one.method: one for one in reversed(main)}.values()][::-1]


def _suite_test(section: Section, one: Difference, margin: float | None) -> SuiteTest:
    reference = one.reference
    pairs = [
        section.paired_scores(one.method, reference, column) - section.paired_scores(reference, reference, column)
        for column in section.suite
    ]
    failed = [
        np.concatenate([section.collapsed(label, task) for task in section.tasks]) for label in (one.method, reference)
    ]
    return SuiteTest(
        section=section.title,
        method=one.method,
        estimate=one.estimate,
        sign_flip=stats.sign_flip(np.mean(pairs, axis=0)),
        better=robust.probability_of_improvement(
            [section.scores(one.method, column) for column in section.suite],
            [section.scores(reference, column) for column in section.suite],
        ),
        equivalence=math.nan if margin is None else stats.equivalence(one.estimate, margin),
        collapses=stats.mcnemar(*failed),
    )


@once
def exploratory(section: Section) -> dict[tuple[str, Column], float]:
    """P-values of every method on every score, adjusted together by Benjamini and Hochberg; from five seeds."""
    if section.reference is None or len(section.columns) < 2:
        return {}
    found = [one for one in differences(section, section.reference) if one.column.task and one.question == "a"]
    enough = [one for one in found if one.estimate.n >= stats.SEEDS_FOR_P and not math.isnan(one.estimate.p_value)]
    adjusted = stats.benjamini_hochberg([one.estimate.p_value for one in enough])
    return {(one.method, one.column): p for one, p in zip(enough, adjusted, strict=True)}


@dataclass(frozen=True)
class Ranking:
    """Methods over tasks, each task's score once; only of methods with a score on every task.

    Attributes:
        ranks: of the task means; None below three methods or two tasks.
        normalised: by method, (tasks, seeds): 0 is the constant prediction, 1 the best method's mean.
        left_out: methods without a score on every task.
        unscaled: tasks where no method beats the constant prediction; they are in no normalised score.
    """

    methods: tuple[str, ...]
    ranks: robust.Ranks | None
    normalised: dict[str, np.ndarray]
    left_out: tuple[str, ...]
    unscaled: tuple[str, ...]


@once
def ranking(section: Section) -> Ranking | None:
    """Ranks and normalised scores; None with one task or one method."""
    means = {
        method: np.array([stats.t_interval(section.scores(method, column)).value for column in section.suite])
        for method in section.methods
    }
    methods = tuple(method for method, values in means.items() if np.isfinite(values).all())
    if len(methods) < 2 or len(section.suite) < 2:
        return None
    block = np.stack([means[method] for method in methods])
    scales = {column: (_constant(section, column), float(block[:, i].max())) for i, column in enumerate(section.suite)}
    usable = [column for column, (worst, best) in scales.items() if best > worst]
    normalised = {
        method: np.stack([robust.normalise(section.scores(method, column), *scales[column]) for column in usable])
        for method in methods
        if usable
    }
    return Ranking(
        methods=methods,
        ranks=robust.rank_test(block) if len(methods) > 2 else None,
        normalised=normalised,
        left_out=tuple(method for method in section.methods if method not in methods),
        unscaled=tuple(column.task for column in section.suite if column not in usable),
    )


def _constant(section: Section, column: Column) -> float:
    """The score in points of the constant prediction; NaN where no run tells."""
    for method in section.methods:
        for row in section.rows(method, column.task, "done"):
            majority = row.get("majority") or {}
            values = [
                score
                for split in column.splits
                if (score := (majority.get(split) or {}).get(column.metric)) is not None
            ]
            if values and len(values) == len(column.splits):
                return 100 * float(np.mean(values))
    return math.nan


def bootstraps(data: Data, section: Section) -> dict[tuple[str, Column], Estimate]:
    """Differences with intervals over seeds and examples together, per score; reads every prediction."""
    reference = section.reference
    result: dict[tuple[str, Column], Estimate] = {}
    if reference is None:
        return result
    for column in section.columns:
        if column.metric not in METRICS or len(column.splits) != 1:
            continue
        for method in section.methods:
            seeds = [seed for seed in section.seeds if section.paired(method, reference, column.task, seed)]
            rows = [[section.runs[label, column.task, seed] for seed in seeds] for label in (method, reference)]
            if method == reference or not seeds:
                continue
            (own, labels), (other, _) = (_predictions(data, found, column.splits[0]) for found in rows)
            result[method, column] = multi_bootstrap(column.metric, own, other, labels)
    return result


def _predictions(data: Data, rows: list[Row], split: str) -> tuple[np.ndarray, np.ndarray]:
    """(seeds, examples) classes or numbers, and (examples,) labels."""
    arrays = [data.store.arrays(row["id"], "predictions") for row in rows]
    outputs = [found[f"{split}.predictions"] for found in arrays]
    chosen = [one.argmax(axis=1) if rows[0]["kind"] == "classification" else one.reshape(-1) for one in outputs]
    return np.stack(chosen), arrays[0][f"{split}.labels"]


def _tests(data: Data, section: Section) -> list[Block]:
    margin = data.options.margin
    found = suite_tests(section, margin)
    result: list[Block] = []
    if found:
        reference = code(str(section.reference))
        columns = ["P(A > B)", "sign-flip p", "McNemar p", *([f"equal within {margin:g}, p"] if margin else [])]
        rows = [
            [
                code(one.method),
                "—" if math.isnan(one.better) else f"{one.better:.2f}",
                *(_p_text(p) for p in (one.sign_flip, one.collapses, *([one.equivalence] if margin else []))),
            ]
            for one in found
        ]
        notes = [
            f"P(A > B): the chance that a run beats one of {reference} on the same task, ties counting half.",
            "Sign-flip: exact, on the seeds' differences (mean over tasks), from six seeds; not adjusted.",
            "McNemar: exact, whether runs collapse as often as the reference's, from runs paired by task and seed.",
        ]
        if margin:
            notes.append(
                f"Equal within {margin:g} points: the larger p of two one-sided t tests; below 0.05 the method is the "
                "reference's equal for that purpose. A difference that isn't separated is not thereby equal."
            )
        result += [table("tests", [f"A, against {reference}", *columns], rows), *bullets(notes)]
    if explored := exploratory(section):
        columns_of = [column for column in section.columns if any(key[1] == column for key in explored)]
        rows = [
            [code(method), *(_p_text(explored.get((method, column), math.nan)) for column in columns_of)]
            for method in dict.fromkeys(key[0] for key in explored)
        ]
        note = (
            f"Exploratory: p of every method on every score, adjusted together by Benjamini and Hochberg over the "
            f"{len(explored)} of them. Of those below 0.05, one in twenty is expected to be false."
        )
        result += [table("exploratory", ["score by score", *(one.title for one in columns_of)], rows), *bullets([note])]
    if data.options.bootstrap and (resampled := bootstraps(data, section)):
        columns_of = [column for column in section.columns if any(key[1] == column for key in resampled)]
        differences: list[list[str | Entry]] = [
            [code(method), *(_resampled(resampled.get((method, column), stats.NOTHING)) for column in columns_of)]
            for method in dict.fromkeys(key[0] for key in resampled)
        ]
        note = (
            "Multi-bootstrap: seeds and examples resampled together, paired, 1,000 times, seed 0; questions (a) and "
            "(c) at once. Percentile intervals, from five seeds on."
        )
        result += [
            table("bootstrap", ["difference", *(one.title for one in columns_of)], differences),
            *bullets([note]),
        ]
    return result


def _resampled(estimate: stats.Estimate) -> Entry:
    return Entry(_bold_if_separated(estimate), estimate.value) if estimate.n else Entry("—")


def _ranking(section: Section) -> list[Block]:
    found = ranking(section)
    if found is None:
        return []
    rows = []
    for place, method in enumerate(found.methods):
        normalised = found.normalised.get(method)
        rows.append(
            [
                code(method),
                f"{found.ranks.mean[place]:.2f}" if found.ranks else "—",
                f"{robust.interquartile_mean(normalised):.3f}" if normalised is not None else "—",
                f"{np.nanmean(normalised):.3f}" if normalised is not None else "—",
            ]
        )
    notes = []
    if found.ranks:
        notes.append(
            f"Mean rank over {found.ranks.n} tasks, 1 is the best; question (b). Friedman's test that all are alike: "
            f"p {_with_sign(found.ranks.p)}. Mean ranks less than {found.ranks.critical_difference:.2f} apart are not "
            "separated (Nemenyi, 95 % for all pairs). Ranks depend on who else is in the pool."
        )
    notes.append(
        "Normalised: 0 is the constant prediction's score, 1 the best method's mean, per task. The interquartile mean "
        "leaves out the lowest and the highest quarter of all runs."
    )
    if found.left_out:
        notes.append(f"Without a score on every task, so not here: {listed([code(m) for m in found.left_out])}.")
    if found.unscaled:
        notes.append(
            f"No method beats the constant prediction on {listed(found.unscaled)}; no normalised score has it."
        )
    header = ["method", "mean rank", "interquartile mean", "mean, normalised"]
    return [table("ranks", header, rows), *bullets(notes)]


def _with_sign(p: float) -> str:
    return "undefined, every task ties" if math.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"
