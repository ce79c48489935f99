"""An attribution tells where a method's gain comes from: its effects are turned on one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from finetune_bench.reports.document import Entry, bullets, code, table
from finetune_bench.reports.plots.intervals import Panel, forest
from finetune_bench.reports.rows.sections import Column, Data, Section, bare
from finetune_bench.reports.text import difference_text
from finetune_bench.reports.topics.contrasts import WELCH, cell_ids, contrast, suite_column
from finetune_bench.reports.topics.topic import Drawing, Frame, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate

TOTAL = "total"


@dataclass(frozen=True)
class Attribution:
    """One effect of a method: the run that has it minus the run with all before it; the total is against vanilla.

    Attributes:
        section: Title of the section.
        column: The score.
        method: Label of the whole method.
        effect: Name of the effect, or `TOTAL`.
        run: Label of the run that has the effect.
        against: Label of the run that is subtracted.
        estimate: The mean of the paired differences in points.
        interval: What the interval is built on.
    """

    section: str
    column: Column
    method: str
    effect: str
    run: str
    against: str
    estimate: Estimate
    interval: str


def attributions(data: Data, section: Section) -> list[Attribution]:
    """Return the effects and the total of every method with two effects or more, all of whose runs are in the section.

    The chains of effects are the study's: by method, pairs of an effect's name and the label of the run that has it.
    """
    chains: Mapping[str, Sequence[Sequence[str]]] = data.study.get("effects") or {}
    # A run in the middle of another method's chain is no method of its own.
    within = {label for chain in chains.values() for _, label in chain[:-1]}
    shown = {bare(label): label for label in section.methods}
    columns = [*section.columns, *([suite_column(section)] if len(section.tasks) > 1 else [])]
    result = []
    for method, chain in chains.items():
        labels = [label for _, label in chain]
        if section.baseline is None or method in within or len(chain) < 2 or not set(labels) <= set(shown):
            continue
        before = section.baseline
        for effect, label in [*chain, (TOTAL, labels[-1])]:
            run, against = shown[label], section.baseline if effect == TOTAL else before
            for column in columns:
                estimate, interval = _gap(section, column, run, against)
                result.append(
                    Attribution(section.title, column, shown[method], effect, run, against, estimate, interval)
                )
            before = run
    return result


def _gap(section: Section, column: Column, run: str, against: str) -> tuple[Estimate, str]:
    """Return the paired difference of two runs, on their own spread: that of near twins is not that of others."""

    def difference(of_task: Column) -> tuple[Estimate, str]:
        return contrast(section, of_task, {run: 1, against: -1}, section.baseline or against, None)

    if column.task:
        return difference(column)
    return estimates.suite_mean([difference(of_task)[0] for of_task in section.suite]), WELCH


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    effects = attributions(data, section)
    if not effects:
        return []
    columns = list(dict.fromkeys(effect.column for effect in effects))
    rows: list[list[str | Entry]] = []
    for method, name, run, against in dict.fromkeys(
        (effect.method, effect.effect, effect.run, effect.against) for effect in effects
    ):
        cells = {
            effect.column: effect.estimate for effect in effects if (effect.method, effect.effect) == (method, name)
        }
        entries = [
            Entry(
                f"{difference_text(cells[column])} n={cells[column].n}",
                cells[column].value,
                cell_ids(section, [run, against], column),
            )
            for column in columns
        ]
        rows.append([code(method), name, f"{code(run)} − {code(against)}", *entries])
    note = (
        "Each row is the paired mean difference between a run with one more effect turned on and the run before it, so "
        "that a method's rows add up to its total, its difference to vanilla, where all runs have the same seeds. "
        "Brackets: t interval of the row's own differences, question (a), n seeds; bold: it excludes 0. Runs that "
        "hardly differ have narrow intervals, so the residual variance of all methods is not used here."
    )
    header = ["method", "effect", "difference of", *(column.title for column in columns)]
    plot = Drawing("attribution", "Effects of each method with intervals", partial(draw_attribution, data, section))
    return [table("attribution", header, rows), *bullets([note]), plot]


def draw_attribution(data: Data, section: Section) -> Figure | None:
    """Draw every effect of a method as a line: the run that has it minus the run with all before it."""
    effects = attributions(data, section)
    names = list(dict.fromkeys((effect.method, effect.effect) for effect in effects))
    gaps = {(effect.column, effect.method, effect.effect): effect.estimate for effect in effects}
    if not any(estimate.n for estimate in gaps.values()):
        return None
    panels = []
    for column in dict.fromkeys(effect.column for effect in effects):
        lines = [(f"{method}: {name}", gaps[column, method, name]) for method, name in names]
        panels.append(Panel(column.title, lines))
    return forest(panels, "difference (points)")


TOPIC = Topic(
    title="Where the gain comes from",
    blocks=_blocks,
    frame=Frame(
        file="attribution",
        record=Attribution,
        records=attributions,
        # An effect rests on the two runs of its step, not on those of the whole method.
        methods=lambda effect: [effect.run, effect.against],
    ),
)
