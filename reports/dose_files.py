"""Writes the files of the command `dose`: score and disturbance against a method's strength, as table, CSV and plot.

What was measured beside the rows is kept as `RUN/dose/NAME/dose.json`; scores are the store's.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import matplotlib
from tabulate import tabulate

from finetune_bench.files import make_folder, replacing, write_text
from finetune_bench.report import DEFAULT, Options
from finetune_bench.reports.csv import as_texts
from finetune_bench.reports.plots.style import SETTINGS
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.dose import BY_DOSE, DoseStudy, dose_frame, dose_table, draw_dose
from finetune_bench.store.store import Store


def write_dose(store: Store, study: DoseStudy, folder: Path, options: Options = DEFAULT) -> tuple[str, list[Path]]:
    """Write dose.md, dose.csv, dose.png and dose.json, and return the table as text, and the files."""
    make_folder(folder.parent)
    make_folder(folder)
    section = next(section for section in load(store, options).sections if study.task in section.tasks)
    frame = dose_frame(section, study)
    header, rows, note = dose_table(study, frame)
    text = tabulate(rows, header, tablefmt="simple", disable_numparse=True)
    page = tabulate(rows, header, tablefmt="pipe", disable_numparse=True)
    paths = [folder / name for name in ("dose.md", "dose.csv", "dose.png", "dose.json")]
    write_text(
        paths[0], f"# Strength: {study.method}, {study.parameter}\n\n{page}\n\n{note}\n\n![strength](dose.png)\n"
    )
    with replacing(paths[1]) as temporary:
        as_texts(frame.drop(columns=["score", "note"])).to_csv(temporary, index=False)
    with matplotlib.rc_context(SETTINGS), replacing(paths[2]) as temporary:
        draw_dose(section, study, frame).savefig(temporary, metadata={"Software": None})
    kept = dataclasses.asdict(study) | {name: list(getattr(study, name).items()) for name in BY_DOSE}
    write_text(paths[3], json.dumps(kept, indent=1) + "\n")
    return f"{text}\n\n{note}", paths
