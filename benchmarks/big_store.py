"""Write a store of 10,000 made-up cells, 50 methods × 10 tasks × 20 seeds, to time the reports of a big grid.

    python -m benchmarks.big_store FOLDER
    /usr/bin/time -v finetune-bench report FOLDER

The rows obey the schema and go through the real `Store.write`; only the wait for the disk is left out. Predictions are
cut to labels, for no report reads them without --bootstrap.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path

from finetune_bench.store.store import Store
from tests.synthetic_store import CONTROL, TASKS, make_row, make_trace, put

SINGLES = (
    "child_tuning_d", "child_tuning_f", "ema", "freelb", "hype", "l2_sp", "layerwise_lr_decay", "lnsr", "match_tuning",
    "mixout", "noisytune", "prior_decay", "r3f", "r4f", "rdrop", "recadam", "reinit_layers", "sage", "sam", "smart",
    "swa", "top_k",
)  # fmt: skip
PARTS = ("hype", "rdrop", "mixout", "r3f", "child_tuning_f", "noisytune", "l2_sp", "ema")
PAIRS = tuple(f"{first}+{second}" for first, second in itertools.combinations(PARTS, 2))[:26]
METHODS = ("vanilla", CONTROL, *SINGLES, *PAIRS)
MORE_TASKS = ("sst2", "qnli", "qqp", "wnli", "sick")
SEEDS = 20


def main(folder: str) -> None:
    """Fill a fresh folder with the store."""
    os.fsync = lambda handle: None
    for name in MORE_TASKS:
        TASKS[name] = ("classification", "accuracy", ("validation",), 0.8, 800)
    store = Store(Path(folder))
    store.cells.mkdir(parents=True)
    start = time.perf_counter()
    for method, task, seed in itertools.product(METHODS, TASKS, range(1, SEEDS + 1)):
        row = make_row(method, task, seed)
        put(store, row, make_trace(row))
    print(f"{len(METHODS) * len(TASKS) * SEEDS:,} cells in {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1])
