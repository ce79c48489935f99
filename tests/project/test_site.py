"""The documentation's site: what is generated is up to date, and MkDocs builds it without a warning."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from finetune_bench.reports.answer import headline
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.differences import noise_floors, reference_differences
from finetune_bench.store.reading import read_row
from scripts import gallery, glossary, method_pages, picture
from tests import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path != glossary.PAGE)]
UPDATED = "run: python -m scripts."


# --- what is generated ------------------------------------------------------------------------------------------------


def test_the_readmes_table_is_that_of_the_cards() -> None:
    readme = method_pages.README.read_text("utf-8")
    assert method_pages.render(readme) == readme, f"{UPDATED}method_pages"


def test_a_method_has_a_page() -> None:
    page = method_pages.page("r4f")
    assert page.startswith("# r4f\n\n**R3F and R4F: ")
    assert "[`r3f`](r3f.md)" in page
    assert "| passes per step | 2 forward + 1 backward |" in page
    assert "| `strength` | `1` | a float in [0, inf) |" in page
    assert "\n\n1. Regression is supported" in page  # a list begins after an empty line, or it is none
    assert r"h\_{l+1} = layer\_l(" in method_pages.page("hype")
    assert "`uniform_symmetric`" in method_pages.page("hype")


def test_the_first_picture_shows_the_report_of_now() -> None:
    page = picture.first_screen()
    assert json.loads(picture.HASHES.read_text("utf-8")) == picture.hashes(page), f"{UPDATED}picture"
    assert picture.PICTURE.stat().st_size < 300_000


def test_the_readmes_result_is_that_of_the_gallerys_store(tmp_path: Path) -> None:
    """Its quotation is the report's headline, and the figures below are those of the report's tables."""
    _, _, rest = (ROOT / "README.md").read_text("utf-8").partition("## A small real result\n")
    told = " ".join(re.sub("^> ?", "", rest.partition("\n## ")[0], flags=re.MULTILINE).split())
    (section,) = load(gallery.unpack(picture.STORE, tmp_path / "store")).sections
    for sentence in headline(section, lambda name: f"`{name}`"):
        assert sentence in told
    single = {(row.method, row.column.task): row.estimate.value for row in reference_differences(section)}
    for task, words in (("wordnet_topic", "{} points on nouns"), ("wordnet_verb_topic", "{} on verbs")):
        assert single["hype", task] == single["vanilla(dropout=hidden_off)", task]
        assert words.format(f"{abs(single['hype', task]):.1f}") in told
    (floor,) = [floor for column, floor in noise_floors(section, "vanilla").items() if not column.task]
    assert f"up to {floor.high:.1f} points" in told


def test_a_stale_picture_is_told() -> None:
    page = picture.first_screen()
    (sentence,) = re.findall(r'<p class="headline">(.+?)</p>', page)[:1]
    for old, new in ((sentence, "Everything helps."), (".headline { font-size", ".headline { font-weight")):
        assert old in page
        assert picture.hash_of(page.replace(old, new)) != picture.hash_of(page)
    same = page.replace('content="finetune-bench ', 'content="finetune-bench 9')
    assert same != page
    assert picture.hash_of(same) == picture.hash_of(page)


# --- the gallery ------------------------------------------------------------------------------------------------------


def test_the_gallery_is_small_and_shown_whole() -> None:
    shown = re.findall(r"<!-- report: ([\w-]+) -->", (DOCS / "gallery.md").read_text("utf-8"))
    assert sorted(shown) == gallery.reports()
    assert sum(gallery.archive(name).stat().st_size for name in gallery.names()) < 12_000_000


@pytest.mark.parametrize("name", gallery.names())
def test_a_store_of_the_gallery_is_whole_and_names_no_machine(name: str, tmp_path: Path) -> None:
    store = gallery.unpack(name, tmp_path / "store")
    assert sorted(store.study()["cells"]) == sorted(row["id"] for row in store.rows())
    for cell in store.names():
        read_row(store.folder(cell))  # with every checksum
    (section,) = load(store).sections  # the gallery tells of one
    assert section.reference == "vanilla"
    folders = re.compile(rb"(?<![\w.])/(?:work|root|home|Users|mnt|tmp|opt|usr)/")
    with tarfile.open(gallery.archive(name)) as packed:
        for entry in packed.getmembers():
            assert (entry.uname, entry.uid, entry.mtime) == ("", 0, 0)
            if entry.isfile() and entry.name.endswith((".json", ".txt")):
                file = packed.extractfile(entry)
                assert file is not None
                assert folders.search(file.read()) is None, entry.name


def test_a_run_is_packed_without_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that went through the gallery gives the same rows; a model in a folder is known by its last two names."""
    store = gallery.unpack(picture.STORE, tmp_path / "first")
    store.write_study({**store.study(), "models": ["/a/folder/of/somebody/model"]})
    monkeypatch.setattr(gallery, "FOLDER", tmp_path / "gallery")
    packed = gallery.pack(tmp_path / "first", "again")
    assert packed == tmp_path / "gallery" / "again.tar.xz"
    again = gallery.unpack("again", tmp_path / "second")
    assert again.rows() == store.rows()
    assert again.study()["models"] == ["somebody/model"]


