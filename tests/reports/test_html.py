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
from xml.etree import ElementTree

import pytest

from finetune_bench.reports.bars import draw_bar
from finetune_bench.reports.content import document
from finetune_bench.reports.document import Bar, Heading, Paragraph, code
from finetune_bench.reports.html import Html, render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics import TOPICS
from finetune_bench.store.store import Store
from tests.synthetic_store import TASKS, THIRTEEN, fail, make_store

HOSTILE = "</title><script>alert(1)</script><img src=x onerror=alert(1)> \" ' & \u202egnp.exe"
VOID = {"meta", "link", "input", "img", "br", "wbr"}


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


@pytest.mark.slow
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
    plots = [attributes for tag, attributes in reader.tags if attributes.get("class") == "plot"]
    assert len(plots) > 8
    assert all(attributes["aria-label"] for attributes in plots)
    assert "img" not in {tag for tag, _ in reader.tags}


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
    assert "img" not in {tag for tag, _ in reader.tags}
    shown = HOSTILE.replace("\u202e", "")  # a character that turns text around is not shown
    assert reader.text.count(shown) > 10
    assert "\u202e" not in path.read_text("utf-8")
    for plot in path.parent.glob("plots/*.svg"):
        drawn = list(ElementTree.parse(plot).getroot().iter())
        assert not any(element.tag.endswith("script") for element in drawn)
        assert not any(key.startswith("on") for element in drawn for key in element.attrib)
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


@pytest.mark.slow
def test_plots_are_text_and_the_pages_colours_and_say_what_their_marks_are(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", tasks=("rte", "cola"))
    path = write(store, tmp_path / "out")
    page = path.read_text("utf-8")
    drawings = dict(re.findall(r'data-name="(\w+)">.*?(<svg class="plot".*?</svg>)', page))
    assert set(drawings) == {
        "answer",
        "scores",
        "differences",
        "memory",
        "time",
        "footprint",
        "synergy",
        "hype_pairs",
    } | {
        "profile",
        "curves",
    }
    for drawing in drawings.values():
        assert "<text" in drawing
        assert not re.search(
            r'(fill|stroke)="#(fff(fff)?|000(000)?|e4e4e4|e8e8e8|222222|444444|777777)"', drawing, re.I
        )
    texts = re.findall(r'data-method="([^"]*)"><title>([^<]*)</title>', drawings["scores"])
    assert len(texts) == 5 * 2 * 3 + 5 * 2 + 5 * 2  # dots, means and intervals of five methods on two tasks
    row = store.rows()[0]
    value = 100 * row["metrics"]["validation"][row["metric"]]
    said = f"{row['method']} on {row['task']} {row['metric']}, seed {row['seed']}: {value:.2f}"
    assert (row["method"], said) in texts
    assert sum(said.startswith("rdrop, rte accuracy: 6") and "[" in said for _, said in texts) == 2
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_a_label_with_characters_that_xml_forbids_has_a_page(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["method"] == "mixout":
            row["method"] = "mixout(p=\x01\x0b0.7)"

    store = make_store(tmp_path / "run", methods=("vanilla", "mixout"), tasks=("rte",), change=change)
    path = write(store, tmp_path / "out")
    page = path.read_text("utf-8")
    assert page.count("mixout(p= 0.7)") > 5
    assert not set(page) & {"\x01", "\x0b"}
    for plot in path.parent.glob("plots/*.svg"):
        ElementTree.parse(plot)


@pytest.mark.slow
def test_an_anchor_does_not_move_when_a_block_comes_before_it(tmp_path: Path) -> None:
    few = write(make_store(tmp_path / "a", methods=("vanilla", "mixout"), tasks=("rte",)), tmp_path / "few")
    many = write(make_store(tmp_path / "b", tasks=("rte", "cola")), tmp_path / "many")
    anchors = [
        {a["id"] for tag, a in read(page).tags if tag in ("h2", "div", "figure") and "id" in a} for page in (few, many)
    ]
    assert anchors[0] <= anchors[1]
    assert anchors[0] >= {"cost", "cost-cost", "scores-scores", "differences-to-the-baseline-plot-differences"}


@pytest.mark.slow
def test_every_number_of_a_table_of_methods_opens_its_runs(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", tasks=("rte", "cola", "mrpc", "stsb"), seeds=5)
    page = write(store, tmp_path / "out").read_text("utf-8")
    counts = {}
    for name in ("answer", "scores", "differences", "cost", "ranks", "tests", "exploratory", "departure"):
        body, *_ = re.findall(rf'aria-label="{name}"><table.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
        counts[name] = (body.count("data-runs"), body.count("<td"))
    # A number over all tasks names its runs by the first and the last, or a page of thousands of runs would be heavy.
    assert max(map(len, re.findall(r'data-runs="([^"]*)"', page))) < 40
    # Methods, verdicts, passes, set-up and parameters are no numbers of runs.
    assert counts["answer"] == (4 * 3, 4 * 5)
    assert counts["scores"] == (5 * 5, 5 * 6)
    assert counts["cost"][0] == 5 * 7
    assert counts["ranks"] == (5 * 4, 5 * 5)
    assert counts["tests"][0] >= 4
    assert counts["exploratory"] == (4 * 4, 4 * 5)
    assert counts["departure"][0] == 3 * 5


@pytest.mark.slow
def test_what_a_table_says_of_all_its_rows_stays_below_them(tmp_path: Path) -> None:
    page = write(make_store(tmp_path / "run"), tmp_path / "out").read_text("utf-8")
    table, *_ = re.findall(r'aria-label="differences"><table.*?</table>', page, re.DOTALL)
    body, _, foot = table.partition("<tfoot>")
    assert [text in foot for text in ("other seeds", "n, df", "correlation over seeds")] == [True] * 3
    assert "other seeds" not in body


def test_an_empty_store_has_a_page(tmp_path: Path) -> None:
    assert "Nothing has been run yet." in read(write(Store(tmp_path), tmp_path / "out")).text


def test_a_long_name_breaks_between_its_parts() -> None:
    page = render([Heading(1, "title"), Paragraph(f"a+b, {code('hype+r3f(noise=none,eps=1)')} & {code('a<b')}")], [])
    assert "<bdi>hype+<wbr>r3f(<wbr>noise=<wbr>none,<wbr>eps=<wbr>1)</bdi>" in page
    assert "<p>a+b, " in page
    assert "<bdi>a&lt;b</bdi>" in page


@pytest.mark.parametrize(("first", "last", "kept"), [(-1.7, 3.4, ["0", "+3"]), (-17, 17, ["0", "−16"]), (0.2, 0.3, [])])
def test_a_narrow_axis_keeps_two_numbers(first: float, last: float, kept: list[str]) -> None:
    axis = draw_bar(Bar("", "", float("nan"), float("nan"), float("nan"), 1.0, first, last))
    texts = re.findall(r"<text( class=.between.)? x=[^>]*>([^<]*)<", axis)
    assert len(texts) > len(kept)
    shown = [text for between, text in texts if not between]
    assert len(shown) <= 2
    assert {text.removesuffix(".0") for text in shown} >= set(kept)


def test_the_guide_names_headings_that_reports_have(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "reading-a-report.md").read_text("utf-8")
    named = set(re.findall(r"\*\*([^*]+)\*\*", guide.partition("## The words")[0]))
    data = load(make_store(tmp_path, methods=("vanilla", "hype"), tasks=("rte",)))
    headings = {block.text for block in document(data) if isinstance(block, Heading)}
    assert len(named) >= 7
    assert named <= headings | {topic.title for topic in TOPICS}
