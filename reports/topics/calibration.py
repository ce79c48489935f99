"""How far the probabilities of each method's models can be believed is told here."""

from __future__ import annotations

from finetune_bench.reports.topics.analysed import topic_of

TOPIC = topic_of("calibration", "Calibration")
