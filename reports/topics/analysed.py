"""Analyses of the runs are told here, each by a table of means, one of differences and a plot by layer.

A result carries its own heading, explanation and directions, so that those of a plugin are told like any other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.files import Damaged
from finetune_bench.reports.document import Entry, bold, bullets, code, table
from finetune_bench.reports.plots.style import (
    GREY,
    left_out_text,
    legend,
    legend_handle,
    method_style,
    panel_title,
    panels_across,
    shown_methods,
    small_multiples,
    tell,
)
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.text import counted, with_interval
from finetune_bench.reports.topics.topic import Drawing, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store import analyses
from finetune_bench.store.analyses import Result
from finetune_bench.store.row import Row, Status

BEFORE = ", before training"  # stands behind the name of a curve of the untouched model
_ARROWS = {"higher": " ↑", "lower": " ↓"}
_PANELS = 6
_COLUMNS = 8


@dataclass(frozen=True)
class Measurement:
    """A measurement is one number of one run.

    Attributes:
        section: Title of the section.
        analysis: Name of the analysis.
        method: Label of the run.
        task: Its task.
        seed: Its seed.
        id: Its id.
        number: Name of the number.
        value: The number.
        better: Which way is better: higher, lower, or "" for neither.
    """

    section: str
    analysis: str
    method: str
    task: str
    seed: int
    id: str
    number: str
    value: float
    better: str


@dataclass(frozen=True)
class Results:
    """Results are those of one analysis in a section.

    Attributes:
        of_run: By id of the run, those that did not fail.
        problems: Sentences about those that failed or are damaged.
    """

    of_run: dict[str, Result]
    problems: tuple[str, ...]


@cached
def names_in(data: Data, section: Section) -> tuple[str, ...]:
    """Return the names of all analyses that any finished run of a section has a result of."""
    done = [row for row in section.runs.values() if row["status"] == Status.DONE]
    return tuple(sorted({name for row in done for name in analyses.names(data.store.folder(row["id"]))}))


@cached
def results_of(data: Data, section: Section, name: str) -> Results:
    """Read the results of an analysis of all finished runs of a section."""
    found: dict[str, Result] = {}
    failed: dict[str, list[str]] = {}
    if name not in names_in(data, section):
        return Results({}, ())
    for row in section.runs.values():
        if row["status"] != Status.DONE:
            continue
        try:
            result = analyses.read(data.store.folder(row["id"]), name)
        except Damaged as error:
            failed.setdefault(error.reason, []).append(row["id"])
            continue
        if result is not None and result["reason"] is None:
            found[row["id"]] = result
        elif result is not None:
            failed.setdefault(str(result["reason"]), []).append(row["id"])
    newest = max((result["version"] for result in found.values()), default=0)
    kept = {cell_id: result for cell_id, result in found.items() if result["version"] == newest}
    if len(kept) < len(found):
        old = counted(len(found) - len(kept), "result")
        failed.setdefault(f"{old} of an earlier version are left out; 'analyse' makes them anew", [])
    problems = [
        f"{code(name)}: {reason}" + (f" ({counted(len(ids), 'run')}: {', '.join(ids[:5])})" if ids else "")
        for reason, ids in failed.items()
    ]
    if len({str(result["parameters"]) for result in kept.values()}) > 1:
        problems.append(f"{code(name)} ran with different parameters; means over them say little.")
    return Results(kept, tuple(problems))


@cached
def measurements(data: Data, section: Section, name: str) -> list[Measurement]:
    """Return all numbers of an analysis, run by run."""
    results = results_of(data, section, name).of_run
    return [
        Measurement(
            section.title,
            name,
            row["method"],
            row["task"],
            row["seed"],
            row["id"],
            number,
            math.nan if value is None else value,
            result["better"].get(number, ""),
        )
        for row in section.runs.values()
        if (result := results.get(row["id"])) is not None
        for number, value in result["numbers"].items()
    ]


def all_measurements(data: Data, section: Section) -> list[Measurement]:
    """Return all numbers of all analyses, run by run."""
    return [line for name in names_in(data, section) for line in measurements(data, section, name)]


def topic_of(name: str, title: str) -> Topic:
    """Make the topic that tells one analysis."""
    return Topic(title=title, blocks=partial(analysis_blocks, name))


def analysis_blocks(name: str, data: Data, section: Section) -> list[TopicBlock]:
    """Return everything about one analysis in a section; nothing where no run has a result of it."""
    results = results_of(data, section, name)
    if not results.of_run:
        return [*bullets(results.problems, findings=True)]
    blocks: list[TopicBlock] = [*_tables(data, section, name)]
    if any(result["layers"] for result in results.of_run.values()):
        alt = f"{name}: value by layer, mean over seeds with 95 % t intervals"
        blocks.append(Drawing(f"{name}-layers", alt, partial(draw_layers, data, section, name)))
    first = next(iter(results.of_run.values()))
    notes = dict.fromkeys(note for result in results.of_run.values() for note in result["notes"])
    blocks += bullets([*results.problems, *notes], findings=True)
    explained = [f"{first['about']} Means over seeds; ↑ higher is better, ↓ lower."] if first["about"] else []
    return [*blocks, *bullets(explained)]


def _tables(data: Data, section: Section, name: str) -> list[TopicBlock]:
    """Return the table of means, and that of differences to the reference."""
    lines = measurements(data, section, name)
    by_run = {(line.method, line.task, line.seed, line.number): line.value for line in lines}
    better = {line.number: line.better for line in lines}
    groups: dict[str, dict[str, str]] = {}  # by what stands before the colon, each column's name of the number
    for number in dict.fromkeys(line.number for line in lines):
        group, colon, key = number.rpartition(": ")
        groups.setdefault(group if colon else "", {})[key] = number
    blocks: list[TopicBlock] = []
    keys_of = {tuple(of_group): None for of_group in groups.values()}
    for keys in keys_of:
        of_keys = {group: of_group for group, of_group in groups.items() if tuple(of_group) == keys}
        for begin in range(0, len(keys), _COLUMNS):
            shown = keys[begin : begin + _COLUMNS]
            header = [f"{key}{_ARROWS.get(better[next(iter(of_keys.values()))[key]], '')}" for key in shown]
            blocks += _two_tables(section, (name, shown, header), of_keys, by_run)
    return blocks


def _two_tables(
    section: Section,
    named: tuple[str, Sequence[str], Sequence[str]],
    groups: dict[str, dict[str, str]],
    by_run: dict[tuple[str, str, int, str], float],
) -> list[TopicBlock]:
    """Return the tables of some columns: their names, the keys of their numbers and their titles are `named`."""
    name, keys, header = named
    means: list[list[str | Entry]] = []
    differences: list[list[str | Entry]] = []
    reference = section.reference
    for task in section.tasks:
        for group, numbers in groups.items():
            for method in section.methods:
                rows = section.rows(method, task, Status.DONE)
                known = [row for row in rows if any((method, task, row["seed"], n) in by_run for n in numbers.values())]
                if not known:
                    continue
                label: list[str | Entry] = [code(task), *([group] if any(groups) else []), code(method)]
                means.append([*label, *(_mean(known, numbers[key], by_run) for key in keys)])
                if reference is not None and method != reference:
                    entries = [_difference(section, known, reference, numbers[key], by_run) for key in keys]
                    if any(isinstance(entry, Entry) for entry in entries):
                        differences.append([*label, *entries])
    first = ["task", "on", "method"] if any(groups) else ["task", "method"]
    blocks: list[TopicBlock] = [table(name, [*first, *header], means, in_paper=False)]
    if differences:
        titles = [f"Δ {text}" for text in header]
        blocks.append(table(f"{name}-differences", [*first, *titles], differences, in_paper=False))
    return blocks


def _mean(rows: Sequence[Row], number: str, by_run: dict[tuple[str, str, int, str], float]) -> Entry:
    values = {row["id"]: by_run.get((row["method"], row["task"], row["seed"], number), math.nan) for row in rows}
    estimate = estimates.t_interval(list(values.values()))
    return Entry(written(estimate), estimate.value, tuple(values))


def _difference(
    section: Section,
    rows: Sequence[Row],
    reference: str,
    number: str,
    by_run: dict[tuple[str, str, int, str], float],
) -> str | Entry:
    """Return the mean paired difference to the reference; a dash where no pair is proven."""
    pairs = []
    for row in rows:
        method, task, seed = row["method"], row["task"], row["seed"]
        other = by_run.get((reference, task, seed, number))
        if other is not None and section.paired(method, reference, task, seed):
            pairs.append((row["id"], by_run.get((method, task, seed, number), math.nan) - other))
    if not pairs:
        return "—"
    estimate = estimates.t_interval([value for _, value in pairs])
    text = written(estimate, sign=True)
    is_clear = estimate.separated and with_interval(estimate)
    return Entry(bold(text) if is_clear else text, estimate.value, tuple(cell_id for cell_id, _ in pairs))


def written(estimate: Estimate, *, sign: bool = False) -> str:
    """Write an estimate with three digits, and its interval where three seeds or more are behind it."""
    text = _number(estimate.value, sign=sign)
    if not with_interval(estimate):
        return text
    if estimate.standard_error == 0:
        return f"{text} [no spread]"
    return f"{text} [{_number(estimate.low, sign=sign)}, {_number(estimate.high, sign=sign)}]"


def _number(value: float, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "—"
    # Three digits, but a large number in full: a count of examples is no power of ten.
    digits = ",.0f" if abs(value) >= 999.5 else ".3g"
    text = f"{value:{'+' if sign else ''}{digits}}"
    return text.replace("-", "−")


# --- the plot ---------------------------------------------------------------------------------------------------------


def draw_layers(data: Data, section: Section, name: str) -> Figure | None:
    """Draw an analysis' curves by layer: a panel per task and curve, a line per method with its interval over seeds."""
    results = results_of(data, section, name).of_run
    methods = shown_methods(section)
    panels: dict[tuple[str, str], None] = {}
    for row in section.runs.values():
        if row["id"] in results:
            curves = [curve for curve in results[row["id"]]["layers"] if not curve.endswith(BEFORE)]
            panels |= dict.fromkeys((row["task"], curve) for curve in curves)
    chosen = list(panels)[:_PANELS]
    if not chosen:
        return None
    across = panels_across(len(chosen), 3)
    figure, axes_of = small_multiples(len(chosen), across, 4.0, 2.9)
    for axes, (task, curve) in zip(axes_of, chosen, strict=True):
        for method in methods:
            rows = [row for row in section.rows(method, task, Status.DONE) if row["id"] in results]
            values = _curves(rows, results, curve)
            if values is None:
                continue
            colour, _, style = method_style(section, method)
            layers = np.arange(values.shape[1])
            means = [estimates.t_interval(values[:, layer]) for layer in layers]
            (line,) = axes.plot(layers, [mean.value for mean in means], style, lw=1.6, color=colour)
            tell(line, [method], [f"{method} on {task}: mean over {counted(len(rows), 'seed')}"])
            if all(with_interval(mean) for mean in means):
                low, high = [mean.low for mean in means], [mean.high for mean in means]
                tell(axes.fill_between(layers, low, high, color=colour, alpha=0.15, lw=0), [method])
        untouched = _curves([row for row in section.runs.values() if row["task"] == task], results, curve + BEFORE)
        if untouched is not None:
            axes.plot(np.arange(untouched.shape[1]), np.nanmean(untouched, axis=0), ":", lw=1.4, color=GREY)
        panel_title(axes, f"{task}: {curve}" if len(section.tasks) > 1 else curve)
        axes.set_xlabel("layer")
    more = "" if len(panels) == len(chosen) else f"{len(chosen)} of {len(panels)} curves; the results have all"
    legend(
        figure,
        [legend_handle(section, method, line=True) for method in methods],
        "dotted: before training",
        more,
        left_out_text(section),
    )
    return figure


def _curves(rows: Sequence[Row], results: dict[str, Result], curve: str) -> np.ndarray | None:
    """Return (runs, layers) values of one curve; None where no run has it, or they have different layers."""
    lists = [results[row["id"]]["layers"].get(curve) for row in rows if row["id"] in results]
    known = [[math.nan if value is None else value for value in values] for values in lists if values]
    if not known or len({len(values) for values in known}) > 1:
        return None
    return np.array(known, dtype=np.float64)
