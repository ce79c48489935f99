"""The verification of a paper becomes a report: claims, then every number, then what the paper itself leaves open."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tabulate import tabulate

from finetune_bench.papers.published import Paper, Score
from finetune_bench.reports.document import Block, Entry, Heading, Paragraph, Table, bullets, code, table
from finetune_bench.reports.published.adversarial import OwnPair, own_pair_blocks
from finetune_bench.reports.published.judge import Gain, Judged, JudgedClaim
from finetune_bench.reports.published.own import how_chosen
from finetune_bench.reports.text import counted, interval, listed, points
from finetune_bench.stats.estimates import Estimate, holm
from finetune_bench.stats.published import whole_counts
from finetune_bench.store.row import Row

# What a sign is called on another checkpoint or other data, where nothing can be reproduced.
_ELSEWHERE = {
    "supported": "holds here",
    "contradicted": "does not hold here",
    "no practical effect": "no practical effect here",
    "undecided": "undecided",
}
_TIERS = {1: "same setting", 2: "sign only"}
_TOO_FAR = "both the recipe and the checkpoint or the data differ"


def blocks_of(
    paper: Paper,
    judged: Sequence[Judged],
    claims: Sequence[JudgedClaim],
    *,
    memory: Mapping[tuple[str, str], tuple[float, float]],
    pairs: Sequence[OwnPair],
    left: Sequence[str],
    notes: Sequence[str],
) -> list[Block]:
    """Return the whole report.

    Args:
        paper: what was published.
        judged: every number that the run has a counterpart of.
        claims: every claim.
        memory: ratios of memory, as published and here, by pair of methods.
        pairs: own pairs on AdvGLUE's development sets.
        left: labels of the run's methods that the paper has no number of.
        notes: sentences about what of the run was read.
    """
    blocks: list[Block] = [
        Heading(1, f"Verification: {paper.title}"),
        Paragraph(in_short(judged, claims), "headline"),
    ]
    for one in claims:
        if one.is_contradicted:
            blocks.append(Paragraph(f"The claim {code(one.claim.name)} is contradicted: {_opposite(one)}", "warning"))
    blocks += [Heading(2, "Claims"), *_claim_blocks(claims)]
    blocks += [Heading(2, "Means in the same setting"), *_level_blocks(judged)]
    blocks += [Heading(2, "Gains over vanilla, task by task"), *_gain_blocks(judged)]
    blocks += [Heading(2, "AdvGLUE: two rows, two sets"), *_recount_blocks(paper), *own_pair_blocks(pairs)]
    blocks += [Heading(2, "Memory"), *memory_blocks(memory)]
    blocks += [Heading(2, "What the paper leaves open"), _slips(paper)]
    blocks += bullets(
        f"{name}: {shows}; it prints no number, and is not judged." for name, shows in paper.figures.items()
    )
    blocks += [Heading(2, "What was compared"), *_compared(judged, left, notes)]
    return [*blocks, Heading(2, "What the verdicts are"), *bullets(_HOW)]


_HOW = (
    "Differences and gains are in points. Every interval is a 95 % t interval and answers question (a): these tasks "
    "and these examples, new seeds. Ours are over pairs of runs with the same seed, head, order and data; published "
    "runs can't be paired.",
    "A mean is reproduced where the 90 % interval of ours − theirs lies within the margin, and different where the "
    "95 % interval excludes 0; both can hold. Else it is undecided: “margin needed” is the smallest that would have "
    "been shown. Verdicts hold whether a printed deviation divides by n or by n − 1.",
    "Margins are fixed before: one point or half of the claimed gain, whichever is more, and for an accuracy never "
    "less than its standard error from the number of examples.",
    "Same setting: checkpoint, data, recipe, metric and split are the same; level and gain are judged. Sign only: the "
    "same recipe on another checkpoint or other data, or another recipe on the same; whether the gain has the same "
    "sign here is judged, and its size is told as a share of the error that the baseline leaves. Where both differ, "
    "nothing is judged. No revision of a checkpoint and no hash of a split was published, so a name is all that "
    "these can be compared by.",
    "A number that is the best of several settings on the reported scores is too high. The column “from selection” "
    "says by how many points theirs is expected to be higher than ours for that alone.",
    "Verdicts are taken one at a time: of twenty intervals, one is expected to miss by chance. “All are reproduced” "
    "needs each of them; that some differ is told after Holm's correction.",
)


def in_short(judged: Sequence[Judged], claims: Sequence[JudgedClaim]) -> str:
    """Return what came out, in one or two sentences."""
    levels = Counter(one.level.verdict for one in judged if one.level is not None)
    tiers = Counter(one.gain.tier for one in claims if one.gain is not None)
    signs = Counter(one.gain.sign for one in claims if one.gain is not None and one.gain.sign is not None)
    parts = []
    if levels:
        verdicts = [f"{number} {verdict}" for verdict, number in sorted(levels.items())]
        parts.append(
            f"Of {counted(levels.total(), 'published mean')} with a run in the same setting: {'; '.join(verdicts)}."
        )
    else:
        parts.append("No run has the setting of a published mean, so no level is judged.")
    if signs:
        same, other = tiers[1], tiers[2]
        words = [f"{number} {sign}" for sign, number in sorted(signs.items())]
        parts.append(f"Signs of claims, {same} in the same setting and {other} elsewhere: {'; '.join(words)}.")
    else:
        parts.append("No claim can be judged by this run.")
    return " ".join(parts)


def answer(judged: Sequence[Judged], claims: Sequence[JudgedClaim]) -> str:
    """Return what the terminal shows: the headline, and every claim that was judged."""
    lines = []
    for one in claims:
        if one.gain is not None and one.gain.sign is not None:
            verdicts = [_sign(one.gain), *([_size(one.gain)] if one.gain.tier == 1 else [])]
            theirs, ours = points(one.claim.gain, sign=True, decimals=2), interval(one.gain.own, sign=True)
            what = f"{one.claim.method} over {one.claim.than}"
            lines.append([one.claim.name, what, theirs, ours, one.model, ", ".join(verdicts)])
    header = ["claim", "", "published", "ours", "checkpoint", "verdict"]
    shown = tabulate(lines, header, tablefmt="simple", disable_numparse=True)
    return "\n\n".join([in_short(judged, claims), *([shown] if lines else [])]) + "\n"


def _opposite(one: JudgedClaim) -> str:
    gain = one.gain
    assert gain is not None
    return (
        f"{one.claim.method} was published with a gain of {points(one.claim.gain, sign=True, decimals=2)} over "
        f"{one.claim.than}; here, on {one.model}, it is {interval(gain.own, sign=True)}."
    )


# --- claims -----------------------------------------------------------------------------------------------------------


def _claim_blocks(claims: Sequence[JudgedClaim]) -> list[Block]:
    rows = [_claim_row(one) for one in claims if one.gain is not None and one.gain.tier < 3]
    missing = sum(one.gain is None for one in claims)
    other = sum(one.gain is not None and one.gain.tier == 3 for one in claims)
    unjudged = []
    if missing:
        unjudged.append(
            f"{missing} of them, for want of finished runs of both methods on every task that they are about"
        )
    if other:
        unjudged.append(f"{other}, as {_TOO_FAR}")
    header = (
        "claim", "source", "published", "ours", "checkpoint", "tier", "sign", "size", "margin needed",
        "without collapsed runs", "what differs",
    )  # fmt: skip
    content: list[Block] = [table("claims", header, rows, align="left")] if rows else []
    printed = [
        f"{code(one.claim.name)}: the text has {points(one.claim.printed, sign=True, decimals=2)}, its table "
        f"{points(one.claim.gain, sign=True, decimals=2)}; the latter is judged."
        for one in claims
        if one.claim.printed is not None and one.gain is not None and one.gain.tier < 3
    ]
    if unjudged:
        counts = f"Not judged are {missing + other} of {counted(len(claims), 'claim')}: {'; '.join(unjudged)}."
        printed.append(f"{counts} {code('verify-claims.csv')} says of each what is missing, or differs.")
    return [*content, *bullets(dict.fromkeys(printed), findings=True)]


def _claim_row(one: JudgedClaim) -> list[str | Entry]:
    gain = one.gain
    assert gain is not None
    return [
        f"{one.claim.name}: {one.claim.method} over {one.claim.than}",
        one.claim.source,
        interval(gain.published, sign=True) if not math.isnan(gain.published.low) else _published(one.claim.gain),
        Entry(interval(gain.own, sign=True), sort=gain.own.value, cells=one.cells),
        one.model,
        _TIERS[gain.tier],
        _sign(gain),
        _size(gain),
        points(gain.smallest_margin) if gain.tier == 1 else "—",
        "—" if gain.uncollapsed is None else interval(gain.uncollapsed, sign=True),
        "; ".join(one.differing) or "nothing that is known",
    ]


def _sign(gain: Gain) -> str:
    if gain.sign is None:
        return "no gain was published"
    return gain.sign if gain.tier == 1 else _ELSEWHERE[gain.sign]


def _size(gain: Gain) -> str:
    """Return the verdict on the size in the same setting, and the shares of the remaining error elsewhere."""
    if gain.tier == 1:
        return gain.size or "undecided"
    if any(math.isnan(share) for share in gain.remaining):
        return "—"
    theirs, ours = (f"{100 * share:.1f} %" for share in gain.remaining)
    first, second = (points(baseline) for baseline in gain.baselines)
    return f"{theirs} of the error above {first} was published, {ours} above {second} here".replace("-", "−")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _level_blocks(judged: Sequence[Judged]) -> list[Block]:
    same = [one for one in judged if one.standing.tier == 1]
    rows = [_level_row(one) for one in same]
    if not rows:
        return [Paragraph("No run has a checkpoint, data and recipe of the paper.")]
    header = (
        "mean", "tables", "published", "ours", "ours − theirs", "verdict", "margin", "margin needed",
        "a new mean of theirs", "from selection",
    )  # fmt: skip
    findings = [f"{_name(one.score)}: {one.refused}" for one in same if one.refused]
    findings += [f"{_name(one.score)}: {one.level.assumption}." for one in same if one.level and one.level.assumption]
    findings += [_together(same)]
    return [table("levels", header, rows), *bullets(findings, findings=True)]


def _level_row(one: Judged) -> list[str | Entry]:
    own, level = one.chosen.summary, one.level
    cells = tuple(row["id"] for row in one.chosen.rows.values())
    difference = Estimate(own.mean - one.score.mean) if level is None else level.difference
    return [
        _name(one.score),
        ", ".join(map(str, one.tables)),
        _mean(one.score.mean, one.score.sd, one.score.runs),
        Entry(_mean(own.mean, own.sd, own.n), sort=own.mean, cells=cells),
        interval(difference, sign=True),
        "not judged" if level is None else level.verdict,
        "—" if level is None else points(level.margin),
        "—" if level is None else points(level.smallest_margin),
        "—" if level is None or math.isnan(level.new_mean) else f"±{points(level.new_mean)}",
        points(one.bias, sign=True, decimals=2),
    ]


def _together(same: Sequence[Judged]) -> str:
    """Return what holds of all means together: each reproduced, or some different after Holm's correction."""
    levels = [(one, one.level) for one in same if one.level is not None]
    if levels and all(level.verdict.startswith(("reproduced", "different, but")) for _, level in levels):
        return "All means are reproduced, each within its margin."
    adjusted = holm([level.difference.p_value for _, level in levels])
    apart = [_name(one.score) for (one, _), p in zip(levels, adjusted, strict=True) if p < 0.05]
    if apart:
        return f"After Holm's correction over {counted(len(levels), 'mean')}, different: {listed(apart)}."
    return f"After Holm's correction over {counted(len(levels), 'mean')}, none differs; not all are reproduced."


