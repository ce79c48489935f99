"""Drawing. Everything that is drawn was computed in `tables` and its neighbours; here only a line is smoothed.

Figures are made without pyplot, so nothing global is touched; files are the same to the last byte for the same rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from finetune_bench.reports.document import Plot
from finetune_bench.reports.plots.cost import draw_footprint, draw_memory, draw_time
from finetune_bench.reports.plots.dose import draw_dose
from finetune_bench.reports.plots.looks import STYLE
from finetune_bench.reports.plots.ranks import draw_profile, draw_ranks
from finetune_bench.reports.plots.scores import draw_curves, draw_differences, draw_scores
from finetune_bench.reports.plots.stacks import draw_attribution, draw_compatibility, draw_hype_pairs, draw_synergies
from finetune_bench.reports.rows.once import once
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.dose import dose_frame, dose_studies

_NO_DATE: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
Drawing = Callable[[Data, Section], Figure | None]


_KINDS: dict[str, tuple[Drawing, str]] = {
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


@once
def draw(data: Data, folder: Path, ending: str = "svg") -> tuple[Plot, ...]:
    """Draw whatever the rows allow.

    Args:
        folder: made where it is missing.
        ending: svg, or pdf for LaTeX.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = []
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box is drawn in its place
        for number, section in enumerate(data.sections):
            for kind, text, figure in _figures(data, section):
                if figure is None:
                    continue
                name = kind if len(data.sections) == 1 else f"{kind}-{number + 1}"
                alt = f"{text}, {section.title}" if section.title else text
                file = folder / f"{name}.{ending}"
                _settle(figure)
                figure.savefig(file, metadata=_NO_DATE[ending])
                plots.append(Plot(kind, number, file, f"{folder.name}/{file.name}", alt))
    return tuple(plots)


def _figures(data: Data, section: Section) -> Iterator[tuple[str, str, Figure | None]]:
    """Kind, description and figure of each plot of a section, one at a time."""
    for kind, (drawing, text) in _KINDS.items():
        yield kind, text, drawing(data, section)
    for place, study in enumerate(dose_studies(data.store, section), 1):
        text = f"Score and disturbance of {study.method} against {study.parameter}"
        yield f"dose{place}", text, draw_dose(section, study, dose_frame(section, study))


def _settle(figure: Figure) -> None:
    """Give everything its place now: `savefig` would draw the whole figure once more to find it."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
