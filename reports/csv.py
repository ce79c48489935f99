"""The numbers of a report as CSV files, for whoever computes further; scores and differences in points (×100)."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from finetune_bench.report import Report
from finetune_bench.reports import tables
from finetune_bench.reports.data import load
from finetune_bench.store import Store


class Csv(Report):
    """rows.csv (every row, flat), comparison.csv, differences.csv, cost.csv, synergy.csv and collapsed.csv."""

    name = "csv"

    def write(self, store: Store, folder: Path) -> list[Path]:
        sections = load(store).sections
        differences = [
            one
            for section in sections
            for one in [
                *(tables.differences(section, section.baseline) if section.baseline else []),
                *tables.control_differences(section),
            ]
        ]
        frames = {
            "comparison": tables.as_frame(tables.Score, [one for s in sections for one in tables.scores(s)]),
            "differences": tables.as_frame(tables.Difference, differences),
            "cost": tables.as_frame(tables.Cost, [one for s in sections for one in tables.costs(s)]),
            "synergy": tables.as_frame(tables.Synergy, [one for s in sections for one in tables.synergies(s)]),
            "collapsed": tables.as_frame(tables.Collapsed, [one for s in sections for one in tables.collapsed(s)]),
            "rows": _flat(store.frame()),
        }
        paths = []
        for name, frame in frames.items():
            paths.append(folder / f"{name}.csv")
            frame.to_csv(paths[-1], index=False)
        return paths


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists as JSON, so that other readers than Python's can read them."""
    return frame.map(lambda value: json.dumps(value, ensure_ascii=False) if isinstance(value, list) else value)