def _gain_blocks(judged: Sequence[Judged]) -> list[Block]:
    gains = [(one, one.gain) for one in judged if one.gain is not None]
    if not gains:
        return [Paragraph("No method of the paper was run beside vanilla.")]
    rows = [_gain_row(one, gain) for one, gain in gains if gain.tier < 3]
    unjudged = []
    if other := len(gains) - len(rows):
        counts = f"Not judged are {other} of {counted(len(gains), 'gain')}, as {_TOO_FAR}"
        unjudged.append(f"{counts}. {code('verify-scores.csv')} has theirs and ours.")
    header = (
        "gain", "tables", "published", "ours", "checkpoint", "tier", "sign", "size", "margin needed", "what differs",
        "what else differs",
    )  # fmt: skip
    content: list[Block] = [table("gains", header, rows, align="left", in_paper=False)] if rows else []
    return [*content, *bullets(unjudged, findings=True)]


def _gain_row(one: Judged, gain: Gain) -> list[str | Entry]:
    cells = tuple(row["id"] for row in one.chosen.rows.values())
    has_interval = not math.isnan(gain.published.low)
    return [
        _name(one.score),
        ", ".join(map(str, one.tables)),
        interval(gain.published, sign=True) if has_interval else _published(gain.published.value),
        Entry(interval(gain.own, sign=True), sort=gain.own.value, cells=cells),
        _model(one),
        _TIERS[gain.tier],
        _sign(gain),
        _size(gain),
        points(gain.smallest_margin) if gain.tier == 1 else "—",
        "; ".join(one.standing.differing) or "nothing that is known",
        "; ".join(one.standing.told) or "—",
    ]


