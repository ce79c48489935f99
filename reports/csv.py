"""The numbers of a report as CSV files, for whoever computes further; scores and differences in points (×100)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.topics.attribution import Attribution, attributions
from finetune_bench.reports.topics.contrasts import cell_ids
from finetune_bench.reports.topics.cost import Cost, costs
from finetune_bench.reports.topics.departures import Departure, departures
from finetune_bench.reports.topics.differences import Difference, control_differences, differences
from finetune_bench.reports.topics.frames import as_frame, labels_of
from finetune_bench.reports.topics.scores import Collapsed, Score, collapsed, scores
from finetune_bench.reports.topics.synergy import Synergy, synergies
from finetune_bench.store.store import Store


class Csv(Report):
    """The tables as CSV, and every row as rows.csv and rows.parquet.

    The column `cells` of a table holds the ids of the runs behind each line; `finetune-bench show ID` opens one.
    """

    name = "csv"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        data = load(store, options)
        sections = data.sections
        departed = [one for section in sections for one in departures(data, section)]
        split = [one for section in sections for one in attributions(data, section)]
        compared = [
            one
            for section in sections
            for one in [
                *(differences(section, section.reference) if section.reference else []),
                *control_differences(section),
            ]
        ]
        frames = {
            "comparison": _with_cells(data, Score, [one for s in sections for one in scores(s)]),
            "differences": _with_cells(data, Difference, compared),
            "cost": as_frame(Cost, [one for s in sections for one in costs(s)]),
            "synergy": _with_cells(data, Synergy, [one for s in sections for one in synergies(s)]),
            "collapsed": as_frame(Collapsed, [one for s in sections for one in collapsed(s)]),
            "attribution": _with_cells(data, Attribution, split),
            "rows": _flat(_with_departures(pd.json_normalize(data.stored), departed)),
        }
        paths = []
        for name, frame in frames.items():
            paths.append(folder / f"{name}.csv")
            frame.to_csv(paths[-1], index=False)
        paths.append(folder / "rows.parquet")
        frames["rows"].to_parquet(paths[-1], index=False)
        return paths


def _with_cells(data: Data, kind: type[Any], records: Sequence[Any]) -> pd.DataFrame:
    """Records with the ids of the runs that each rests on."""
    sections = {section.title: section for section in data.sections}
    frame = as_frame(kind, records)
    frame["cells"] = [" ".join(cell_ids(sections[one.section], labels_of(one), one.column)) for one in records]
    return frame


def _with_departures(rows: pd.DataFrame, departed: list[Departure]) -> pd.DataFrame:
    """Every row with how far it departed from its vanilla twin, where it has one."""
    if not departed:
        return rows
    names = ("twin", "loss_step", "loss", "weights_step", "weights")
    found = pd.DataFrame(
        [{"id": one.id} | {f"departure.{name}": getattr(one, name) for name in names} for one in departed]
    )
    return rows.merge(found, on="id", how="left")


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists and tables as JSON, so that other readers than Python's can read them; a column has one type."""
    frame = frame.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)
    for name in frame.columns:
        if frame[name].dtype == "object" and len({type(value) for value in frame[name].dropna()}) > 1:
            frame[name] = [None if pd.isna(value) else str(value) for value in frame[name]]
    return frame
