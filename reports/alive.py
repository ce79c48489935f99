"""Whether a method does anything: where its runs depart from vanilla's, and the mark of those that never do."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports import data as rows_of
from finetune_bench.reports import tables
from finetune_bench.reports.data import NO_EFFECT, Data, Row, Section
from finetune_bench.store import Store


@dataclass(frozen=True)
class Departure:
    """How far a run departed from vanilla with the same dropout, the same head and the same examples.

    Attributes:
        twin: label of the vanilla run.
        loss_step: first step whose loss differs, from 1; NaN where none does.
        loss: mean over steps of |difference of the losses|.
        weights_step: first step after which the weights are known to differ; they are recorded at ten; NaN for never.
        weights: Euclidean distance of the weights that were scored, estimated from the sketches of 64 numbers.
    """

    section: str
    method: str
    twin: str
    task: str
    seed: int
    id: str
    loss_step: float
    loss: float
    weights_step: float
    weights: float


def load(store: Store) -> Data:
    """A store's rows in sections; methods of which no run departed are called so in their label, in every table."""
    data = rows_of.load(store)
    inert: set[str] = set()
    for section in data.sections:
        equal = Counter(twin.method for twin in tables.twins(data, section))
        for method in section.methods:
            done = section.rows(method, status="done")
            if done and equal[method] == len(done):
                inert |= {row["id"] for row in section.rows(method)}
    if not inert:
        return data
    rows = [row | {"method": row["method"] + NO_EFFECT} if row["id"] in inert else row for row in data.rows]
    return dataclasses.replace(data, rows=rows, sections=rows_of.sort(rows, data.study))


def departures(data: Data, section: Section) -> list[Departure]:
    """Every run that has a vanilla twin, of all methods but the baseline."""
    found = []
    for method in section.methods:
        twin = section.control(method) or section.baseline
        if twin is None or method == section.baseline or section.dropout(method) != section.dropout(twin):
            continue
        for row in section.rows(method, status="done"):
            if section.paired(method, twin, row["task"], row["seed"]):
                other = section.runs[twin, row["task"], row["seed"]]
                if (one := _departure(data, section, row, other)) is not None:
                    found.append(one)
    return found


def _departure(data: Data, section: Section, row: Row, other: Row) -> Departure | None:
    own, plain = data.trace(row), data.trace(other)
    if not all("loss" in trace and "sketch" in trace for trace in (own, plain)):
        return None
    if own["loss"].shape != plain["loss"].shape or own["sketch"].shape != plain["sketch"].shape:
        return None
    apart = own["loss"] != plain["loss"]
    moved = (own["sketch"] != plain["sketch"]).any(axis=1)
    scored, plain_scored = (trace.get("scored_sketch", trace["sketch"][-1]) for trace in (own, plain))
    return Departure(
        section=section.title,
        method=row["method"],
        twin=other["method"],
        task=row["task"],
        seed=row["seed"],
        id=row["id"],
        loss_step=float(np.argmax(apart)) + 1 if apart.any() else math.nan,
        loss=float(np.abs(own["loss"].astype(np.float64) - plain["loss"]).mean()),
        weights_step=float(own["sketch_steps"][np.argmax(moved)]) if moved.any() else math.nan,
        weights=float(np.linalg.norm(scored.astype(np.float64) - plain_scored)),
    )
