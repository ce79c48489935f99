"""Write the verification of a paper in the formats of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from finetune_bench.errors import UnknownName
from finetune_bench.files import make_folder, replacing, write_text
from finetune_bench.papers.published import Paper
from finetune_bench.report import Options
from finetune_bench.reports.content import preset_blocks
from finetune_bench.reports.csv import as_texts
from finetune_bench.reports.document import Block
from finetune_bench.reports.html import render
from finetune_bench.reports.latex import write_blocks
from finetune_bench.reports.markdown import as_markdown
from finetune_bench.reports.published.adversarial import own_pairs
from finetune_bench.reports.published.blocks import blocks_of
from finetune_bench.reports.published.judge import Gain, Judged, JudgedClaim, judge_claims, judge_scores, memory_ratios
from finetune_bench.reports.published.own import without_counterpart
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data
from finetune_bench.store.store import Store

FORMATS = ("markdown", "html", "csv", "latex")


@dataclasses.dataclass(frozen=True)
class Verification:
    """A verification of a paper by a run holds its verdicts, and the report of them.

    Attributes:
        data: the run, as it was read.
        judged: the published numbers.
        claims: the claims.
        blocks: the report.
    """

    data: Data
    judged: list[Judged]
    claims: list[JudgedClaim]
    blocks: list[Block]

    @property
    def contradicted(self) -> list[str]:
        """Return the names of the claims with a contradiction."""
        return list(dict.fromkeys(one.claim.name for one in self.claims if one.is_contradicted))


def verification(paper: Paper, store: Store, margin: float | None = None) -> Verification:
    """Hold every run of a store against a paper."""
    data = load(store, Options(all_cells=True))
    judged, claims = judge_scores(paper, data, margin), judge_claims(paper, data, margin)
    left = without_counterpart(paper, data.rows)
    memory, pairs = memory_ratios(paper, data), own_pairs(paper, data)
    blocks = blocks_of(paper, judged, claims, memory=memory, pairs=pairs, left=left, notes=data.notes)
    blocks[1:1] = preset_blocks(data)
    return Verification(data, judged, claims, blocks)


def check_formats(formats: Sequence[str]) -> None:
    """Check that every format can be written.

    Raises:
        UnknownName: one can't.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownName("format of a verification", name, FORMATS)


def write(verified: Verification, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write verify.md, verify.html, verify-scores.csv and verify-claims.csv, or verify.tex; return the files."""
    make_folder(folder)
    paths: list[Path] = []
    if "markdown" in formats:
        paths.append(folder / "verify.md")
        write_text(paths[-1], as_markdown(verified.blocks))
    if "html" in formats:
        paths.append(folder / "verify.html")
        write_text(paths[-1], render(verified.blocks, verified.data.rows))
    if "csv" in formats:
        for name, lines in (("scores", _score_lines(verified)), ("claims", _claim_lines(verified))):
            paths.append(folder / f"verify-{name}.csv")
            with replacing(paths[-1]) as temporary:
                as_texts(pd.DataFrame(lines)).to_csv(temporary, index=False)
    if "latex" in formats:
        paths += write_blocks(verified.blocks, folder, "verify.tex")
    return paths


def _score_lines(verified: Verification) -> list[dict[str, object]]:
    lines = []
    for one in verified.judged:
        own, level = one.chosen.summary, one.level
        lines.append(
            dataclasses.asdict(one.score)
            | {
                "tables": " ".join(map(str, one.tables)),
                "own_label": one.chosen.label,
                "own_lr": one.chosen.learning_rate,
                "own_mean": own.mean,
                "own_sd": own.sd,
                "own_runs": own.n,
                "tier": one.standing.tier,
                "verdict": "" if level is None else level.verdict,
                "difference": None if level is None else level.difference.value,
                "difference_low": None if level is None else level.difference.low,
                "difference_high": None if level is None else level.difference.high,
                "margin": None if level is None else level.margin,
                "margin_needed": None if level is None else level.smallest_margin,
                "from_selection": one.bias,
                "differing": "; ".join([*one.standing.differing, *one.standing.told]),
            }
            | _gain_line(one.gain)
        )
    return lines


def _claim_lines(verified: Verification) -> list[dict[str, object]]:
    return [
        {
            "claim": one.claim.name,
            "source": one.claim.source,
            "method": one.claim.method,
            "than": one.claim.than,
            "published_model": one.claim.model,
            "claimed": one.claim.gain,
            "model": one.model,
            "missing": one.missing,
            "differing": "; ".join(one.differing),
            "cells": " ".join(one.cells),
        }
        | _gain_line(one.gain)
        for one in verified.claims
    ]


def _gain_line(gain: Gain | None) -> dict[str, object]:
    if gain is None:
        return {}
    return {
        "gain_published": gain.published.value,
        "gain_published_low": gain.published.low,
        "gain_published_high": gain.published.high,
        "gain": gain.own.value,
        "gain_low": gain.own.low,
        "gain_high": gain.own.high,
        "gain_tier": gain.tier,
        "gain_sign": gain.sign or "",
        "gain_size": gain.size or "",
        "gain_margin": gain.margin,
        "gain_margin_needed": gain.smallest_margin,
        "share_of_error_published": gain.remaining[0],
        "share_of_error": gain.remaining[1],
    }
