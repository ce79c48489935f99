"""Weights and representations are compared with those of the checkpoint here, method by method."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("drift", "Drift from the checkpoint")
