"""Draws score and disturbance against the strength of a method."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from finetune_bench.reports.plots.looks import COLOURS, GREY
from finetune_bench.reports.rows.sections import Section
from finetune_bench.reports.topics.dose import DoseStudy


def draw_dose(section: Section, study: DoseStudy, frame: pd.DataFrame) -> Figure:
    """Score above, disturbance below, against the dose on a log axis; a dose of 0 stands at the left end."""
    figure = Figure(figsize=(7.2, 6.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[1, 1.2])
    positive = frame["dose"][frame["dose"] > 0]
    smallest = positive.min() if len(positive) else 1.0
    x = frame["dose"].where(frame["dose"] > 0, smallest / 10).to_numpy()
    column = next(column for column in section.columns if column.task == study.task)

    above.errorbar(
        x,
        frame["mean"],
        yerr=np.abs(np.vstack([frame["mean"] - frame["low"], frame["high"] - frame["mean"]])),
        color=COLOURS[0],
        marker="o",
        capsize=3,
        label=study.method,
    )
    references = [(section.baseline, "black", "-"), *((label, GREY, "--") for label in section.controls())]
    for label, colour, line in references:
        if label is not None and np.isfinite(section.scores(label, column)).any():
            above.axhline(np.nanmean(section.scores(label, column)), color=colour, linestyle=line, lw=1, label=label)
    above.set_ylabel(f"{column.title} ×100")
    above.set_title(f"{study.method} on {study.task}: score, and what each {study.parameter} does to a batch")

    for name, colour, marker, reference in (
        ("logits", COLOURS[1], "s", study.dropout[0]),
        ("gradients", COLOURS[2], "^", study.dropout[1]),
    ):
        values = frame[name].where(frame[name] > 0)  # a log axis has no place for 0
        below.plot(x, values, color=colour, marker=marker, label=f"change of {name}")
        below.axhline(reference, color=colour, linestyle=":", lw=1.2, label=f"the same by dropout: {reference:.1g}")
    below.set_ylabel("relative change on a batch")
    below.set_xlabel(study.parameter + (f" (0 stands at {smallest / 10:g})" if (frame["dose"] == 0).any() else ""))
    below.set_xscale("log")
    below.set_yscale("log")
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")  # the usual one writes powers as formulas
    for axes in (above, below):
        if study.default > 0:
            axes.axvline(study.default, color=GREY, lw=6, alpha=0.18, label=f"default {study.default:g}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
