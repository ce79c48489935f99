"""The summary ends a run on the terminal: it has the answer, a table of differences with costs, and what failed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from types import MappingProxyType

from tabulate import tabulate

from finetune_bench.printable import brief
from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.answer import Answer, answers, edge_of_rates, headline, warnings
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.text import INTERVAL, interval
from finetune_bench.reports.topics.cost import Ratio
from finetune_bench.reports.topics.differences import reference_differences
from finetune_bench.reports.topics.scores import by_column, score_text, scores
from finetune_bench.reports.topics.search import Search, passed_over_of, searches, ties_of
from finetune_bench.reports.topics.search_warnings import warnings_of_searches
from finetune_bench.spec import short_names
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store

WIDTH = 100  # columns that tables and sentences keep within where nobody says how wide a terminal is
LONGEST_NAME = 30  # characters of a method, in lines
SHORTEST_NAME = 16  # characters that a method has at least, in tables
LONGEST_RUNS = 24  # characters of what became of a method's runs
# Columns that a narrow terminal has no room for, the first to go first; then the last that a table has.
LEAST_IMPORTANT = ("memory", "runs", "time", "score")
MOST_FAILED = 5  # runs that are named; the others are counted


def summary(store: Store, options: Options = DEFAULT, width: int = WIDTH) -> str:
    """Return what a run came to, as plain text: a verdict and a table for each model, learning rate and search.

    Args:
        store: the run's rows.
        options: what the report covers.
        width: columns of the terminal.
    """
    data = load(store, options)
    if not data.rows:
        return "\n\n".join(["Nothing has been run yet.", *data.notes])
    found = searches(data)
    names = short_names([str(row["task"]) for row in data.rows])
    longer = {task: name for task, name in names.items() if task != name}
    sentences = [*edge_of_rates(data.sections), *warnings_of_searches(data, found)]
    parts = [_filled(_shortened(text, longer), width) for text in sentences]
    for section in data.sections:
        parts += _section_parts(data, section, width, longer)
    for search in found:
        if search.section is not None:
            parts += [*_section_parts(data, search.section, width, longer), *_choices(search, width, longer)]
    notes = [f"{name}: {brief(task, width - len(name) - 2)}" for task, name in longer.items()]
    told = [_filled(text, width) for text in data.notes]
    return "\n\n".join([*parts, *notes, *_failures(data, names, width), *told])


def score_table(section: Section, width: int = WIDTH, longer: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the scores of a section as plain text.

    Args:
        section: whose runs they are of.
        width: columns of the terminal.
        longer: short names of tasks, by the names that are too long.
    """
    columns, cells = by_column(scores(section))
    rows = [[method, *(score_text(cells[column, method]) for column in columns)] for method in section.methods]
    return _fitting(["method", *(_shortened(column.title, longer) for column in columns)], rows, width)


def _section_parts(data: Data, section: Section, width: int, longer: Mapping[str, str]) -> list[str]:
    title = [section.title] if section.title else []
    told = [*warnings(section), *headline(section)]
    parts = [_filled(_shortened(text, longer), width) for text in [*title, *told]]
    if not reference_differences(section):
        return [*parts, score_table(section, width, longer), _filled(f"Mean score × 100. {INTERVAL}", width)]
    return [*parts, _difference_table(section, answers(section, data.options.margin), width)]


def _difference_table(section: Section, told: list[Answer], width: int) -> str:
    header = ["method", "difference", "verdict", "time", "memory", "runs"]
    rows = [
        [
            answer.difference.method,
            interval(answer.difference.estimate, sign=True) if answer.difference.estimate.n else "—",
            answer.word,
            _times(answer.cost.time),
            _times(answer.cost.memory),
            brief(_runs(section, answer.difference.method), LONGEST_RUNS),
        ]
        for answer in told
    ]
    reference = brief(str(section.reference), LONGEST_NAME)
    legend = (
        f"Differences in points over {reference}, mean of pairs of runs; brackets: 95 % interval for new seeds; time "
        f"and memory: times those of {reference}."
    )
    return f"{_fitting(header, rows, width)}\n{_filled(legend, width)}"


