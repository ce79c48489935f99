"""The HTML report is one page with everything in it: plots, tables to sort and filter, and every run's details.

The page needs no network and asks for none: a policy in its head forbids it, and lets only its own style and script
run. Whatever comes from data or plugins is text, never mark-up.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from finetune_bench._version import __version__
from finetune_bench.files import write_text
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.bars import draw_bar
from finetune_bench.reports.content import document
from finetune_bench.reports.document import (
    EXPLAINED,
    Block,
    Bullets,
    Entry,
    Heading,
    Paragraph,
    Picture,
    Table,
    spans,
)
from finetune_bench.reports.draw import draw
from finetune_bench.reports.inline import inlined
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.text import visible
from finetune_bench.store.store import Store

# A table of so many rows gets a filter.
FILTERED = 8
# Plots that the page already shows within a table, as bars.
DRAWN_IN_TABLES = ("answer",)
# What is the same in many runs.
_SHARED = ("recipe", "environment", "methods", "dropout", "majority", "notes")


class Html(Report):
    """The report as report.html, one self-contained page to be opened in a browser and sent around."""

    name = "html"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write the page, and the plots beside it."""
        data = load(store, options)
        plots = draw(data, folder / "plots")
        path = folder / "report.html"
        write_text(path, render(document(data, plots), data.rows))
        return [path]


