"""Papers' published numbers are data here, each with its source, and so are the slips that their tables have."""

from __future__ import annotations

from finetune_bench.papers.published import Claim, Discrepancy, Memory, Paper, Score, load_paper, paper_names

__all__ = ["Claim", "Discrepancy", "Memory", "Paper", "Score", "load_paper", "paper_names"]