def _model(one: Judged) -> str:
    return str(next(iter(one.chosen.rows.values()))["model"])


def _name(score: Score) -> str:
    scale = "" if score.scale is None else f" {score.scale:g}"
    examples = "" if score.examples is None else f", {score.examples:,} examples"
    return f"{score.method}{scale} on {score.task}, {score.model}{examples}"


def _mean(mean: float, sd: float | None, n: int | None) -> str:
    spread = "" if sd is None else f" ± {points(sd, decimals=2)}"
    return f"{points(mean, decimals=2)}{spread} ({'n unknown' if n is None else f'n = {n}'})"


def _published(gain: float) -> str:
    return f"{points(gain, sign=True, decimals=2)} (no interval)"


# --- the paper itself -------------------------------------------------------------------------------------------------


def _recount_blocks(paper: Paper) -> list[Block]:
    """Return which numbers of right answers the printed accuracies are, on the one set and on the other."""
    header = (
        "row",
        "printed",
        "hidden test, 1 run",
        "hidden test, 3 runs",
        "development, 1 run",
        "development, 3 runs",
    )
    rows = []
    for score in paper.scores:
        sizes = paper.recounted.get(score.task)
        if sizes is None:
            continue
        counts = [whole_counts(score.mean, sizes[name], runs) for name in ("hidden_test", "dev") for runs in (1, 3)]
        rows.append(
            [
                f"{score.method} on {score.task.removeprefix('adv_')}",
                points(score.mean, decimals=2),
                *(", ".join(map(str, found)) or "—" for found in counts),
            ]
        )
    text = (
        "An accuracy is a whole number of right answers over the examples. Each cell holds the numbers that would be "
        "printed so, a dash where there is none. The row of vanilla fits AdvGLUE's hidden test set and no development "
        "set; HyPe's row fits three runs on the public development set. The printed gain is therefore no comparison of "
        "the two methods on one set, and is not judged. Own runs of both are held against each other on the "
        "development set below."
    )
    return [Paragraph(text), table("recount", header, rows, in_paper=False)]


