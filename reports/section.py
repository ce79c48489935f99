"""A section of a report is written here: every topic under its heading, as blocks of a document."""

from __future__ import annotations

from collections.abc import Mapping

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
        shown: list[Block] = []
        for block in content:
            if not isinstance(block, Drawing):
                shown.append(block)
            elif block.kind in plots:
                shown.append(Picture(plots[block.kind]))
        if shown:
            blocks += [Heading(level, title), *shown]
    return blocks


def drawings(data: Data, section: Section) -> list[Drawing]:
    """Return the plots of one section that are to be drawn."""
    return [block for _, content in _titled_blocks(data, section) for block in content if isinstance(block, Drawing)]


@cached
def _titled_blocks(data: Data, section: Section) -> list[tuple[str, list[TopicBlock]]]:
    """Return the title and the blocks of every topic."""
    return [(topic.title, topic.blocks(data, section)) for topic in TOPICS]
