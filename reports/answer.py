"""The answer comes first: what makes a comparison worthless, one sentence, and each method's difference and cost.

Nothing is computed here that the topics don't have; the words are those of the tests behind them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.document import Bar, Entry, Paragraph, bold, bullets, code, table
from finetune_bench.reports.plots.intervals import Line, forest_beside, limits
from finetune_bench.reports.plots.style import method_style
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import NO_EFFECT, Column, Data, Section, canonical
from finetune_bench.reports.text import FEWEST_SEEDS, counted, difference_text, ends, interval, listed, p_text, points
from finetune_bench.reports.topics.contrasts import cell_ids, suite_column
from finetune_bench.reports.topics.cost import Cost, Ratio, costs
from finetune_bench.reports.topics.differences import (
    Difference,
    control_differences,
    no_differences,
    noise_floors,
    reference_differences,
    suite_differences,
)
from finetune_bench.reports.topics.ranks import constant_score
from finetune_bench.reports.topics.topic import Drawing, TopicBlock
from finetune_bench.reports.verdict import compared, nothing_ended, scope
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.row import Row, Status

# Below this p two methods count as equal within the reader's margin.
_LEVEL = 1 - estimates.CONFIDENCE
# The sentence names at most so many methods.
_MAX_NAMED = 3


@dataclass(frozen=True)
class Answer:
    """An answer is what a reader wants to know of one method.

    Attributes:
        difference: The method minus the reference, on the suite or the only task.
        word: "helps", "hurts", "same within 1", "can't tell below 2.1", ...
        cost: What it costs.
    """

    difference: Difference
    word: str
    cost: Cost


@cached
def answers(section: Section, margin: float | None) -> list[Answer]:
    """Return the answer of every method but the reference, the highest difference first.

    Args:
        section: Whose runs are compared.
        margin: Points within which methods count as equal; None for no such test.
    """
    by_method = {cost.method: cost for cost in costs(section)}
    rows = suite_differences(section, reference_differences(section))
    ordered = sorted(rows, key=lambda row: -math.inf if math.isnan(row.estimate.value) else row.estimate.value)
    return [Answer(row, word(row, margin), by_method[row.method]) for row in reversed(ordered)]


def word(difference: Difference, margin: float | None) -> str:
    """Return what the tests say of a difference, in a word or a few."""
    estimate = difference.estimate
    if estimate.n == 0:
        return "not scored on every task" if not difference.column.task else "no score"
    if estimate.n < FEWEST_SEEDS:
        return f"can't tell from {counted(estimate.n, 'seed')}"
    if estimate.standard_error == 0:
        return "the same scores" if estimate.value == 0 else "can't tell: no spread"
    equal = margin is not None and estimates.equivalence(estimate, margin) < _LEVEL
    if estimate.separated:
        side = "helps" if estimate.value > 0 else "hurts"
        return f"{side}, by less than {margin:g}" if equal else side
    if equal:
        return f"same within {margin:g}"
    seen = f" below {points(difference.detectable)}" if math.isfinite(difference.detectable) else ""
    return f"can't tell{seen}"


def answer_blocks(data: Data, section: Section) -> list[TopicBlock]:
    """Return the answer of one section: warnings, the sentence, and the table with its plot."""
    blocks: list[TopicBlock] = [Paragraph(text, "warning") for text in warnings(section, code)]
    blocks += [Paragraph(text, "headline") for text in headline(section, code)]
    if not any(row["status"] == Status.DONE for row in section.runs.values()):
        return blocks
    blocks.append(Paragraph(compared(section, code), "aside"))
    if not reference_differences(section):
        return blocks
    alt = "Difference of every method to the baseline with its interval, beside its cost in time and memory"
    margin = data.options.margin
    return [*blocks, _table(section, margin), *_notes(section), Drawing("answer", alt, partial(draw, section, margin))]


# --- what comes before the answer -------------------------------------------------------------------------------------


def learned_nothing(row: Row) -> bool:
    """Return whether a finished run collapsed, or its training loss hardly moved."""
    training = row.get("training")
    return bool(row.get("collapsed") or (training and training.get("hardly_moved")))


def warnings(section: Section, name: Callable[[str], str] = str) -> list[str]:
    """Return what makes the comparison of a section worthless, as sentences; most sections have none.

    Args:
        section: Whose runs are compared.
        name: How the format writes a method's label.
    """
    done = [row for row in section.runs.values() if row["status"] == Status.DONE]
    if not done:
        return []
    idle = [row for row in done if learned_nothing(row)]
    result = []
    if 2 * len(idle) > len(done):
        result.append(
            f"{len(idle)} of {counted(len(done), 'run')} learned nothing: they collapsed, or their training loss "
            "hardly moved. Differences between such runs say nothing about the methods; look for a recipe that trains "
            "the baseline first."
        )
    else:
        result += _idle_parts(section, done, name)
    most = max(len(section.rows(method, task, Status.DONE)) for method in section.methods for task in section.tasks)
    if most < FEWEST_SEEDS:
        result.append(
            f"{'Only one seed' if most == 1 else f'Only {most} seeds'}: no difference can be told from noise, so no "
            "interval is shown. Five seeds or more are worth comparing."
        )
    return result


def _idle_parts(section: Section, done: Sequence[Row], name: Callable[[str], str]) -> list[str]:
    """Return which tasks, and whether the reference, learned nothing in most of their runs or by its scores."""
    result = []
    for column in section.suite:
        of_task = [row for row in done if row["task"] == column.task]
        idle = sum(map(learned_nothing, of_task))
        if 2 * idle > len(of_task):
            result.append(
                f"On {column.task}, {idle} of {counted(len(of_task), 'run')} learned nothing: leave that task out of "
                "the mean, or find a recipe that trains it."
            )
        elif section.reference is not None:
            result += _no_better_than_constant(section, section.reference, column, name)
    if section.reference is not None:
        rows = section.rows(section.reference, status=Status.DONE)
        idle = sum(map(learned_nothing, rows))
        if 2 * idle > len(rows):
            result.append(
                f"{name(section.reference)} learned nothing in {idle} of its {counted(len(rows), 'run')}, so what lies "
                "above it need not be a gain."
            )
    return result


def _no_better_than_constant(section: Section, reference: str, column: Column, name: Callable[[str], str]) -> list[str]:
    """Return a warning where the reference's interval on a task reaches down to what one answer to all scores."""
    estimate, constant = estimates.t_interval(section.scores(reference, column)), constant_score(section, column)
    if estimate.n < FEWEST_SEEDS or not estimate.low <= constant:
        return []
    return [
        f"On {column.task}, {name(reference)} scores {interval(estimate)}, and one answer to all examples "
        f"{points(constant)}: it can't be told that anything was learned there. Find a recipe that trains it"
        f"{', or leave that task out of the mean' if len(section.suite) > 1 else ''}."
    ]


