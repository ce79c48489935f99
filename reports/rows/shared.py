"""Runs that were scored from one training have its seconds and peaks, which are no single run's."""

from __future__ import annotations

from finetune_bench.reports.document import code
from finetune_bench.reports.rows.sections import Section
from finetune_bench.store.row import Row, Status

# What is measured of a training as a whole, whatever else was read off it.
OF_THE_TRAINING = (
    "train_seconds",
    "train_cpu_seconds",
    "examples_per_second",
    "setup_seconds",
    "peak_memory_bytes",
    "energy_joules",
)


def is_shared(row: Row) -> bool:
    """Return whether other runs were scored from the training of this one."""
    return row.get("shared_training", 1) > 1


def notes_on_shared(section: Section) -> list[str]:
    """Return which methods' runs shared a training, for a table of costs; nothing where none did."""
    shared = [method for method in section.methods if any(map(is_shared, section.rows(method, None, Status.DONE)))]
    if not shared:
        return []
    return [
        f"Runs of {', '.join(map(code, shared))} were scored from trainings that they shared. Seconds, peak memory and "
        "energy of such a training are of all that was read off it, so they are in no figure here; --no-sharing trains "
        "each run for itself."
    ]
