"""GLUE's server takes these files: their names, their rows, and what stands in them.

Names and texts are those of the benchmark's own baselines and of jiant. The constant of a file is what is written where
a task was not run: the commonest class of its training set, or the mean of its numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

NLI = ("entailment", "neutral", "contradiction")
TWO_WAY = ("entailment", "not_entailment")


@dataclass(frozen=True)
class GlueFile:
    """A GlueFile is one file of a submission.

    Attributes:
        name: the file's name, without its ending.
        task: the task whose model predicts it.
        config: the configuration of nyu-mll/glue that holds its texts.
        split: their split.
        rows: how many there are.
        texts: what is written, by the name of the class; empty for numbers.
        constant: what is written in every row where the task was not run.
    """

    name: str
    task: str
    config: str
    split: str
    rows: int
    texts: dict[str, str]
    constant: str


def _same(labels: tuple[str, ...]) -> dict[str, str]:
    return {label: label for label in labels}


def _numbered(*labels: str) -> dict[str, str]:
    return {label: str(index) for index, label in enumerate(labels)}


FILES = (
    GlueFile("CoLA", "cola", "cola", "test", 1063, _numbered("unacceptable", "acceptable"), "1"),
    GlueFile("SST-2", "sst2", "sst2", "test", 1821, _numbered("negative", "positive"), "1"),
    GlueFile("MRPC", "mrpc", "mrpc", "test", 1725, _numbered("not_equivalent", "equivalent"), "1"),
    GlueFile("STS-B", "stsb", "stsb", "test", 1379, {}, "2.701"),
    GlueFile("QQP", "qqp", "qqp", "test", 390965, _numbered("not_duplicate", "duplicate"), "0"),
    GlueFile("MNLI-m", "mnli", "mnli", "test_matched", 9796, _same(NLI), "contradiction"),
    GlueFile("MNLI-mm", "mnli", "mnli", "test_mismatched", 9847, _same(NLI), "contradiction"),
    GlueFile("QNLI", "qnli", "qnli", "test", 5463, _same(TWO_WAY), "not_entailment"),
    GlueFile("RTE", "rte", "rte", "test", 3000, _same(TWO_WAY), "entailment"),
    GlueFile("WNLI", "wnli", "wnli", "test", 146, _numbered("not_entailment", "entailment"), "0"),
    GlueFile("AX", "mnli", "ax", "test", 1104, _same(NLI), "contradiction"),
)
