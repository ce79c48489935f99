"""The numbers of a report, as records and DataFrames, before any format: scores, differences, costs, synergies.

Scores and differences are in points (×100). The interval of a contrast between methods is built on the residual
variance of a complete method × seed block where there is one, and on the contrast's own seeds where there is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from finetune_bench.reports.rows.sections import Column
from finetune_bench.reports.topics.attribution import Attribution
from finetune_bench.reports.topics.cost import Ratio
from finetune_bench.stats.estimates import Estimate

# --- scores -----------------------------------------------------------------------------------------------------------


def labels_of(record: Any) -> list[str]:
    """The methods whose runs a score, difference, effect or synergy rests on."""
    if isinstance(record, Attribution):  # of one step between two runs, not of the whole method
        return [record.run, record.against]
    names = ("method", "reference", "first", "second", "baseline")
    return [getattr(record, name) for name in names if hasattr(record, name)]


# --- differences ------------------------------------------------------------------------------------------------------


# --- where a gain comes from ------------------------------------------------------------------------------------------


# --- cost -------------------------------------------------------------------------------------------------------------


# --- compatibility ----------------------------------------------------------------------------------------------------


# --- what is odd about runs -------------------------------------------------------------------------------------------


# --- DataFrames -------------------------------------------------------------------------------------------------------

_ESTIMATE = ("value", "low", "high", "n", "df", "standard_error")
_RATIO = ("value", "low", "high", "n")


def as_frame(kind: type[Any], records: Sequence[Any]) -> pd.DataFrame:
    """Records of one kind as a table; estimates and ratios are spread over several columns, named by what they hold."""
    return pd.DataFrame([_spread(record) for record in records], columns=_header(kind))


def _header(kind: type[Any]) -> list[str]:
    names: list[str] = []
    for field in dataclasses.fields(kind):
        if field.type == "Column":
            names += ["task", "split", "metric"]
        elif field.type == "Estimate":
            names += [_prefix(field.name) + name for name in _ESTIMATE]
        elif field.type == "Ratio":
            names += [f"{field.name}_ratio_{name}" for name in _RATIO]
        else:
            names.append(field.name)
    return names


def _spread(record: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Column):
            result |= {"task": value.task or "(suite)", "split": "+".join(value.splits), "metric": value.metric}
        elif isinstance(value, Estimate):
            result |= {_prefix(field.name) + name: getattr(value, name) for name in _ESTIMATE}
        elif isinstance(value, Ratio):
            result |= {f"{field.name}_ratio_{name}": getattr(value, name) for name in _RATIO}
        elif isinstance(value, tuple):
            result[field.name] = "; ".join(value)
        else:
            result[field.name] = value
    return result


def _prefix(name: str) -> str:
    return "" if name == "estimate" else f"{name}_"
