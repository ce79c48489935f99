"""What a report says, in order, before it has a format: the head, what came out, each section, and what went wrong."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from finetune_bench.reports import health
from finetune_bench.reports.document import Block, Entry, Heading, Paragraph, Plot, Table, bold, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.rows.twins import twins
from finetune_bench.reports.section import section_blocks
from finetune_bench.reports.text import counted, interval, listed, points
from finetune_bench.reports.topics.search import Search, searches
from finetune_bench.reports.verdict import verdict
from finetune_bench.stats import estimates as stats


@once
def document(data: Data, plots: tuple[Plot, ...] = ()) -> list[Block]:
    """The whole report.

    Args:
        plots: those that were drawn of the same data, put where they belong.
    """
    blocks: list[Block] = [Heading(1, "Comparison of fine-tuning methods")]
    if not data.rows:
        return [*blocks, _head(data), Paragraph("No cell has been run.")]
    several = len(data.sections) > 1
    blocks.append(Heading(2, "In short"))
    for section in data.sections:
        blocks += [Paragraph(bold(section.title))] if several else []
        blocks += bullets(verdict(section, code), findings=True)
    blocks += [Paragraph(_runs_in_short(data)), _head(data), Heading(2, "How to read this"), *bullets(_HOW)]
    for number, section in enumerate(data.sections):
        blocks += [Heading(2, section.title)] if several else []
        own = {plot.kind: plot for plot in plots if plot.section == number}
        blocks += section_blocks(data, section, 3 if several else 2, own)
    blocks += _searches(data)
    return [*blocks, Heading(2, "Data"), *_data(data), Heading(2, "Runs that need a look"), *_warnings(data)]


# --- the head ---------------------------------------------------------------------------------------------------------

_HOW = (
    "Scores and differences are in points (score × 100). Every score is that of the weights at the end of "
    "training, on the evaluation split named; this report selects no checkpoint and no hyper-parameter.",
    f"Every interval is a 95 % t interval and names its question. {bold('(a)')}: these tasks and these examples, "
    f"new seeds; the seed is the unit. {bold('(b)')}: new tasks; the task is the unit. No interval here answers "
    f"{bold('(c)')}, new examples: the table under “Data” says how coarse each evaluation split is.",
    "n counts the units, df the degrees of freedom. Intervals are taken one at a time: of twenty, one is "
    "expected to miss by chance.",
    "Failed runs have no score and are in no mean; leaving them out flatters a method, so they are counted beside "
    "it. Collapsed runs are in the mean, and counted too.",
)


def _head(data: Data) -> Table:
    rows: list[tuple[str, str]] = []

    def names(label: str, found: Iterable[object]) -> None:
        unique = list(dict.fromkeys(str(item) for item in found))
        rows.append((label, f"{len(unique)}: {', '.join(map(code, unique))}" if unique else "none"))

    names("models", (section.setting.get("model") for section in data.sections))
    names("methods", (method for section in data.sections for method in section.methods))
    names("tasks", (task for section in data.sections for task in section.tasks))
    names("seeds", sorted({seed for section in data.sections for seed in section.seeds}))
    setting: dict[str, list[str]] = {}
    for section in data.sections:
        for key, value in section.setting.items():
            text = f"{value:g}" if isinstance(value, float) else str(value)
            if key != "model" and value is not None and text not in setting.setdefault(key, []):
                setting[key].append(text)
    recipe = ", ".join(f"{key} {' and '.join(values)}" for key, values in setting.items())
    environment = ", ".join(f"{key} {value}" for key, value in health.environment(data).items())
    rows.append(("setting", recipe or "none"))
    rows.append(("ran with", environment or "unknown"))
    rows.append(("cells", ", ".join(f"{number} {status}" for status, number in health.status_counts(data).items())))
    return table("compared", ("compared", ""), rows, align="left")


def _runs_in_short(data: Data) -> str:
    """What the cells came to, and where to read more."""
    counts = health.status_counts(data)
    parts = [f"{counts[status]} {status}" for status in ("failed", "skipped", "interrupted") if counts[status]]
    odd = [
        f"{len(found)} {name}"
        for found, name in (
            (health.collapsed(data), "collapsed"),
            (health.hardly_moved(data), "whose loss hardly moved"),
        )
        if found
    ]
    text = f"{counted(counts['done'], 'run')} ended well"
    text += f" (among them {listed(odd)})" if odd else ""
    text += f"; {listed(parts)}" if parts else ""
    return text + (". The last section lists what went wrong." if parts or odd else ", none failed or collapsed.")


# --- search -----------------------------------------------------------------------------------------------------------


def _searches(data: Data) -> list[Block]:
    blocks: list[Block] = []
    for search in searches(data):
        blocks += [Heading(2, f"Search: {search.section.title}")]
        blocks += bullets(verdict(search.section, code), findings=True)
        blocks += _choices(search)
        blocks += section_blocks(data, search.section, 3, {})
    return blocks


def _choices(search: Search) -> list[Block]:
    rows: list[list[str | Entry]] = []
    for one in search.choices:
        settings = [f"{code(label)} at {rate:g}" for label, rate in (one.honest, one.optimistic)]
        optimism = interval(one.optimism, sign=True) if one.honest != one.optimistic else "same setting"
        rows.append(
            [
                code(one.method),
                one.column.title,
                settings[0],
                Entry(interval(one.honest_score), one.honest_score.value, one.cells),
                settings[1],
                Entry(interval(one.optimistic_score), one.optimistic_score.value),
                Entry(optimism, one.optimism.value),
            ]
        )
    budget = max((one.budget for one in search.choices), default=0)
    sizes = sorted({1, *(2**power for power in range(1, 12) if 2**power < budget), budget})
    best = [
        [code(one.method), one.column.title, *(points(one.best_of[size - 1]) for size in sizes)]
        for one in search.choices
    ]
    mean = [one.optimism.value for one in search.choices]
    notes = [
        f"{budget} settings per method, the same number for all, the first its default; the learning rates are the "
        "same for all methods. A setting is chosen per method and task by its mean over the seeds.",
        "Honest: chosen on held-out training data, reported on the evaluation split. Optimistic: chosen on the "
        "evaluation split it is reported on, as papers do. The difference is the optimism of that protocol, "
        f"{points(float(np.mean(mean)), sign=True)} points on average here; every comparison here uses the honest one."
        if mean
        else "No method has a setting that ended well on every seed.",
        *search.refused,
    ]
    under = "Under a tuning budget: the expected best mean score of k settings drawn from those tried, unbiased, chosen"
    header = ("method", "score", "honest choice", "its score", "optimistic choice", "its score", "optimism")
    return [
        table("choices", header, rows, align="left"),
        *bullets(notes),
        Paragraph(f"{under} on the reported scores."),
        table("budget", ("method", "score", *(f"k = {size}" for size in sizes)), best),
    ]


# --- data and warnings ------------------------------------------------------------------------------------------------


def _data(data: Data) -> list[Block]:
    rows = []
    seen: set[tuple[str, str]] = set()
    subsets = []
    for section in data.sections:
        for column in section.columns:
            done = [row for method in section.methods for row in section.rows(method, column.task, "done")]
            if not done or not column.splits or (column.task, column.splits[0]) in seen:
                continue
            split = column.splits[0]
            seen.add((column.task, split))
            examples = data.examples(done[0]).get(split, 0)
            majority = ((done[0].get("majority") or {}).get(split) or {}).get(column.metric)
            is_subset = any(split in (row.get("subset") or []) for row in done)
            error = "—"
            share = stats.t_interval(np.concatenate([section.scores(m, column) for m in section.methods])).value / 100
            if column.metric == "accuracy" and examples and np.isfinite(share):
                error = points(100 * stats.binomial_standard_error(share, examples))
            rows.append(
                [
                    column.task,
                    split,
                    column.metric,
                    str(examples or "—"),
                    "—" if majority is None else points(100 * majority),
                    error,
                    "subset" if is_subset else "",
                ]
            )
        for row in section.runs.values():
            subsets += [(row["task"], split) for split in row.get("subset") or []]
    header = ("task", "split", "metric", "examples", "majority's score", "standard error (c)", "")
    notes = [
        "Standard error (c): of one run's accuracy, had the examples been drawn anew (binomial, n = examples). It "
        "is in no interval above.",
    ]
    notes += [
        f"{task}: the {split} split is a subset: its rows are not all that were published, so scores "
        "aren't comparable with the literature's."
        for task, split in dict.fromkeys(sorted(subsets))
    ]
    told = dict.fromkeys((row["task"], note) for row in data.rows for note in row.get("notes") or [])
    notes += [f"{task}: {note}" for task, note in told]
    return [table("data", header, rows), *bullets(notes)] if rows else [Paragraph("No run left a score.")]


def _warnings(data: Data) -> list[Block]:
    blocks: list[Block] = []
    for status in ("failed", "skipped", "interrupted"):
        if groups := health.by_reason([row for row in data.rows if row["status"] == status], "reason"):
            blocks.append(Paragraph(bold(status.capitalize())))
            cells = [f"{counted(count, 'cell')}: {reason} — {where}" for reason, where, count in groups]
            blocks += bullets(cells, findings=True)
    items = [
        f"Collapsed: {reason} — {where}" for reason, where, _ in health.by_reason(health.collapsed(data), "collapsed")
    ]
    if moved := health.hardly_moved(data):
        items.append(f"The training loss hardly moved: {health.cells(moved)}.")
    for parts in sorted({row["accumulated"] for row in data.rows if row.get("accumulated")}):
        halved = [row for row in data.rows if row.get("accumulated") == parts]
        items.append(
            f"Out of memory, so trained with accumulation {parts} (the batch is the same): {health.cells(halved)}."
        )
    for section in data.sections:
        where = f" ({section.title})" if section.title else ""
        items += [f"{text}{where}" for text in health.no_effect(twins(data, section))]
    items += health.mixed_versions(data)
    if superseded := len(data.stored) - len(data.rows):
        items.append(f"{counted(superseded, 'older row')} of the same runs left out: a newer one is in the store.")
    return [*blocks, *bullets(items, findings=True)] or [Paragraph("None.")]