def render(blocks: Sequence[Block], runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a page of blocks.

    Args:
        blocks: The report; its first block is the title.
        runs: Rows, in any order; entries lead to them by id.
    """
    # A method's runs stand beside each other, so that a number over all tasks names them by their first and last.
    runs = sorted(runs, key=lambda run: (str(run["method"]), str(run["task"]), int(run["seed"]), str(run["id"])))
    indices = {str(run["id"]): index for index, run in enumerate(runs)}
    title = next((block.text for block in blocks if isinstance(block, Heading)), "finetune-bench")
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_fingerprint(style)}'; script-src '{_fingerprint(script)}'; base-uri 'none'; form-action 'none'"
    )
    anchors = _anchors(blocks)
    heads = [(anchor, block) for anchor, block in zip(anchors, blocks, strict=True) if isinstance(block, Heading)]
    contents = "".join(
        f'<li><a href="#{anchor}">{_text(head.text)}</a></li>' for anchor, head in heads if head.level == 2
    )
    methods = {str(run["method"]) for run in runs}
    parts = list(zip(blocks, anchors, strict=True))[1:]
    body = "\n".join(_block(block, anchor, indices, methods) for block, anchor in parts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="finetune-bench {html.escape(__version__)}">
<link rel="icon" href="data:,">
<title>{_plain(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{_text(title)}</h1><button class="theme" type="button">Dark</button></header>
<nav aria-label="Contents"><details><summary>Contents</summary><ol>{contents}</ol></details>
<label>Filter every table <input id="everywhere" type="search"></label></nav>
<main>
{body}
</main>
<dialog aria-label="Runs"><button class="theme" type="button">Close</button><h2></h2><div class="runs"></div></dialog>
<script type="application/octet-stream" id="runs">{_packed(runs)}</script>
<script>{script}</script>
</body>
</html>
"""


def _fingerprint(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _packed(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return all runs, compressed; what many have in common stands once."""
    shared: dict[str, list[Any]] = {name: [] for name in _SHARED}
    known: dict[tuple[str, str], int] = {}
    # By identity, so that few of them have to be turned into text.
    met: dict[tuple[str, int], int] = {}
    slim = []
    for run in runs:
        row = dict(run)
        for name in _SHARED:
            if name in row:
                if (name, id(row[name])) not in met:
                    key = (name, json.dumps(row[name], sort_keys=True))
                    if key not in known:
                        known[key] = len(shared[name])
                        shared[name].append(row[name])
                    met[name, id(row[name])] = known[key]
                row[name] = met[name, id(row[name])]
        slim.append(row)
    content = json.dumps({"shared": shared, "runs": slim}, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()


# --- blocks -----------------------------------------------------------------------------------------------------------


def _anchors(blocks: Sequence[Block]) -> list[str]:
    """Return an id for each block, made of what it is called, so that a link to it outlives new blocks before it."""
    anchors: list[str] = []
    met: Counter[str] = Counter()
    above = ""
    for block in blocks:
        name = block.text if isinstance(block, Heading) else f"{above}-{_called(block)}"
        slug = re.sub("[^a-z0-9]+", "-", visible("".join(piece for piece, _ in spans(name))).lower()).strip("-")
        slug = slug[:60] or "part"
        above = slug if isinstance(block, Heading) else above
        met[slug] += 1
        anchors.append(slug if met[slug] == 1 else f"{slug}--{met[slug]}")
    return anchors


def _called(block: Block) -> str:
    if isinstance(block, Picture):
        return f"plot-{block.plot.file.stem}"
    return block.name if isinstance(block, Table) else type(block).__name__


def _block(block: Block, anchor: str, indices: Mapping[str, int], methods: Collection[str]) -> str:
    if isinstance(block, Heading):
        level = min(block.level, 6)
        return f'<h{level} id="{anchor}">{_text(block.text)}</h{level}>'
    if isinstance(block, Paragraph):
        role = f' class="{block.role}"' if block.role else ""
        return f"<p{role}>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        items = f"<ul>{''.join(f'<li>{_text(item)}</li>' for item in block.items)}</ul>"
        return items if block.findings else f'<details class="notes"><summary>{EXPLAINED}</summary>{items}</details>'
    if isinstance(block, Table):
        return _table(block, anchor, indices)
    if isinstance(block, Picture):
        return _picture(block, anchor, methods)
    raise TypeError(f"no HTML for {type(block).__name__}")


def _table(block: Table, anchor: str, indices: Mapping[str, int]) -> str:
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in block.header)
    rows, footer = (
        "\n".join(f"<tr>{''.join(_entry(entry, indices) for entry in row)}</tr>" for row in part)
        for part in (block.rows, block.footer)
    )
    search = ""
    drawn = any(entry.bar for row in block.rows for entry in row)
    if len(block.rows) >= FILTERED and not drawn:
        search = '<div class="tools"><label>Filter <input type="search"></label>'
        search += f"<output>{len(block.rows)} rows</output></div>"
    kinds = " ".join((["left"] if block.align == "left" else []) + (["drawn"] if drawn else []))
    foot = f"<tfoot>\n{footer}\n</tfoot>" if footer else ""
    return (
        f'<div class="box" id="{anchor}">{search}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{_plain(block.name)}">'
        f'<table class="{kinds}"><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody>{foot}</table></div></div>'
    )


def _entry(entry: Entry, indices: Mapping[str, int]) -> str:
    finite = entry.sort is not None and math.isfinite(entry.sort)
    sort = f' data-sort="{entry.sort!r}"' if finite else ""
    inside = _text(entry.text)
    runs = sorted(indices[cell] for cell in entry.cells if cell in indices)
    if runs and entry.text != "—":
        inside = f'<button type="button" data-runs="{_ranges(runs)}">{inside}</button>'
    if entry.bar is not None:
        inside = f'<div class="field">{draw_bar(entry.bar)}<span>{inside}</span></div>'
    return f"<td{sort}>{inside}</td>"


def _ranges(numbers: Iterable[int]) -> str:
    """Write ascending numbers as `0-4,9`."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        else:
            groups.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in groups)


def _picture(block: Picture, anchor: str, methods: Collection[str]) -> str:
    plot = block.plot
    drawing = inlined(plot.file, anchor, "".join(piece for piece, _ in spans(plot.alt)), methods)
    name = html.escape(plot.file.stem)
    buttons = "".join(
        f'<button type="button" data-save="{kind}">{kind.upper()}</button>' for kind in ("svg", "png", "pdf")
    )
    figure = (
        f'<figure id="{anchor}" data-name="{name}"><div class="scroll">{drawing}</div><p>Save as {buttons}</p></figure>'
    )
    if plot.kind in DRAWN_IN_TABLES:
        return f'<details class="notes"><summary>The same as a picture</summary>{figure}</details>'
    return figure


def _text(text: str) -> str:
    """Return a text with its spans; names are isolated, so that none turns the direction of what follows."""
    tags = {"code": ("<code><bdi>", "</bdi></code>"), "bold": ("<strong>", "</strong>"), "": ("", "")}
    pieces = ((html.escape(visible(piece)), style) for piece, style in spans(text))
    # A long name breaks between its parts first.
    broken = (
        (re.sub("([+(,=])", r"\1<wbr>", piece) if style == "code" else piece, *tags[style]) for piece, style in pieces
    )
    return "".join(f"{before}{piece}{after}" for piece, before, after in broken)


def _plain(text: str) -> str:
    return html.escape(visible("".join(piece for piece, _ in spans(text))))
