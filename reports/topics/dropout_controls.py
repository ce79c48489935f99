"""Methods with other dropout than the baseline's are held here against vanilla with the same dropout."""

from __future__ import annotations

from finetune_bench.reports.document import Paragraph, bullets
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.differences import control_differences, difference_table, refused_notes
from finetune_bench.reports.topics.topic import Topic, TopicBlock

_WHY = (
    "These methods run with other dropout than the baseline, so part of their difference to it is dropout's. Here "
    "each is held against vanilla with the same realised dropout: what is left is the method's own."
)


def _blocks(data: Data, section: Section) -> list[TopicBlock]:
    rows = control_differences(section)
    result: list[TopicBlock] = [Paragraph(_WHY)] if rows else []
    for control in dict.fromkeys(row.reference for row in rows):
        of_control = [row for row in rows if row.reference == control]
        result += [difference_table(section, of_control), *bullets(refused_notes(section, of_control))]
    return result


# The records are lines of the CSV file of the differences.
TOPIC = Topic(title="Differences to vanilla with the same dropout", blocks=_blocks)