def edge_of_rates(sections: Sequence[Section]) -> list[str]:
    """Return a warning where the reference scores best at the lowest or highest of several learning rates."""
    groups: dict[str, dict[float, float]] = {}
    optimizers: dict[str, str] = {}
    for section in sections:
        if section.reference is None or not isinstance(section.setting.get("lr"), float):  # by task, or unknown
            continue
        rest = canonical({key: value for key, value in section.setting.items() if key != "lr"})
        means = [section.scores(section.reference, column) for column in section.suite]
        per_task = [float(scores[np.isfinite(scores)].mean()) for scores in means if np.isfinite(scores).any()]
        if len(per_task) == len(section.suite):
            groups.setdefault(rest, {})[float(section.setting["lr"])] = float(np.mean(per_task))
            optimizers[rest] = str(section.setting["optimizer"])
    result = []
    for rest, by_rate in groups.items():
        best = max(by_rate, key=lambda rate: by_rate[rate])
        if len(by_rate) > 1 and best in (min(by_rate), max(by_rate)):
            side = "lowest" if best == min(by_rate) else "highest"
            under = f" with {optimizers[rest]}" if len(set(optimizers.values())) > 1 else ""
            result.append(
                f"The baseline{under} scores best at the {side} learning rate tried, {best:g}: a "
                f"{side.removesuffix('est')}er one may be better still, and a method may only seem to help at a rate "
                "that doesn't suit the baseline."
            )
    return result


# --- the sentence -----------------------------------------------------------------------------------------------------


def headline(section: Section, name: Callable[[str], str] = str) -> list[str]:
    """Return the sentence that a reader takes home, and those on methods whose control says something else.

    Args:
        section: Whose runs are compared.
        name: How the format writes a method's label.
    """
    if not any(row["status"] == Status.DONE for row in section.runs.values()):
        return [nothing_ended(section)]
    if not reference_differences(section):
        return [no_differences(section)]
    return [_main_sentence(section, name), *_same_as_control(section, name), *_against_control(section, name)]


