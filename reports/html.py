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
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from finetune_bench._version import __version__
from finetune_bench.files import write_text
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.content import document
from finetune_bench.reports.document import Block, Bullets, Entry, Heading, Paragraph, Picture, Table, spans
from finetune_bench.reports.draw import draw
from finetune_bench.reports.rows.load import load
from finetune_bench.store.store import Store

# A table of so many rows gets a filter.
FILTERED = 8
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
    indices = {str(run["id"]): index for index, run in enumerate(runs)}
    title = next((block.text for block in blocks if isinstance(block, Heading)), "finetune-bench")
    style, script = (files(__package__).joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        "default-src 'none'; img-src data:; "
        f"style-src '{_fingerprint(style)}'; script-src '{_fingerprint(script)}'; base-uri 'none'; form-action 'none'"
    )
    heads = [(number, block) for number, block in enumerate(blocks) if isinstance(block, Heading) and block.level == 2]
    contents = "".join(f'<li><a href="#part-{number}">{_text(block.text)}</a></li>' for number, block in heads)
    body = "\n".join(_block(block, number, indices) for number, block in enumerate(blocks[1:], 1))
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
<div class="tools"><label>Filter every table <input id="everywhere" type="search"></label></div></nav>
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
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


# --- blocks -----------------------------------------------------------------------------------------------------------


def _block(block: Block, number: int, indices: Mapping[str, int]) -> str:
    if isinstance(block, Heading):
        level = min(block.level, 6)
        return f'<h{level} id="part-{number}">{_text(block.text)}</h{level}>'
    if isinstance(block, Paragraph):
        return f"<p>{_text(block.text)}</p>"
    if isinstance(block, Bullets):
        items = "".join(f"<li>{_text(item)}</li>" for item in block.items)
        return f"<ul>{items}</ul>" if block.findings else f'<ul class="notes">{items}</ul>'
    if isinstance(block, Table):
        return _table(block, number, indices)
    if isinstance(block, Picture):
        return _picture(block)
    raise TypeError(f"no HTML for {type(block).__name__}")


def _table(block: Table, number: int, indices: Mapping[str, int]) -> str:
    head = "".join(f'<th scope="col">{_text(text)}</th>' for text in block.header)
    rows = "\n".join(f"<tr>{''.join(_entry(entry, indices) for entry in row)}</tr>" for row in block.rows)
    search = ""
    if len(block.rows) >= FILTERED:
        search = '<div class="tools"><label>Filter <input type="search"></label>'
        search += f"<output>{len(block.rows)} rows</output></div>"
    side = ' class="left"' if block.align == "left" else ""
    return (
        f'<div class="box" id="part-{number}">{search}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{_plain(block.name)}">'
        f"<table{side}><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div></div>"
    )


def _entry(entry: Entry, indices: Mapping[str, int]) -> str:
    finite = entry.sort is not None and entry.sort == entry.sort
    sort = f' data-sort="{entry.sort!r}"' if finite else ""
    inside = _text(entry.text)
    runs = sorted(indices[cell] for cell in entry.cells if cell in indices)
    if runs and entry.text != "—":
        inside = f'<button type="button" data-runs="{_ranges(runs)}">{inside}</button>'
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


def _picture(block: Picture) -> str:
    drawing = base64.b64encode(block.plot.file.read_bytes()).decode()
    return (
        f'<figure><img alt="{_plain(block.plot.alt)}" decoding="async" '
        f'src="data:image/svg+xml;base64,{drawing}"></figure>'
    )


def _text(text: str) -> str:
    """Return a text with its spans; names are isolated, so that none turns the direction of what follows."""
    tags = {"code": ("<code><bdi>", "</bdi></code>"), "bold": ("<strong>", "</strong>"), "": ("", "")}
    pieces = ((html.escape(_visible(piece)), *tags[style]) for piece, style in spans(text))
    return "".join(f"{before}{piece}{after}" for piece, before, after in pieces)


def _plain(text: str) -> str:
    return html.escape(_visible("".join(piece for piece, _ in spans(text))))


def _visible(text: str) -> str:
    """Return a text without the characters that turn or hide text."""
    return re.sub("[\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "", text)
