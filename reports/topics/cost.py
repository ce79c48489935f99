"""What methods cost in time and memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_bench.reports.document import Block, Entry, Paragraph, bullets, code, table
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Row, Section
from finetune_bench.stats import estimates as stats


@dataclass(frozen=True)
class Ratio:
    """Geometric mean of a cost over pairs of runs, relative to the baseline, and the range of the pairs."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Cost:
    """What a method costs; ratios are to the baseline, absolute numbers medians over its runs."""

    section: str
    method: str
    runs: int
    time: Ratio
    memory: Ratio
    activations: Ratio
    energy: Ratio
    seconds: float
    examples_per_second: float
    peak_memory_bytes: float
    energy_joules: float
    forwards_per_step: float
    backwards_per_step: float
    setup_seconds: float
    setup_forwards: float
    setup_backwards: float
    trainable_parameters: float
    parameters: float


@once
def costs(section: Section) -> list[Cost]:
    """What every method costs."""
    return [_cost(section, method) for method in section.methods]


def seconds(row: Row) -> float:
    """Training seconds: of the process on a CPU, where other processes compete for it, else of the wall clock."""
    name = "train_cpu_seconds" if str(row.get("device")).startswith("cpu") else "train_seconds"
    return number(row, name)


def number(row: Row, name: str) -> float:
    """A figure of a row's cost, NaN where there is none."""
    value = (row.get("cost") or {}).get(name)
    return math.nan if value is None else float(value)


def _cost(section: Section, method: str) -> Cost:
    rows = section.rows(method, status="done")

    def median(name: str) -> float:
        return _median([number(row, name) for row in rows])

    return Cost(
        section=section.title,
        method=method,
        runs=len(rows),
        time=_ratio(section, method, seconds),
        memory=_ratio(section, method, lambda row: number(row, "peak_memory_bytes")),
        activations=_ratio(section, method, lambda row: number(row, "saved_activation_bytes")),
        energy=_ratio(section, method, lambda row: number(row, "energy_joules")),
        seconds=_median([seconds(row) for row in rows]),
        **{name: median(name) for name in _MEDIANS},
    )


_MEDIANS = (
    "energy_joules",
    "examples_per_second",
    "peak_memory_bytes",
    "forwards_per_step",
    "backwards_per_step",
    "setup_seconds",
    "setup_forwards",
    "setup_backwards",
    "trainable_parameters",
    "parameters",
)


def _median(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.median(finite)) if finite else math.nan


def _ratio(section: Section, method: str, cost: Callable[[Row], float]) -> Ratio:
    if section.reference is None:
        return Ratio(math.nan, math.nan, math.nan, 0)
    pairs = [
        (cost(section.runs[method, task, seed]), cost(section.runs[section.reference, task, seed]))
        for task, seed in itertools.product(section.tasks, section.seeds)
        if section.paired(method, section.reference, task, seed)
    ]
    pairs = [pair for pair in pairs if pair[0] > 0 and pair[1] > 0]
    if not pairs:
        return Ratio(math.nan, math.nan, math.nan, 0)
    ratios = [own / other for own, other in pairs]
    value = stats.geometric_mean_ratio([own for own, _ in pairs], [other for _, other in pairs])
    return Ratio(value, min(ratios), max(ratios), len(pairs))


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Positions of the points that no cheaper or equally cheap one reaches, cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step, medians over a method's runs; weights are fp32, the optimiser is AdamW.

    Attributes:
        activations: what autograd saves for the backward pass.
        peak: as measured; NaN where it can't be.
    """

    section: str
    method: str
    weights: float
    gradients: float
    optimiser: float
    activations: float
    peak: float


def footprints(section: Section) -> list[Footprint]:
    """Of every method with a run."""
    found = []
    for method in section.methods:
        rows = section.rows(method, status="done")
        sizes = {
            name: _median([number(row, name) for row in rows])
            for name in ("parameters", "trainable_parameters", "saved_activation_bytes", "peak_memory_bytes")
        }
        weights, gradients = 4 * sizes["parameters"], 4 * sizes["trainable_parameters"]
        if math.isfinite(weights + gradients + sizes["saved_activation_bytes"]):
            activations, peak = sizes["saved_activation_bytes"], sizes["peak_memory_bytes"]
            found.append(Footprint(section.title, method, weights, gradients, 2 * gradients, activations, peak))
    return found


def _costs(section: Section) -> list[Block]:
    found = [cost for cost in costs(section) if cost.runs]
    if not found:
        return [Paragraph("No run ended well, so nothing was measured.")]
    joules = any(math.isfinite(cost.energy_joules) for cost in found)
    header = ["method", "time ×", "peak memory ×", "saved activations ×", *(["energy ×"] if joules else [])]
    header += ["train s", "examples/s", "peak MiB", *(["energy kJ"] if joules else [])]
    header += ["passes per step", "set-up s", "set-up passes", "trained parameters", "runs"]
    rows: list[list[str | Entry]] = [
        [
            code(cost.method),
            _ratio_entry(cost.time),
            _ratio_entry(cost.memory),
            _ratio_entry(cost.activations),
            *([_ratio_entry(cost.energy)] if joules else []),
            _figure(cost.seconds),
            _figure(cost.examples_per_second),
            _figure(cost.peak_memory_bytes / 2**20),
            *([_figure(cost.energy_joules / 1000)] if joules else []),
            f"{_figure(cost.forwards_per_step)} + {_figure(cost.backwards_per_step)}",
            _figure(cost.setup_seconds),
            f"{_figure(cost.setup_forwards)} + {_figure(cost.setup_backwards)}",
            _trained(cost.trainable_parameters, cost.parameters),
            str(cost.runs),
        ]
        for cost in found
    ]
    on_cpu = str(section.setting.get("device")).startswith("cpu")
    clock = "the process's own seconds" if on_cpu else "wall-clock seconds"
    notes = [
        f"×: geometric mean over (task, seed) pairs of the ratio to {code(section.reference or 'vanilla')}, in "
        "brackets the smallest and largest ratio of a pair, which is no interval; n pairs."
        if section.reference
        else "No ratios: vanilla with its default dropout is not in this run.",
        f"Absolute figures are medians over a method's runs, whatever their task. Time is {clock} of training, without "
        "evaluation; on a machine shared with others, trust the ratios of counts rather than of seconds.",
        "Passes: forwards + backwards, per step and for all of the set-up.",
        *(["Energy: the whole device's, by NVML, over set-up and training."] if joules else []),
    ]
    return [table("cost", header, rows), *bullets(notes)]


def _ratio_entry(ratio: Ratio) -> Entry:
    if ratio.n == 0:
        return Entry("—")
    return Entry(f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] n={ratio.n}", ratio.value)


def _figure(value: float) -> str:
    """Three digits that count."""
    if math.isnan(value):
        return "—"
    if 0 < value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _trained(trainable: float, total: float) -> str:
    if math.isnan(trainable):
        return "—"
    share = f" ({100 * trainable / total:.3g} %)" if total > 0 else ""
    return f"{_figure(trainable)}{share}"
