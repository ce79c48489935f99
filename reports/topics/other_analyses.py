"""Analyses that have no topic of their own are told here, those of plugins above all."""

from __future__ import annotations

from finetune_bench.reports.document import Paragraph, bold
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.analysed import Measurement, all_measurements, analysis_blocks, names_in
from finetune_bench.reports.topics.topic import Frame, Topic, TopicBlock

TOLD = ("calibration", "similarity", "transfer", "drift", "probe", "retention", "submission")


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    blocks: list[TopicBlock] = []
    for name in names_in(data, section):
        if name not in TOLD:
            blocks += [Paragraph(bold(name)), *analysis_blocks(name, data, section)]
    return blocks


# Its file holds the numbers of all analyses, so that each can be computed with.
TOPIC = Topic(title="Other analyses", blocks=_blocks, frame=Frame("analyses", Measurement, all_measurements))
