"""Hold a run against a paper: level and gain for every number that it has a counterpart of, and a gain per claim."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune_bench.papers.published import AVERAGES, Claim, Paper, Score
from finetune_bench.reports.published.own import SPLITS, Chosen, Standing, choose, groups
from finetune_bench.reports.rows.sections import Data, pairing_hashes
from finetune_bench.reports.rows.shared import is_inseparable
from finetune_bench.reports.text import listed
from finetune_bench.stats.estimates import (
    NOTHING,
    Estimate,
    binomial_standard_error,
    geometric_mean_ratio,
    suite_mean,
    t_interval,
)
from finetune_bench.stats.published import (
    Level,
    SignVerdict,
    SizeVerdict,
    Summary,
    judge_level,
    judge_sign,
    judge_size,
    mean_gain,
    selection_bias,
    smallest_margin,
)
from finetune_bench.store.row import Row

BASELINE = "Vanilla"
SMALLEST_MARGIN = 1.0  # point


@dataclass(frozen=True)
class Gain:
    """A gain of our own is held against a published one.

    Attributes:
        published: theirs, without an interval where a deviation is lost.
        own: ours, over pairs of runs with the same seed; question (a).
        uncollapsed: ours without the pairs in which a run collapsed; None where none did.
        tier: the worst of the runs that it is made of, see `Standing`.
        margin: within which two gains count as equal.
        sign: whether ours lies above 0; None where the published one doesn't, and in tier 3.
        size: whether it is as large as theirs; None outside of tier 1.
        remaining: the shares of the remaining error that the two gains are, theirs first; NaN where they can't be told.
        baselines: the two baselines in points, theirs first.
    """

    published: Estimate
    own: Estimate
    uncollapsed: Estimate | None
    tier: int
    margin: float
    sign: SignVerdict | None
    size: SizeVerdict | None
    remaining: tuple[float, float]
    baselines: tuple[float, float]

    @property
    def smallest_margin(self) -> float:
        """This is the margin within which the two gains would have been shown to be equal; NaN without an interval."""
        if not self.own.standard_error > 0:
            return math.nan
        return smallest_margin(dataclasses.replace(self.own, value=self.own.value - self.published.value))


@dataclass(frozen=True)
class Judged:
    """A published score is held against our runs.

    Attributes:
        score: the published score.
        tables: the numbers of the tables that print it.
        chosen: our runs.
        standing: how near they are.
        level: how the means compare; None outside of tier 1.
        refused: why there is no level in tier 1; "" where there is one.
        bias: how much of the difference, in points, the unequal choice among settings is worth; NaN where unknown.
        gain: over vanilla; None for vanilla itself, and where it wasn't run.
    """

    score: Score
    tables: tuple[int, ...]
    chosen: Chosen
    standing: Standing
    level: Level | None
    refused: str
    bias: float
    gain: Gain | None


@dataclass(frozen=True)
class JudgedClaim:
    """A claim is held against our runs.

    Attributes:
        claim: the claim.
        model: the checkpoint of our runs; "" where none can judge it.
        gain: the gains over its tasks; None where no runs can judge it.
        missing: what would be needed to judge it; "" where there is a gain.
        differing: the facts that differ, of all its tasks.
        cells: ids of the runs behind it.
    """

    claim: Claim
    model: str
    gain: Gain | None
    missing: str
    differing: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()

    @property
    def is_contradicted(self) -> bool:
        """Tell whether the opposite of the claim was seen, on its own checkpoint or on another with the same recipe."""
        return self.gain is not None and self.gain.sign == "contradicted"


def judge_scores(paper: Paper, data: Data, margin: float | None = None) -> list[Judged]:
    """Return every published score that a run has a counterpart of, group of runs by group.

    Args:
        paper: what was published.
        data: the run.
        margin: in points, in place of the default of each number.
    """
    judged = []
    for group in groups(data.rows):
        for score, tables in distinct_scores(paper).items():
            found = choose(paper, score, group)
            if found is not None:
                judged.append(_judged(paper, data, score, tables, found, group=group, margin=margin))
    return judged


def distinct_scores(paper: Paper) -> dict[Score, tuple[int, ...]]:
    """Return the scores on development sets that a run can have too, each once, with the tables that print it."""
    first: dict[tuple[object, ...], Score] = {}
    tables: dict[Score, tuple[int, ...]] = {}
    for score in paper.scores:
        if score.task in AVERAGES or score.evaluated_on != "dev" or score.trained_on or score.task.startswith("adv_"):
            continue
        key = (score.model, score.method, score.scale, score.task, score.examples, score.mean)
        # A table that repeats a number may leave its deviation out.
        kept = first.setdefault(key, score)
        tables[kept] = (*tables.get(kept, ()), score.table)
    return tables


def _judged(
    paper: Paper,
    data: Data,
    score: Score,
    tables: tuple[int, ...],
    found: tuple[Chosen, Standing],
    *,
    group: Sequence[Row],
    margin: float | None,
) -> Judged:
    chosen, standing = found
    baseline = _baseline(paper, score)
    other = None if baseline is None else choose(paper, baseline, group)
    gain = None
    if baseline is not None and other is not None and score.method != BASELINE:
        published = mean_gain([(_summary(score), _summary(baseline))])
        gain = _gain(published, [(chosen, other[0])], max(standing.tier, other[1].tier), margin, [baseline.mean])
    claimed = 0.0 if gain is None else gain.published.value
    within = margin or _margin(claimed, _binomial(data, score, chosen))
    level, refused = None, ""
    if standing.tier == 1:
        try:
            level = judge_level(chosen.summary, _summary(score), within)
        except ValueError as error:
            refused = str(error)
    return Judged(score, tables, chosen, standing, level, refused, _bias(paper, score, chosen), gain)


def judge_claims(paper: Paper, data: Data, margin: float | None = None) -> list[JudgedClaim]:
    """Return every claim, once for each group of runs that can judge it, and once with what is missing where none can.

    Args:
        paper: what was published.
        data: the run.
        margin: in points, in place of the default of each claim.
    """
    judged = []
    for claim in paper.claims:
        found = [_judged_claim(paper, claim, group, margin) for group in groups(data.rows)]
        able = [one for one in found if one.gain is not None]
        judged += able or found[:1] or [JudgedClaim(claim, "", None, "no finished run")]
    return judged


def _judged_claim(paper: Paper, claim: Claim, group: Sequence[Row], margin: float | None) -> JudgedClaim:
    published: list[tuple[Score, Score]] = []
    ours: list[tuple[Chosen, Chosen]] = []
    standings: list[Standing] = []
    missing: dict[str, None] = {}
    for task in claim.tasks:
        sides = []
        for method, scale in ((claim.method, claim.scale), (claim.than, claim.than_scale)):
            score = paper.find(claim.table, claim.model, method, task, scale)
            assert score is not None  # a test holds the claims against the tables
            runs = choose(paper, score, group)
            if runs is None:
                missing[f"{method} on {task}"] = None
            else:
                sides.append((score, *runs))
        if len(sides) == 2:
            published.append((sides[0][0], sides[1][0]))
            ours.append((sides[0][1], sides[1][1]))
            standings += [side[2] for side in sides]
    if missing:
        return JudgedClaim(claim, "", None, listed(list(missing), most=4))
    theirs = mean_gain([(_summary(better), _summary(other)) for better, other in published])
    baselines = [other.mean for _, other in published]
    gain = _gain(theirs, ours, max(standing.tier for standing in standings), margin, baselines)
    differing = tuple(dict.fromkeys(fact for standing in standings for fact in standing.differing))
    cells = tuple(row["id"] for pair in ours for side in pair for row in side.rows.values())
    return JudgedClaim(claim, group[0]["model"], gain, "", differing, cells)


def _gain(
    published: Estimate,
    ours: Sequence[tuple[Chosen, Chosen]],
    tier: int,
    margin: float | None,
    published_baselines: Sequence[float],
) -> Gain:
    """Return our mean gain over tasks, judged against a published one."""
    own = suite_mean([paired(better, other) for better, other in ours])
    collapsed = any(row.get("collapsed") for pair in ours for side in pair for row in side.rows.values())
    uncollapsed = suite_mean([paired(better, other, collapsed=False) for better, other in ours])
    theirs = sum(published_baselines) / len(published_baselines)
    summaries = [other.summary.mean for _, other in ours]
    baseline = sum(summaries) / len(summaries)
    within = margin or _margin(published.value, 0.0)
    judges_sign = tier <= 2 and published.value > 0
    return Gain(
        published=published,
        own=own,
        uncollapsed=uncollapsed if collapsed else None,
        tier=tier,
        margin=within,
        sign=judge_sign(own, within) if judges_sign else None,
        size=judge_size(own, published, within) if tier == 1 else None,
        remaining=(_share(published.value, theirs), _share(own.value, baseline)),
        baselines=(theirs, baseline),
    )


def paired(better: Chosen, other: Chosen, *, collapsed: bool = True) -> Estimate:
    """Return the mean difference over seeds whose runs began from the same head, order and data."""
    differences = []
    for seed in sorted(better.rows.keys() & other.rows.keys()):
        first, second = better.rows[seed], other.rows[seed]
        if pairing_hashes(first) is None or pairing_hashes(first) != pairing_hashes(second):
            continue
        if collapsed or not (first.get("collapsed") or second.get("collapsed")):
            differences.append(better.score(seed) - other.score(seed))
    return t_interval(differences) if differences else NOTHING


def _baseline(paper: Paper, score: Score) -> Score | None:
    """Return the paper's vanilla of the same checkpoint, task and examples, with a deviation where one is printed."""
    same = [
        other
        for other in paper.scores
        if (other.method, other.model, other.task, other.examples, other.evaluated_on, other.trained_on)
        == (BASELINE, score.model, score.task, score.examples, score.evaluated_on, score.trained_on)
    ]
    return min(same, key=lambda other: (other.sd is None, other.table), default=None)


