"""A preset's page lays what was published, a table, sizes or a picture, beside the numbers of the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from finetune_bench.papers.presets import Preset
from finetune_bench.papers.published import AVERAGES, Paper, Score, load_paper
from finetune_bench.reports.document import Block, Entry, Heading, Paragraph, bullets, code, table
from finetune_bench.reports.published.blocks import memory_blocks
from finetune_bench.reports.published.judge import BASELINE, memory_ratios
from finetune_bench.reports.published.own import Chosen, best_setting, choose, groups, how_chosen, with_transfer
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.text import points
from finetune_bench.reports.topics.analysed import BEFORE, results_of
from finetune_bench.store.row import Row, Status

_ORDER = ("stsb", "cola", "mrpc", "rte", "sst2", "qnli", "qqp", "mnli", "mnli_mm")
_HOW = (
    "Scores are in points: mean ± standard deviation over runs, with the number of runs where it is ours. In brackets: "
    "the difference of the means to vanilla. A dash: not printed, or not run. Collapsed runs learned nothing, so that "
    "their differences say nothing.",
    "Ours is the best setting of each method where several ran, by held-out training data where some were set aside, "
    "else by the reported scores.",
)


def beside_blocks(preset: Preset, data: Data) -> list[Block]:
    """Return the page of a preset's run."""
    blocks: list[Block] = [Heading(1, f"{preset.title}: published, and here")]
    text = data.study.get("preset")
    blocks += [Paragraph(text, "warning")] if isinstance(text, str) and text else []
    done = [row for row in with_transfer(data) if row["status"] == Status.DONE]
    if not done:
        return [*blocks, Paragraph("No run has ended well, so nothing stands beside what was published.")]
    paper = load_paper(preset.paper) if preset.paper else None
    if paper is not None and preset.table is not None:
        blocks += _table_blocks(preset, paper, preset.table, done)
    if preset.published:
        blocks += _printed_blocks(preset, done)
    if paper is not None and preset.table is None:
        blocks += _picture_blocks(preset, paper)
        if not preset.analyses:
            blocks += memory_blocks(memory_ratios(paper, data))
    for section in data.sections:
        for name in preset.analyses:
            blocks += _layer_blocks(data, section, name)
    return blocks


# --- a table of scores ------------------------------------------------------------------------------------------------


def _table_blocks(preset: Preset, paper: Paper, number: int, rows: Sequence[Row]) -> list[Block]:
    """Return the paper's table: its checkpoints on the left, ours on the right."""
    scores = [score for score in paper.scores if score.table == number and score.task not in AVERAGES]
    models = list(dict.fromkeys(score.model for score in scores))
    ours = groups(rows)
    names = [str(group[0]["model"]) for group in ours]
    several = len(set(names)) < len(names)  # groups of one checkpoint differ in their examples, or their device
    titles = [f"{name} ({index})" if several else name for index, name in enumerate(names, start=1)]
    lines: dict[tuple[object, ...], dict[str, Score]] = {}
    for score in scores:
        key = (score.method, score.scale, score.task, score.trained_on, score.examples)
        lines.setdefault(key, {})[score.model] = score
    chosen: dict[str, None] = {}
    content: list[list[str | Entry]] = []
    for by_model in (by_model for _, by_model in sorted(lines.items(), key=lambda line: _place(line[0]))):
        score = next(iter(by_model.values()))
        entries: list[str | Entry] = [_named(score), _task(score)]
        entries += [_theirs(scores, by_model.get(model)) for model in models]
        for group in ours:
            runs = _chosen(paper, score, group)
            entries.append(_entry(runs, _chosen(paper, _vanilla_of(score), group)))
            if runs is not None and runs.by:
                chosen[_how_chosen(runs, score)] = None
        content.append(entries)
    header = ("method", "task", *(f"published, {model}" for model in models), *(f"here, {title}" for title in titles))
    notes = [*_HOW]
    if any(score.evaluated_on == "server" for score in scores):
        notes.append("Published: the test sets of GLUE's server. Here: the development sets.")
    if any(score.evaluated_on == "hidden test" for score in scores):
        notes.append(
            "The published row of vanilla is of AdvGLUE's hidden test set, that of HyPe of its development set; ours "
            "are all of the development set."
        )
    if any(score.trained_on for score in scores):
        notes.append("Accuracies of the sets that the analysis transfer scored, in two classes; see its section.")
    blocks: list[Block] = [Heading(2, f"Table {number} of {paper.title}"), table("beside", header, content)]
    blocks += bullets(notes)
    if chosen:
        blocks += [Heading(2, "What was chosen"), *bullets(chosen, findings=True)]
    return blocks


def _place(key: tuple[object, ...]) -> tuple[object, ...]:
    """Return where a line stands: by what was trained on, by task in the order of the paper; methods stay in theirs."""
    task, trained_on = str(key[2]), str(key[3])
    return (trained_on, _ORDER.index(task) if task in _ORDER else len(_ORDER), task, str(key[4]))


def _chosen(paper: Paper, score: Score, group: Sequence[Row]) -> Chosen | None:
    found = choose(paper, score, group)
    return None if found is None else found[0]


def _vanilla_of(score: Score) -> Score:
    return dataclasses.replace(score, method=BASELINE, scale=None)


def _named(score: Score) -> str:
    return score.method if score.scale is None else f"{score.method} {score.scale:g}"


