"""Nouns and verbs of WordNet (Miller, 1995) are read from its database files: concepts, glosses and hypernyms.

A concept is what WordNet calls a synset. The format of `data.noun` and `data.verb` is described in WordNet's manual
page wndb(5WN): one line per concept, with its number, its lexicographer file, its words, its pointers and, after a bar,
its gloss.

All tasks made of it share these rules, so that nothing of a training row comes back in an evaluation row:

1. A gloss is the definition alone, without the examples in quotes. It must have five words, and no other concept may
   have the same one (but for case, spaces and punctuation); of those that share one, all are left out.
2. A hash of its number puts every concept on the training or on the evaluation side. It is used only if all concepts
   of which it is directly a kind or an instance (its hypernyms) are on that side, too. Hence no gloss and no hypernym
   is on both sides.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

# The lexicographer files of nouns and, from 29 on, of verbs, by their numbers in the database: lexnames(5WN).
FIELDS = {
    "03": "tops",
    "04": "act",
    "05": "animal",
    "06": "artifact",
    "07": "attribute",
    "08": "body",
    "09": "cognition",
    "10": "communication",
    "11": "event",
    "12": "feeling",
    "13": "food",
    "14": "group",
    "15": "location",
    "16": "motive",
    "17": "object",
    "18": "person",
    "19": "phenomenon",
    "20": "plant",
    "21": "possession",
    "22": "process",
    "23": "quantity",
    "24": "relation",
    "25": "shape",
    "26": "state",
    "27": "substance",
    "28": "time",
    "29": "body",
    "30": "change",
    "31": "cognition",
    "32": "communication",
    "33": "competition",
    "34": "consumption",
    "35": "contact",
    "36": "creation",
    "37": "emotion",
    "38": "motion",
    "39": "perception",
    "40": "possession",
    "41": "social",
    "42": "stative",
    "43": "weather",
}
TRAIN, VALIDATION = "train", "validation"
# This share of the concepts is on the evaluation side.
_VALIDATION_SHARE = 1 / 3
_WORDS = 5
_WORD = re.compile(r"\w+")
# Pointers to a concept of which this is a kind (@) or an instance (@i).
_HYPERNYM = re.compile(r"@(i?) (\d{8}) [nv] 0000")
# Where the first example begins; the database has a few without the semicolon, and some after a colon.
_EXAMPLE = re.compile(r'[;:,]?\s*"')


class Concept(NamedTuple):
    """A concept is one meaning, of one word or several.

    Attributes:
        number: its eight digits in the database.
        name: the first of its words, with spaces in the place of underscores.
        field: its lexicographer file, one of `FIELDS`' values.
        kinds: the numbers of the concepts that it is directly a kind of.
        instances: the numbers of the concepts that it is directly an instance of.
        gloss: its definition.
    """

    number: str
    name: str
    field: str
    kinds: tuple[str, ...]
    instances: tuple[str, ...]
    gloss: str


@dataclass(frozen=True)
class Database:
    """These are all concepts of a database file, and those that tasks may use.

    Attributes:
        concepts: all concepts, by number.
        usable: the usable ones of each side, in the order of a hash.
        short: how many have no gloss of five words.
        repeated: how many share their gloss with another.
        divided: how many have a hypernym on the other side.
    """

    concepts: dict[str, Concept]
    usable: dict[str, list[Concept]]
    short: int
    repeated: int
    divided: int


def rank(*parts: str) -> bytes:
    """Return a hash of texts, by which things are put in an order that no file and no machine changes."""
    return hashlib.sha256(":".join(parts).encode()).digest()


def side(number: str) -> str:
    """Return the side of a concept, "train" or "validation"."""
    share = int.from_bytes(rank("wordnet", number)[:4]) / 2**32
    return VALIDATION if share < _VALIDATION_SHARE else TRAIN


def folded(gloss: str) -> str:
    """Return a gloss without case, spaces and punctuation: what is equal after that counts as the same gloss."""
    return " ".join(_WORD.findall(gloss.casefold()))


@lru_cache(maxsize=2)  # several tasks of one study read a file, in every worker
def read(file: Path, sha256: str) -> Database:
    """Read a database file and tell what tasks may use.

    Args:
        file: `data.noun` or `data.verb`.
        sha256: the hash of its content, which the caller has checked.
    """
    concepts = {concept.number: concept for concept in _concepts(file)}
    keys = {number: folded(concept.gloss) for number, concept in concepts.items()}
    sharing = Counter(keys.values())
    sides = {number: side(number) for number in concepts}
    usable: dict[str, list[Concept]] = {TRAIN: [], VALIDATION: []}
    short = repeated = divided = 0
    for number, concept in concepts.items():
        if len(concept.gloss.split()) < _WORDS:
            short += 1
        elif sharing[keys[number]] > 1:
            repeated += 1
        elif any(sides[hypernym] != sides[number] for hypernym in (*concept.kinds, *concept.instances)):
            divided += 1
        else:
            usable[sides[number]].append(concept)
    for members in usable.values():
        members.sort(key=lambda concept: rank("wordnet order", concept.number))
    return Database(concepts, usable, short, repeated, divided)


def ancestors(concept: Concept, concepts: dict[str, Concept]) -> list[str] | None:
    """Return what a concept is a kind of, the nearest first and the root last; None where that is not one chain."""
    chain = []
    while concept.kinds:
        if len(concept.kinds) > 1:
            return None
        concept = concepts[concept.kinds[0]]
        chain.append(concept.number)
    return chain


def by_kind(concepts: list[Concept]) -> dict[str, list[Concept]]:
    """Return concepts by the number of the one that they are directly a kind of, in the order given."""
    groups: dict[str, list[Concept]] = defaultdict(list)
    for concept in concepts:
        for kind in concept.kinds:
            groups[kind].append(concept)
    return groups


def _concepts(file: Path) -> list[Concept]:
    concepts = []
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            if line.startswith(" "):  # the licence stands above the concepts
                continue
            pointers, _, gloss = line.partition(" | ")
            hypernyms = _HYPERNYM.findall(pointers) if "@" in pointers else []
            concepts.append(
                Concept(
                    line[:8],
                    line.split(maxsplit=5)[4].replace("_", " "),
                    FIELDS[line[9:11]],
                    tuple(dict.fromkeys(number for instance, number in hypernyms if not instance)),
                    tuple(dict.fromkeys(number for instance, number in hypernyms if instance)),
                    _EXAMPLE.split(gloss, maxsplit=1)[0].strip(" ;:\n"),
                )
            )
    return concepts