def _binomial(data: Data, score: Score, chosen: Chosen) -> float:
    """Return the published accuracy's standard error from new examples, in points; 0 for another metric."""
    examples = data.examples(next(iter(chosen.rows.values()))).get(SPLITS.get(score.task, ("", "validation"))[1], 0)
    if score.metric != "accuracy" or not examples:
        return 0.0
    return 100 * binomial_standard_error(score.mean / 100, examples)


def _margin(claimed: float, least: float) -> float:
    """Return a number's margin: the most of one point, half of the claimed gain, and what the examples allow."""
    return max(SMALLEST_MARGIN, abs(claimed) / 2, least)


def _bias(paper: Paper, score: Score, chosen: Chosen) -> float:
    """Return how much higher theirs is than ours for being chosen among settings by the reported scores, in points."""
    if score.sd is None or score.runs is None:
        return math.nan
    theirs = selection_bias(paper.settings_of(score), score.sd, score.runs)
    own = chosen.summary
    if chosen.by != "the reported scores" or own.sd is None or own.n is None:
        return theirs
    return theirs - selection_bias(chosen.tried, own.sd, own.n)


def _summary(score: Score) -> Summary:
    return Summary(score.mean, score.sd, score.runs)


def _share(gain: float, baseline: float) -> float:
    return gain / (100 - baseline) if baseline < 100 else math.nan