def _task(score: Score) -> str:
    trained = f" after {score.trained_on}" if score.trained_on else ""
    return f"{score.task}{trained}" + ("" if score.examples is None else f", {score.examples:,} examples")


def _theirs(scores: Sequence[Score], score: Score | None) -> str | Entry:
    if score is None:
        return "—"
    spread = "" if score.sd is None else f" ± {points(score.sd, decimals=2)}"
    vanilla = [
        other.mean
        for other in scores
        if other.method == BASELINE
        and (other.model, other.task, other.trained_on, other.examples, other.evaluated_on)
        == (score.model, score.task, score.trained_on, score.examples, score.evaluated_on)
    ]
    gain = ""
    if score.method != BASELINE and vanilla:
        gain = f" ({points(score.mean - vanilla[0], sign=True, decimals=2)})"
    return Entry(f"{points(score.mean, decimals=2)}{spread}{gain}", sort=score.mean)


def _entry(runs: Chosen | None, vanilla: Chosen | None) -> str | Entry:
    if runs is None:
        return "—"
    own = runs.summary
    spread = "" if own.sd is None else f" ± {points(own.sd, decimals=2)}"
    gain = ""
    if vanilla is not None and vanilla.label != runs.label:
        gain = f" ({points(own.mean - vanilla.summary.mean, sign=True, decimals=2)})"
    cells = tuple(row["id"] for row in runs.rows.values())
    collapsed = sum(bool(row.get("collapsed")) for row in runs.rows.values())
    count = f"n = {own.n}" + (f", {collapsed} collapsed" if collapsed else "")
    return Entry(f"{points(own.mean, decimals=2)}{spread}{gain}, {count}", sort=own.mean, cells=cells)


def _how_chosen(runs: Chosen, score: Score) -> str:
    return (
        f"{_named(score)} on {_task(score)}: {code(runs.label)}, learning rate {runs.learning_rate:g}, "
        f"{how_chosen(runs)}."
    )


# --- numbers that stand in no table, and pictures ---------------------------------------------------------------------


def _printed_blocks(preset: Preset, rows: Sequence[Row]) -> list[Block]:
    ours = groups(rows)
    content: list[list[str | Entry]] = []
    for printed in preset.published:
        entries: list[str | Entry] = [printed.source, code(printed.method), printed.task, printed.metric]
        entries.append(points(printed.score))
        for group in ours:
            fitting = [row for row in group if row["task"] == printed.task and _methods(row) == [printed.method]]
            entries.append(_entry(best_setting(fitting, "validation", printed.metric), None))
        content.append(entries)
    here = [f"here, {group[0]['model']}" for group in ours]
    header = ("published by", "method", "task", "metric", "published", *here)
    return [Heading(2, "What was published"), table("beside", header, content), *bullets(_HOW)]


def _methods(row: Row) -> list[str]:
    """Return the names of a row's methods; those with another dropout than the task's own count as another method."""
    entries = list(row.get("methods") or [])
    vanilla_control = [entry for entry in entries if (entry.get("parameters") or {}).get("dropout") == "hidden_off"]
    return (
        []
        if len(entries) == 1 and entries[0]["name"] == "vanilla" and vanilla_control
        else [e["name"] for e in entries]
    )


def _picture_blocks(preset: Preset, paper: Paper) -> list[Block]:
    title = preset.title.partition(":")[0]
    shows = paper.figures.get(title)
    return [] if shows is None else [Heading(2, title), Paragraph(f"Published: {shows}. It prints no number.")]


def _layer_blocks(data: Data, section: Section, name: str) -> list[Block]:
    """Return an analysis' curves of a section, a line for each method and a column for each layer."""
    results = results_of(data, section, name).of_run
    content: list[list[str | Entry]] = []
    for task in section.tasks:
        done = {method: section.rows(method, task, Status.DONE) for method in section.methods}
        runs = {method: [row for row in rows if row["id"] in results] for method, rows in done.items()}
        names = dict.fromkeys(curve for rows in runs.values() for row in rows for curve in results[row["id"]]["layers"])
        for curve in [curve for curve in names if not curve.endswith(BEFORE)]:
            for method, rows in runs.items():
                content += _curve_line(
                    task, curve, code(method), [results[row["id"]]["layers"].get(curve) for row in rows]
                )
            before = [results[row["id"]]["layers"].get(curve + BEFORE) for rows in runs.values() for row in rows]
            content += _curve_line(task, curve, "before training", before)
    if not content:
        return []
    width = max(len(line) for line in content)
    content = [[*line, *["—"] * (width - len(line))] for line in content]
    header = ("task", "measured", "method", *(f"layer {layer}" for layer in range(width - 3)))
    return [Heading(2, f"Here: {name} by layer"), table(f"beside-{name}", header, content, in_paper=False)]


def _curve_line(
    task: str, curve: str, method: str, curves: Sequence[Sequence[float | None] | None]
) -> list[list[str | Entry]]:
    known = [[math.nan if value is None else value for value in values] for values in curves if values]
    if not known or len({len(values) for values in known}) > 1:
        return []
    means = np.array(known, dtype=np.float64).mean(axis=0)
    return [
        [code(task), curve, method, *("—" if math.isnan(mean) else f"{mean:.3f}".replace("-", "−") for mean in means)]
    ]
