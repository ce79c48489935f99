"""A report before it has a format: headings, sentences, lists, tables and pictures; markdown and HTML render the same.

Texts are plain: whatever comes from data or plugins is put in as it is, and each format escapes it. A name is set apart
by `code`, a number that stands out by `bold`; both leave marks that `spans` reads back, and that no data can forge.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    pass

_CODE, _BOLD, _END = "\x01", "\x02", "\x03"
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")


def clean(text: object) -> str:
    """Any text on one line, without control characters, so that none of it is taken for a mark."""
    return " ".join(_CONTROL.sub("", str(text)).split())


def code(text: object) -> str:
    """A name, to be set in another face."""
    return f"{_CODE}{clean(text)}{_END}"


def bold(text: str) -> str:
    """A part that stands out; it holds no `code`."""
    return f"{_BOLD}{clean(text)}{_END}"


def spans(text: str) -> list[tuple[str, str]]:
    """A text in pieces, each with its style: "", "code" or "bold"."""
    found = []
    for piece in re.findall(rf"{_CODE}[^{_END}]*{_END}|{_BOLD}[^{_END}]*{_END}|[^{_CODE}{_BOLD}]+", text):
        style = {_CODE: "code", _BOLD: "bold"}.get(piece[0], "")
        found.append((piece[1:-1] if style else clean_inside(piece), style))
    return found


def clean_inside(text: str) -> str:
    """A piece without control characters, its outer spaces kept."""
    return re.sub(r"\s+", " ", _CONTROL.sub("", text))


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the report's title."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """One or more sentences."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list; never empty.

    Attributes:
        findings: what came out, as opposed to how a table is to be read.
    """

    items: tuple[str, ...]
    findings: bool = False


@dataclass(frozen=True)
class Entry:
    """One field of a table.

    Attributes:
        text: as it is shown.
        sort: what a table sorts by; None for the text.
        cells: ids of the runs that the number was computed from; a page leads to them.
    """

    text: str
    sort: float | None = None
    cells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: what it holds: scores, differences, cost, ...
        header: one text per column; the first column stands left, the others by `align`.
        rows: of the header's length; a plain text is an entry that leads to no run.
        align: "right" for figures, "left" for texts.
    """

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    align: str = "right"


@dataclass(frozen=True)
class Picture:
    """A plot in its place."""

    plot: Plot


Block: TypeAlias = Heading | Paragraph | Bullets | Table | Picture


def bullets(items: Iterable[str], *, findings: bool = False) -> list[Block]:
    """A list, or nothing where there is no item."""
    found = tuple(items)
    return [Bullets(found, findings)] if found else []


def table(name: str, header: Sequence[str], rows: Iterable[Sequence[str | Entry]], align: str = "right") -> Table:
    """A table of texts and entries."""
    entries = tuple(tuple(Entry(one) if isinstance(one, str) else one for one in row) for row in rows)
    return Table(name, tuple(header), entries, align)


@dataclass(frozen=True)
class Plot:
    """One plot of one section.

    Attributes:
        kind: scores, differences, memory, ...: what `comparison` puts in its place.
        section: the section's position.
        file: where it is.
        link: the same, relative to the report's folder.
        alt: what it shows, for who can't see it.
    """

    kind: str
    section: int
    file: Path
    link: str
    alt: str
