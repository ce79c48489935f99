"""The numbers of a report as CSV files, for whoever computes further; scores and differences in points (×100)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from finetune_bench.files import replacing
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Column, Data
from finetune_bench.reports.topics import TOPICS
from finetune_bench.reports.topics.contrasts import cell_ids
from finetune_bench.reports.topics.cost import Ratio
from finetune_bench.reports.topics.divergence import Divergence, divergences
from finetune_bench.reports.topics.search import all_sections
from finetune_bench.reports.topics.topic import Frame
from finetune_bench.stats.estimates import Estimate
from finetune_bench.store.store import Store

_ESTIMATE = ("value", "low", "high", "n", "df", "standard_error")
_RATIO = ("value", "low", "high", "n")


# What a spreadsheet takes for the beginning of a formula; the last is the mark itself.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠", "'")


class Csv(Report):
    """The tables as CSV, and every row as rows.csv and rows.parquet.

    The column `cells` of a table holds the ids of the runs behind each line; `finetune-bench show ID` opens one. In CSV
    files, a text that a spreadsheet would take for a formula has `'` before it: one `'` at the beginning of a cell, or
    of a column's name, is to be taken away again by whoever reads it elsewhere.
    """

    name = "csv"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write a CSV file for every topic that has a frame, and all rows."""
        data = load(store, options)
        frames = {topic.frame.file: _frame(data, topic.frame) for topic in TOPICS if topic.frame is not None}
        frames["rows"] = _rows(data)
        paths = []
        for name, frame in frames.items():
            paths.append(folder / f"{name}.csv")
            with replacing(paths[-1]) as temporary:
                as_texts(frame).to_csv(temporary, index=False)
        paths.append(folder / "rows.parquet")
        with replacing(paths[-1]) as temporary:
            frames["rows"].to_parquet(temporary, index=False)
        return paths


def as_texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table of whose texts a spreadsheet computes none; numbers, also such as -1.5, stay what they are."""
    marked: pd.DataFrame = frame.apply(lambda column: column if _is_numbers(column) else column.map(_as_text))
    marked.columns = pd.Index([_as_text(name) for name in frame.columns])
    return marked


def _is_numbers(column: pd.Series) -> bool:
    """Return whether a column has a type of numbers, so that none of its values needs to be looked at."""
    return column.dtype.kind in "biuf"


def _as_text(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


# --- the records of a topic -------------------------------------------------------------------------------------------


def _frame(data: Data, frame: Frame) -> pd.DataFrame:
    """Return the records of all sections, with the ids of the runs that each rests on if the frame asks for them."""
    records = [(section, record) for section in all_sections(data) for record in frame.records(data, section)]
    table = as_frame(frame.record, [record for _, record in records])
    if frame.methods is not None:
        table["cells"] = [
            " ".join(cell_ids(section, frame.methods(record), record.column)) for section, record in records
        ]
    return table


def as_frame(kind: type[Any], records: Sequence[Any]) -> pd.DataFrame:
    """Return records of one dataclass as a table.

    Estimates and ratios are spread over several columns, which are named by what they hold.
    """
    return pd.DataFrame([_line(record) for record in records], columns=_columns(kind))


def _columns(kind: type[Any]) -> list[str]:
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


def _line(record: Any) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Column):
            line |= {"task": value.task or "(suite)", "split": "+".join(value.splits), "metric": value.metric}
        elif isinstance(value, Estimate):
            line |= {_prefix(field.name) + name: getattr(value, name) for name in _ESTIMATE}
        elif isinstance(value, Ratio):
            line |= {f"{field.name}_ratio_{name}": getattr(value, name) for name in _RATIO}
        elif isinstance(value, tuple):
            line[field.name] = "; ".join(value)
        else:
            line[field.name] = value
    return line


def _prefix(name: str) -> str:
    return "" if name == "estimate" else f"{name}_"


# --- all rows ---------------------------------------------------------------------------------------------------------


def _rows(data: Data) -> pd.DataFrame:
    """Return every row of the store, with how far the run diverged from its vanilla twin, where it has one."""
    rows = pd.json_normalize([dict(row) for row in data.stored])
    diverged = [divergence for section in data.sections for divergence in divergences(data, section)]
    if diverged:
        rows = rows.merge(pd.DataFrame(map(_divergence_columns, diverged)), on="id", how="left")
    return _flat(rows)


def _divergence_columns(divergence: Divergence) -> dict[str, Any]:
    names = ("twin", "loss_step", "loss", "weights_step", "weights")
    return {"id": divergence.id} | {f"departure.{name}": getattr(divergence, name) for name in names}


def _as_json(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Write lists and tables as JSON, so that other readers than Python's can read them, and give a column one type."""
    frame = frame.apply(lambda column: column if _is_numbers(column) else column.map(_as_json))
    for name in frame.columns:
        if frame[name].dtype == "object" and len({type(value) for value in frame[name].dropna()}) > 1:
            frame[name] = [None if pd.isna(value) else str(value) for value in frame[name]]
    return frame
