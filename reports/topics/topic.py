"""A topic is one subject that a report tells of every section, in tables, plots and one CSV file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from matplotlib.figure import Figure

from finetune_bench.reports.document import Block
from finetune_bench.reports.rows.sections import Data, Section


@dataclass(frozen=True)
class Drawing:
    """A drawing is a plot that is still to be drawn, where it stands among the blocks of a topic.

    Attributes:
        kind: The plot's name, from which its file's name is made; no two plots of a section share it.
        alt: What the plot shows, for a reader who can't see it.
        draw: Returns the figure; None where the rows don't allow one.
    """

    kind: str
    alt: str
    draw: Callable[[], Figure | None]


@dataclass(frozen=True)
class Frame:
    """The records of a topic as one CSV file.

    Attributes:
        file: The file's name, without its ending.
        record: The dataclass of one line; its fields become the columns.
        records: Returns the lines of one section.
        methods: Returns the labels of the methods whose runs a record rests on, for the column `cells`; None for no
            such column.
    """

    file: str
    record: type[Any]
    records: Callable[[Data, Section], Sequence[Any]]
    methods: Callable[[Any], Iterable[str]] | None = None


TopicBlock: TypeAlias = Block | Drawing


@dataclass(frozen=True)
class Topic:
    """A topic is one subject of a section.

    Attributes:
        title: The heading above it.
        blocks: Returns what stands below the heading. Where that is nothing, or only plots that can't be drawn, the
            heading is left out too.
        frame: Its records as a CSV file; None for no file.
    """

    title: str
    blocks: Callable[[Data, Section], list[TopicBlock]]
    frame: Frame | None = None
