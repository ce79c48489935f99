"""Natural-language inference beyond GLUE: does the second text follow from the first? Scored on the validation sets.

The published numbers of rows are those of the data sets' own papers, counted with a label: 785 training and 158
validation pairs of SNLI have none, because their annotators did not agree. A copy that lost rows on its way (the hub's
SICK has 4439 and 495) is hence marked as a subset.

`mnli2` and `snli2` are MNLI and SNLI with two classes: entailment or not. A model that is trained on these needs no
mapping of its classes where it is scored on data of two classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetune_bench.task import Provenance, Split, Task, TaskData
from finetune_bench.tasks.glue import mnli
from finetune_bench.tasks.hub import HubTask

THREE_WAY = ("entailment", "neutral", "contradiction")
PREMISE_HYPOTHESIS = ("premise", "hypothesis")
ENTAILMENT, OTHER = "entailment", "non-entailment"
TWO_WAY: Mapping[str, str] = {"entailment": ENTAILMENT, "neutral": OTHER, "contradiction": OTHER}


@dataclass(frozen=True)
class MergedTask(Task):
    """A MergedTask is another task with some of its classes merged, in training as in evaluation.

    Attributes:
        of: the other task.
        merged: by each of its classes, the class that it counts as here.
    """

    of: HubTask = field(kw_only=True)
    merged: Mapping[str, str] = field(kw_only=True, hash=False)

    def load(self, data_root: Path | None) -> TaskData:
        """Read the other task's splits, and merge their classes by name."""
        data = self.of.load(data_root)
        evaluation = {name: self._with_merged_labels(split) for name, split in data.evaluation.items()}
        return TaskData(self._with_merged_labels(data.train), evaluation, data.notes)

    def provenance(self) -> Provenance:
        """Return where the other task's examples come from."""
        return self.of.provenance()

    def _with_merged_labels(self, split: Split) -> Split:
        ids = [self.labels.index(self.merged[name]) for name in self.of.labels]
        return dataclasses.replace(split, labels=[ids[int(label)] for label in split.labels])


def _two_way(name: str, of: HubTask) -> MergedTask:
    return MergedTask(name, labels=(ENTAILMENT, OTHER), licence=of.licence, of=of, merged=TWO_WAY)


snli = HubTask(
    "snli",
    labels=THREE_WAY,
    path="stanfordnlp/snli",
    config="plain_text",
    columns=PREMISE_HYPOTHESIS,
    rows={"train": 549367, "validation": 9842},
    licence="CC BY-SA 4.0",
)
sick = HubTask(
    "sick",
    labels=THREE_WAY,
    path="sick",
    columns=("sentence_A", "sentence_B"),
    rows={"train": 4500, "validation": 500},
    licence="CC BY-NC-SA 3.0",
)
scitail = HubTask(
    "scitail",
    labels=("entails", "neutral"),
    path="allenai/scitail",
    config="tsv_format",
    columns=PREMISE_HYPOTHESIS,
    rows={"train": 23596, "validation": 1304},
    licence="not stated on its card",
)
snli2 = _two_way("snli2", snli)
mnli2 = _two_way("mnli2", mnli)
