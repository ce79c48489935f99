"""A report before it has a format: headings, sentences, lists, tables and pictures; markdown and HTML render the same.

Texts are plain: whatever comes from data or plugins is put in as it is, and each format escapes it. A name is set apart
by `code`, a number that stands out by `bold`; both leave marks that `spans` reads back, and that no data can forge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from finetune_bench.printable import UNPRINTABLE

# Stands above notes that are opened.
EXPLAINED = "How to read this"
_CODE, _BOLD, _END = "\x01", "\x02", "\x03"
# White space stays, and becomes a space.
_CONTROL = re.compile(f"(?![\t\n\x0b\f\r\x85\u2028\u2029]){UNPRINTABLE.pattern}")


def clean(text: object) -> str:
    """Return any text on one line, without control characters, so that none of it is taken for a mark."""
    return " ".join(_CONTROL.sub("", str(text)).split())


def code(text: object) -> str:
    """Mark a name, to be set in another face."""
    return f"{_CODE}{clean(text)}{_END}"


def bold(text: str) -> str:
    """Mark a part that stands out; it holds no `code`."""
    return f"{_BOLD}{clean(text)}{_END}"


def spans(text: str) -> list[tuple[str, str]]:
    """Split a text into pieces, each with its style: "", "code" or "bold"."""
    pieces = []
    for piece in re.findall(rf"{_CODE}[^{_END}]*{_END}|{_BOLD}[^{_END}]*{_END}|[^{_CODE}{_BOLD}]+", text):
        style = {_CODE: "code", _BOLD: "bold"}.get(piece[0], "")
        pieces.append((piece[1:-1] if style else _clean_inside(piece), style))
    return pieces


def _clean_inside(text: str) -> str:
    """Return a piece without control characters, its outer spaces kept."""
    return re.sub(r"\s+", " ", _CONTROL.sub("", text))


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the report's title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """A paragraph is a text of one sentence or more.

    Attributes:
        text: What it says.
        role: "headline" for the sentence that a reader takes home, "warning" for what makes a comparison worth little,
            "aside" for what stands small beside them, "" for any other.
    """

    text: str
    role: Literal["headline", "warning", "aside", ""] = ""


@dataclass(frozen=True)
class Bullets:
    """Bullets are a list that is never empty.

    Attributes:
        items: One text each.
        findings: Whether they are what came out, as opposed to how a table is to be read, which a reader opens.
    """

    items: tuple[str, ...]
    findings: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar holds a number and its interval, drawn beside the text on an axis of the whole column.

    Attributes:
        colour: Colour of its mark; "" for the axis itself, which has no mark.
        marker: Its mark, by matplotlib's name.
        value: Where the mark stands; NaN for none.
        low: Lower end of the interval; NaN for none.
        high: Upper end of the interval.
        band: Half the width of a band around 0; NaN for none.
        first: Where the axis begins.
        last: Where it ends; an interval that goes on gets an arrow.
    """

    colour: str
    marker: str
    value: float
    low: float
    high: float
    band: float
    first: float
    last: float


@dataclass(frozen=True)
class Entry:
    """An entry is one field of a table.

    Attributes:
        text: What is shown.
        sort: What a table sorts by; None for the text.
        cells: Ids of the runs that the number was computed from; a page leads to them.
        bar: The number as a drawing, where the format has drawings within tables.
    """

    text: str
    sort: float | None = None
    cells: tuple[str, ...] = ()
    bar: Bar | None = None


@dataclass(frozen=True)
class Table:
    """A table has a header, and rows of entries below it.

    Attributes:
        name: What it holds: scores, differences, cost, ...
        header: One text per column; the first column stands left, the others by `align`.
        rows: Entries, as many as the header has in each row.
        align: "right" for figures, "left" for texts.
        in_paper: Whether the tables for a paper have it too.
        footer: Rows that stay below the others, however these are sorted.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    align: str = "right"
    in_paper: bool = True
    footer: tuple[tuple[Entry, ...], ...] = ()


@dataclass(frozen=True)
class Plot:
    """One plot of one section, as it was drawn.

    Attributes:
        kind: The plot's name within its section: scores, differences, memory, ...
        section: The section's index.
        file: Where the plot is.
        link: The same, relative to the report's folder.
        alt: What the plot shows, for a reader who can't see it.
    """

    kind: str
    section: int
    file: Path
    link: str
    alt: str


@dataclass(frozen=True)
class Picture:
    """A picture is a plot in the place where it is shown."""

    plot: Plot


Block: TypeAlias = Heading | Paragraph | Bullets | Table | Picture


def bullets(items: Iterable[str], *, findings: bool = False) -> list[Bullets]:
    """Return a list of items, or nothing where there is no item."""
    texts = tuple(items)
    return [Bullets(texts, findings)] if texts else []


def table(
    name: str,
    header: Sequence[str],
    rows: Iterable[Sequence[str | Entry]],
    align: str = "right",
    *,
    in_paper: bool = True,
    footer: Iterable[Sequence[str | Entry]] = (),
) -> Table:
    """Return a table of texts and entries; a plain text is an entry that leads to no run."""
    return Table(name, tuple(header), _entries(rows), align, in_paper, _entries(footer))


def _entries(rows: Iterable[Sequence[str | Entry]]) -> tuple[tuple[Entry, ...], ...]:
    return tuple(tuple(Entry(field) if isinstance(field, str) else field for field in row) for row in rows)
