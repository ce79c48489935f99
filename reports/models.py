"""A report of several models says first what holds on all of them: one sentence, and one line per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from finetune_bench.reports.answer import Answer, answers, shown
from finetune_bench.reports.document import Block, Entry, Paragraph, bold, bullets, code, table
from finetune_bench.reports.rows.joining import own_models
from finetune_bench.reports.rows.sections import NO_EFFECT, Section
from finetune_bench.reports.text import difference_text, listed
from finetune_bench.reports.topics.contrasts import cell_ids
from finetune_bench.reports.topics.differences import reference_differences

# What a test can say for or against a method.
_SIDES = ("helps", "hurts")


def told_of_models(sections: Sequence[Section], margin: float | None) -> dict[str, dict[str, Answer]]:
    """Return the answer of each method on each model; empty unless every section is another model's, on the same tasks.

    Args:
        sections: One for each model.
        margin: Points within which methods count as equal; None for no such test.
    """
    models = own_models([section.setting for section in sections])
    same_tasks = len({frozenset(section.tasks) for section in sections}) == 1
    if not (models and same_tasks and all(map(reference_differences, sections))):
        return {}
    return {
        model: {answer.difference.method.removesuffix(NO_EFFECT): answer for answer in answers(section, margin)}
        for model, section in zip(models, sections, strict=True)
    }


def models_headline(told: Mapping[str, Mapping[str, Answer]], name: Callable[[str], str] = str) -> str:
    """Return which methods help or hurt on every model, and which on some of them.

    Args:
        told: As `told_of_models` returns it.
        name: How the format writes the label of a method or a model.
    """
    everywhere, somewhere = [], []
    for side in _SIDES:
        where: dict[str, list[str]] = {}
        for model, answered in told.items():
            for method, answer in answered.items():
                if answer.word.startswith(side):
                    where.setdefault(method, []).append(name(model))
        alike: dict[tuple[str, ...], list[str]] = {}
        for method, of_models in where.items():
            alike.setdefault(tuple(of_models), []).append(name(method))
        for found, methods in alike.items():
            said = f"{listed(methods)} {side if len(methods) == 1 else side.removesuffix('s')}"
            if len(found) == len(told):
                everywhere.append(said)
            else:
                somewhere.append(f"{said} on {listed(found)}")
    first = f"On {_all(told)} {listed(everywhere)}." if everywhere else ""
    first = first or f"No method can be told to help, or to hurt, on {_all(told)}."
    return f"{first} On some only: {'; '.join(somewhere)}." if somewhere else first


def _all(told: Mapping[str, Mapping[str, Answer]]) -> str:
    return "both models" if len(told) == 2 else f"all {len(told)} models"


def model_blocks(sections: Sequence[Section], margin: float | None) -> list[Block]:
    """Return what is said of all models together; the arguments are those of `told_of_models`."""
    told = told_of_models(sections, margin)
    if not told:
        return []
    methods = dict.fromkeys(method for answered in told.values() for method in answered)
    columns = list(zip(sections, told.values(), strict=True))
    rows: list[list[str | Entry]] = [
        [code(method), *(_entry(section, answered.get(method)) for section, answered in columns)] for method in methods
    ]
    notes = [
        "Points over the baseline within each model, as its own table has them below; bold: the interval excludes 0. "
        "—: it did not run there. No number compares two models: “Settings and environment” tells how each was trained."
    ]
    return [
        Paragraph(bold(_all(told).capitalize())),
        Paragraph(models_headline(told, code), "headline"),
        table("models", (f"points over {code(str(sections[0].reference))}", *map(code, told)), rows, in_paper=False),
        *bullets(notes),
    ]


def _entry(section: Section, answer: Answer | None) -> Entry:
    if answer is None or not answer.difference.estimate.n:
        return Entry("—")
    row = answer.difference
    ids = cell_ids(section, [row.method, str(section.reference)], row.column)
    return Entry(difference_text(shown(row.estimate)), row.estimate.value, ids)
