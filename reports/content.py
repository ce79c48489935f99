"""A report is built here, in order, before it has a format: its head, the verdict, every section, what went wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from finetune_bench.packages import LICENCES
from finetune_bench.reports import health
from finetune_bench.reports.answer import edge_of_rates
from finetune_bench.reports.document import Block, Bullets, Heading, Paragraph, Plot, Table, bold, bullets, code, table
from finetune_bench.reports.models import model_blocks
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.joining import own_models
from finetune_bench.reports.rows.sections import NO_EFFECT, Column, Data, Section
from finetune_bench.reports.section import answer_of, section_blocks
from finetune_bench.reports.text import counted, listed, points
from finetune_bench.reports.topics.search import all_sections, search_blocks, searches
from finetune_bench.reports.topics.search_warnings import warnings_of_searches
from finetune_bench.reports.verdict import verdict
from finetune_bench.stats import estimates
from finetune_bench.store.row import Row, Status


@cached
def document(data: Data, plots: tuple[Plot, ...] = ()) -> list[Block]:
    """Return the whole report.

    Args:
        data: What the report is made of.
        plots: The plots that were drawn of the same data; each is put where it belongs.
    """
    blocks: list[Block] = [Heading(1, "Comparison of fine-tuning methods"), *preset_blocks(data)]
    if not data.rows:
        return [
            *blocks,
            _head(data),
            Paragraph("Nothing has been run yet."),
            *bullets(data.notes),
            *health.damage_blocks(data),
        ]
    several = len(data.sections) > 1
    found = searches(data)
    plots_of = [{plot.kind: plot for plot in plots if plot.section == index} for index in range(len(data.sections))]
    blocks += [
        Paragraph(text, "warning") for text in [*edge_of_rates(data.sections), *warnings_of_searches(data, found)]
    ]
    blocks += model_blocks(data.sections, data.options.margin)
    for section, of_section in [
        *zip(data.sections, plots_of, strict=True),
        *((search.section, {}) for search in found if search.section is not None),
    ]:
        blocks += [Paragraph(bold(section.title))] if several or found else []
        blocks += answer_of(data, section, of_section)
    blocks.append(Heading(2, "In short"))
    for section in data.sections:
        blocks += [Paragraph(bold(section.title))] if several else []
        blocks += bullets(verdict(section, code), findings=True)
    for search in found:
        told = verdict(search.section, code) if search.section is not None else []
        blocks += [Paragraph(bold(search.title)), *bullets([*search.refused, *told], findings=True)]
    blocks += [Paragraph(_runs_in_short(data)), *bullets(data.notes)]
    for section, of_section in zip(data.sections, plots_of, strict=True):
        blocks += [Heading(2, section.title)] if several else []
        blocks += section_blocks(data, section, 3 if several else 2, of_section)
    for search in found:
        blocks += [Heading(2, f"Search: {search.title}"), *search_blocks(search)]
        blocks += section_blocks(data, search.section, 3, {}) if search.section is not None else []
    blocks += [Heading(2, "Data"), *_evaluation_data(data)]
    blocks += [Heading(2, "Runs that need a look"), *health.health_blocks(data)]
    return [
        *blocks,
        Heading(2, "Settings and environment"),
        _head(data),
        *_licences(data),
        Heading(2, "What the numbers are"),
        *bullets([_weights(bool(found)), *_HOW]),
    ]


def preset_blocks(data: Data) -> list[Block]:
    """Return what a report says first of a study that was made from a preset: which, and at what scale."""
    text = data.study.get("preset")
    return [Paragraph(text, "warning")] if isinstance(text, str) and text else []


def _weights(is_chosen: bool) -> str:
    """Return what scores are of, and what is chosen among."""
    selected = "checkpoint; it chooses settings as “Search” says" if is_chosen else "checkpoint and no hyper-parameter"
    return (
        "Scores and differences are in points (score × 100). Every score is that of the weights at the end of "
        f"training, on the evaluation split named; this report selects no {selected}."
    )


_HOW = (
    f"Every interval is a 95 % t interval and names its question. {bold('(a)')}: these tasks and these examples, "
    f"new seeds; the seed is the unit. {bold('(b)')}: new tasks; the task is the unit. No interval here answers "
    f"{bold('(c)')}, new examples: the table under “Data” says how coarse each evaluation split is.",
    "n counts the units, df the degrees of freedom. Intervals are taken one at a time: of twenty, one is "
    "expected to miss by chance.",
    "Failed runs have no score and are in no mean; leaving them out flatters a method, so they are counted beside "
    "it. Collapsed runs are in the mean, and counted too.",
)


# --- the head ---------------------------------------------------------------------------------------------------------


def _head(data: Data) -> Table:
    """Return the table of what was compared, in which setting, on what machine."""
    sections = all_sections(data)
    environment = ", ".join(f"{key} {value}" for key, value in health.environment(data).items())
    rows = [
        ("models", _names(section.setting.get("model") for section in sections)),
        ("methods", _names(method.removesuffix(NO_EFFECT) for section in sections for method in section.methods)),
        ("tasks", _names(task for section in sections for task in section.tasks)),
        ("seeds", _names(sorted({seed for section in sections for seed in section.seeds}))),
        *_settings(sections),
        ("ran with", environment or "unknown"),
        ("runs", ", ".join(f"{number} {status}" for status, number in health.status_counts(data).items())),
    ]
    return table("compared", ("compared", ""), rows, align="left", in_paper=False)


def _settings(sections: Sequence[Section]) -> list[tuple[str, str]]:
    """Return the rows of the setting: what all sections share, and what each model has of its own, if that tells them.

    Where a model has several sections their titles say what differs, and one row has all values.
    """
    keys = dict.fromkeys(key for section in sections for key in section.setting if key != "model")
    values = {key: list(dict.fromkeys(_written(section.setting.get(key)) for section in sections)) for key in keys}
    models = own_models([section.setting for section in sections])
    if not models:
        return [("setting", _joined((key, " and ".join(filter(None, texts))) for key, texts in values.items()))]
    shared = ("setting", _joined((key, texts[0]) for key, texts in values.items() if len(texts) == 1))
    own = [key for key, texts in values.items() if len(texts) > 1]
    return [shared] + [
        (f"setting of {code(model)}", _joined((key, _written(section.setting.get(key))) for key in own))
        for model, section in zip(models, sections, strict=True)
        if own
    ]


def _written(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _joined(values: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{key} {text}" for key, text in values if text) or "none"


def _licences(data: Data) -> list[Bullets]:
    """Return under which licence data and checkpoints may be used, where rows or packages tell."""
    tasks_of: dict[str, dict[str, None]] = {}
    for row in data.rows:
        if licence := row.get("licence"):
            tasks_of.setdefault(licence, {})[code(row["task"])] = None
    models = dict.fromkeys(str(row["model"]) for row in data.rows)
    texts = [f"Licence of the data of {listed(list(tasks))}: {licence}." for licence, tasks in tasks_of.items()]
    texts += [f"Licence of the weights of {code(name)}: {LICENCES[name]}." for name in models if name in LICENCES]
    return bullets(texts)


def _names(items: Iterable[object]) -> str:
    """Write how many different items there are, and which."""
    unique = list(dict.fromkeys(str(item) for item in items))
    return f"{len(unique)}: {', '.join(map(code, unique))}" if unique else "none"


def _runs_in_short(data: Data) -> str:
    """Return what the cells came to, and where to read more."""
    counts = health.status_counts(data)
    parts = [
        f"{counts[status]} {status}" for status in (Status.FAILED, Status.SKIPPED, Status.INTERRUPTED) if counts[status]
    ]
    parts += [f"{len(data.damaged)} damaged"] if data.damaged else []
    odd = [
        f"{len(rows)} {name}"
        for rows, name in (
            (health.collapsed_runs(data), "collapsed"),
            (health.hardly_moved(data), "whose loss hardly moved"),
            (health.without_score(data), "without a score"),
        )
        if rows
    ]
    text = f"{counted(counts[Status.DONE], 'run')} ended well"
    text += f" (among them {listed(odd)})" if odd else ""
    text += f"; {listed(parts)}" if parts else ""
    return text + (
        ". “Runs that need a look” lists what went wrong." if parts or odd else ", none failed or collapsed."
    )


# --- the evaluation data ----------------------------------------------------------------------------------------------


def _evaluation_data(data: Data) -> list[Block]:
    """Return how large each evaluation split is, what the majority scores on it, and how coarse its scores are."""
    rows: dict[tuple[str, str], list[str]] = {}
    subsets = []
    for section in all_sections(data):
        for column in section.columns:
            done = [row for method in section.methods for row in section.rows(method, column.task, Status.DONE)]
            if done and column.splits and (column.task, column.splits[0]) not in rows:
                rows[column.task, column.splits[0]] = _split_row(data, section, column, done)
        for row in section.runs.values():
            subsets += [(row["task"], split) for split in row.get("subset") or []]
    if not rows:
        return [Paragraph("No run left a score.")]
    header = ("task", "split", "metric", "examples", "majority's score", "standard error (c)", "")
    note = (
        "Standard error (c): of one run's accuracy, had the examples been drawn anew (binomial, n = examples). It "
        "is in no interval above."
    )
    findings = [
        f"{task}: the {split} split is a subset: its rows are not all that were published, so scores "
        "aren't comparable with the literature's."
        for task, split in dict.fromkeys(sorted(subsets))
    ]
    facts = dict.fromkeys((row["task"], fact) for row in data.rows for fact in row.get("notes") or [])
    findings += [f"{task}: {fact}" for task, fact in facts]
    content = table("data", header, rows.values(), in_paper=False)
    return [content, *bullets(findings, findings=True), *bullets([note])]


def _split_row(data: Data, section: Section, column: Column, done: list[Row]) -> list[str]:
    """Return what the table of the evaluation data says of a split, from the finished runs of its task."""
    split = column.splits[0]
    examples = data.examples(done[0]).get(split, 0)
    majority = ((done[0].get("majority") or {}).get(split) or {}).get(column.metric)
    share = estimates.t_interval(np.concatenate([section.scores(m, column) for m in section.methods])).value / 100
    error = "—"
    if column.metric == "accuracy" and examples and np.isfinite(share):
        error = points(100 * estimates.binomial_standard_error(share, examples))
    return [
        column.task,
        split,
        column.metric,
        str(examples or "—"),
        "—" if majority is None else points(100 * majority),
        error,
        "subset" if any(split in (row.get("subset") or []) for row in done) else "",
    ]
