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

from finetune_bench.store.row import Retry, Status


class Worker:
    """Runs cells in this process.

    Args:
        settings: `out`, `data_root`, `save_model`, `checkpoint_every`, `retry_failed`, `plugins` and `device`.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import numpy as np
        import torch

        from finetune_bench import registry
        from finetune_bench.metrics import compute
        from finetune_bench.runner.cell import WorkerContext
        from finetune_bench.store.store import Store

        for plugin in settings["plugins"]:
            registry.load_plugin(plugin)
        # What scoring imports would otherwise count as memory of every cell but the first.
        for metric in ("accuracy", "pearson_spearman"):
            compute(metric, np.array([0, 1]), np.array([0, 1]))
        self.retry_failed = settings["retry_failed"]
        self.context = WorkerContext(
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
        from finetune_bench.runner.cell import run_cell
        from finetune_bench.study.grid import Cell

        cell, store = Cell.from_dict(values), self.context.store
        if answer := self._known(cell.id):
            return answer
        with store.claim(cell.id) as mine:
            if not mine:
                return {"status": "busy"}
            if answer := self._known(cell.id):
                return answer
            row = run_cell(cell, self.context)
        return {key: row[key] for key in ("status", "reason", "seconds")} | {"last": row.get("broken", False)}

    def _known(self, cell_id: str) -> dict[str, Any] | None:
        """The answer where no run is needed: another one may have made the row since this one was planned."""
        store = self.context.store
        row = store.row(cell_id)
        if row is None:
            return None
        if row["status"] == Status.DONE and (not self.context.save_model or (store.folder(cell_id) / "model").is_dir()):
            return {"status": "cached"}
        if row.get("retry") == Retry.ASKED and not self.retry_failed:
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
