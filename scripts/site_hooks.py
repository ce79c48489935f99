"""This file holds hooks: with them MkDocs builds those pages of the site that nobody writes and nobody commits.

    python -m mkdocs build --strict    writes the site into site/

The hooks add the README as the home page, the changelog and CONTRIBUTING.md; a page for each method, from its card; the
gallery's reports, from its stores; and on every page a link to the glossary where one of its words is used first.
"""

from __future__ import annotations

import os
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from finetune_bench.reports.answer import headline, warnings
from finetune_bench.reports.html import Html
from finetune_bench.reports.models import models_headline, told_of_models
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.text import listed
from scripts import gallery, glossary, method_pages
from scripts.import_graph import ROOT

# Files beside docs/ that are pages of the site, and files that pages link to.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
FILES = {"LICENSE": "LICENSE.txt", "CITATION.cff": "CITATION.cff"}
ADDED = {**PAGES, **FILES}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation the methods' pages and, under Reference, every page that it doesn't name."""
    nav: list[Any] = list(config.nav or [])
    for entry in nav:
        if "Methods" in entry:
            entry["Methods"] += [{name: f"methods/{name}.md"} for name in method_pages.methods()]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    rest = sorted({*pages, *PAGES.values()} - named)
    config.nav = [*nav, {"Reference": rest}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that don't lie in docs/."""
    for source, uri in ADDED.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for name in method_pages.methods():
        files.append(File.generated(config, f"methods/{name}.md", content=method_pages.page(name)))
    for name in gallery.reports():
        files.append(File.generated(config, f"gallery/{name}.html", content=report(name).page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with what is made for it, and with links as they are within the site."""
    uri = page.file.src_uri
    sources = {added: source for source, added in PAGES.items()}
    text = relinked(markdown, sources.get(uri, f"docs/{uri}"), uri)
    text = re.sub(r"<!-- table of methods -->", lambda _: method_pages.table("methods/NAME.md"), text)
    text = text.replace(method_pages.by_place(), method_pages.by_place("methods/NAME.md"))
    text = text.replace("```mermaid", "A diagram, as text in the language of Mermaid; GitHub draws it.\n\n```text")
    text = re.sub(r"<!-- report: ([\w-]+) -->", lambda match: report(match[1]).summary, text)
    return text if uri == "glossary.md" else glossary.linked(text, relative("glossary.md", uri))


def relinked(text: str, source: str, uri: str) -> str:
    """Return a page whose links to files of the repository lead to where these lie on the site.

    Args:
        text: The page's Markdown.
        source: The file that it is of, from the top of the checkout.
        uri: Where the page lies on the site.
    """

    def moved(match: re.Match[str]) -> str:
        path, mark, anchor = match[1].partition("#")
        if "://" in path or not path:
            return match[0]
        target = os.path.normpath(Path(source).parent / path)
        inside = target.removeprefix("docs/") if target.startswith("docs/") else ADDED.get(target)
        return match[0] if inside is None else f"]({relative(inside, uri)}{mark}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def relative(target: str, uri: str) -> str:
    """Return the address of a page or file of the site, seen from a page."""
    return Path(os.path.relpath(target, Path(uri).parent)).as_posix()


class Told(NamedTuple):
    """A report of the gallery is its page, and what the gallery tells of it as Markdown."""

    page: str
    summary: str


@cache
def report(name: str) -> Told:
    """Return a report of the gallery, made of its store."""
    with tempfile.TemporaryDirectory() as folder:
        store = gallery.unpack(name, Path(folder) / "store")
        page = Html().write(store, Path(folder))[0].read_text("utf-8")
        data = load(store)
    told = told_of_models(data.sections, None)
    if told:
        sentences = [models_headline(told, code)]
        methods = listed([code(model) for model in told])
    else:
        (section,) = data.sections
        sentences = [*warnings(section, code), *headline(section, code)]
        methods = listed([code(method) for method in section.methods])
    links = f"[The report](gallery/{name}.html)"
    if name not in gallery.TOGETHER:
        links += f" · [its store](gallery/{name}{gallery.SUFFIX})"
    lines = [*sentences, f"{links} · {len(data.rows)} runs of {methods}"]
    return Told(page, "\n>\n".join(f"> {line}" for line in lines))


def code(text: str) -> str:
    """Return a label as code."""
    return f"`{text}`"