# --- the glossary -----------------------------------------------------------------------------------------------------


def test_the_glossary_is_whole_and_in_order() -> None:
    text = glossary.PAGE.read_text("utf-8")
    titles = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert titles == sorted(titles)
    entries = glossary.entries()
    assert list(entries) == [glossary.anchor(title) for title in titles]
    phrases = [phrase for of_entry in entries.values() for phrase in of_entry]
    assert len(phrases) == len(set(phrases))
    for part in text.split("\n## ")[1:]:
        explained = part.partition("-->")[2].strip()
        assert 1 <= len(re.findall(r"[.:](?:\s|$)", explained)) <= 4, part


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_each_word_of_the_glossary_once(page: Path) -> None:
    """Wherever running text has one: code, headings, tables and links are left as they are."""
    before = page.read_text("utf-8")
    after = glossary.linked(before)
    added = re.compile(r"\[([^\[\]]*)\]\(glossary\.md#[\w-]+\)")
    assert added.sub(r"\1", after) == added.sub(r"\1", before)
    prose = re.sub(r"^```.*?^```$|^ {4}[^\n]*$|<!--.*?-->", "", before, flags=re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^[#|][^\n]*$|`[^`]+`|!?\[[^\[\]]*\]\([^)]*\)|<[^>\n]+>", "", prose, flags=re.MULTILINE)
    for name, phrases in glossary.entries().items():
        used = any(re.search(rf"(?<![\w-]){re.escape(p)}(?![\w-])", prose, re.IGNORECASE) for p in phrases)
        links = after.count(f"(glossary.md#{name})")
        assert links <= 1, name
        assert links or not used, name


def test_the_first_use_is_linked_and_nothing_else() -> None:
    text = "# A margin\n\n```sh\nmargin\n```\n\n`margin` and [a margin](x.md) of the\nMargin; a margin.\n"
    linked = text.replace("\nMargin;", "\n[Margin](../glossary.md#margin);")
    assert glossary.linked(text, "../glossary.md") == linked
    assert glossary.linked(linked, "../glossary.md") == linked
    assert glossary.linked("margins, pre-margin", "glossary.md") == "margins, pre-margin"
    assert glossary.linked("the noise\n  band") == "the [noise\n  band](glossary.md#noise-band)"


# --- the site ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("material") is None:
        if os.environ.get("FINETUNE_BENCH_SITE") == "required":
            pytest.fail("the extra [docs] is not installed, and here the site must be built")
        pytest.skip("the extra [docs] is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    # The proxy leads nowhere: a build that asks the network for anything fails.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | nowhere | {"PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_holds_every_page(site: Path) -> None:
    pages = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {"index.html", "changelog.html", "contributing.html"} <= pages
    assert {f"{path.stem}.html" for path in DOCS.glob("*.md")} <= pages
    assert {f"methods/{name}.html" for name in method_pages.methods()} <= pages
    assert {f"gallery/{name}.html" for name in gallery.reports()} <= pages
    home = (site / "index.html").read_text("utf-8")
    assert 'src="first-screen.png"' in home
    assert 'href="methods/hype.html"' in home
    assert 'href="glossary.html#stack"' in home


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text("utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"', text)
        loaded += re.findall(r'<link\b[^>]*\brel="(?:stylesheet|preload|preconnect|icon)"[^>]*\bhref="([^"]+)"', text)
        loaded += re.findall(r'<link\b[^>]*\bhref="([^"]+)"[^>]*\brel="(?:stylesheet|preload|preconnect|icon)"', text)
        assert [address for address in loaded if "//" in address] == [], path
        assert 'class="mermaid"' not in text, "its script would be loaded from elsewhere"


@pytest.mark.slow
def test_the_gallery_tells_what_its_reports_say(site: Path) -> None:
    text = (site / "gallery.html").read_text("utf-8")
    for name in gallery.reports():
        report = (site / "gallery" / f"{name}.html").read_text("utf-8")
        assert "<title>Comparison of fine-tuning methods</title>" in report
        assert f'href="gallery/{name}.html"' in text
    assert text.count("<blockquote>") == len(gallery.reports())
