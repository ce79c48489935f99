"""Judge own runs on AdvGLUE's development sets, in pairs: the paper's two rows of these are of two different sets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from finetune_bench.papers.published import Paper, Score
from finetune_bench.reports.document import Block, Entry, Paragraph, bullets, table
from finetune_bench.reports.published.judge import BASELINE, SMALLEST_MARGIN, paired
from finetune_bench.reports.published.own import Chosen, Standing, choose, groups, with_transfer
from finetune_bench.reports.rows.sections import Data
from finetune_bench.reports.text import interval, points
from finetune_bench.stats.estimates import Estimate, suite_mean
from finetune_bench.stats.published import SignVerdict, judge_sign

EVALUATED_ON = "dev"


@dataclass(frozen=True)
class OwnPair:
    """An own pair is a method and vanilla on one development set of AdvGLUE, run by run with the same seeds.

    Attributes:
        score: what the paper printed of the method on that set.
        method: our runs of the method.
        vanilla: our runs of vanilla.
        standing: how near the method's runs are to the paper's.
        gain: in points, over the pairs.
        sign: whether it lies above 0.
    """

    score: Score
    method: Chosen
    vanilla: Chosen
    standing: Standing
    gain: Estimate
    sign: SignVerdict


def own_pairs(paper: Paper, data: Data) -> list[OwnPair]:
    """Return every pair that a run has, checkpoint by checkpoint."""
    scores = [score for score in paper.scores if score.task.startswith("adv_") and score.evaluated_on == EVALUATED_ON]
    pairs = []
    for group in groups(with_transfer(data)):
        for score in scores:
            found = choose(paper, score, group)
            vanilla = choose(paper, dataclasses.replace(score, method=BASELINE, scale=None), group)
            if found is None or vanilla is None:
                continue
            gain = paired(found[0], vanilla[0])
            pairs.append(OwnPair(score, found[0], vanilla[0], found[1], gain, judge_sign(gain, SMALLEST_MARGIN)))
    return pairs


def own_pair_blocks(pairs: Sequence[OwnPair]) -> list[Block]:
    """Return the table of own pairs, with the mean over sets; a sentence on how to get some where there are none."""
    if not pairs:
        return [
            Paragraph(
                "This run has no pair of its own on AdvGLUE: 'run --analyses transfer' on sst2, qqp, qnli, rte or mnli "
                "scores both methods on the public development sets."
            )
        ]
    rows: list[list[str | Entry]] = []
    for model in dict.fromkeys(_model(pair) for pair in pairs):
        of_model = [pair for pair in pairs if _model(pair) == model]
        rows += [_row(pair, model) for pair in of_model]
        if len(of_model) > 1:
            mean = suite_mean([pair.gain for pair in of_model])
            verdict = judge_sign(mean, SMALLEST_MARGIN)
            rows.append(["mean of these sets", model, "—", "—", "—", interval(mean, sign=True), verdict, "—"])
    header = (
        "development set", "checkpoint", "published", "here, vanilla", "here, method", "gain", "gain above 0",
        "what differs from the paper",
    )  # fmt: skip
    note = (
        "Own pairs: the same seed, head, order and data, both methods on the same development set; the gain is over "
        "the pairs, with its 95 % interval (a). These sets hold 78 to 162 examples: one accuracy of a half is "
        "uncertain by 4 to 6 points for that alone."
    )
    return [table("adversarial", header, rows, align="left", in_paper=False), *bullets([note])]


def _model(pair: OwnPair) -> str:
    return str(next(iter(pair.method.rows.values()))["model"])


def _row(pair: OwnPair, model: str) -> list[str | Entry]:
    cells = tuple(row["id"] for chosen in (pair.method, pair.vanilla) for row in chosen.rows.values())
    return [
        f"{pair.score.method} on {pair.score.task}",
        model,
        points(pair.score.mean, decimals=2),
        points(pair.vanilla.summary.mean),
        points(pair.method.summary.mean),
        Entry(interval(pair.gain, sign=True), sort=pair.gain.value, cells=cells),
        pair.sign,
        "; ".join(pair.standing.differing) or "nothing that is known",
    ]
