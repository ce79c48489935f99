"""What each method's models predict of GLUE's test sets is told here, as shares of the classes."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("submission", "Predictions of GLUE's test sets")
