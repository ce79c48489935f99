"""What a report says of one section: its scores, differences, costs and combinations, as blocks of a document."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from finetune_bench.reports import tables, words
from finetune_bench.reports.aggregates import bootstraps, exploratory, ranking, suite_tests
from finetune_bench.reports.alive import departures
from finetune_bench.reports.data import Column, Data, Section
from finetune_bench.reports.document import Block, Entry, Heading, Paragraph, Picture, Table, bold, bullets, code, table
from finetune_bench.reports.dose import dose_frame, dose_studies, dose_table
from finetune_bench.reports.fair import fair_differences
from finetune_bench.reports.plots import Plot
from finetune_bench.reports.tables import Difference, Ratio, Score
from finetune_bench.reports.words import counted, interval
from finetune_bench.stats import estimates as stats
from finetune_bench.stats import robust

# --- one section ------------------------------------------------------------------------------------------------------


def blocks(data: Data, section: Section, level: int, plots: dict[str, Plot]) -> list[Block]:
    """Everything about one section.

    Args:
        level: of its headings.
        plots: the section's own, by kind.
    """

    def picture(*kinds: str) -> list[Block]:
        return [Picture(plots[kind]) for kind in kinds if kind in plots]

    def headed(title: str, content: list[Block]) -> list[Block]:
        return [Heading(level, title), *content] if content else []

    return [
        *headed("Scores", [*_scores(section), *picture("scores")]),
        *headed("Differences to the baseline", [*_differences(section), *picture("differences")]),
        *headed("Tests", _tests(data, section)),
        *headed("Over all tasks", [*_ranking(section), *picture("ranks", "profile")]),
        *headed("Differences to vanilla with the same dropout", _control_differences(section)),
        *headed("Where the gain comes from", [*_attributions(data, section), *picture("attribution")]),
        *headed("Dose", _doses(data, section, picture)),
        *headed("With and without collapsed runs", _collapsed(section)),
        *headed("Cost", [*_costs(section), *picture("memory", "time", "footprint")]),
        *headed("At equal cost", _at_equal_cost(section)),
        *headed("Compatibility", [*_synergies(section), *picture("compatibility", "synergy", "hype_pairs")]),
        *headed("Alive", _alive(data, section)),
        *headed("Training", picture("curves")),
    ]


def by_column(scores: Sequence[Score]) -> tuple[list[Column], dict[tuple[Column, str], Score]]:
    """The columns of a table of scores, and its scores by column and method."""
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


def score_text(score: Score) -> str:
    """`71.3 [69.9, 72.8] n=3, 1 failed`."""
    if score.estimate.n == 0:
        return ", ".join(["—", *(_counts(score) or ([] if score.missing else ["not run"]))])
    return ", ".join([f"{interval(score.estimate)} n={score.estimate.n}", *_counts(score)])


def _scores(section: Section) -> list[Block]:
    columns, cells = by_column(tables.scores(section))

    def entry(score: Score) -> Entry:
        text = score_text(score)
        mean, space, rest = text.partition(" n=")
        ids = tables.cell_ids(section, [score.method], score.column)
        return Entry(f"{bold(mean)}{space}{rest}" if score.best else text, score.estimate.value, ids)

    rows: list[list[str | Entry]] = [
        [code(method), *(entry(cells[column, method]) for column in columns)] for method in section.methods
    ]
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
            notes.append(mixed)
        notes += words.missing_suite(suite)
    return [table("scores", ["method", *(column.title for column in columns)], rows), *bullets(notes)]


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


# --- differences ------------------------------------------------------------------------------------------------------

_CONTROL = (
    "These methods run with other dropout than the baseline, so part of their difference to it is dropout's. Here "
    "each is held against vanilla with the same realised dropout: what is left is the method's own."
)


def _differences(section: Section) -> list[Block]:
    found = tables.differences(section, section.reference) if section.reference else []
    if not found:
        return [Paragraph(words.no_differences(section))]
    return [
        _difference_table(section, found),
        *bullets([*_difference_notes(section, found), *_unpaired(section, found)]),
    ]


def _control_differences(section: Section) -> list[Block]:
    found = tables.control_differences(section)
    result: list[Block] = [Paragraph(_CONTROL)] if found else []
    for control in dict.fromkeys(one.reference for one in found):
        own = [one for one in found if one.reference == control]
        result += [_difference_table(section, own), *bullets(_unpaired(section, own))]
    return result


def _unpaired(section: Section, found: Sequence[Difference]) -> list[str]:
    return words.unpaired(section, found[0].reference, [one.method for one in found])


def _difference_table(section: Section, found: Sequence[Difference]) -> Table:
    reference = found[0].reference
    columns = list(dict.fromkeys((one.column, one.question) for one in found))
    cells = {(one.column, one.question, one.method): one for one in found}
    usual = {key: _usual([one for one in found if (one.column, one.question) == key]) for key in columns}
    with_p = any(not math.isnan(one.p) for one in found)
    header = [f"method − {code(reference)}"]
    header += [column.title + (f" ({question})" if not column.task else "") for column, question in columns]
    rows: list[list[str | Entry]] = []
    for method in dict.fromkeys(one.method for one in found):
        entries = [_difference_entry(section, cells.get((*key, method)), usual[key]) for key in columns]
        p_values = [one.p for one in found if one.method == method and not math.isnan(one.p)]
        rows.append([code(method), *entries, *([_p(p_values)] if with_p else [])])
    floors = tables.noise_floors(section, reference)
    if floors:
        texts = [words.ends(floors[column]) if question == "a" else "—" for column, question in columns]
        rows.append([f"{code(reference)} − itself, other seeds", *texts, *([""] if with_p else [])])
    for name, text in (("n, df", usual), ("rho", {key: _rho(found, *key) for key in columns})):
        rows.append([name, *(text[key] or "—" for key in columns), *([""] if with_p else [])])
    return table("differences", [*header, *(["p (Holm)"] if with_p else [])], rows)


def _difference_notes(section: Section, found: Sequence[Difference]) -> list[str]:
    family = sum(not math.isnan(one.p) for one in found)
    seeds = max((one.estimate.n for one in found if one.question == "a"), default=0)
    notes = [
        "Mean of the paired differences, in brackets its t interval; question (a) for single tasks. Pairs started "
        "from the same head on the same examples in the same order, as their hashes prove. Bold: the interval "
        "excludes 0.",
        "Where methods share all seeds and none collapsed, the interval uses the residual variance of all of them "
        "(method + seed), df = (M − 1)(S − 1), and assumes that they scatter equally; elsewhere it uses the "
        "method's own differences, and n and df stand in the cell. Runs that did nearly the same as another method's, "
        f"their difference varying by less than {tables.NEAR_TWIN:.0%} of the spread over seeds, count once "
        "in that variance; held against others, each takes its twin's place in it.",
    ]
    if seeds > 1:
        notes.append(
            "The noise floor, “itself, other seeds”: of two means of that many fresh seeds of the reference, the "
            "difference lies within it 95 times in 100. A gain inside it is what changing the seeds alone can do; "
            "pairing is what lets an interval above be narrower."
        )
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


def _difference_entry(section: Section, one: Difference | None, usual: str) -> Entry:
    if one is None or one.estimate.n == 0:
        return Entry("—")
    text = _bold_if_separated(one.estimate)
    text = text if _units(one) == usual else f"{text} {_units(one)}"
    return Entry(text, one.estimate.value, tables.cell_ids(section, [one.method, one.reference], one.column))


def _rho(found: Sequence[Difference], column: Column, question: str) -> str:
    values = [one.rho for one in found if (one.column, one.question) == (column, question) and not math.isnan(one.rho)]
    return f"{np.median(values):.2f}".replace("-", "−") if values else ""


def _p(values: Sequence[float]) -> str:
    return _p_text(values[0]) if values else "—"


def _tests(data: Data, section: Section) -> list[Block]:
    margin = data.options.margin
    found = suite_tests(section, margin)
    result: list[Block] = []
    if found:
        reference = code(str(section.reference))
        columns = ["P(A > B)", "sign-flip p", "McNemar p", *([f"equal within {margin:g}, p"] if margin else [])]
        rows = [
            [
                code(one.method),
                "—" if math.isnan(one.better) else f"{one.better:.2f}",
                *(_p_text(p) for p in (one.sign_flip, one.collapses, *([one.equivalence] if margin else []))),
            ]
            for one in found
        ]
        notes = [
            f"P(A > B): the chance that a run beats one of {reference} on the same task, ties counting half.",
            "Sign-flip: exact, on the seeds' differences (mean over tasks), from six seeds; not adjusted.",
            "McNemar: exact, whether runs collapse as often as the reference's, from runs paired by task and seed.",
        ]
        if margin:
            notes.append(
                f"Equal within {margin:g} points: the larger p of two one-sided t tests; below 0.05 the method is the "
                "reference's equal for that purpose. A difference that isn't separated is not thereby equal."
            )
        result += [table("tests", [f"A, against {reference}", *columns], rows), *bullets(notes)]
    if explored := exploratory(section):
        columns_of = [column for column in section.columns if any(key[1] == column for key in explored)]
        rows = [
            [code(method), *(_p_text(explored.get((method, column), math.nan)) for column in columns_of)]
            for method in dict.fromkeys(key[0] for key in explored)
        ]
        note = (
            f"Exploratory: p of every method on every score, adjusted together by Benjamini and Hochberg over the "
            f"{len(explored)} of them. Of those below 0.05, one in twenty is expected to be false."
        )
        result += [table("exploratory", ["score by score", *(one.title for one in columns_of)], rows), *bullets([note])]
    if data.options.bootstrap and (resampled := bootstraps(data, section)):
        columns_of = [column for column in section.columns if any(key[1] == column for key in resampled)]
        differences: list[list[str | Entry]] = [
            [code(method), *(_resampled(resampled.get((method, column), stats.NOTHING)) for column in columns_of)]
            for method in dict.fromkeys(key[0] for key in resampled)
        ]
        note = (
            "Multi-bootstrap: seeds and examples resampled together, paired, 1,000 times, seed 0; questions (a) and "
            "(c) at once. Percentile intervals, from five seeds on."
        )
        result += [
            table("bootstrap", ["difference", *(one.title for one in columns_of)], differences),
            *bullets([note]),
        ]
    return result


def _resampled(estimate: stats.Estimate) -> Entry:
    return Entry(_bold_if_separated(estimate), estimate.value) if estimate.n else Entry("—")


def _p_text(value: float) -> str:
    return "—" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"


def _ranking(section: Section) -> list[Block]:
    found = ranking(section)
    if found is None:
        return []
    rows = []
    for place, method in enumerate(found.methods):
        normalised = found.normalised.get(method)
        rows.append(
            [
                code(method),
                f"{found.ranks.mean[place]:.2f}" if found.ranks else "—",
                f"{robust.interquartile_mean(normalised):.3f}" if normalised is not None else "—",
                f"{np.nanmean(normalised):.3f}" if normalised is not None else "—",
            ]
        )
    notes = []
    if found.ranks:
        notes.append(
            f"Mean rank over {found.ranks.n} tasks, 1 is the best; question (b). Friedman's test that all are alike: "
            f"p {_with_sign(found.ranks.p)}. Mean ranks less than {found.ranks.critical_difference:.2f} apart are not "
            "separated (Nemenyi, 95 % for all pairs). Ranks depend on who else is in the pool."
        )
    notes.append(
        "Normalised: 0 is the constant prediction's score, 1 the best method's mean, per task. The interquartile mean "
        "leaves out the lowest and the highest quarter of all runs."
    )
    if found.left_out:
        notes.append(f"Without a score on every task, so not here: {words.listed([code(m) for m in found.left_out])}.")
    if found.unscaled:
        notes.append(
            f"No method beats the constant prediction on {words.listed(found.unscaled)}; no normalised score has it."
        )
    header = ["method", "mean rank", "interquartile mean", "mean, normalised"]
    return [table("ranks", header, rows), *bullets(notes)]


def _with_sign(p: float) -> str:
    return "undefined, every task ties" if math.isnan(p) else "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _attributions(data: Data, section: Section) -> list[Block]:
    found = tables.attributions(data, section)
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
                    tables.cell_ids(section, [run, against], column),
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


def _doses(data: Data, section: Section, picture: Callable[[str], list[Block]]) -> list[Block]:
    result: list[Block] = []
    for place, study in enumerate(dose_studies(data.store, section), 1):
        header, rows, notes = dose_table(study, dose_frame(section, study))
        result += [table("dose", header, rows), *bullets([notes]), *picture(f"dose{place}")]
    return result


def _alive(data: Data, section: Section) -> list[Block]:
    found = departures(data, section)
    if not found:
        return []
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
    return [table("alive", header, rows), *bullets([note])]


def _step(steps: Sequence[float]) -> str:
    known = [step for step in steps if not math.isnan(step)]
    return f"{np.median(known):g}" if known else "never"


def _collapsed(section: Section) -> list[Block]:
    found = tables.collapsed(section)
    if not found:
        return []
    rows = [
        [
            one.column.title,
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
    return [table("collapsed", header, rows), *bullets([note, *rates])]


def _with_n(estimate: stats.Estimate) -> str:
    return "—" if estimate.n == 0 else f"{interval(estimate, sign=True)} n={estimate.n}"


# --- cost and compatibility -------------------------------------------------------------------------------------------


def _costs(section: Section) -> list[Block]:
    found = [cost for cost in tables.costs(section) if cost.runs]
    if not found:
        return [Paragraph("No run ended well, so nothing was measured.")]
    joules = any(math.isfinite(cost.energy_joules) for cost in found)
    header = ["method", "time ×", "peak memory ×", "saved activations ×", *(["energy ×"] if joules else [])]
    header += ["train s", "examples/s", "peak MiB", *(["energy kJ"] if joules else [])]
    header += ["passes per step", "set-up s", "set-up passes", "trained parameters", "runs"]
    rows: list[list[str | Entry]] = [
        [
            code(cost.method),
            _ratio(cost.time),
            _ratio(cost.memory),
            _ratio(cost.activations),
            *([_ratio(cost.energy)] if joules else []),
            _figure(cost.seconds),
            _figure(cost.examples_per_second),
            _figure(cost.peak_memory_bytes / 2**20),
            *([_figure(cost.energy_joules / 1000)] if joules else []),
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
        f"×: geometric mean over (task, seed) pairs of the ratio to {code(section.reference or 'vanilla')}, in "
        "brackets the smallest and largest ratio of a pair, which is no interval; n pairs."
        if section.reference
        else "No ratios: vanilla with its default dropout is not in this run.",
        f"Absolute figures are medians over a method's runs, whatever their task. Time is {clock} of training, without "
        "evaluation; on a machine shared with others, trust the ratios of counts rather than of seconds.",
        "Passes: forwards + backwards, per step and for all of the set-up.",
        *(["Energy: the whole device's, by NVML, over set-up and training."] if joules else []),
    ]
    return [table("cost", header, rows), *bullets(notes)]


def _at_equal_cost(section: Section) -> list[Block]:
    found = fair_differences(section)
    if not found:
        return []
    columns = list(dict.fromkeys(one.column for one in found))
    rows: list[list[str | Entry]] = []
    for method, basis, factor in dict.fromkeys((one.method, one.basis, one.factor) for one in found):
        cells = {one.column: one.estimate for one in found if (one.method, one.basis) == (method, basis)}
        entries = [
            Entry(f"{_bold_if_separated(one)} n={one.n}", one.value) if one.n else Entry("—")
            for one in (cells[column] for column in columns)
        ]
        rows.append([code(method), basis, "—" if math.isnan(factor) else f"×{factor:.2f}", *entries])
    notes = [
        "Each method minus vanilla that trained for so many times its steps: as many steps, as many passes over "
        "a batch, or as many seconds. Brackets: t interval over seeds, question (a); bold: "
        "it excludes 0. Runs of different length can't share the order of examples; head and data are shared.",
        "At equal seconds, vanilla's score is interpolated between its runs, "
        f"{words.listed([f'×{one:g}' for one in (1.0, *section.stretched)])} steps, at the method's measured time "
        "ratio; beyond the longest run there is no number.",
    ]
    header = ["method", "compared at", "vanilla's steps", *(column.title for column in columns)]
    return [table("equal cost", header, rows), *bullets(notes)]


def _ratio(ratio: Ratio) -> Entry:
    if ratio.n == 0:
        return Entry("—")
    return Entry(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] n={ratio.n}", ratio.value)


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


def _synergies(section: Section) -> list[Block]:
    found = tables.synergies(section)
    _, left_out = tables.combinations(section)
    result: list[Block] = []
    if found:
        rows: list[list[str | Entry]] = [
            [
                f"{code(one.method)} = {code(one.first)} + {code(one.second)}",
                code(one.baseline),
                one.column.title,
                Entry(
                    _bold_if_separated(one.estimate),
                    one.estimate.value,
                    tables.cell_ids(section, [one.method, one.first, one.second, one.baseline], one.column),
                ),
                str(one.estimate.n),
                f"{one.estimate.df:.1f}".removesuffix(".0") if one.estimate.df > 0 else "—",
                one.interval if one.estimate.df > 0 else "—",
                _log_odds(one.logit),
            ]
            for one in found
        ]
        header = ("stack and its parts", "y₀", "score", "synergy", "n", "df", "interval", "log-odds")
        result.append(table("synergy", header, rows))
    notes = [
        "Synergy: y(A+B) − y(A) − y(B) + y₀ per seed, in points: above 0 the stack gains more than its parts together. "
        "Question (a), n seeds. Its standard error is √2 that of a difference, so it takes about twice the seeds to "
        "see the same effect. Bold: the interval excludes 0.",
        "log-odds: the same on the logit scale, where gains near the ceiling count for more; only for shares. Its t "
        "interval rests on the four runs' own seeds.",
    ]
    notes += [f"{code(method)}: {note}" for method, note in {one.method: one.note for one in found}.items() if note]
    return [*result, *bullets([*(notes if found else []), *left_out])]


def _log_odds(estimate: stats.Estimate) -> str:
    if math.isnan(estimate.value):
        return "—"
    text = f"{round(estimate.value, 2) + 0.0:+.2f}"
    if estimate.df > 0:
        text += f" [{round(estimate.low, 2) + 0.0:+.2f}, {round(estimate.high, 2) + 0.0:+.2f}]"
    text = text.replace("-", "−")
    return bold(text) if estimate.separated else text


def _bold_if_separated(estimate: stats.Estimate) -> str:
    text = interval(estimate, sign=True)
    return bold(text) if estimate.separated else text
