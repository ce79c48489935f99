"""Whether a stack gains more than its parts together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from finetune_bench.reports.document import Block, Entry, bold, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Column, Section
from finetune_bench.reports.rows.twins import _alone
from finetune_bench.reports.text import _bold_if_separated
from finetune_bench.reports.topics.contrasts import WELCH, block, cell_ids, contrast, suite_column
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate

_CLOSED_TO_SHARES = ("accuracy", "f1")  # metrics that are shares, of which a logit can be taken


@dataclass(frozen=True)
class Synergy:
    """What a stack of two gains over the sum of its parts.

    Attributes:
        logit: the same of the log-odds, where the metric is a share; nothing elsewhere. Its interval is of the four
            runs' own seeds.
        note: where a part or the baseline is not the exact one.
    """

    section: str
    column: Column
    method: str
    first: str
    second: str
    baseline: str
    estimate: Estimate
    interval: str
    logit: Estimate
    note: str


@dataclass(frozen=True)
class Combination:
    """A stack of two, the labels of its parts run alone, the vanilla that it is held against, and what is inexact."""

    method: str
    first: str
    second: str
    baseline: str
    note: str


@once
def combinations(section: Section) -> tuple[list[Combination], list[str]]:
    """The stacks of two whose parts were run alone, and a sentence for each stack without a synergy.

    A part is the single method with the same parameters; where that wasn't run, the method at its defaults, with a
    note. Where stack and parts all realise the same dropout, other than the baseline's, the vanilla control with that
    dropout stands for the baseline: otherwise the change that both parts share would count twice against the stack.
    """
    found, left_out = [], []
    for method in section.methods:
        parts = section.parts(method)
        if len(parts) < 2:
            continue
        if len(parts) > 2:
            left_out.append(f"{method}: synergy is defined for stacks of two.")
            continue
        labels = [_alone(section, part) for part in parts]
        lacking = [part["name"] for part, (label, _) in zip(parts, labels, strict=True) if label is None]
        if lacking or section.baseline is None:
            lacking += [] if section.baseline else ["vanilla"]
            left_out.append(f"{method}: needs {' and '.join(lacking)} run alone in the same setting.")
            continue
        (first, one), (second, other) = labels
        baseline, inexact = _ground(section, method, str(first), str(second), section.baseline)
        note = " ".join(text for text in (one, other, inexact) if text)
        found.append(Combination(method, str(first), str(second), baseline, note))
    return found, left_out


def _ground(section: Section, method: str, first: str, second: str, baseline: str) -> tuple[str, str]:
    dropouts = {section.dropout(label) for label in (method, first, second)}
    changed = {section.dropout(label) for label in (first, second)} - {section.dropout(baseline), ""}
    if len(dropouts) == 1 and changed:
        control = section.control(method)
        if control is not None:
            return control, ""
    if len(changed) == 1 and section.dropout(first) == section.dropout(second):
        return baseline, "Both parts change the dropout, and no control has it: that change counts twice in the sum."
    return baseline, ""


@once
def synergies(section: Section) -> list[Synergy]:
    """Of every stack of two with its parts: y_AB − y_A − y_B + y_0 per column, and over the suite."""
    result = []
    for one in combinations(section)[0]:
        weights = {one.method: 1.0, one.first: -1.0, one.second: -1.0, one.baseline: 1.0}
        common = (one.method, one.first, one.second, one.baseline)
        for column in section.columns:
            value, interval = _synergy(section, column, weights, one.baseline)
            log_odds = _log_odds(section, column, weights, one.baseline)
            result.append(Synergy(section.title, column, *common, value, interval, log_odds, one.note))
        if len(section.tasks) > 1:
            mean = stats.suite_mean([_synergy(section, column, weights, one.baseline)[0] for column in section.suite])
            result.append(Synergy(section.title, suite_column(section), *common, mean, WELCH, stats.NOTHING, one.note))
    return result


def _synergy(section: Section, column: Column, weights: Mapping[str, float], baseline: str) -> tuple[Estimate, str]:
    return contrast(section, column, weights, baseline, block(section, column, baseline))


def _log_odds(section: Section, column: Column, weights: Mapping[str, float], anchor: str) -> Estimate:
    if column.metric not in _CLOSED_TO_SHARES:
        return stats.NOTHING
    stacked, first, second, none = (
        stats.logit(section.paired_scores(label, anchor, column) / 100) for label in weights
    )
    return stats.synergy(stacked, first, second, none)


def _synergies(section: Section) -> list[Block]:
    found = synergies(section)
    _, left_out = combinations(section)
    result: list[Block] = []
    if found:
        rows: list[list[str | Entry]] = [
            [
                f"{code(one.method)} = {code(one.first)} + {code(one.second)}",
                code(one.baseline),
                one.column.title,
                Entry(
                    _bold_if_separated(one.estimate),
                    one.estimate.value,
                    cell_ids(section, [one.method, one.first, one.second, one.baseline], one.column),
                ),
                str(one.estimate.n),
                f"{one.estimate.df:.1f}".removesuffix(".0") if one.estimate.df > 0 else "—",
                one.interval if one.estimate.df > 0 else "—",
                _log_odds_text(one.logit),
            ]
            for one in found
        ]
        header = ("stack and its parts", "y₀", "score", "synergy", "n", "df", "interval", "log-odds")
        result.append(table("synergy", header, rows))
    notes = [
        "Synergy: y(A+B) − y(A) − y(B) + y₀ per seed, in points: above 0 the stack gains more than its parts together. "
        "Question (a), n seeds. Its standard error is √2 that of a difference, so it takes about twice the seeds to "
        "see the same effect. Bold: the interval excludes 0.",
        "log-odds: the same on the logit scale, where gains near the ceiling count for more; only for shares. Its t "
        "interval rests on the four runs' own seeds.",
    ]
    notes += [f"{code(method)}: {note}" for method, note in {one.method: one.note for one in found}.items() if note]
    return [*result, *bullets([*(notes if found else []), *left_out])]


def _log_odds_text(estimate: stats.Estimate) -> str:
    if math.isnan(estimate.value):
        return "—"
    text = f"{round(estimate.value, 2) + 0.0:+.2f}"
    if estimate.df > 0:
        text += f" [{round(estimate.low, 2) + 0.0:+.2f}, {round(estimate.high, 2) + 0.0:+.2f}]"
    text = text.replace("-", "−")
    return bold(text) if estimate.separated else text
