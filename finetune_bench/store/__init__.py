"""The run folder holds rows and arrays of every cell, the leases of running ones, and the index of all rows."""

from __future__ import annotations

from finetune_bench.store.reading import SCHEMA
from finetune_bench.store.row import Cost, Hashes, MethodEntry, Outcome, Retry, Row, Status, TrainingFacts
from finetune_bench.store.store import COUNTED, MEASURED, Store, to_json

__all__ = [
    "COUNTED",
    "MEASURED",
    "SCHEMA",
    "Cost",
    "Hashes",
    "MethodEntry",
    "Outcome",
    "Retry",
    "Row",
    "Status",
    "Store",
    "TrainingFacts",
    "to_json",
]
