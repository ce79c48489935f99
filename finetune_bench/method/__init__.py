"""The Method contract says what a fine-tuning regulariser may do, and when. `docs/first-method.md` shows how."""

from __future__ import annotations

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import SIZES, Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Inner, Objective, Run, State, Step, Streams, View
from finetune_bench.model.dropout import Dropout

__all__ = [
    "SIZES",
    "Dropout",
    "Facts",
    "Inner",
    "Memory",
    "Method",
    "Objective",
    "Passes",
    "Phase",
    "Run",
    "Stack",
    "State",
    "Step",
    "Streams",
    "View",
]
