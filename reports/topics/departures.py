"""From which step on a method's run departs from vanilla's, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Data, Row, Section


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


@once
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
