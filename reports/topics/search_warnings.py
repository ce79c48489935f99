"""A search warns before its tables of runs that are missing, unequal budgets, and choices at an edge."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.text import counted, listed
from finetune_bench.reports.topics.search import Choice, Search, missing_runs

_MOST_NAMED = 8  # methods are named in a sentence, the others counted


def warnings_of_searches(data: Data, found: Sequence[Search]) -> list[str]:
    """Return what stands before all tables, a sentence or two each."""
    missing, asked = missing_runs(data)
    unfinished = [
        f"{len(missing)} of {counted(len(asked), 'run')} that were asked for have no result yet, so a choice may be "
        "among fewer settings than were asked for; the same command runs the rest."
    ]
    told = unfinished if found and missing else []
    return [*told, *(text for search in found for text in search.refused), *edges_of_searches(found)]


def edges_of_searches(found: Sequence[Search]) -> list[str]:
    """Return a warning where searches chose the highest or lowest learning rate that they had.

    That is where they did so most of the time, and else for methods that lie at an edge where the reference does not:
    what tells them from it may then be the rates that were tried.
    """
    result = []
    for search in found:
        choices = [choice for choice in search.choices if choice.rates[0] < choice.rates[-1]]
        for name, place in (("lowest", 0), ("highest", -1)):
            at_edge = [choice for choice in choices if _is_at(choice, place)]
            apart = _apart_from_reference(search, at_edge)
            start = f"{search.where}the {name}" if search.where else f"The {name}"
            other = name.replace("est", "er")
            if 2 * len(at_edge) > len(choices):
                result.append(
                    f"{start} learning rate tried, {_by_task(at_edge, place)}, was chosen {len(at_edge)} of "
                    f"{len(choices)} times: a {other} one may be better still, and not for every method alike."
                )
            elif apart and search.section is not None:
                several = len(search.section.tasks) > 1
                names = [f"{choice.method} on {choice.column.task}" if several else choice.method for choice in apart]
                result.append(
                    f"{start} learning rate tried, {_by_task(apart, place)}, was chosen for "
                    f"{listed(names, _MOST_NAMED)}, and not for {search.section.reference}: a {other} one may be "
                    "better still there, and what tells them apart may be the rates that were tried."
                )
    return result


def _is_at(choice: Choice, place: int) -> bool:
    """Return whether a choice is that of an edge alone.

    Where other rates tie with it, an edge was chosen by the rule for ties and tells of nothing beyond it.
    """
    return {rate for _, rate in choice.tied} == {choice.rates[place]}


def _apart_from_reference(search: Search, at_edge: Sequence[Choice]) -> list[Choice]:
    """Return the choices at an edge on tasks on which the reference's is elsewhere."""
    reference = None if search.section is None else search.section.reference
    known = {choice.column.task for choice in search.choices if choice.method == reference}
    along = {choice.column.task for choice in at_edge if choice.method == reference}
    return [choice for choice in at_edge if choice.column.task in known - along]


def _by_task(choices: Sequence[Choice], place: int) -> str:
    edges = [f"{edge:g}" for edge in sorted({choice.rates[place] for choice in choices})]
    return f"{', '.join(edges[:-1])} or {edges[-1]} by task" if len(edges) > 1 else edges[0]
