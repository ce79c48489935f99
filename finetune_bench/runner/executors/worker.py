"""A worker: runs cells one after another, and keeps libraries, tokenised data and initial weights between them.

Every executor's workers are this one. As a process of its own it reads cells from stdin and answers on stdout, one JSON
line each. It ends when stdin does, at once and in the middle of a cell if need be: it never outlives the run that
started it.
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


class Worker:
    """Runs cells in this process.

    Args:
        settings: `out`, `data_root`, `save_model`, `checkpoint_every`, `retry_failed`, `plugins`, `foreign` (names that
            don't come from this package; see `runner.leftovers`) and `device`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import numpy as np
        import torch

        from finetune_bench.metrics import compute
        from finetune_bench.runner.cell import Place
        from finetune_bench.store.store import Store

        # What scoring imports would otherwise count as memory of every cell but the first.
        for metric in ("accuracy", "pearson_spearman"):
            compute(metric, np.array([0, 1]), np.array([0, 1]))
        self.retry_failed = settings["retry_failed"]
        self.plugins, self.foreign = settings["plugins"], settings["foreign"]
        self.place = Place(
            store=Store(settings["out"]),
            device=torch.device(settings["device"]),
            data_root=Path(settings["data_root"]) if settings["data_root"] else None,
            save_model=settings["save_model"],
            checkpoint_every=settings["checkpoint_every"],
        )

    def work(self, values: dict[str, Any]) -> dict[str, Any]:
        """Run a cell, if nobody else does and it isn't done.

        Args:
            values: of the cell, as `Cell.to_dict` gives them.

        Returns:
            Its `status` (done, failed, cached; busy where another process runs it), `reason`, `seconds`, and `last`
            where this process should run no more cells.
        """
        from finetune_bench import registry
        from finetune_bench.runner.cell import run_cell
        from finetune_bench.runner.leftovers import is_foreign
        from finetune_bench.study.grid import Cell

        cell, store = Cell.from_dict(values), self.place.store
        if answer := self._known(cell.id):
            return answer
        with store.claim(cell.id) as mine:
            if not mine:
                return {"status": "busy"}
            if answer := self._known(cell.id):
                return answer
            foreign = is_foreign(cell, self.foreign)
            for plugin in self.plugins if foreign else ():
                registry.load_plugin(plugin)
            row = run_cell(cell, self.place)
        last = foreign or row.get("broken", False)
        return {key: row[key] for key in ("status", "reason", "seconds")} | {"last": last}

    def _known(self, cell_id: str) -> dict[str, Any] | None:
        """The answer where no run is needed: another one may have made the row since this one was planned."""
        store = self.place.store
        row = store.row(cell_id) or {}
        if row.get("status") == "done" and (not self.place.save_model or (store.folder(cell_id) / "model").is_dir()):
            return {"status": "cached"}
        if row.get("retry") == "asked" and not self.retry_failed:
            return {"status": "failed", "reason": row["reason"]}
        return None


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

    def answer(words: dict[str, Any]) -> None:
        answers.write(json.dumps(words) + "\n")
        answers.flush()

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(orders.get())
    answer({"status": "ready"})
    while True:
        answer(worker.work(orders.get()))
