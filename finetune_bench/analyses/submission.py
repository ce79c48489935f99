"""`submission` predicts the test sets of GLUE, whose labels are not public, for the zip that its server takes.

It keeps the predictions; `report RUN --format submission` writes the zips. Labels of test sets are never read, also
where a copy has some.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path

import numpy as np

from finetune_bench import registry
from finetune_bench.analysis import Analysis, Findings, Trained
from finetune_bench.errors import DataError
from finetune_bench.task import Split, Task
from finetune_bench.tasks.glue_files import FILES, GlueFile
from finetune_bench.tasks.hub import HubTask


def files_of(task: Task) -> list[GlueFile]:
    """Return the files that a task's model predicts."""
    return [file for file in FILES if file.task == task.name]


@lru_cache(maxsize=16)
def load(file: str, data_root: Path | None) -> Split:
    """Read the texts of a file's test set, in the order of the official index.

    Raises:
        DataError: they are missing, or not as many as the server takes.
    """
    of = next(one for one in FILES if one.name == file)
    task = registry.task(of.task)
    if not isinstance(task, HubTask):
        raise DataError(f"submission: the task '{of.task}' is not GLUE's, but one of another package.")
    # The index takes the place of the label, which is not read.
    test = dataclasses.replace(
        task, kind="regression", labels=(), metrics=(), config=of.config, label="idx", rows={of.split: of.rows}
    )
    split = test.load(data_root).train
    if len(split) != of.rows:
        raise DataError(
            f"submission: {of.name} needs the {of.rows} rows of the split {of.split} of {task.path}, config "
            f"{of.config}; {len(split)} came{f' from {data_root}' if data_root else ''}. The server takes no fewer."
        )
    if len(set(split.labels)) < len(split):
        raise DataError(f"submission: the column idx of {task.path}, config {of.config}, holds a number twice.")
    return split.take(np.argsort(np.array(split.labels)).tolist())


class Submission(Analysis):
    """Predict the test sets of GLUE, for the files that its server takes."""

    name = "submission"
    title = "Predictions of GLUE's test sets"
    about = (
        "How often each class is predicted on the test set, whose labels are not public. 'report RUN --format "
        "submission' writes the zip."
    )

    def unsupported(self, task: Task) -> str | None:
        """Refuse tasks that are not of GLUE."""
        return None if files_of(task) else "GLUE's server takes no predictions of it"

    def check(self, task: Task, data_root: Path | None, checkpoint: str) -> None:
        """Read the test sets."""
        load.cache_clear()
        for file in files_of(task):
            if file.name != "AX":  # which few copies have, and is then written as a constant
                load(file.name, data_root)

    def measure(self, trained: Trained) -> Findings:
        """Predict every test set of the model's task."""
        numbers: dict[str, float] = {}
        arrays: dict[str, np.ndarray] = {}
        notes: list[str] = []
        for file in files_of(trained.task):
            try:
                split = load(file.name, trained.data_root)
            except DataError:
                if file.name != "AX":
                    raise
                notes.append("AX.tsv is left out: its texts are not at hand.")
                continue
            texts = Split(split.texts, split.pairs, [0] * len(split))
            logits = trained.model.logits(trained.encode(texts))
            arrays[file.name] = logits
            if trained.task.kind == "classification":
                shares = np.bincount(logits.argmax(axis=1), minlength=len(trained.task.labels)) / len(split)
                named = zip(trained.task.labels, shares.tolist(), strict=True)
                numbers |= {f"{file.name}: {label}": share for label, share in named}
            else:
                numbers[f"{file.name}: mean"] = float(logits.mean())
        return Findings(numbers=numbers, arrays=arrays, notes=notes, facts={"labels": list(trained.task.labels)})
