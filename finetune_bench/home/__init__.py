"""Take a method home: into one's own training loop (`attach`), or into transformers' Trainer (`home.trainer`)."""

from __future__ import annotations

from finetune_bench.home.attached import Attached, HomeTask, Inputs, MakePass, Rates, attach, make_stack, to_batch

__all__ = [
    "Attached",
    "HomeTask",
    "Inputs",
    "MakePass",
    "Rates",
    "attach",
    "make_stack",
    "to_batch",
]
