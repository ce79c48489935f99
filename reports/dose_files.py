"""Writes the files of the command `dose`: score and disturbance against a method's strength, as table, CSV and plot.

What was measured beside the rows is kept as `RUN/dose/NAME/dose.json`; scores are the store's.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import matplotlib
from tabulate import tabulate

from finetune_bench.reports.csv import as_texts
from finetune_bench.reports.plots.style import SETTINGS
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.dose import BY_DOSE, DoseStudy, dose_frame, dose_table, draw_dose
from finetune_bench.store.store import Store


def write_dose(store: Store, study: DoseStudy, folder: Path) -> tuple[str, list[Path]]:
    """Write dose.md, dose.csv, dose.png and dose.json, and return the table as text, and the files."""
    folder.mkdir(parents=True, exist_ok=True)
    section = next(section for section in load(store).sections if study.task in section.tasks)
    frame = dose_frame(section, study)
    header, rows, note = dose_table(study, frame)
    text = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    page = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    paths = [folder / name for name in ("dose.md", "dose.csv", "dose.png", "dose.json")]
    paths[0].write_text(
        f"# Dose: {study.method}, {study.parameter}\n\n{page}\n\n{note}\n\n![dose](dose.png)\n", "utf-8"
    )
    as_texts(frame.drop(columns=["score", "note"])).to_csv(paths[1], index=False)
    with matplotlib.rc_context(SETTINGS):
        draw_dose(section, study, frame).savefig(paths[2], metadata={"Software": None})
    kept = dataclasses.asdict(study) | {name: list(getattr(study, name).items()) for name in BY_DOSE}
    paths[3].write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    return f"{text}\n\n{note}", paths
