"""The run folder: rows and arrays of every cell, the leases of running ones, and the index of all rows."""

from __future__ import annotations

from finetune_bench.store.store import COUNTED, MEASURED, SCHEMA, Store, to_json

__all__ = [
    "COUNTED",
    "MEASURED",
    "SCHEMA",
    "Store",
    "to_json",
]
