"""A dose study tells what a method does at several strengths: its score, and how far it disturbs a batch."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from finetune_bench.reports.document import bullets, table
from finetune_bench.reports.plots.style import COLOURS, GREY
from finetune_bench.reports.rows.sections import NO_EFFECT, Data, Section, bare
from finetune_bench.reports.text import interval
from finetune_bench.reports.topics.topic import Drawing, Topic, TopicBlock
from finetune_bench.stats import estimates
from finetune_bench.store.store import Store

if TYPE_CHECKING:
    import pandas as pd

# --- records ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DoseStudy:
    """A dose study holds the measurements of a method at several doses, beside the rows.

    Attributes:
        method: The method as it was typed.
        parameter: Name of the parameter that is the dose.
        labels: What reports call the run, by dose.
        default: The parameter's default.
        task: Whose score and batch it is.
        logits: Relative change of the logits by dose; NaN where it can't be measured.
        gradients: Relative change of the gradient by dose; NaN where it can't be measured.
        dropout: The same two changes by ordinary dropout.
    """

    method: str
    parameter: str
    labels: dict[float, str]
    default: float
    task: str
    logits: dict[float, float]
    gradients: dict[float, float]
    dropout: tuple[float, float]


# The fields of a study that are kept as lists of pairs, since JSON has no numbers as keys.
BY_DOSE = ("labels", "logits", "gradients")


def dose_studies(store: Store, section: Section) -> list[DoseStudy]:
    """Return the studies in a store whose doses were all trained in this section."""
    shown = {bare(label) for label in section.methods}
    studies = []
    for path in sorted(store.root.glob("dose/*/dose.json")):
        kept = json.loads(path.read_text("utf-8"))
        study = DoseStudy(**kept | {name: dict(kept[name]) for name in BY_DOSE} | {"dropout": tuple(kept["dropout"])})
        if study.task in section.tasks and set(study.labels.values()) <= shown:
            studies.append(study)
    return studies


def dose_frame(section: Section, study: DoseStudy) -> pd.DataFrame:
    """Return one line per dose: dose, mean, low, high, n, logits, gradients, and texts for a table."""
    column = next(column for column in section.columns if column.task == study.task)
    shown = {bare(label): label for label in section.methods}
    records = []
    for dose in sorted(study.labels):
        label = shown.get(study.labels[dose], "")
        estimate = estimates.t_interval(section.scores(label, column)) if label else estimates.NOTHING
        note = " ".join(["*"] * (dose == study.default) + ["no effect"] * label.endswith(NO_EFFECT))
        records.append(
            {
                "dose": dose,
                "mean": estimate.value,
                "low": estimate.low,
                "high": estimate.high,
                "n": estimate.n,
                "logits": study.logits[dose],
                "gradients": study.gradients[dose],
                "score": f"{interval(estimate)} n={estimate.n}" if estimate.n else "—",
                "note": note,
            }
        )
    import pandas as pd

    return pd.DataFrame(records)


# --- the table --------------------------------------------------------------------------------------------------------


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    result: list[TopicBlock] = []
    for number, study in enumerate(dose_studies(data.store, section), 1):
        frame = dose_frame(section, study)
        header, rows, note = dose_table(study, frame)
        alt = f"Score and disturbance of {study.method} against {study.parameter}"
        plot = Drawing(f"dose{number}", alt, partial(draw_dose, section, study, frame))
        result += [table("strength", header, rows), *bullets([note]), plot]
    return result


def dose_table(study: DoseStudy, frame: pd.DataFrame) -> tuple[list[str], list[list[str]], str]:
    """Return header and rows of a study's table, and the note that stands below it."""
    header = [study.parameter, f"{study.task} score ×100", "change of logits", "change of gradient", ""]
    rows = [
        [f"{line['dose']:g}", line["score"], _relative(line["logits"]), _relative(line["gradients"]), line["note"]]
        for line in frame.to_dict("records")
    ]
    rows.append(["dropout", "", _relative(study.dropout[0]), _relative(study.dropout[1]), "for comparison"])
    note = (
        f"{study.method}: score of the trained model (95 % t interval, n seeds), and what the method does to the first "
        "batch at the first weights with dropout off: relative change of the logits in the pass that changes most, and "
        f"of the gradient. Last line: the same of ordinary dropout. * is the default, {study.default:g}."
    )
    if frame["logits"].isna().any():
        note += " Where there is no change of logits, the method can't run with dropout off."
    return header, rows, note


def _relative(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.1e}" if value else "0"


# --- the plot ---------------------------------------------------------------------------------------------------------


def draw_dose(section: Section, study: DoseStudy, frame: pd.DataFrame) -> Figure:
    """Draw score above and disturbance below, against the dose on a log axis; a dose of 0 stands at the left end."""
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
        # A log axis has no place for 0.
        values = frame[name].where(frame[name] > 0)
        below.plot(x, values, color=colour, marker=marker, label=f"change of {name}")
        below.axhline(reference, color=colour, linestyle=":", lw=1.2, label=f"the same by dropout: {reference:.1g}")
    below.set_ylabel("relative change on a batch")
    below.set_xlabel(study.parameter + (f" (0 stands at {smallest / 10:g})" if (frame["dose"] == 0).any() else ""))
    below.set_xscale("log")
    below.set_yscale("log")
    # The usual formatter writes powers as formulas.
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    for axes in (above, below):
        if study.default > 0:
            axes.axvline(study.default, color=GREY, lw=6, alpha=0.18, label=f"default {study.default:g}")
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


TOPIC = Topic(title="Strength", blocks=_blocks)
