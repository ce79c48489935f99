"""A study says what to compare: it has options, and it comes to cells. This room loads nothing heavy."""

from __future__ import annotations

from finetune_bench.recipe import AUTO, BATCH_LAYOUTS, DEFAULT_EPOCHS, Recipe
from finetune_bench.study.options import Option
from finetune_bench.study.sources import OPTIONS, make_study, read_options, read_toml, with_defaults
from finetune_bench.study.study import CHECKPOINT_EVERY, DEFAULT_SEEDS, Study, as_dict, run_name

__all__ = [
    "AUTO",
    "BATCH_LAYOUTS",
    "CHECKPOINT_EVERY",
    "DEFAULT_EPOCHS",
    "DEFAULT_SEEDS",
    "OPTIONS",
    "Option",
    "Recipe",
    "Study",
    "as_dict",
    "make_study",
    "read_options",
    "read_toml",
    "run_name",
    "with_defaults",
]
