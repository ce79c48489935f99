"""The summary ends a run on the terminal: it has the answer, a table of differences with costs, and what failed."""

from __future__ import annotations

import textwrap

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
from finetune_bench.reports.topics.search import Search, edge_of_search, searches
from finetune_bench.spec import short_names
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store

WIDTH = 100  # columns that a table and its sentences keep within
LONGEST_NAME = 30  # characters of a method, in lines
SHORTEST_NAME = 16  # characters that a method has at least, in tables
LONGEST_RUNS = 24  # characters of what became of a method's runs
MOST_FAILED = 5  # runs that are named; the others are counted


def summary(store: Store, options: Options = DEFAULT) -> str:
    """Return what a run came to, as plain text: a verdict and a table for each model, learning rate and search."""
    data = load(store, options)
    if not data.rows:
        return "\n\n".join(["Nothing has been run yet.", *data.notes])
    found = searches(data)
    parts = [_filled(text) for text in [*edge_of_rates(data.sections), *edge_of_search(found)]]
    for section in data.sections:
        parts += _section_parts(data, section)
    for search in found:
        parts += [*_section_parts(data, search.section), *_choices(search)]
    text = "\n\n".join(parts)
    names = short_names([str(row["task"]) for row in data.rows])
    longer = {task: name for task, name in names.items() if task != name}
    for task in sorted(longer, key=len, reverse=True):
        text = text.replace(task, longer[task])
    notes = [f"{name}: {brief(task, WIDTH - len(name) - 2)}" for task, name in longer.items()]
    return "\n\n".join([text, *notes, *_failures(data), *map(_filled, data.notes)])


def score_table(section: Section) -> str:
    """Return the scores of a section as plain text."""
    columns, cells = by_column(scores(section))
    rows = [[method, *(score_text(cells[column, method]) for column in columns)] for method in section.methods]
    return _table(["method", *(column.title for column in columns)], rows)


def _section_parts(data: Data, section: Section) -> list[str]:
    title = [section.title] if section.title else []
    sentences = [_filled(text) for text in [*warnings(section), *headline(section)]]
    if not reference_differences(section):
        return [*title, *sentences, score_table(section), _filled(f"Mean score × 100. {INTERVAL}")]
    return [*title, *sentences, _difference_table(section, answers(section, data.options.margin))]


def _difference_table(section: Section, told: list[Answer]) -> str:
    header = ["difference", "verdict", "time", "memory", "runs"]
    rows = [
        [
            interval(answer.difference.estimate, sign=True) if answer.difference.estimate.n else "—",
            answer.word,
            _times(answer.cost.time),
            _times(answer.cost.memory),
            brief(_runs(section, answer.difference.method), LONGEST_RUNS),
        ]
        for answer in told
    ]
    # The names get the room that the others leave; tabulate gives every column two more than its header.
    columns = [[f"{head}  ", *texts] for head, *texts in zip(header, *rows, strict=True)]
    others = sum(2 + max(map(len, column)) for column in columns)
    room = max(SHORTEST_NAME, WIDTH - others)
    named = [[brief(answer.difference.method, room), *row] for answer, row in zip(told, rows, strict=True)]
    reference = brief(str(section.reference), LONGEST_NAME)
    legend = (
        f"Differences in points over {reference}, mean of pairs of runs; brackets: 95 % interval for new seeds; time "
        f"and memory: times those of {reference}."
    )
    return f"{_table(['method', *header], named)}\n{_filled(legend)}"


def _runs(section: Section, method: str) -> str:
    """Return how many runs of a method are done, and how many aren't or learned nothing."""
    rows = section.rows(method)
    done = [row for row in rows if row["status"] == Status.DONE]
    counts = {"collapsed": sum(bool(row.get("collapsed")) for row in done)}
    counts |= {str(status): sum(row["status"] == status for row in rows) for status in Status if status != Status.DONE}
    return ", ".join([f"{len(done)}", *(f"{count} {name}" for name, count in counts.items() if count)])


def _choices(search: Search) -> list[str]:
    """Return which setting a search chose for each method and task."""
    rows = [
        [
            brief(choice.method, LONGEST_NAME),
            choice.column.title,
            f"{brief(choice.honest[0], LONGEST_NAME)} at {choice.honest[1]:g}",
            interval(choice.honest_score),
        ]
        for choice in search.choices
    ]
    return [_table(["method", "score", "chosen on held-out data", "its score"], rows)] if rows else []


def _failures(data: Data) -> list[str]:
    """Return the failed runs with the files that say more."""
    failed = [row for row in data.rows if row["status"] == Status.FAILED]
    lines = []
    names = short_names([str(row["task"]) for row in data.rows])
    for row in failed[:MOST_FAILED]:
        log = data.store.folder(row["id"]) / "log.txt"
        name = f"{brief(row['method'], LONGEST_NAME)} · {names[row['task']]} · seed {row['seed']}"
        reason = brief(f"failed: {name}: {row['reason']}", 3 * WIDTH)
        lines.append(textwrap.fill(reason, WIDTH, subsequent_indent=" " * 8))
        lines += [f"        {log}"] if log.is_file() else []
    if len(failed) > MOST_FAILED:
        lines.append(f"{len(failed) - MOST_FAILED} more failed; the report has all of them.")
    return ["\n".join(lines)] if lines else []


def _times(ratio: Ratio) -> str:
    return f"{ratio.value:.1f}×" if ratio.n else "—"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, header, tablefmt="simple", disable_numparse=True)


def _filled(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
