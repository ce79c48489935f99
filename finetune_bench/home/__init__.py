"""Take a method home: into one's own training loop (`attach`), or into transformers' Trainer (`home.trainer`)."""

from __future__ import annotations

from finetune_bench.home.attached import Attached, MakePass, attach, make_stack
from finetune_bench.home.batches import Inputs, to_batch
from finetune_bench.home.model import HomeTask, Rates

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
