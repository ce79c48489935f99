"""A submission is one zip per method and setting, exactly as GLUE's server takes it."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged, replacing, write_text
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.search import all_sections
from finetune_bench.store import analyses
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store
from finetune_bench.task import HELD_OUT
from finetune_bench.tasks.glue_files import FILES, GlueFile

NAME = "submission"
_LARGEST_RATING = 5.0
_TIME = (1980, 1, 1, 0, 0, 0)  # of the files in a zip, so that equal predictions make equal zips


class Submission(Report):
    """A zip per method with the test-set predictions of one run per task, and submission.txt, which names the runs.

    It needs runs that were analysed with `submission`. Of each task one run is taken, never a mean of several: that of
    the best held-out score after a search, else that of the lowest seed.
    """

    name = "submission"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write the zips and the list of what is in them."""
        data = load(store, options)
        lines: list[str] = []
        paths: list[Path] = []
        for number, section in enumerate(all_sections(data), 1):
            for method in section.methods:
                chosen = _chosen(data, section, method)
                if not chosen:
                    continue
                title = f"{number}-{method}" if len(all_sections(data)) > 1 else method
                path = folder / f"glue-{re.sub(r'[^A-Za-z0-9_.=-]+', '_', title)[:100]}.zip"
                contents, said = _files(data, chosen)
                _write_zip(path, contents)
                paths.append(path)
                lines += [f"{path.name}: {method}{f' ({section.title})' if section.title else ''}", *said, ""]
        if not paths:
            raise UsageError(
                f"--format submission: no run in '{store.root}' has predictions of GLUE's test sets; measure them with "
                "run --analyses submission, or with analyse RUN --with submission where models were kept."
            )
        summary = folder / "submission.txt"
        write_text(summary, "\n".join(lines))
        return [summary, *paths]


def _chosen(data: Data, section: Section, method: str) -> dict[str, tuple[Row, str]]:
    """Return by task the run to submit, and how it was chosen."""
    chosen: dict[str, tuple[Row, str]] = {}
    for task in section.tasks:
        rows = [row for row in section.rows(method, task, Status.DONE) if _is_predicted(data.store, row)]
        if not rows:
            continue
        held_out = {row["id"]: _held_out_score(row) for row in rows}
        if all(score is not None for score in held_out.values()):
            best = max(rows, key=lambda row: (held_out[row["id"]] or 0.0, -row["seed"]))
            chosen[task] = best, f"the best of {len(rows)} on held-out examples"
        else:
            chosen[task] = rows[0], f"the lowest seed of {len(rows)}; nothing was held out to choose by"
    return chosen


def _held_out_score(row: Row) -> float | None:
    return (row.get("metrics") or {}).get(HELD_OUT, {}).get(row["metric"])


def _is_predicted(store: Store, row: Row) -> bool:
    try:
        result = analyses.read(store.folder(row["id"]), NAME)
    except Damaged:
        return False
    return result is not None and result["reason"] is None


def _files(data: Data, chosen: dict[str, tuple[Row, str]]) -> tuple[dict[str, str], list[str]]:
    """Return the content of every file by its name, and a line on each."""
    contents: dict[str, str] = {}
    said: list[str] = []
    for file in FILES:
        name = f"{file.name}.tsv"
        row, how = chosen.get(file.task, (None, ""))
        logits, labels = _predictions(data.store, row, file)
        if row is None or logits is None:
            contents[name] = as_text([file.constant] * file.rows)
            said.append(f"  {name}: NOT PREDICTED, {file.constant} in every row (its commonest class, or its mean)")
            continue
        contents[name] = as_text(predicted_texts(logits, labels, file))
        said.append(f"  {name}: run {row['id']}, seed {row['seed']}: {how}")
    return contents, said


def _predictions(store: Store, row: Row | None, file: GlueFile) -> tuple[np.ndarray | None, list[str]]:
    if row is None:
        return None, []
    folder = store.folder(row["id"])
    result: Any = analyses.read(folder, NAME)
    return analyses.read_arrays(folder, NAME).get(file.name), list(result["facts"].get("labels", []))


def predicted_texts(logits: np.ndarray, labels: list[str], file: GlueFile) -> list[str]:
    """Return what stands in each row of a file.

    Args:
        logits: (rows, classes), or (rows, 1) for numbers.
        labels: names of the classes; none for numbers.
        file: the file.

    Raises:
        UsageError: there are more or fewer rows than the server takes, or a class that it doesn't know.
    """
    if len(logits) != file.rows:
        raise UsageError(f"--format submission: {file.name}.tsv takes {file.rows} rows; {len(logits)} were predicted.")
    if not file.texts:
        return [f"{min(max(float(value), 0.0), _LARGEST_RATING):.3f}" for value in logits.reshape(-1)]
    if strange := [label for label in labels if label not in file.texts] or len(labels) != logits.shape[1]:
        raise UsageError(f"--format submission: {file.name}.tsv takes {', '.join(file.texts)}; got {strange}.")
    return [file.texts[labels[index]] for index in logits.argmax(axis=1)]


def as_text(predictions: list[str]) -> str:
    """Return a file's content: a header, and the predictions with their index from 0, separated by tabs."""
    return "index\tprediction\n" + "".join(f"{index}\t{text}\n" for index, text in enumerate(predictions))


def _write_zip(path: Path, contents: dict[str, str]) -> None:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), content.encode(), zipfile.ZIP_DEFLATED)
