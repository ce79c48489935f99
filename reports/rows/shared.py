"""Runs that were scored from one training have the seconds and peaks that each would have had alone, where known."""

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


def is_inseparable(row: Row) -> bool:
    """Return whether a run's seconds and peaks are of other runs, too: nothing tells what those took of them."""
    return is_shared(row) and "others_seconds" not in row.get("cost", {})


def notes_on_shared(section: Section) -> list[str]:
    """Return which methods' runs shared a training, for a table of costs; nothing where none did."""
    rows = {method: section.rows(method, None, Status.DONE) for method in section.methods}
    shared = [code(method) for method in section.methods if any(map(is_shared, rows[method]))]
    if not shared:
        return []
    lost = [code(method) for method in section.methods if any(map(is_inseparable, rows[method]))]
    notes = [
        f"Runs of {', '.join(shared)} were scored from trainings that they shared. Their seconds and peak memory are "
        "without what the averages of the others took; energy can't be split."
    ]
    if lost:
        notes.append(
            f"What the others took is not known of runs of {', '.join(lost)}, whose training went on from a "
            "checkpoint or was made before this was measured. Their seconds and peak memory are in no figure here; "
            "--no-sharing trains each run for itself."
        )
    return notes