def _runs(section: Section, method: str) -> str:
    """Return how many runs of a method are done, and how many aren't or learned nothing."""
    rows = section.rows(method)
    done = [row for row in rows if row["status"] == Status.DONE]
    counts = {"collapsed": sum(bool(row.get("collapsed")) for row in done)}
    counts |= {str(status): sum(row["status"] == status for row in rows) for status in Status if status != Status.DONE}
    return ", ".join([f"{len(done)}", *(f"{count} {name}" for name, count in counts.items() if count)])


def _choices(search: Search, width: int, longer: Mapping[str, str]) -> list[str]:
    """Return which setting a search chose for each method and task."""
    rows = [
        [
            brief(choice.method, LONGEST_NAME),
            _shortened(choice.column.title, longer),
            f"{brief(choice.honest[0], LONGEST_NAME)} at {choice.honest[1]:g}",
            interval(choice.honest_score),
        ]
        for choice in search.choices
    ]
    table = _fitting(["method", "score", "chosen on held-out data", "its score"], rows, width)
    return [table, *(_filled(_shortened(text, longer), width) for text in [*ties_of(search), *passed_over_of(search)])]


def _failures(data: Data, names: Mapping[str, str], width: int) -> list[str]:
    """Return the failed runs with the files that say more."""
    failed = [row for row in data.rows if row["status"] == Status.FAILED]
    lines = []
    for row in failed[:MOST_FAILED]:
        log = data.store.folder(row["id"]) / "log.txt"
        name = f"{brief(row['method'], LONGEST_NAME)} · {names[row['task']]} · seed {row['seed']}"
        reason = brief(f"failed: {name}: {row['reason']}", 3 * width)
        lines.append(textwrap.fill(reason, width, subsequent_indent=" " * 8))
        lines += [f"        {log}"] if log.is_file() else []
    if len(failed) > MOST_FAILED:
        lines.append(f"{len(failed) - MOST_FAILED} more failed; the report has all of them.")
    return ["\n".join(lines)] if lines else []


def _times(ratio: Ratio) -> str:
    return f"{ratio.value:.1f}×" if ratio.n else "—"


def _fitting(header: list[str], rows: list[list[str]], width: int) -> str:
    """Write a table that fits the width, its first column cut and whole columns left out where it has to be.

    The last line names what was left out. The second column stays, whatever its width.
    """
    kept = list(range(len(header)))
    while len(kept) > 2 and _room(header, rows, kept, width) < min(SHORTEST_NAME, _longest(header, rows, 0)):
        droppable = [index for name in LEAST_IMPORTANT for index in kept[2:] if header[index] == name]
        kept.remove((droppable or kept[-1:])[0])
    room = max(SHORTEST_NAME, _room(header, rows, kept, width))
    names = _distinct([row[0] for row in rows], room)
    texts = [[name, *(row[index] for index in kept[1:])] for name, row in zip(names, rows, strict=True)]
    table = tabulate(texts, [header[index] for index in kept], tablefmt="simple", disable_numparse=True)
    left_out = [name for index, name in enumerate(header) if index not in kept]
    if not left_out:
        return table
    named = brief(", ".join(left_out), 2 * width)
    return f"{table}\n{_filled(f'Left out, for want of room: {named}; the report has all columns.', width)}"


def _distinct(names: list[str], room: int) -> list[str]:
    """Cut names to so many characters; those that would be alike lose their common beginning."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(brief(name, room), []).append(name)
    cut = []
    for name in names:
        shown = brief(name, room)
        if len(set(alike[shown])) > 1:
            common = next(i for i in range(len(name)) if len({other[: i + 1] for other in alike[shown]}) > 1)
            shown = brief(f"…{name[common:]}", room)
        cut.append(shown)
    return cut


def _room(header: list[str], rows: list[list[str]], kept: list[int], width: int) -> int:
    """Return how many characters the other columns that are kept leave for the first."""
    # tabulate separates columns by two, and gives each two more than its header.
    return width - sum(2 + _longest(header, rows, index) for index in kept[1:])


def _longest(header: list[str], rows: list[list[str]], index: int) -> int:
    return max([len(header[index]) + 2, *(len(row[index]) for row in rows)])


def _shortened(text: str, longer: Mapping[str, str]) -> str:
    """Return a text with the short names of tasks."""
    for task in sorted(longer, key=len, reverse=True):
        text = text.replace(task, longer[task])
    return text


def _filled(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
