"""Scores of linear heads on frozen layers, for other tasks, are told here."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("probe", "What layers tell of other tasks")
