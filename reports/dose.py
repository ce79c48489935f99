"""Score and disturbance against a method's strength: a table, a CSV file and a plot, and a part of the run's report.

What was measured beside the rows is kept as `RUN/dose/NAME/dose.json`; scores are the store's.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from finetune_bench.reports.alive import load
from finetune_bench.reports.data import NO_EFFECT, Section, bare
from finetune_bench.reports.looks import COLOURS, GREY, STYLE
from finetune_bench.reports.words import interval
from finetune_bench.stats import estimates as stats
from finetune_bench.store.store import Store


@dataclass(frozen=True)
class DoseStudy:
    """What was measured, beside the rows.

    Attributes:
        method: as typed.
        parameter: the dose's name.
        labels: by dose, how reports call the run.
        default: the parameter's default.
        task: whose score and batch it is.
        logits, gradients: by dose, relative changes; NaN where they can't be measured.
        dropout: the same two of ordinary dropout.
    """

    method: str
    parameter: str
    labels: dict[float, str]
    default: float
    task: str
    logits: dict[float, float]
    gradients: dict[float, float]
    dropout: tuple[float, float]


def write_dose(store: Store, study: DoseStudy, folder: Path) -> tuple[str, list[Path]]:
    """Write dose.md, dose.csv, dose.png and dose.json; returns the table as text, and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    section = next(s for s in load(store).sections if study.task in s.tasks)
    frame = dose_frame(section, study)
    header, rows, notes = dose_table(study, frame)
    text = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    page = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    paths = [folder / name for name in ("dose.md", "dose.csv", "dose.png", "dose.json")]
    paths[0].write_text(
        f"# Dose: {study.method}, {study.parameter}\n\n{page}\n\n{notes}\n\n![dose](dose.png)\n", "utf-8"
    )
    frame.drop(columns=["score", "note"]).to_csv(paths[1], index=False)
    with matplotlib.rc_context(STYLE):
        draw_dose(section, study, frame).savefig(paths[2], metadata={"Software": None})
    kept = dataclasses.asdict(study) | {name: list(getattr(study, name).items()) for name in _BY_DOSE}
    paths[3].write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return f"{text}\n\n{notes}", paths


_BY_DOSE = ("labels", "logits", "gradients")


def dose_studies(store: Store, section: Section) -> list[DoseStudy]:
    """The studies of a run whose doses were all trained in this section."""
    shown = {bare(label) for label in section.methods}
    found = []
    for path in sorted(store.root.glob("dose/*/dose.json")):
        kept = json.loads(path.read_text("utf-8"))
        study = DoseStudy(**kept | {name: dict(kept[name]) for name in _BY_DOSE} | {"dropout": tuple(kept["dropout"])})
        if study.task in section.tasks and set(study.labels.values()) <= shown:
            found.append(study)
    return found


def dose_table(study: DoseStudy, frame: pd.DataFrame) -> tuple[list[str], list[list[str]], str]:
    """Header and rows of a study's table, and what stands below it."""
    header = [study.parameter, f"{study.task} score ×100", "change of logits", "change of gradient", ""]
    rows = [
        [f"{row['dose']:g}", row["score"], _relative(row["logits"]), _relative(row["gradients"]), row["note"]]
        for row in frame.to_dict("records")
    ]
    rows.append(["dropout", "", _relative(study.dropout[0]), _relative(study.dropout[1]), "for comparison"])
    notes = (
        f"{study.method}: score of the trained model (95 % t interval, n seeds), and what the method does to the first "
        "batch at the first weights with dropout off: relative change of the logits in the pass that changes most, and "
        f"of the gradient. Last line: the same of ordinary dropout. * is the default, {study.default:g}."
    )
    if frame["logits"].isna().any():
        notes += " Where there is no change of logits, the method can't run with dropout off."
    return header, rows, notes


def dose_frame(section: Section, study: DoseStudy) -> pd.DataFrame:
    """One line per dose: dose, mean, low, high, n, logits, gradients, and texts for a table."""
    column = next(column for column in section.columns if column.task == study.task)
    shown = {bare(label): label for label in section.methods}
    records = []
    for dose in sorted(study.labels):
        label = shown.get(study.labels[dose], "")
        estimate = stats.t_interval(section.scores(label, column)) if label else stats.NOTHING
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
    return pd.DataFrame(records)


def _relative(value: float) -> str:
    return "—" if math.isnan(value) else f"{value:.1e}" if value else "0"


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
