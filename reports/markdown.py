"""The report as one markdown file with its plots, and the compact table that ends a run on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from finetune_bench import stats
from finetune_bench.report import Report
from finetune_bench.reports import tables, words
from finetune_bench.reports.alive import Departure, departures, load
from finetune_bench.reports.data import Column, Data, Section
from finetune_bench.reports.plots import Plot, draw
from finetune_bench.reports.tables import Difference, Ratio, Score
from finetune_bench.reports.words import counted, interval, points
from finetune_bench.store import Store


class Markdown(Report):
    """report.md and plots/, each plot as PNG and SVG."""

    name = "markdown"

    def write(self, store: Store, folder: Path) -> list[Path]:
        data = load(store)
        plots = draw(data, folder / "plots")
        path = folder / "report.md"
        path.write_text(render(data, plots), "utf-8")
        return [path, *(file for plot in plots for file in plot.files)]


def summary_table(store: Store) -> str:
    """The comparison as plain text for the terminal; a table for each model and learning rate."""
    data = load(store)
    if not data.rows:
        return "No cell has been run."
    parts = []
    for section in data.sections:
        columns, cells = _by_column(tables.scores(section))
        rows = [[method, *(_cell(cells[column, method]) for column in columns)] for method in section.methods]
        header = ["method", *(column.title for column in columns)]
        title = [section.title] if section.title else []
        parts.append("\n".join([*title, tabulate(rows, header, tablefmt="simple", disable_numparse=True)]))
    return "\n\n".join([*parts, f"Mean score ×100. {words.INTERVAL}"])


def render(data: Data, plots: Sequence[Plot] = ()) -> str:
    """The whole report as markdown."""
    blocks = ["# Comparison of fine-tuning methods", _head(data)]
    if not data.rows:
        return "\n\n".join([*blocks, "No cell has been run."]) + "\n"
    several = len(data.sections) > 1
    blocks.append("## In short")
    for section in data.sections:
        blocks += [f"**{plain(section.title)}**"] if several else []
        blocks.append(bullets(words.verdict(section, code)))
    blocks += [_runs_in_short(data), "## How to read this", _HOW]
    for number, section in enumerate(data.sections):
        if several:
            blocks.append(f"## {plain(section.title)}")
        own = {plot.kind: plot for plot in plots if plot.section == number}
        blocks += _section(data, section, "###" if several else "##", own)
    blocks += ["## Data", *_data(data), "## Runs that need a look", *_warnings(data)]
    return "\n\n".join(blocks) + "\n"


# --- markdown ---------------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    """Any text on one line, so that it is shown as it is, within a table too."""
    for character in "\\|`*<>[]#~":
        text = text.replace(character, f"\\{character}")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # within a word it is no mark-up
    return " ".join(text.split())


def code(text: str) -> str:
    """A name in a code span; only | and ` need care there."""
    text = " ".join(text.split()).replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---:") -> str:
    """A markdown table of cells that are escaped already; the first column stands left, the others by `rule`."""
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def bullets(items: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {item}" for item in items)


# --- the head ---------------------------------------------------------------------------------------------------------

_HOW = bullets(
    [
        "Scores and differences are in points (score × 100). Every score is that of the weights at the end of "
        "training, on the evaluation split named; this report selects no checkpoint and no hyper-parameter.",
        "Every interval is a 95 % t interval and names its question. **(a)**: these tasks and these examples, new "
        "seeds; the seed is the unit. **(b)**: new tasks; the task is the unit. No interval here answers **(c)**, "
        "new examples: the table under *Data* says how coarse each evaluation split is.",
        "n counts the units, df the degrees of freedom. Intervals are taken one at a time: of twenty, one is "
        "expected to miss by chance.",
        "Failed runs have no score and are in no mean; leaving them out flatters a method, so they are counted beside "
        "it. Collapsed runs are in the mean, and counted too.",
    ]
)


def _head(data: Data) -> str:
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
    recipe = ", ".join(f"{plain(key)} {plain(' and '.join(values))}" for key, values in setting.items())
    environment = ", ".join(f"{plain(key)} {plain(value)}" for key, value in words.environment(data).items())
    rows.append(("setting", recipe or "none"))
    rows.append(("ran with", environment or "unknown"))
    rows.append(("cells", ", ".join(f"{number} {status}" for status, number in words.status_counts(data).items())))
    return table(("compared", ""), rows, rule="---")


def _runs_in_short(data: Data) -> str:
    """What the cells came to, and where to read more."""
    counts = words.status_counts(data)
    parts = [f"{counts[status]} {status}" for status in ("failed", "skipped", "interrupted") if counts[status]]
    odd = [
        f"{len(found)} {name}"
        for found, name in ((words.collapsed(data), "collapsed"), (words.hardly_moved(data), "whose loss hardly moved"))
        if found
    ]
    text = f"{counted(counts['done'], 'run')} ended well"
    text += f" (among them {words.listed(odd)})" if odd else ""
    text += f"; {words.listed(parts)}" if parts else ""
    return text + (". The last section lists what went wrong." if parts or odd else ", none failed or collapsed.")


# --- one section ------------------------------------------------------------------------------------------------------


def _section(data: Data, section: Section, level: str, plots: dict[str, Plot]) -> list[str]:
    def picture(kind: str) -> list[str]:
        return [f"![{plain(plots[kind].alt)}]({plots[kind].link})"] if kind in plots else []

    blocks = [f"{level} Scores", *_scores(section), *picture("scores")]
    blocks += [f"{level} Differences to the baseline", *_differences(section)]
    if controlled := tables.control_differences(section):
        blocks += [f"{level} Differences to vanilla with the same dropout", _CONTROL]
        for control in dict.fromkeys(one.reference for one in controlled):
            own = [one for one in controlled if one.reference == control]
            blocks.append(_difference_table(own))
            blocks += [bullets(notes)] if (notes := _unpaired(section, own)) else []
    if split := tables.attributions(data, section):
        blocks += [f"{level} Where the gain comes from", *_attributions(split)]
    if found := tables.collapsed(section):
        blocks += [f"{level} With and without collapsed runs", *_collapsed(section, found)]
    blocks += [f"{level} Cost", *_costs(section), *picture("memory"), *picture("time")]
    if any(len(section.parts(method)) > 1 for method in section.methods):
        blocks += [f"{level} Compatibility", *_synergies(section), *picture("synergy")]
    if departed := departures(data, section):
        blocks += [f"{level} Alive", *_alive(departed)]
    if "curves" in plots:
        blocks += [f"{level} Training", *picture("curves")]
    return blocks


def _by_column(scores: Sequence[Score]) -> tuple[list[Column], dict[tuple[Column, str], Score]]:
    columns = list(dict.fromkeys(score.column for score in scores))
    return columns, {(score.column, score.method): score for score in scores}


def _counts(score: Score) -> list[str]:
    counts = {
        "failed": score.failed,
        "skipped": score.skipped,
        "interrupted": score.interrupted,
        "collapsed": score.collapsed,
        "without a score": score.unscored,
    }
    return [f"{number} {name}" for name, number in counts.items() if number]


def _cell(score: Score) -> str:
    """`71.3 [69.9, 72.8] n=3, 1 failed`."""
    if score.estimate.n == 0:
        return ", ".join(["—", *(_counts(score) or ([] if score.missing else ["not run"]))])
    return ", ".join([f"{interval(score.estimate)} n={score.estimate.n}", *_counts(score)])


def _scores(section: Section) -> list[str]:
    columns, cells = _by_column(tables.scores(section))

    def cell(score: Score) -> str:
        text = _cell(score)
        mean, space, rest = text.partition(" n=")
        return f"**{mean}**{space}{rest}" if score.best else text

    rows = [[code(method), *(cell(cells[column, method]) for column in columns)] for method in section.methods]
    notes = [
        "Mean over seeds, in brackets its t interval: question (a), n seeds, df = n − 1. All methods share the "
        "seeds, so two of these intervals may overlap although the difference is clear: differences are below.",
        "Bold: the best mean, where Tukey's honest significant difference over all methods sets it apart from every "
        "other. Nothing is bold inside the noise, or where a run is missing or collapsed.",
    ]
    suite = [cells[columns[-1], method] for method in section.methods] if len(section.tasks) > 1 else []
    if suite:
        degrees = [score.estimate.df for score in suite if score.estimate.df > 0]
        text = "Mean over tasks: question (a), variance Σ s²/n over tasks / T², Welch–Satterthwaite's df"
        text += f" ({_range(degrees)})" if degrees else ""
        notes.append(f"{text}, n = the fewest seeds of any task. A task's splits count as one.")
        if mixed := words.mixed_metrics(section):
            notes.append(plain(mixed))
        notes += [plain(text) for text in words.missing_suite(suite)]
    return [table(["method", *(plain(column.title) for column in columns)], rows), bullets(notes)]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


# --- differences ------------------------------------------------------------------------------------------------------

_CONTROL = (
    "These methods run with other dropout than the baseline, so part of their difference to it is dropout's. Here "
    "each is held against vanilla with the same realised dropout: what is left is the method's own."
)


def _differences(section: Section) -> list[str]:
    found = tables.differences(section, section.baseline) if section.baseline else []
    if not found:
        return [words.no_differences(section)]
    return [_difference_table(found), bullets([*_difference_notes(section, found), *_unpaired(section, found)])]


def _unpaired(section: Section, found: Sequence[Difference]) -> list[str]:
    return [plain(text) for text in words.unpaired(section, found[0].reference, [one.method for one in found])]


def _difference_table(found: Sequence[Difference]) -> str:
    reference = found[0].reference
    columns = list(dict.fromkeys((one.column, one.question) for one in found))
    cells = {(one.column, one.question, one.method): one for one in found}
    usual = {key: _usual([one for one in found if (one.column, one.question) == key]) for key in columns}
    with_p = any(not math.isnan(one.p) for one in found)
    header = [f"method − {code(reference)}"]
    header += [plain(column.title) + (f" ({question})" if not column.task else "") for column, question in columns]
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        cell_texts = [_difference_cell(cells.get((*key, method)), usual[key]) for key in columns]
        p_values = [one.p for one in found if one.method == method and not math.isnan(one.p)]
        rows.append([code(method), *cell_texts, *([_p(p_values)] if with_p else [])])
    for name, text in (("n, df", usual), ("rho", {key: _rho(found, *key) for key in columns})):
        rows.append([name, *(text[key] or "—" for key in columns), *([""] if with_p else [])])
    return table([*header, *(["p (Holm)"] if with_p else [])], rows)


def _difference_notes(section: Section, found: Sequence[Difference]) -> list[str]:
    family = sum(not math.isnan(one.p) for one in found)
    seeds = max((one.estimate.n for one in found if one.question == "a"), default=0)
    notes = [
        "Mean of the paired differences, in brackets its t interval; question (a) for single tasks. Pairs started "
        "from the same head on the same examples in the same order, as their hashes prove. Bold: the interval "
        "excludes 0.",
        "Where methods share all seeds and none collapsed, the interval uses the residual variance of all of them "
        "(method + seed), df = (M − 1)(S − 1), and assumes that they scatter equally; elsewhere it uses the "
        "method's own differences, and n and df stand in the cell.",
    ]
    if len(section.tasks) > 1:
        notes.append(
            "Mean over tasks: (a) these tasks, by Welch and Satterthwaite; (b) new tasks, from the spread of the "
            "tasks' mean differences, from three tasks on. Only for methods with a pair on every task."
        )
    if seeds > 1:
        notes.append(
            "rho: median correlation with the reference across seeds"
            + (" (from three seeds on)" if seeds < 3 else "")
            + f". Pairing narrows an interval of {seeds} seeds if rho is above {stats.pairing_threshold(seeds):.2f}."
        )
    if family:
        notes.append(
            f"p: two-sided t test of (a), adjusted by Holm; the family is the {counted(family, 'method')} of this "
            f"table with {stats.SEEDS_FOR_P} pairs or more on every task."
        )
    elif 0 < seeds < stats.SEEDS_FOR_P:
        notes.append(f"Descriptive only: no p-values below {stats.SEEDS_FOR_P} seeds.")
    return notes


def _units(one: Difference) -> str:
    df = f"{one.estimate.df:.1f}".removesuffix(".0")
    return f"n={one.estimate.n}, df={df}" if one.estimate.df > 0 else f"n={one.estimate.n}"


def _usual(found: Sequence[Difference]) -> str:
    """The n and df that most cells of a column have, so that only the others need to say theirs."""
    units = [_units(one) for one in found if one.estimate.n]
    return max(dict.fromkeys(units), key=units.count) if units else ""


def _difference_cell(one: Difference | None, usual: str) -> str:
    if one is None or one.estimate.n == 0:
        return "—"
    text = interval(one.estimate, sign=True)
    text = f"**{text}**" if one.estimate.separated else text
    return text if _units(one) == usual else f"{text} {_units(one)}"


def _rho(found: Sequence[Difference], column: Column, question: str) -> str:
    values = [one.rho for one in found if (one.column, one.question) == (column, question) and not math.isnan(one.rho)]
    return f"{np.median(values):.2f}".replace("-", "−") if values else ""


def _p(values: Sequence[float]) -> str:
    return "—" if not values else "<0.001" if values[0] < 0.001 else f"{values[0]:.3f}"


def _attributions(found: Sequence[tables.Attribution]) -> list[str]:
    columns = list(dict.fromkeys(one.column for one in found))
    rows = []
    for method in dict.fromkeys(one.method for one in found):
        own = [one for one in found if one.method == method]
        for effect, run, against in dict.fromkeys((one.effect, one.run, one.against) for one in own):
            cells = {one.column: one.estimate for one in own if one.effect == effect}
            texts = [f"{_bold_if_separated(cells[column])} n={cells[column].n}" for column in columns]
            rows.append([code(method), plain(effect), f"{code(run)} − {code(against)}", *texts])
    note = (
        "Each row is the paired mean difference between a run with one more effect turned on and the run before it, so "
        "that a method's rows add up to its total, its difference to vanilla, where all runs have the same seeds. "
        "Brackets: t interval of the row's own differences, question (a), n seeds; bold: it excludes 0. Runs that "
        "hardly differ have narrow intervals, so the residual variance of all methods is not used here."
    )
    header = ["method", "effect", "difference of", *(plain(column.title) for column in columns)]
    return [table(header, rows), bullets([note])]


def _alive(found: Sequence[Departure]) -> list[str]:
    rows = []
    for method, twin in dict.fromkeys((one.method, one.twin) for one in found):
        own = [one for one in found if (one.method, one.twin) == (method, twin)]
        never = sum(math.isnan(one.loss_step) and one.weights == 0 for one in own)
        rows.append(
            [
                code(method),
                code(twin),
                _step([one.loss_step for one in own]),
                f"{np.median([one.loss for one in own]):.2g}",
                _step([one.weights_step for one in own]),
                f"{np.median([one.weights for one in own]):.2g}",
                str(len(own)),
                f"{never}" if never else "",
            ]
        )
    header = (
        "method",
        "vanilla twin",
        "loss from step",
        "Δ loss",
        "weights from step",
        "Δ weights",
        "runs",
        "never",
    )
    note = (
        "How far and from which step each run departed from vanilla with the same dropout, head and examples: medians "
        "over runs. Δ loss: mean over steps of the absolute difference. Δ weights: Euclidean distance of the weights "
        "that were scored, estimated from sketches; they are recorded at ten steps. A departure says that a method "
        "acts, not that it helps: rounding alone grows to one in time. An average of the weights departs in what is "
        "scored only. “(no effect)” stands behind a method of which every run equals vanilla's, or that of a part of "
        "its stack."
    )
    return [table(header, rows), bullets([note])]


def _step(steps: Sequence[float]) -> str:
    known = [step for step in steps if not math.isnan(step)]
    return f"{np.median(known):g}" if known else "never"


def _collapsed(section: Section, found: Sequence[tables.Collapsed]) -> list[str]:
    rows = [
        [
            plain(one.column.title),
            code(one.method),
            str(one.collapsed),
            f"{interval(one.score)} n={one.score.n}",
            f"{interval(one.score_without)} n={one.score_without.n}",
            _with_n(one.difference),
            _with_n(one.difference_without),
        ]
        for one in found
    ]
    rates = []
    for method in section.methods:
        runs = len(section.rows(method, status="done"))
        number = sum(int(section.collapsed(method, task).sum()) for task in section.tasks)
        if number:
            low, high = stats.clopper_pearson(number, runs)
            rates.append(
                f"{code(method)}: {number} of {counted(runs, 'run')} collapsed, {100 * number / runs:.0f} % "
                f"[{100 * low:.0f}, {100 * high:.0f}] (Clopper–Pearson, n={runs}, taking tasks and seeds as alike)."
            )
    header = ("score", "method", "collapsed", "mean, all", "mean without", "difference, all", "difference without")
    note = (
        "Question (a), t intervals on the method's own seeds, df = n − 1; a difference without collapsed runs "
        "leaves out each pair in which either run collapsed. Leaving runs out after seeing them answers what "
        "happens if training works, not what to expect."
    )
    return [table(header, rows), bullets([note, *rates])]


def _with_n(estimate: stats.Estimate) -> str:
    return "—" if estimate.n == 0 else f"{interval(estimate, sign=True)} n={estimate.n}"


# --- cost and compatibility -------------------------------------------------------------------------------------------


def _costs(section: Section) -> list[str]:
    found = [cost for cost in tables.costs(section) if cost.runs]
    if not found:
        return ["No run ended well, so nothing was measured."]
    header = ["method", "time ×", "peak memory ×", "saved activations ×", "train s", "examples/s", "peak MiB"]
    header += ["passes per step", "set-up s", "set-up passes", "trained parameters", "runs"]
    rows = [
        [
            code(cost.method),
            _ratio(cost.time),
            _ratio(cost.memory),
            _ratio(cost.activations),
            _figure(cost.seconds),
            _figure(cost.examples_per_second),
            _figure(cost.peak_memory_bytes / 2**20),
            f"{_figure(cost.forwards_per_step)} + {_figure(cost.backwards_per_step)}",
            _figure(cost.setup_seconds),
            f"{_figure(cost.setup_forwards)} + {_figure(cost.setup_backwards)}",
            _trained(cost.trainable_parameters, cost.parameters),
            str(cost.runs),
        ]
        for cost in found
    ]
    on_cpu = str(section.setting.get("device")).startswith("cpu")
    clock = "the process's own seconds" if on_cpu else "wall-clock seconds"
    notes = [
        f"×: geometric mean over (task, seed) pairs of the ratio to {code(section.baseline or 'vanilla')}, in "
        "brackets the smallest and largest ratio of a pair, which is no interval; n pairs."
        if section.baseline
        else "No ratios: vanilla with its default dropout is not in this run.",
        f"Absolute figures are medians over a method's runs, whatever their task. Time is {clock} of training, without "
        "evaluation; on a machine shared with others, trust the ratios of counts rather than of seconds.",
        "Passes: forwards + backwards, per step and for all of the set-up.",
    ]
    return [table(header, rows), bullets(notes)]


def _ratio(ratio: Ratio) -> str:
    return "—" if ratio.n == 0 else f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] n={ratio.n}"


def _figure(value: float) -> str:
    """Three digits that count."""
    if math.isnan(value):
        return "—"
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _trained(trainable: float, total: float) -> str:
    if math.isnan(trainable):
        return "—"
    share = f" ({100 * trainable / total:.3g} %)" if total > 0 else ""
    return f"{_figure(trainable)}{share}"


def _synergies(section: Section) -> list[str]:
    found = tables.synergies(section)
    _, left_out = tables.combinations(section)
    blocks = []
    if found:
        rows = [
            [
                f"{code(one.method)} = {code(one.first)} + {code(one.second)}",
                code(one.baseline),
                plain(one.column.title),
                _bold_if_separated(one.estimate),
                str(one.estimate.n),
                f"{one.estimate.df:.1f}".removesuffix(".0") if one.estimate.df > 0 else "—",
                one.interval if one.estimate.df > 0 else "—",
                _log_odds(one.logit),
            ]
            for one in found
        ]
        header = ("stack and its parts", "y₀", "score", "synergy", "n", "df", "interval", "log-odds")
        blocks.append(table(header, rows))
    notes = [
        "Synergy: y(A+B) − y(A) − y(B) + y₀ per seed, in points: above 0 the stack gains more than its parts together. "
        "Question (a), n seeds. Its standard error is √2 that of a difference, so it takes about twice the seeds to "
        "see the same effect. Bold: the interval excludes 0.",
        "log-odds: the same on the logit scale, where gains near the ceiling count for more; only for shares.",
    ]
    notes += [
        f"{code(method)}: {plain(note)}" for method, note in {one.method: one.note for one in found}.items() if note
    ]
    return [*blocks, bullets([*(notes if found else []), *(plain(text) for text in left_out)])]


def _log_odds(value: float) -> str:
    return "—" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}".replace("-", "−")


def _bold_if_separated(estimate: stats.Estimate) -> str:
    text = interval(estimate, sign=True)
    return f"**{text}**" if estimate.separated else text


# --- data and warnings ------------------------------------------------------------------------------------------------


def _data(data: Data) -> list[str]:
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
            if column.metric == "accuracy" and examples:
                share = np.nanmean([section.scores(method, column) for method in section.methods]) / 100
                error = points(100 * stats.binomial_standard_error(float(share), examples))
            rows.append(
                [
                    plain(column.task),
                    plain(split),
                    column.metric and plain(column.metric),
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
        f"{plain(task)}: the {plain(split)} split is a subset: its rows are not all that were published, so scores "
        "aren't comparable with the literature's."
        for task, split in dict.fromkeys(sorted(subsets))
    ]
    told = dict.fromkeys((row["task"], note) for row in data.rows for note in row.get("notes") or [])
    notes += [f"{plain(task)}: {plain(note)}" for task, note in told]
    return [table(header, rows), bullets(notes)] if rows else ["No run left a score."]


def _warnings(data: Data) -> list[str]:
    blocks = []
    for status in ("failed", "skipped", "interrupted"):
        if groups := words.by_reason([row for row in data.rows if row["status"] == status], "reason"):
            items = [f"{counted(count, 'cell')}: {plain(reason)} — {plain(where)}" for reason, where, count in groups]
            blocks.append(f"**{status.capitalize()}**\n\n{bullets(items)}")
    items = [
        f"Collapsed: {plain(reason)} — {plain(where)}"
        for reason, where, _ in words.by_reason(words.collapsed(data), "collapsed")
    ]
    if moved := words.hardly_moved(data):
        items.append(f"The training loss hardly moved: {plain(words.cells(moved))}.")
    for section in data.sections:
        where = f" ({plain(section.title)})" if section.title else ""
        items += [f"{plain(text)}{where}" for text in words.no_effect(tables.twins(data, section))]
    items += [plain(text) for text in words.mixed_versions(data)]
    if data.superseded:
        items.append(f"{counted(data.superseded, 'older row')} of the same runs left out: a newer one is in the store.")
    return [*blocks, *([bullets(items)] if items else [])] or ["None."]
