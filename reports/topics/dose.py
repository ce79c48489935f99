"""What a method does at several strengths."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from finetune_bench.reports.document import Block, bullets, table
from finetune_bench.reports.rows.sections import NO_EFFECT, Data, Section, bare
from finetune_bench.reports.text import interval
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


def _doses(data: Data, section: Section, picture: Callable[[str], list[Block]]) -> list[Block]:
    result: list[Block] = []
    for place, study in enumerate(dose_studies(data.store, section), 1):
        header, rows, notes = dose_table(study, dose_frame(section, study))
        result += [table("dose", header, rows), *bullets([notes]), *picture(f"dose{place}")]
    return result
