"""The markdown report is one file with its plots."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from finetune_bench.files import write_text
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.content import document
from finetune_bench.reports.document import EXPLAINED, Block, Bullets, Heading, Paragraph, Picture, Plot, Table, spans
from finetune_bench.reports.draw import draw
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.store.store import Store


class Markdown(Report):
    """The report as report.md, with its plots as plots/*.svg."""

    name = "markdown"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write the report and its plots."""
        data = load(store, options)
        plots = draw(data, folder / "plots")
        path = folder / "report.md"
        write_text(path, render(data, plots))
        return [path, *(plot.file for plot in plots)]


def render(data: Data, plots: tuple[Plot, ...] = ()) -> str:
    """Return the whole report as markdown."""
    return as_markdown(document(data, plots))


def as_markdown(blocks: Iterable[Block]) -> str:
    """Return blocks as markdown."""
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {inline(block.text)}"
    if isinstance(block, Paragraph):
        return f"> [!WARNING]\n> {inline(block.text)}" if block.role == "warning" else inline(block.text)
    if isinstance(block, Bullets):
        items = "\n".join(f"- {inline(item)}" for item in block.items)
        # What explains a table is a click away, on GitHub as in the page.
        return items if block.findings else f"<details><summary>{EXPLAINED}</summary>\n\n{items}\n\n</details>"
    if isinstance(block, Table):
        rule = "---:" if block.align == "right" else "---"
        lines = [[inline(text) for text in block.header], ["---", *[rule] * (len(block.header) - 1)]]
        lines += [[inline(entry.text) for entry in row] for row in (*block.rows, *block.footer)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if isinstance(block, Picture):
        return f"![{_escaped(block.plot.alt)}]({block.plot.link})"
    raise TypeError(f"no markdown for {type(block).__name__}")


def inline(text: str) -> str:
    """Return a text of a report as markdown within a line."""
    return "".join(_span(piece, style) for piece, style in spans(text))


def _span(piece: str, style: str) -> str:
    if style == "code":
        return _code(piece)
    return f"**{_escaped(piece)}**" if style == "bold" else _escaped(piece)


def _escaped(text: str) -> str:
    """Return any text so that it is shown as it is, within a table too."""
    for character in "\\|`*<>#~":
        text = text.replace(character, f"\\{character}")
    # What would make a link or a footnote; an interval doesn't.
    text = re.sub(r"\](?=[(\[:])|\[(?=\^)", r"\\\g<0>", text)
    # Within a word an underscore is no mark-up.
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


def _code(text: str) -> str:
    """Return a name in a code span; only | and ` need care there."""
    text = text.replace("|", "\\|")
    return f"`` {text} ``" if "`" in text else f"`{text}`"
