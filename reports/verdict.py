"""The verdict puts the outcome into words: the methods that differ from the baseline, and what is too small to see."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from finetune_bench.reports.document import clean
from finetune_bench.reports.rows.sections import NO_EFFECT, Section
from finetune_bench.reports.text import counted, interval, listed, points, with_interval
from finetune_bench.reports.topics.differences import (
    Difference,
    control_differences,
    no_differences,
    reference_differences,
    suite_differences,
)
from finetune_bench.stats import estimates
from finetune_bench.store.row import Status

# A sentence holds at most so many names.
_MAX_NAMES = 8
# Of the reason why runs failed, so many characters stand in a sentence.
_MAX_REASON = 120


def verdict(section: Section, name: Callable[[str], str] = str) -> list[str]:
    """Return which methods separated from the baseline, which did not, and what could not be seen, as sentences.

    Args:
        section: Whose runs are compared.
        name: How the format writes a method's label.
    """
    done = [row for row in section.runs.values() if row["status"] == Status.DONE]
    if not done:
        return [nothing_ended(section)]
    seeds = _most_seeds(section)
    sentences = [_seeds_sentence(seeds)]
    collapsed = sum(bool(row.get("collapsed")) for row in done)
    if 2 * collapsed > len(done):
        sentences.append(
            f"{collapsed} of {counted(len(done), 'run')} collapsed: where most runs don't train, differences between "
            "them say little."
        )
    sentences += _without_result(section, name)
    differences = reference_differences(section)
    if not differences:
        return [*sentences, no_differences(section)]
    main = suite_differences(section, differences)
    where = scope(section)
    sentences += _separated(main, where, name)
    sentences += _score_by_score(section, differences)
    for control in section.controls():
        to_control = [difference for difference in control_differences(section) if difference.reference == control]
        sentences += _separated(suite_differences(section, to_control), where, name)
    detectable = [difference.detectable for difference in main if not math.isnan(difference.detectable)]
    if detectable:
        sentences.append(
            f"With {counted(seeds, 'seed')}, a true difference {where} below about "
            f"{points(statistics.median(detectable))} points (median over the methods) would be missed more often than "
            f"one time in five; seeing half of that takes about {4 * seeds} seeds."
        )
    return sentences


def scope(section: Section) -> str:
    """Return what the verdict's differences are measured on, as a part of a sentence."""
    return f"on the mean over {len(section.tasks)} tasks" if len(section.tasks) > 1 else f"on {section.tasks[0]}"


def compared(section: Section, name: Callable[[str], str]) -> str:
    """Return what was compared with what, as one sentence."""
    others = [method for method in section.methods if method != section.reference]
    against = f" with {name(section.reference)}" if section.reference else ""
    tasks = listed(section.tasks) if len(section.tasks) <= _MAX_NAMES else f"{len(section.tasks)} tasks"
    seeds = counted(len(section.seeds), "seed")
    if not others:
        return f"Run: {name(section.methods[0])} alone, on {tasks}, {seeds}."
    return f"Compared: {counted(len(others), 'method')}{against}, on {tasks}, {seeds}."


def nothing_ended(section: Section) -> str:
    """Return that no run of a section ended well, and why most did not."""
    reasons = Counter((row["status"], clean(row.get("reason") or "no reason given")) for row in section.runs.values())
    text = "No run ended well, so there is nothing to compare"
    for (status, reason), number in reasons.most_common(1):
        short = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}…"
        text += f": {number} of {counted(len(section.runs), 'run')} {status} ({short.rstrip('.')})"
    return f"{text}."


def _most_seeds(section: Section) -> int:
    """Return the most seeds with a finished run behind any cell of the table."""
    return max(len(section.rows(method, task, Status.DONE)) for method in section.methods for task in section.tasks)


def _seeds_sentence(seeds: int) -> str:
    """Return what that many seeds allow to say."""
    if seeds == 1:
        return "Descriptive only: one seed, so there is no interval, and no difference can be told from noise."
    if seeds < estimates.SEEDS_FOR_P:
        return f"Descriptive only: {seeds} seeds, fewer than {estimates.SEEDS_FOR_P}, so no p-value is given."
    return f"{seeds} seeds."


def _without_result(section: Section, name: Callable[[str], str]) -> list[str]:
    """Return what collapsed and what did nothing, by name where they are few."""
    collapsed = {
        method: sum(int(section.collapse_mask(method, task).sum()) for task in section.tasks)
        for method in section.methods
    }
    texts = [
        f"{name(method)} ({number} of {len(section.rows(method, status=Status.DONE))})"
        for method, number in collapsed.items()
        if number
    ]
    without_effect = [name(label.removesuffix(NO_EFFECT)) for label in section.methods if label.endswith(NO_EFFECT)]
    sentences = []
    if texts:
        few = len(texts) <= _MAX_NAMES
        who = listed(texts) if few else f"runs of {len(texts)} of {len(section.methods)} methods"
        sentences.append(f"Collapsed: {who}.")
    if without_effect:
        sentences.append(
            f"No effect, equal to a run without the method at every recorded step: {listed(without_effect)}."
        )
    return sentences


def _separated(differences: Sequence[Difference], where: str, name: Callable[[str], str]) -> list[str]:
    """Return which methods lie above or below their reference, which can't be told, and which have no interval."""
    usable = [difference for difference in differences if with_interval(difference.estimate)]
    separated = [difference for difference in usable if difference.estimate.separated]
    groups = {
        "above": [difference for difference in separated if difference.estimate.value > 0],
        "below": [difference for difference in separated if difference.estimate.value < 0],
    }
    sentences = []
    for side, group in groups.items():
        if group:
            texts = [
                f"{name(difference.method)} ({interval(difference.estimate, sign=True)} points{_p(difference.p)})"
                for difference in group
            ]
            sentences.append(f"Clearly {side} {name(differences[0].reference)} {where}: {listed(texts)}.")
    if level := [name(difference.method) for difference in usable if not difference.estimate.separated]:
        sentences.append(
            f"No clear difference to {name(differences[0].reference)} {where}: {listed(level)}; that does not mean the "
            "same."
        )
    if unusable := [name(difference.method) for difference in differences if difference not in usable]:
        sentences.append(f"Without an interval {where}: {listed(unusable)}.")
    return sentences


def _p(p: float) -> str:
    return "" if math.isnan(p) else f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} after Holm"


def _score_by_score(section: Section, differences: Sequence[Difference]) -> list[str]:
    """Return how many intervals of single scores exclude 0, and how many would by chance."""
    judged = [
        difference.estimate
        for difference in differences
        if difference.question == "a" and difference.column.task and with_interval(difference.estimate)
    ]
    if len(section.columns) < 2 or not judged:
        return []
    separated = sum(estimate.separated for estimate in judged)
    chance = (1 - estimates.CONFIDENCE) * len(judged)
    return [
        f"Score by score, {separated} of {counted(len(judged), 'interval')} exclude{'s' if separated == 1 else ''} "
        f"0; if no method did anything, about {chance:.1f} would by chance."
    ]
