"""What a report says of one section: its scores, differences, costs and combinations, as blocks of a document."""

from __future__ import annotations

from finetune_bench.reports.document import (
    Block,
    Heading,
    Picture,
    Plot,
)
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.attribution import _attributions
from finetune_bench.reports.topics.cost import _costs
from finetune_bench.reports.topics.departures import _alive
from finetune_bench.reports.topics.differences import _control_differences, _differences
from finetune_bench.reports.topics.dose import _doses
from finetune_bench.reports.topics.equal_cost import _at_equal_cost
from finetune_bench.reports.topics.scores import _collapsed, _scores
from finetune_bench.reports.topics.synergy import _synergies
from finetune_bench.reports.topics.tests import _ranking, _tests

# --- one section ------------------------------------------------------------------------------------------------------


def section_blocks(data: Data, section: Section, level: int, plots: dict[str, Plot]) -> list[Block]:
    """Everything about one section.

    Args:
        level: of its headings.
        plots: the section's own, by kind.
    """

    def picture(*kinds: str) -> list[Block]:
        return [Picture(plots[kind]) for kind in kinds if kind in plots]

    def headed(title: str, content: list[Block]) -> list[Block]:
        return [Heading(level, title), *content] if content else []

    return [
        *headed("Scores", [*_scores(section), *picture("scores")]),
        *headed("Differences to the baseline", [*_differences(section), *picture("differences")]),
        *headed("Tests", _tests(data, section)),
        *headed("Over all tasks", [*_ranking(section), *picture("ranks", "profile")]),
        *headed("Differences to vanilla with the same dropout", _control_differences(section)),
        *headed("Where the gain comes from", [*_attributions(data, section), *picture("attribution")]),
        *headed("Dose", _doses(data, section, picture)),
        *headed("With and without collapsed runs", _collapsed(section)),
        *headed("Cost", [*_costs(section), *picture("memory", "time", "footprint")]),
        *headed("At equal cost", _at_equal_cost(section)),
        *headed("Compatibility", [*_synergies(section), *picture("compatibility", "synergy", "hype_pairs")]),
        *headed("Alive", _alive(data, section)),
        *headed("Training", picture("curves")),
    ]


# --- differences ------------------------------------------------------------------------------------------------------


# --- cost and compatibility -------------------------------------------------------------------------------------------
