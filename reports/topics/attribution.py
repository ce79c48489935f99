"""Where a method's gain comes from: its effects turned on one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_bench.reports.document import Block, Entry, bullets, code, table
from finetune_bench.reports.rows.sections import Column, Data, Section, bare
from finetune_bench.reports.text import _bold_if_separated
from finetune_bench.reports.topics.contrasts import WELCH, cell_ids, contrast, suite_column
from finetune_bench.stats import estimates as stats
from finetune_bench.stats.estimates import Estimate


@dataclass(frozen=True)
class Attribution:
    """One effect of a method: the run that has it minus the run with all before it; the total is against vanilla."""

    section: str
    column: Column
    method: str
    effect: str
    run: str
    against: str
    estimate: Estimate
    interval: str


TOTAL = "total"


def attributions(data: Data, section: Section) -> list[Attribution]:
    """The effects of every method with two or more, all of whose runs are in the section, and their total."""
    chains: Mapping[str, Sequence[Sequence[str]]] = data.study.get("effects") or {}
    within = {label for chain in chains.values() for _, label in chain[:-1]}  # twins of others are no methods
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
    """The paired difference of two runs, on their own spread: that of near twins is not that of other methods."""

    def single(one: Column) -> tuple[Estimate, str]:
        return contrast(section, one, {run: 1, against: -1}, section.baseline or against, None)

    if column.task:
        return single(column)
    return stats.suite_mean([single(one)[0] for one in section.suite]), WELCH


def _attributions(data: Data, section: Section) -> list[Block]:
    found = attributions(data, section)
    if not found:
        return []
    columns = list(dict.fromkeys(one.column for one in found))
    rows: list[list[str | Entry]] = []
    for method in dict.fromkeys(one.method for one in found):
        own = [one for one in found if one.method == method]
        for effect, run, against in dict.fromkeys((one.effect, one.run, one.against) for one in own):
            cells = {one.column: one.estimate for one in own if one.effect == effect}
            entries = [
                Entry(
                    f"{_bold_if_separated(cells[column])} n={cells[column].n}",
                    cells[column].value,
                    cell_ids(section, [run, against], column),
                )
                for column in columns
            ]
            rows.append([code(method), effect, f"{code(run)} − {code(against)}", *entries])
    note = (
        "Each row is the paired mean difference between a run with one more effect turned on and the run before it, so "
        "that a method's rows add up to its total, its difference to vanilla, where all runs have the same seeds. "
        "Brackets: t interval of the row's own differences, question (a), n seeds; bold: it excludes 0. Runs that "
        "hardly differ have narrow intervals, so the residual variance of all methods is not used here."
    )
    header = ["method", "effect", "difference of", *(column.title for column in columns)]
    return [table("attribution", header, rows), *bullets([note])]
