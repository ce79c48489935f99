"""What a report says in sentences, made from the data: the verdict, the caveats and what went wrong."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from finetune_bench.reports import tables
from finetune_bench.reports.data import NO_EFFECT, STATUSES, Data, Row, Section, bare, flat
from finetune_bench.reports.tables import Difference
from finetune_bench.stats import estimates as stats

INTERVAL = "Brackets: 95 % t interval for new seeds on these tasks and these examples; n = seeds."


def points(value: float, sign: bool = False, decimals: int = 1) -> str:
    """A number of points; a dash for none."""
    if math.isnan(value):
        return "—"
    value = round(value, decimals) + 0.0  # no minus before a zero
    text = f"{value:{'+' if sign and value else ''}.{decimals}f}"
    return text.replace("-", "−")


def interval(estimate: stats.Estimate, sign: bool = False) -> str:
    """`71.3 [69.9, 72.8]`; without brackets where there is no interval, and no ends where every unit is the same."""
    if math.isnan(estimate.low):
        return points(estimate.value, sign)
    if estimate.standard_error == 0:
        return f"{points(estimate.value, sign)} [no spread]"
    # An end that excludes zero must not be rounded to it.
    nearest = min(abs(estimate.low), abs(estimate.high))
    decimals = 2 if estimate.separated and nearest < 0.05 else 1
    low, high = points(estimate.low, sign, decimals), points(estimate.high, sign, decimals)
    return f"{points(estimate.value, sign)} [{low}, {high}]"


def ends(estimate: stats.Estimate) -> str:
    """`[−1.2, +1.2]`: an interval without its middle; a dash for none."""
    if math.isnan(estimate.high):
        return "—"
    return f"[{points(estimate.low, sign=True)}, {points(estimate.high, sign=True)}]"


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(number: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def status_counts(data: Data) -> dict[str, int]:
    """Cells by status, every status named."""
    found = Counter(row["status"] for row in data.rows)
    return {status: found[status] for status in STATUSES}


# --- the verdict ------------------------------------------------------------------------------------------------------


def verdict(section: Section, name: Callable[[str], str] = str) -> list[str]:
    """Which methods separated from the baseline, which did not, and what could not be seen. Blunt, from the data.

    Args:
        name: how the format writes a method's label.
    """
    differences = tables.differences(section, section.reference) if section.reference else []

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
    if not differences:
        return [*sentences, no_differences(section)]
    main = _main(section, differences)
    per_task = [one for one in differences if one.question == "a" and one.column.task]
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
        held = [one for one in tables.control_differences(section) if one.reference == control]
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


# --- caveats ----------------------------------------------------------------------------------------------------------


def mixed_metrics(section: Section) -> str | None:
    """A warning where the mean over tasks averages different metrics."""
    metrics: dict[str, list[str]] = {}
    for column in section.suite:
        metrics.setdefault(column.metric, []).append(column.task)
    if len(metrics) < 2:
        return None
    parts = [f"{metric} ({', '.join(tasks)})" for metric, tasks in metrics.items()]
    return f"The mean over tasks averages different metrics, whose points are not worth the same: {'; '.join(parts)}."


def missing_suite(scores: Iterable[tables.Score]) -> list[str]:
    """Methods without a mean over tasks, and why."""
    return [
        f"{score.method} has no mean over tasks: no score on {listed(score.missing)}."
        for score in scores
        if score.missing
    ]


def unpaired(section: Section, reference: str, methods: Iterable[str]) -> list[str]:
    """Runs that were refused as pairs."""
    result = []
    for method in dict.fromkeys(methods):
        for task in section.tasks:
            count = tables.refused(section, method, reference, task)
            if count:
                result.append(
                    f"{method} on {task}: {counted(count, 'seed')} refused as no pair of {reference}, since the hashes "
                    "of initial head, order or data differ or are missing; not in any difference."
                )
    return result


def mixed_versions(data: Data) -> list[str]:
    """Environment entries in which rows of one store differ."""
    values: dict[str, set[str]] = {}
    for row in data.rows:
        if row["status"] == "done":
            for key, value in flat(row.get("environment") or {}).items():
                values.setdefault(key, set()).add(str(value))
    return [
        f"Rows differ in their environment, {key}: {', '.join(sorted(found))}."
        for key, found in sorted(values.items())
        if len(found) > 1
    ]


def environment(data: Data) -> dict[str, str]:
    """What the finished runs ran on, each entry with all values that occur."""
    values: dict[str, set[str]] = {}
    for row in data.rows:
        if row["status"] == "done":
            for key, value in flat(row.get("environment") or {}).items():
                values.setdefault(key, set()).add("—" if value is None else str(value))
    return {key: ", ".join(sorted(found)) for key, found in sorted(values.items())}


# --- what went wrong --------------------------------------------------------------------------------------------------


def by_reason(rows: Iterable[Row], key: str) -> list[tuple[str, str, int]]:
    """Rows by the reason under `key`: (reason, which cells, how many), the most frequent first."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row.get(key) or "no reason given"), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return [(reason, cells(found), len(found)) for reason, found in ordered]


def cells(rows: Iterable[Row]) -> str:
    """`hype on rte (seeds 1, 2); rdrop on cola (seed 3)`."""
    seeds: dict[tuple[str, str], set[int]] = {}
    for row in rows:
        seeds.setdefault((row["method"], row["task"]), set()).add(row["seed"])
    return "; ".join(f"{method} on {task} ({_seeds(found)})" for (method, task), found in sorted(seeds.items()))


def _seeds(found: Iterable[int]) -> str:
    ordered = sorted(found)
    return f"seed{'s' if len(ordered) > 1 else ''} {', '.join(map(str, ordered))}"


def hardly_moved(data: Data) -> list[Row]:
    """Finished runs whose training loss hardly moved."""
    return [row for row in data.rows if row["status"] == "done" and (row.get("training") or {}).get("hardly_moved")]


def collapsed(data: Data) -> list[Row]:
    """Finished runs that count as collapsed."""
    return [row for row in data.rows if row["status"] == "done" and row.get("collapsed")]


def no_effect(twins: Iterable[tables.Twin]) -> list[str]:
    """One sentence for each method and the twin that it can't be told from."""
    groups: dict[tuple[str, str], dict[str, set[int]]] = {}
    for twin in twins:
        groups.setdefault((twin.method, twin.twin), {}).setdefault(twin.task, set()).add(twin.seed)
    return [
        f"No effect: {bare(method)} equals {other} at every recorded step, in loss and weights, on "
        + "; ".join(f"{task} ({_seeds(seeds)})" for task, seeds in sorted(tasks.items()))
        + "."
        for (method, other), tasks in groups.items()
    ]
