"""A worker process: reads cells from stdin, runs them one after another, answers on stdout, one JSON line each.

It keeps the libraries and the tokenised data between cells. It ends when stdin does, at once and in the middle of a
cell if need be: a worker never outlives the run that started it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)  # a cell that takes too long is asked where it is
    os.dup2(2, 1)  # whatever a library prints goes to the log, not between the answers
    orders: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    settings = orders.get()

    import numpy as np
    import torch

    from finetune_bench import registry
    from finetune_bench.cell import run_cell
    from finetune_bench.grid import Cell
    from finetune_bench.metrics import compute
    from finetune_bench.store import Store

    for plugin in settings["plugins"]:
        registry.load_plugin(plugin)
    # What scoring imports would otherwise count as memory of every cell but the first.
    for metric in ("accuracy", "pearson_spearman"):
        compute(metric, np.array([0, 1]), np.array([0, 1]))
    store = Store(settings["out"])
    data_root = Path(settings["data_root"]) if settings["data_root"] else None
    answers.write(json.dumps({"status": "ready"}) + "\n")
    answers.flush()
    while True:
        cell = Cell.from_dict(orders.get())
        with store.claim(cell.id) as mine:
            # Another run on the same store may have taken the cell, or finished it, since this run was planned.
            row = store.row(cell.id) or {}
            has_model = not settings["save_model"] or (store.folder(cell.id) / "model").is_dir()
            if not mine:
                answer = {"status": "busy"}
            elif row.get("status") == "done" and has_model:
                answer = {"status": "cached"}
            elif row.get("retry") == "asked" and not settings["retry_failed"]:
                answer = {"status": "failed", "reason": row["reason"]}
            else:
                row = run_cell(cell, store, torch.device(settings["device"]), data_root, settings["save_model"])
                answer = {key: row[key] for key in ("status", "reason", "seconds")}
                answer["last"] = row.get("broken", False)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
