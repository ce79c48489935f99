"""How alike tokens become from layer to layer, under each method, is told here."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("similarity", "Similarity of tokens")
