"""Make the documents of `report`, `power` and `compare` from the records that their tables show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_bench.files import Damaged
    from finetune_bench.report import Options
    from finetune_bench.reports.power import Power
    from finetune_bench.reports.rows.sections import Column, Section
    from finetune_bench.reports.runs import Comparison
    from finetune_bench.stats.estimates import Estimate
    from finetune_bench.store.store import Store

_COUNTS = ("done", "failed", "skipped", "interrupted", "collapsed")


def report_values(store: Store, options: Options, written: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Return a `ReportDocument`'s own keys.

    Args:
        store: the run.
        options: what the reader asked for.
        written: the files by format.
    """
    from finetune_bench.reports.rows.load import load
    from finetune_bench.reports.topics.search import all_sections, searches
    from finetune_bench.reports.topics.search_warnings import warnings_of_searches

    data = load(store, options)
    return {
        "folder": str(store.root),
        "files": {name: [str(path) for path in paths] for name, paths in written.items()},
        "notes": [*data.notes, *warnings_of_searches(data, searches(data))],
        "damaged": reasons(data.damaged),
        "sections": [_section(section) for section in all_sections(data)],
    }


def _section(section: Section) -> dict[str, Any]:
    from finetune_bench.reports.answer import headline, warnings
    from finetune_bench.reports.topics.differences import reference_differences
    from finetune_bench.reports.topics.scores import scores

    return {
        "title": section.title,
        "setting": section.setting,
        "answer": headline(section),
        "warnings": warnings(section),
        "methods": section.methods,
        "tasks": section.tasks,
        "seeds": section.seeds,
        "scores": [
            {"method": score.method, **_column(score.column), **_interval(score.estimate)}
            | {name: getattr(score, name) for name in _COUNTS}
            for score in scores(section)
        ],
        "differences": [
            {"method": difference.method, "reference": difference.reference, "question": difference.question}
            | {**_column(difference.column), **_interval(difference.estimate)}
            | {"detectable": difference.detectable, "p": difference.p, "is_clear": difference.estimate.separated}
            for difference in reference_differences(section)
        ],
    }


def power_values(store: Store, lines: Sequence[Power], difference: float, power: float) -> dict[str, Any]:
    """Return a `PowerDocument`'s own keys.

    Args:
        store: the pilot run.
        lines: what was computed.
        difference: the difference that was asked for, in points.
        power: how surely it is to be found.
    """
    from finetune_bench.reports.rows.load import load

    data = load(store)
    return {
        "folder": str(store.root),
        "difference": difference,
        "power": power,
        "notes": list(data.notes),
        "damaged": reasons(data.damaged),
        "differences": [
            {"section": line.section, "method": line.method, **_column(line.column), "sd": line.sd, "pairs": line.n}
            | {"detectable": line.detectable, "seeds": line.seeds}
            for line in lines
        ],
    }


def compare_values(folders: Sequence[Path], comparison: Comparison) -> dict[str, Any]:
    """Return a `CompareDocument`'s own keys."""
    return {
        "folders": [str(folder) for folder in folders],
        "notes": comparison.notes,
        "damaged": [reasons(damaged) for damaged in comparison.damaged],
        "compared": [
            {name: getattr(line, name) for name in ("method", "task", "both", "equal", "unpaired")}
            | {"difference": _interval(line.difference)}
            for line in comparison.lines
        ],
    }


def reasons(damaged: Mapping[str, Damaged]) -> dict[str, str]:
    """Return why what is damaged can't be read, by name of its folder or file."""
    return {name: error.reason for name, error in sorted(damaged.items())}


def _column(column: Column) -> dict[str, str]:
    return {"task": column.task, "split": "+".join(column.splits), "metric": column.metric}


def _interval(estimate: Estimate) -> dict[str, float]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n", "df")}
