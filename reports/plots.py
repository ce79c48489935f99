"""Drawing. Everything that is drawn was computed in `tables` and its neighbours; here only a line is smoothed.

Figures are made without pyplot, so nothing global is touched; files are the same to the last byte for the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from finetune_bench.reports.data import Data, Section
from finetune_bench.reports.looks import STYLE
from finetune_bench.reports.once import once
from finetune_bench.reports.plot_cost import draw_footprint, draw_memory, draw_time
from finetune_bench.reports.plot_ranks import draw_profile, draw_ranks
from finetune_bench.reports.plot_scores import draw_curves, draw_differences, draw_scores
from finetune_bench.reports.plot_stacks import draw_attribution, draw_compatibility, draw_hype_pairs, draw_synergies


@dataclass(frozen=True)
class Plot:
    """One plot of one section, as PNG and SVG.

    Attributes:
        kind: scores, differences, memory, ...: what `comparison` puts in its place.
        section: the section's position.
        link: the PNG, relative to the report's folder.
        alt: what it shows, for who can't see it.
    """

    kind: str
    section: int
    files: tuple[Path, Path]
    link: str
    alt: str


Drawing = Callable[[Data, Section], Figure | None]


@once
def draw(data: Data, folder: Path) -> tuple[Plot, ...]:
    """Draw whatever the rows allow, into `folder`."""
    kinds: dict[str, tuple[Drawing, str]] = {
        "scores": (draw_scores, "Scores: every seed as a dot, the mean and its interval"),
        "differences": (draw_differences, "Forest plot of the paired differences with intervals, on the noise floor"),
        "ranks": (draw_ranks, "Mean ranks over tasks with the critical difference"),
        "profile": (draw_profile, "Performance profiles: share of runs above each normalised score"),
        "attribution": (draw_attribution, "Effects of each method with intervals"),
        "memory": (draw_memory, "Peak memory against score, with the Pareto front"),
        "time": (draw_time, "Training time against score, with the Pareto front"),
        "footprint": (draw_footprint, "Memory per method: weights, gradients, optimiser and activations"),
        "compatibility": (draw_compatibility, "Heat map of the synergies of stacks"),
        "synergy": (draw_synergies, "Synergy of stacks with intervals"),
        "hype_pairs": (draw_hype_pairs, "Methods without and with HyPe"),
        "curves": (draw_curves, "Training loss of the task by step: mean over seeds, smoothed"),
    }
    plots = []
    with matplotlib.rc_context(STYLE):
        for number, section in enumerate(data.sections):
            for kind, (drawing, text) in kinds.items():
                figure = drawing(data, section)
                if figure is None:
                    continue
                name = kind if len(data.sections) == 1 else f"{kind}-{number + 1}"
                alt = f"{text}, {section.title}" if section.title else text
                files = _save(figure, folder, name)
                plots.append(Plot(kind, number, files, f"{folder.name}/{name}.png", alt))
    return tuple(plots)


def _save(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    figure.savefig(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # everything has its place now; finding it again is slow
    figure.savefig(svg, metadata={"Date": None})
    return png, svg