def memory_blocks(memory: Mapping[tuple[str, str], tuple[float, float]]) -> list[Block]:
    """Return the printed sizes in memory as ratios, beside ours."""
    rows = [
        [f"{method} ÷ {other}", f"{theirs:.2f}", "—" if math.isnan(ours) else f"{ours:.2f}"]
        for (method, other), (theirs, ours) in memory.items()
    ]
    text = (
        "Peak memory of a run, as ratios: sizes depend on the checkpoint, the batch and the machine, so no verdict. "
        "Ours is the geometric mean over checkpoints and tasks that ran both, of all that a worker holds on a CPU, and "
        "of what torch allocated on a GPU."
    )
    return [Paragraph(text), table("memory", ("ratio", "published", "ours"), rows, in_paper=False)]


def _slips(paper: Paper) -> Table:
    rows = [(slip.where, slip.quantity, slip.printed, slip.other, slip.note) for slip in paper.discrepancies]
    header = ("where", "what", "printed", "other value", "what follows")
    return table("discrepancies", header, rows, align="left", in_paper=False)


def _compared(judged: Sequence[Judged], left: Sequence[str], notes: Sequence[str]) -> list[Block]:
    """Return what was chosen, what was not finished, and what has no counterpart."""
    facts: dict[str, None] = {}
    for one in judged:
        chosen = one.chosen
        row: Row = next(iter(chosen.rows.values()))
        if chosen.by:
            facts[
                f"{chosen.label} on {row['task']}, {row['model']}: learning rate {chosen.learning_rate:g}, "
                f"{how_chosen(chosen)}."
            ] = None
        if chosen.unfinished:
            facts[
                f"{chosen.label} on {row['task']}: {counted(chosen.unfinished, 'run')} without a score, left out."
            ] = None
    if left:
        facts[f"Without a counterpart in the paper: {listed([code(name) for name in left])}."] = None
    return list(bullets([*facts, *notes], findings=True)) or [Paragraph("Every run has a counterpart in the paper.")]
