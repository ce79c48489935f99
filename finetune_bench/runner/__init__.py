"""From a study to rows: plan it, run its cells somewhere, keep what comes of them."""

from __future__ import annotations

from finetune_bench.runner.checks import why_impossible
from finetune_bench.runner.execution import cell_name, execute, run
from finetune_bench.runner.forecast import within_budget
from finetune_bench.runner.plan import Plan, make_plan

__all__ = [
    "Plan",
    "cell_name",
    "execute",
    "make_plan",
    "run",
    "why_impossible",
    "within_budget",
]
