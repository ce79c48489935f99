"""How well each method's models do on data that they were not tuned for is told here."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("transfer", "Transfer to other data")