def _main_sentence(section: Section, name: Callable[[str], str]) -> str:
    told = answers(section, None)
    reference = name(str(section.reference))
    where = scope(section)
    above, below = ([answer for answer in told if answer.word == side] for side in ("helps", "hurts"))
    if above:
        best = above[0]
        text = (
            f"{name(best.difference.method)} gained {_gain(best.difference)} over {reference} {where}{_at_cost(best)}"
        )
        more = [name(answer.difference.method) for answer in above[1:]]
        rest = f"; {listed(more)} gained too" if 0 < len(more) <= _MAX_NAMED else ""
        rest = rest or (f"; {len(more)} more methods gained too" if more else "")
        return f"{text}{rest}{f'; {len(below)} of {len(told)} lost' if below else ''}."
    if below:
        worst = below[-1]
        lost = f"{name(worst.difference.method)} lost most, {_gain(worst.difference)}" if len(below) > 1 else ""
        lost = lost or f"{name(worst.difference.method)} lost {_gain(worst.difference)}"
        return f"No method gained over {reference} {where}; {len(below)} of {len(told)} lost: {lost}."
    known = [answer for answer in told if answer.difference.estimate.n]
    if not known:
        return f"No method has a score to hold against {reference} {where}."
    best = known[0]
    lead = (
        f"{name(best.difference.method)} came out highest, {points(best.difference.estimate.value, sign=True)} points"
    )
    detectable = [answer.difference.detectable for answer in known if math.isfinite(answer.difference.detectable)]
    if best.difference.estimate.n < FEWEST_SEEDS:
        seeds = counted(best.difference.estimate.n, "seed")
        return f"No method can be told from {reference} {where}: {lead}, from {seeds}."
    seen = (
        f"; a true difference below about {points(float(np.median(detectable)))} points could hide"
        if detectable
        else ""
    )
    return f"No method can be told from {reference} {where}: {lead} {ends(best.difference.estimate)}{seen}."


def _gain(difference: Difference) -> str:
    """Return the size of a difference with its interval, and with its p where there is one."""
    estimate = difference.estimate
    if estimate.value < 0:
        estimate = Estimate(
            -estimate.value, -estimate.high, -estimate.low, estimate.n, estimate.df, estimate.standard_error
        )
    p = difference.p
    adjusted = "" if math.isnan(p) else f" (p {'' if p < 0.001 else '= '}{p_text(p)} after Holm)"
    return f"{interval(estimate).replace(' [', ' points [')}{adjusted}"


def _at_cost(answer: Answer) -> str:
    time = answer.cost.time
    return f", at {time.value:.1f}× its time" if time.n else ""


def _same_as_control(section: Section, name: Callable[[str], str]) -> list[str]:
    """Return a sentence for the methods that scored exactly as vanilla with their dropout did, wherever both ran."""
    same: dict[str, list[str]] = {}
    for row in suite_differences(section, control_differences(section)):
        values = [
            section.paired_scores(row.method, row.reference, column)
            - section.paired_scores(row.reference, row.reference, column)
            for column in section.suite
        ]
        known = np.concatenate(values)[np.isfinite(np.concatenate(values))]
        if len(known) > 1 and not known.any():
            same.setdefault(row.reference, []).append(f"{name(row.method)} ({len(known)} of {len(known)} runs)")
    return [
        f"The same scores as {name(control)}, which differs from the baseline in dropout only: {listed(methods)}."
        for control, methods in same.items()
    ]


def _against_control(section: Section, name: Callable[[str], str]) -> list[str]:
    """Return a sentence for each method that its control judges the other way round than the reference does."""
    verbs, opposite = {"helps": "gained", "hurts": "lost"}, {"helps": "hurts", "hurts": "helps"}
    words = {answer.difference.method: answer.word for answer in answers(section, None)}
    return [
        f"Against {name(row.reference)}, the same dropout alone, {name(row.method)} {verbs[said]} {_gain(row)}."
        for row in suite_differences(section, control_differences(section))
        if (said := word(row, None)) in opposite and words.get(row.method) == opposite[said]
    ]


# --- the table and the plot -------------------------------------------------------------------------------------------


def shown(estimate: Estimate) -> Estimate:
    """Return an estimate, without its interval where too few seeds are behind it."""
    return estimate if estimate.n >= FEWEST_SEEDS else Estimate(estimate.value, n=estimate.n)


