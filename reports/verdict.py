"""What a report says in sentences, made from the data: the verdict, the caveats and what went wrong."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from finetune_bench.reports.rows.sections import NO_EFFECT, Section
from finetune_bench.reports.text import counted, interval, listed, points
from finetune_bench.reports.topics.differences import Difference, control_differences, differences, no_differences
from finetune_bench.stats import estimates as stats

# --- the verdict ------------------------------------------------------------------------------------------------------


def verdict(section: Section, name: Callable[[str], str] = str) -> list[str]:
    """Which methods separated from the baseline, which did not, and what could not be seen. Blunt, from the data.

    Args:
        name: how the format writes a method's label.
    """
    found = differences(section, section.reference) if section.reference else []

    if not any(row["status"] == "done" for row in section.runs.values()):
        return ["No run ended well, so there is nothing to compare."]
    seeds = most_seeds(section)
    sentences = [_compared(section, name), seeds_sentence(seeds)]
    done = [row for row in section.runs.values() if row["status"] == "done"]
    broken = sum(bool(row.get("collapsed")) for row in done)
    if 2 * broken > len(done):
        sentences.append(
            f"{broken} of {counted(len(done), 'run')} collapsed: where most runs don't train, differences between them "
            "say little."
        )
    sentences += _broken(section, name)
    if not found:
        return [*sentences, no_differences(section)]
    main = _main(section, found)
    per_task = [one for one in found if one.question == "a" and one.column.task]
    where = f"on the mean over {len(section.tasks)} tasks" if len(section.tasks) > 1 else f"on {section.tasks[0]}"
    sentences += _separated(main, where, name)
    judged = [one for one in per_task if not math.isnan(one.estimate.low)]
    if len(section.columns) > 1 and judged:
        separated = sum(one.estimate.separated for one in judged)
        chance = (1 - stats.CONFIDENCE) * len(judged)
        sentences.append(
            f"Score by score, {separated} of {counted(len(judged), 'interval')} exclude{'s' if separated == 1 else ''} "
            f"0; if no method did anything, about {chance:.1f} would by chance."
        )
    for control in section.controls():
        held = [one for one in control_differences(section) if one.reference == control]
        sentences += _separated(_main(section, held), where, name)
    detectable = [one.detectable for one in main if not math.isnan(one.detectable)]
    if detectable:
        sentences.append(
            f"With {counted(seeds, 'seed')}, a true difference {where} below about "
            f"{points(statistics.median(detectable))} points (median over the methods) would be missed more often than "
            "one time in five."
        )
    return sentences


_FEW = 8  # names in a sentence


def _compared(section: Section, name: Callable[[str], str]) -> str:
    others = [method for method in section.methods if method != section.reference]
    against = f" with {name(section.reference)}" if section.reference else ""
    tasks = listed(section.tasks) if len(section.tasks) <= _FEW else f"{len(section.tasks)} tasks"
    return f"Compared: {counted(len(others), 'method')}{against}, on {tasks}."


def _broken(section: Section, name: Callable[[str], str]) -> list[str]:
    """What collapsed and what did nothing, by name where they are few."""
    collapsed = {
        method: sum(int(section.collapsed(method, task).sum()) for task in section.tasks) for method in section.methods
    }
    collapsed = {method: number for method, number in collapsed.items() if number}
    inert = [method for method in section.methods if method.endswith(NO_EFFECT)]
    sentences = []
    if collapsed:
        texts = [
            f"{name(method)} ({number} of {len(section.rows(method, status='done'))})"
            for method, number in collapsed.items()
        ]
        who = listed(texts) if len(texts) <= _FEW else f"runs of {len(texts)} of {len(section.methods)} methods"
        sentences.append(f"Collapsed: {who}.")
    if inert:
        who = listed([name(method.removesuffix(NO_EFFECT)) for method in inert])
        sentences.append(f"No effect at all, equal to a twin at every recorded step: {who}.")
    return sentences


def _main(section: Section, differences: Sequence[Difference]) -> list[Difference]:
    """The differences that a verdict rests on: over the suite, or on the only task's first split."""
    if len(section.tasks) > 1:
        return [one for one in differences if one.question == "a" and not one.column.task]
    return [one for one in differences if one.column == section.columns[0]]


def _separated(found: Sequence[Difference], where: str, name: Callable[[str], str]) -> list[str]:
    usable = [one for one in found if not math.isnan(one.estimate.low)]
    groups = {
        "above": [one for one in usable if one.estimate.separated and one.estimate.value > 0],
        "below": [one for one in usable if one.estimate.separated and one.estimate.value < 0],
    }
    sentences = []
    for side, group in groups.items():
        if group:
            texts = [f"{name(one.method)} ({interval(one.estimate, sign=True)} points{_p(one.p)})" for one in group]
            sentences.append(f"Separated {side} {name(found[0].reference)} {where}: {listed(texts)}.")
    if level := [name(one.method) for one in usable if not one.estimate.separated]:
        sentences.append(
            f"Not separated from {name(found[0].reference)} {where}: {listed(level)}; that does not mean the same."
        )
    if unusable := [name(one.method) for one in found if one not in usable]:
        sentences.append(f"Without an interval {where}: {listed(unusable)}.")
    return sentences


def _p(value: float) -> str:
    return "" if math.isnan(value) else f", p {'< 0.001' if value < 0.001 else f'= {value:.3f}'} after Holm"


def most_seeds(section: Section) -> int:
    """The most seeds with a finished run behind any cell of the table."""
    return max(
        (len(section.rows(method, task, "done")) for method in section.methods for task in section.tasks), default=0
    )


def seeds_sentence(seeds: int) -> str:
    """What that many seeds allow to say."""
    if seeds == 1:
        return "Descriptive only: one seed, so there is no interval, and no difference can be told from noise."
    if seeds < stats.SEEDS_FOR_P:
        return f"Descriptive only: {seeds} seeds, fewer than {stats.SEEDS_FOR_P}, so no p-value is given."
    return f"{seeds} seeds."


# --- caveats ----------------------------------------------------------------------------------------------------------


# --- what went wrong --------------------------------------------------------------------------------------------------
