"""If a method does anything, its runs diverge from vanilla's: the divergence has a first step and a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Entry, bullets, code, table
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.topic import Topic, TopicBlock
from finetune_bench.store.row import Row, Status


@dataclass(frozen=True)
class Divergence:
    """A divergence says how far a run is from vanilla with the same dropout, the same head and the same examples.

    Attributes:
        section: Title of the section.
        method: Label of the run.
        twin: Label of the vanilla run.
        task: Their task.
        seed: Their seed.
        id: Id of the run.
        loss_step: First step whose loss differs, from 1; NaN where none does.
        loss: Mean over steps of the absolute difference of the losses.
        weights_step: First step after which the weights are known to differ, recorded at ten steps; NaN for never.
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


@cached
def divergences(data: Data, section: Section) -> list[Divergence]:
    """Return the divergence of every run that has a vanilla twin, of all methods but the baseline.

    Runs that were chosen at other learning rates differ by these alone, which tells nothing of a method.
    """
    rates = {row["id"]: row["recipe"].get("lr") for row in data.stored}
    result = []
    for method in section.methods:
        twin = section.control(method) or section.baseline
        if twin is None or method == section.baseline or section.dropout(method) != section.dropout(twin):
            continue
        for row in section.rows(method, status=Status.DONE):
            if section.paired(method, twin, row["task"], row["seed"]):
                vanilla = section.runs[twin, row["task"], row["seed"]]
                is_alike = rates.get(row["id"]) == rates.get(vanilla["id"])
                if is_alike and (divergence := _divergence(data, section, row, vanilla)) is not None:
                    result.append(divergence)
    return result


def _divergence(data: Data, section: Section, row: Row, vanilla: Row) -> Divergence | None:
    """Return how far two runs are apart; None where their traces can't be compared."""
    trace, vanilla_trace = data.trace(row), data.trace(vanilla)
    for name in ("loss", "sketch"):
        if name not in trace or name not in vanilla_trace or trace[name].shape != vanilla_trace[name].shape:
            return None
    loss_differs = trace["loss"] != vanilla_trace["loss"]
    weights_differ = (trace["sketch"] != vanilla_trace["sketch"]).any(axis=1)
    scored, vanilla_scored = (
        recorded.get("scored_sketch", recorded["sketch"][-1]) for recorded in (trace, vanilla_trace)
    )
    return Divergence(
        section=section.title,
        method=row["method"],
        twin=vanilla["method"],
        task=row["task"],
        seed=row["seed"],
        id=row["id"],
        loss_step=float(np.argmax(loss_differs)) + 1 if loss_differs.any() else math.nan,
        loss=float(np.abs(trace["loss"].astype(np.float64) - vanilla_trace["loss"]).mean()),
        weights_step=float(trace["sketch_steps"][np.argmax(weights_differ)]) if weights_differ.any() else math.nan,
        weights=float(np.linalg.norm(scored.astype(np.float64) - vanilla_scored)),
    )


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    of_all = divergences(data, section)
    if not of_all:
        return []
    rows: list[list[str | Entry]] = []
    groups: dict[tuple[str, str], list[Divergence]] = {}
    for run in of_all:
        groups.setdefault((run.method, run.twin), []).append(run)
    for (method, twin), runs in groups.items():
        ids = tuple(run.id for run in runs)
        never = sum(math.isnan(run.loss_step) and run.weights == 0 for run in runs)
        rows.append(
            [
                code(method),
                code(twin),
                _step([run.loss_step for run in runs], ids),
                _median([run.loss for run in runs], ids),
                _step([run.weights_step for run in runs], ids),
                _median([run.weights for run in runs], ids),
                Entry(str(len(runs)), len(runs), ids),
                f"{never}" if never else "",
            ]
        )
    header = ("method", "held against", "loss from step", "Δ loss", "weights from step", "Δ weights", "runs", "never")
    note = (
        "How far and from which step each run departed from vanilla with the same dropout, head and examples: medians "
        "over runs. Δ loss: mean over steps of the absolute difference. Δ weights: Euclidean distance of the weights "
        "that were scored, estimated from sketches; they are recorded at ten steps. A departure says that a method "
        "acts, not that it helps: rounding alone grows to one in time. An average of the weights departs in what is "
        "scored only. “(no effect)” stands behind a method of which every run equals vanilla's, or that of a part of "
        "its stack."
    )
    return [table("departure", header, rows, in_paper=False), *bullets([note])]


def _step(steps: Sequence[float], runs: tuple[str, ...]) -> Entry:
    known = [step for step in steps if not math.isnan(step)]
    return Entry(f"{np.median(known):g}", float(np.median(known)), runs) if known else Entry("never", math.inf, runs)


def _median(values: Sequence[float], runs: tuple[str, ...]) -> Entry:
    return Entry(f"{np.median(values):.2g}", float(np.median(values)), runs)


# The records are columns of the CSV file of all rows.
TOPIC = Topic(title="Does each method act?", blocks=_blocks)
