"""GLUE (Wang et al., 2018): nine tasks of English language understanding, scored on their validation sets.

The classes are in the order of the hub's copy, and the first metric is the one that the field's tables show: F1 for
MRPC and QQP, the mean of Pearson's and Spearman's correlation for STS-B, Matthews' correlation for CoLA, accuracy for
the others.
"""

from __future__ import annotations

from finetune_bench.metrics import Kind
from finetune_bench.tasks.hub import HubTask

# The card of GLUE on the hub says "other" and sends the reader to the data sets that it was made of.
LICENCE = "each source's own; GLUE's card on the hub says 'other'"
TWO_SENTENCES = ("sentence1", "sentence2")


def _glue(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...],
    *,
    train: int,
    kind: Kind = "classification",
    **evaluation: int,
) -> HubTask:
    rows = {"train": train, **evaluation}
    return HubTask(name, kind, labels, metrics, "nyu-mll/glue", name, columns, rows, licence=LICENCE)


cola = _glue(
    "cola",
    ("sentence",),
    ("unacceptable", "acceptable"),
    ("matthews", "accuracy"),
    train=8551,
    validation=1043,
)
sst2 = _glue(
    "sst2",
    ("sentence",),
    ("negative", "positive"),
    ("accuracy",),
    train=67349,
    validation=872,
)
mrpc = _glue(
    "mrpc",
    TWO_SENTENCES,
    ("not_equivalent", "equivalent"),
    ("f1", "accuracy"),
    train=3668,
    validation=408,
)
stsb = _glue(
    "stsb",
    TWO_SENTENCES,
    (),
    ("pearson_spearman", "pearson", "spearman"),
    kind="regression",
    train=5749,
    validation=1500,
)
qqp = _glue(
    "qqp",
    ("question1", "question2"),
    ("not_duplicate", "duplicate"),
    ("f1", "accuracy"),
    train=363846,
    validation=40430,
)
mnli = _glue(
    "mnli",
    ("premise", "hypothesis"),
    ("entailment", "neutral", "contradiction"),
    ("accuracy",),
    train=392702,
    validation_matched=9815,
    validation_mismatched=9832,
)
qnli = _glue(
    "qnli",
    ("question", "sentence"),
    ("entailment", "not_entailment"),
    ("accuracy",),
    train=104743,
    validation=5463,
)
rte = _glue(
    "rte",
    TWO_SENTENCES,
    ("entailment", "not_entailment"),
    ("accuracy",),
    train=2490,
    validation=277,
)
wnli = _glue(
    "wnli",
    TWO_SENTENCES,
    ("not_entailment", "entailment"),
    ("accuracy",),
    train=635,
    validation=71,
)