def memory_ratios(paper: Paper, data: Data) -> Mapping[tuple[str, str], tuple[float, float]]:
    """Return by pair of methods how many times the memory of the second the first takes: as published, and here.

    Only pairs that were run on a checkpoint and a task in common are held against each other; NaN where none were.
    """
    sizes = {entry.method: entry.gigabytes for entry in paper.memory}
    least = min(sizes, key=lambda method: sizes[method])
    ratios = {}
    for method, size in sizes.items():
        if method != least:
            ratios[method, least] = (size / sizes[least], _own_memory(paper, data, method, least))
    return ratios


def _own_memory(paper: Paper, data: Data, method: str, other: str) -> float:
    first, second = [], []
    task_scores = [score for score in distinct_scores(paper) if score.method in (method, other)]
    tasks = sorted({score.task for score in task_scores})
    for group in groups(data.rows):
        for task in tasks:
            sides = []
            for name in (method, other):
                score = next((s for s in task_scores if (s.method, s.task) == (name, task)), None)
                found = None if score is None else choose(paper, score, group)
                peaks = [] if found is None else [_peak(row) for row in found[0].rows.values()]
                known = [peak for peak in peaks if not math.isnan(peak)]
                sides.append(sum(known) / len(known) if known else math.nan)
            first.append(sides[0])
            second.append(sides[1])
    return geometric_mean_ratio(first, second) if first else math.nan


def _peak(row: Row) -> float:
    peak = None if is_inseparable(row) else (row.get("cost") or {}).get("peak_memory_bytes")
    return math.nan if peak is None else float(peak)