def _axis(section: Section, told: Sequence[Answer]) -> tuple[float, float, float]:
    """Return where the axis of the differences begins and ends, and half the width of the noise band."""
    estimates_shown = [shown(answer.difference.estimate) for answer in told if answer.difference.estimate.n]
    floor = _floor(section)
    band = floor.high if floor is not None else math.nan
    values = np.array([0.0, *(estimate.value for estimate in estimates_shown), band, -band])
    first, last = limits(values, estimates_shown, longest=8)
    room = 0.04 * (last - first)
    return first - room, last + room, band


def _column(section: Section) -> Column:
    return suite_column(section) if len(section.tasks) > 1 else section.columns[0]


def _floor(section: Section) -> Estimate | None:
    """Return the noise floor of the column that answers rest on; None where too few seeds are behind it."""
    floor = noise_floors(section, str(section.reference)).get(_column(section))
    return floor if floor is not None and floor.n >= FEWEST_SEEDS and floor.standard_error > 0 else None


def _table(section: Section, margin: float | None) -> TopicBlock:
    told = answers(section, margin)
    first, last, band = _axis(section, told)
    reference = str(section.reference)
    rows: list[list[str | Entry]] = []
    for answer in told:
        row = answer.difference
        estimate = shown(row.estimate)
        colour, marker, _ = method_style(section, row.method)
        bar = Bar(colour, marker, estimate.value, estimate.low, estimate.high, band, first, last)
        ids = cell_ids(section, [row.method, reference], row.column)
        loud = answer.word.startswith(("helps", "hurts"))
        rows.append(
            [
                code(row.method),
                Entry(difference_text(estimate), estimate.value, ids, bar),
                bold(answer.word) if loud else answer.word,
                _times(answer.cost.time, ids),
                _times(answer.cost.memory, ids),
            ]
        )
    footer: list[list[str | Entry]] = []
    if (floor := _floor(section)) is not None:
        axis = Bar("", "", math.nan, math.nan, math.nan, band, first, last)
        footer = [[f"{code(reference)}, other seeds", Entry(ends(floor), bar=axis), "noise band", "1", "1"]]
    header = ("method", f"points over {code(reference)}", "verdict", "time ×", "memory ×")
    return table("answer", header, rows, footer=footer)


def _times(ratio: Ratio, cells: tuple[str, ...]) -> Entry:
    return Entry(f"{ratio.value:.2f}", ratio.value, cells) if ratio.n else Entry("—")


def _notes(section: Section) -> Sequence[TopicBlock]:
    reference = code(str(section.reference))
    notes = [
        f"Points: the score × 100, as the mean difference to {reference} over pairs of runs that share the seed, the "
        "start and the order of the examples. Brackets: 95 % interval for new seeds on these tasks and examples.",
        "helps, hurts: the interval excludes 0. same within: equivalence was tested at the margin that was asked for. "
        "can't tell: neither; a true difference below the number named would be missed more often than one time in "
        "five, so “can't tell” does not mean “the same”.",
        f"Each word is judged alone: of {len(section.methods) - 1}, about "
        f"{_LEVEL * (len(section.methods) - 1):.1f} would be “helps” or “hurts” by chance if no method did anything. "
        "Under “Differences to the baseline” stand p-values that allow for that, from five seeds on.",
        f"Noise band: {reference} against itself with other seeds stays within it 95 times in 100.",
        f"×: time and memory of training, relative to {reference}.",
    ]
    if any(method.endswith(NO_EFFECT) for method in section.methods):
        notes.append("(no effect): every run of the method is equal to one without it, at every recorded step.")
    return bullets(notes)


def draw(section: Section, margin: float | None) -> Figure | None:
    """Draw the table's bars with their texts, as a picture for a reader of markdown or of a paper."""
    told = [answer for answer in answers(section, margin) if answer.difference.estimate.n]
    if not told:
        return None
    first, last, band = _axis(section, told)
    lines = []
    for answer in told:
        colour, marker, _ = method_style(section, answer.difference.method)
        costs_text = [f"{ratio.value:.1f}×" if ratio.n else "—" for ratio in (answer.cost.time, answer.cost.memory)]
        estimate = shown(answer.difference.estimate)
        lines.append(Line(answer.difference.method, estimate, colour, marker, (answer.word, *costs_text)))
    label = f"difference to {section.reference} (points), {_column(section).title}"
    return forest_beside(lines, ("", "time", "memory"), (first, last), band, label)
