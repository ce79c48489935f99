"""Take a method home: into one's own training loop (`attach`), or into transformers' Trainer (`home.trainer`)."""

from __future__ import annotations

from finetune_bench.home.attached import Attached, HomeRun, HomeTask, Inputs, Passes, Rates, attach, make_stack

__all__ = [
    "Attached",
    "HomeRun",
    "HomeTask",
    "Inputs",
    "Passes",
    "Rates",
    "attach",
    "make_stack",
]
