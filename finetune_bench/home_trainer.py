"""This is the former place of `finetune_bench.home.trainer`; imports from here go on working."""

from __future__ import annotations

from finetune_bench.home.trainer import RegularisedTrainer

__all__ = ["RegularisedTrainer"]
