"""A section of a report is written here: every topic under its heading, as blocks of a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from finetune_bench.reports.answer import answer_blocks
from finetune_bench.reports.document import Block, Heading, Picture, Plot
from finetune_bench.reports.rows.cached import cached
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics import TOPICS
from finetune_bench.reports.topics.topic import Drawing, TopicBlock


def section_blocks(data: Data, section: Section, level: int, plots: Mapping[str, Plot]) -> list[Block]:
    """Return everything about one section.

    Args:
        data: What the report is made of.
        section: The section to tell.
        level: The level of its headings.
        plots: The section's plots that were drawn, by kind; a plot that wasn't is left out.
    """
    blocks: list[Block] = []
    for title, content in _titled_blocks(data, section):
        if shown := _with_pictures(content, plots):
            blocks += [Heading(level, title), *shown]
    return blocks


def answer_of(data: Data, section: Section, plots: Mapping[str, Plot]) -> list[Block]:
    """Return what stands first about one section, without a heading; the arguments are those of `section_blocks`."""
    return _with_pictures(answer_blocks(data, section), plots)


def drawings(data: Data, section: Section) -> list[Drawing]:
    """Return the plots of one section that are to be drawn."""
    contents = [answer_blocks(data, section), *(content for _, content in _titled_blocks(data, section))]
    return [block for content in contents for block in content if isinstance(block, Drawing)]


def _with_pictures(content: Iterable[TopicBlock], plots: Mapping[str, Plot]) -> list[Block]:
    """Return blocks with the plots that were drawn in the places of those to be drawn; the others are left out."""
    shown: list[Block] = []
    for block in content:
        if not isinstance(block, Drawing):
            shown.append(block)
        elif block.kind in plots:
            shown.append(Picture(plots[block.kind]))
    return shown


@cached
def _titled_blocks(data: Data, section: Section) -> list[tuple[str, list[TopicBlock]]]:
    """Return the title and the blocks of every topic."""
    return [(topic.title, topic.blocks(data, section)) for topic in TOPICS]
