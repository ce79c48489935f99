"""The HTML page without a browser: one file, whole, closed, and with everything from data as text."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.reports.html import Html
from finetune_bench.store.store import Store
from tests.synthetic_store import TASKS, THIRTEEN, fail, make_store

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & \u202egnp.exe"
VOID = {"meta", "link", "input", "img", "br"}


class Reader(HTMLParser):
    """Every tag with its attributes, the text outside scripts, and whether all that opens closes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.inside: dict[str, list[str]] = {"script": [], "style": []}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.inside:
            self.inside[self.open[-1]].append(data)
        else:
            self.text += data


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert not reader.open
    return reader


def runs_in(reader: Reader) -> list[dict[str, Any]]:
    (packed,) = [content for content in reader.inside["script"] if re.fullmatch(r"[A-Za-z0-9+/=]+", content)]
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    for run in found["runs"]:
        for name, values in found["shared"].items():
            if name in run:
                run[name] = values[run[name]]
    return list(found["runs"])


def write(store: Store, folder: Path) -> Path:
    folder.mkdir()
    (path,) = Html().write(store, folder)
    return path


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose task, method, reason, note and environment are attacks."""
    monkeypatch.setitem(TASKS, HOSTILE, TASKS["rte"])

    def change(row: dict[str, Any]) -> None:
        row["notes"] = [HOSTILE]
        row["environment"]["device"] = HOSTILE
        row["model"] = HOSTILE
        if row["method"] == "hype":
            row["method"] = f"hype(noise={HOSTILE})"
        if row["seed"] == 3:
            fail(row, HOSTILE)

    return make_store(tmp_path / "run", tasks=("rte", HOSTILE), change=change)


def test_the_page_is_whole_and_closed(tmp_path: Path) -> None:
    reader = read(
        write(make_store(tmp_path / "run", methods=THIRTEEN, tasks=("rte", "cola", "stsb")), tmp_path / "out")
    )
    for tag, attributes in reader.tags:
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("data:", "#")), (tag, target)
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
    assert {tag for tag, _ in reader.tags} >= {"table", "figure", "dialog", "nav"}
    headings = [tag for tag, _ in reader.tags if re.fullmatch(r"h\d", tag)]
    assert headings[:2] == ["h1", "h2"]
    targets = {attributes["href"] for tag, attributes in reader.tags if tag == "a"}
    assert targets <= {f"#{attributes.get('id')}" for _, attributes in reader.tags}
    assert all(attributes.get("alt") for tag, attributes in reader.tags if tag == "img")


@pytest.mark.slow
def test_the_policy_lets_run_what_is_the_pages_own(tmp_path: Path) -> None:
    reader = read(write(make_store(tmp_path / "run"), tmp_path / "out"))
    (policy,) = [a["content"] or "" for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    (style,) = reader.inside["style"]
    (script,) = [content for content in reader.inside["script"] if "use strict" in content]
    for kind, content in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy


@pytest.mark.slow
def test_what_comes_from_data_is_text(hostile: Store, tmp_path: Path) -> None:
    path = write(hostile, tmp_path / "out")
    reader = read(path)
    assert len(reader.inside["script"]) == 2  # the runs, and the page's own
    assert all("onerror" not in attributes for _, attributes in reader.tags)
    assert all(a["src"] and a["src"].startswith("data:") for tag, a in reader.tags if tag == "img")
    shown = HOSTILE.replace("\u202e", "")  # a character that turns text around is not shown
    assert reader.text.count(shown) > 10
    assert "\u202e" not in path.read_text("utf-8")
    plots = [a["src"] or "" for tag, a in reader.tags if tag == "img"]
    for plot in plots:
        drawn = base64.b64decode(plot.partition("base64,")[2]).decode()
        assert "<script" not in drawn
        assert "onerror=" not in re.sub(r"<!--.*?-->", "", drawn, flags=re.DOTALL)
    rows = {row["id"]: row for row in hostile.rows()}
    for run in runs_in(reader):  # compressed, untouched
        assert run["notes"] == [HOSTILE]
        assert run["id"] in rows


@pytest.mark.slow
def test_every_run_is_behind_its_numbers(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", methods=THIRTEEN[:5], tasks=("rte", "cola"))
    reader = read(write(store, tmp_path / "out"))
    runs = runs_in(reader)
    assert sorted(run["id"] for run in runs) == [row["id"] for row in store.rows()]
    for run in runs:
        row = store.row(run["id"])
        assert row is not None
        assert {name: run[name] for name in ("recipe", "environment", "methods", "metrics", "cost")} == {
            name: row[name] for name in ("recipe", "environment", "methods", "metrics", "cost")
        }
    places = [attributes["data-runs"] or "" for _, attributes in reader.tags if "data-runs" in attributes]
    reached: set[int] = set()
    for text in places:
        for part in text.split(","):
            first, _, last = part.partition("-")
            reached |= set(range(int(first), int(last or first) + 1))
    assert reached == set(range(len(runs)))


@pytest.mark.slow
def test_equal_rows_make_equal_pages(tmp_path: Path) -> None:
    pages = [write(make_store(tmp_path / f"run{i}"), tmp_path / f"out{i}").read_bytes() for i in range(2)]
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    assert "No cell has been run." in read(write(Store(tmp_path), tmp_path / "out")).text
