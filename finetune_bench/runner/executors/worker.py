"""A worker: runs cells one after another, and keeps libraries, tokenised data and initial weights between them.

Every executor's workers are this one. As a process of its own it reads its settings and then cells from what was
stdin, and answers on what was stdout, one JSON line each. It ends when stdin does, in the middle of a cell if need be:
it never outlives the run that started it.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.metrics import compute
from finetune_bench.runner import analysing
from finetune_bench.runner.cell import WorkerContext, run_cells
from finetune_bench.runner.executors.messages import Answer, EventStatus, Progress, WorkerSettings
from finetune_bench.runner.leftovers import import_plugins, is_foreign
from finetune_bench.runner.row import final_row, refused_row
from finetune_bench.spec import parse_call
from finetune_bench.store.row import Row, Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell

TELL_SECONDS = 1.0  # at least, from one line about a cell's progress to the next


class Worker:
    """A worker takes cells and runs them in this process.

    Args:
        settings: what it is given at its start.
        tell: is told a cell's step, its number of steps and its loss, whenever its losses are read; None for nobody.
    """

    def __init__(self, settings: WorkerSettings, tell: Callable[[int, int, float], None] | None = None) -> None:
        import_scoring()
        self.retry_failed = settings.retry_failed
        self.plugins, self.foreign, self.trusts = settings.plugins, settings.foreign, settings.trust_plugins
        self.context = WorkerContext(
            store=Store(settings.out),
            device=torch.device(settings.device),
            data_root=Path(settings.data_root) if settings.data_root else None,
            save_model=settings.save_model,
            checkpoint_every=settings.checkpoint_every,
            tell=tell,
            shares_device=settings.shares_device,
        )

    def work(self, cell: Cell) -> Answer:
        """Run a cell with its companions, those of them that aren't done, if no other process runs one of them.

        The answer is about the cell; what came of its companions, their rows say.
        """
        members, store = (cell, *cell.companions), self.context.store
        if answer := self._all_stored(members):
            return answer
        with ExitStack() as claims:
            if not all(claims.enter_context(store.claim(member.id)) for member in members):
                return Answer(cell.id, EventStatus.BUSY)
            if answer := self._all_stored(members):
                return answer
            foreign = any(is_foreign(member, self.foreign) for member in members)
            if foreign and (reason := import_plugins(cell, self.plugins)) is not None:
                for member in members:
                    if self._stored(member) is None:
                        store.write(member.to_dict(), refused_row(member, reason))
                return Answer(cell.id, EventStatus.FAILED, reason, foreign=True)
            if foreign and (answer := self._all_stored(members)):
                return answer
            # Its checkpoint has the training's name, which another process may be writing for other cells.
            is_apart = all(member.id != cell.training_id for member in members)
            if is_apart and not claims.enter_context(store.claim(cell.training_id)):
                return Answer(cell.id, EventStatus.BUSY)
            return self._run(cell, members, is_last=foreign and not self.trusts)

    def _run(self, cell: Cell, members: Sequence[Cell], *, is_last: bool) -> Answer:
        """Analyse or train what isn't done of some cells that this process has claimed; return what is said of one."""
        stored = self._stored(cell)
        todo = [member for member in members if self._stored(member) is None]
        analysed = {member.id: row for member in todo if (row := self._analysed(member)) is not None}
        left = [member for member in todo if member.id not in analysed]
        rows = analysed | {row["id"]: row for row in (run_cells(left, self.context) if left else [])}
        if any(self.context.store.has_lost(member.id) for member in members):
            return Answer(cell.id, EventStatus.BUSY)
        broken = any(row.get("broken", False) for row in rows.values())
        if stored is not None:
            return replace(stored, broken=broken, foreign=is_last)
        row = rows[cell.id]
        return Answer(cell.id, EventStatus(row["status"]), row["reason"], row["seconds"], broken, is_last)

    def _all_stored(self, members: Sequence[Cell]) -> Answer | None:
        """Return the answer about the first of some cells where none of them needs a run."""
        answers = list(map(self._stored, members))
        return None if None in answers else answers[0]

    def _stored(self, cell: Cell) -> Answer | None:
        """Return the answer where no run is needed: another process may have made the row since the run was planned."""
        context = self.context
        if any(parse_call(text).name not in registry.names("analyses") for text in cell.analyses):
            return None  # a plugin's, which is imported for the cell only
        row = final_row(
            context.store,
            cell,
            save_model=context.save_model,
            retry_failed=self.retry_failed,
            analyses=cell.analyses,
        )
        if row is None:
            return None
        if row["status"] == Status.DONE:
            return Answer(cell.id, EventStatus.CACHED)
        return Answer(cell.id, EventStatus.FAILED, row["reason"])

    def _analysed(self, cell: Cell) -> Row | None:
        """Analyse a finished run whose model was kept, and return its row; None where the cell has to be trained."""
        store = self.context.store
        row = store.row(cell.id)
        if row is None or row["status"] != Status.DONE or not store.has_model(cell.id):
            return None
        lacking = analysing.lacks(store, cell, cell.analyses, retry_failed=self.retry_failed)
        try:
            analysing.of_kept_model(cell, store, lacking, device=self.context.device, data_root=self.context.data_root)
        except FinetuneBenchError:  # the kept model is of no use
            return None
        return row


def import_scoring() -> None:
    """Let scoring import what it needs, which would otherwise count as memory of every cell but the first."""
    for metric in ("accuracy", "pearson_spearman"):
        compute(metric, np.array([0, 1]), np.array([0, 1]))


def serve(commands: int, answers: int) -> None:
    """Run cells until there are no more commands.

    Args:
        commands: the file descriptor of the pipe that brings the settings and then cells, a line each.
        answers: the file descriptor of the pipe that takes the answers. Each begins with the first word of its command.
    """
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1)  # a cell that takes too long is asked where it is
    lines: queue.Queue[str] = queue.Queue()

    def read_lines() -> None:
        try:
            with os.fdopen(commands, encoding="utf-8") as file:
                for line in file:
                    lines.put(line)
        finally:
            _end()

    threading.Thread(target=read_lines, daemon=True).start()
    pipe = os.fstat(answers).st_ino
    import_scoring()  # before the settings: a worker that was launched early waits for them
    word, _, line = lines.get().partition(" ")
    settings = WorkerSettings.from_json(line)
    if settings.log is not None:
        print_to(settings.log)
    told_at = 0.0

    def tell(step: int, steps: int, loss: float) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= TELL_SECONDS:
            _answer(answers, pipe, word, Progress(step, steps, loss).to_line())
            told_at = time.monotonic()

    worker = Worker(settings, tell)
    # What the libraries made at import stays, and need not be looked through whenever a cell's garbage is collected.
    gc.collect()
    gc.freeze()
    _answer(answers, pipe, word, "ready")
    while True:
        word, _, cell = lines.get().partition(" ")
        told_at = 0.0
        answer = worker.work(Cell.from_dict(json.loads(cell)))
        # Without the reason, which is in the row: what is short enough is written in one piece.
        _answer(answers, pipe, word, replace(answer, reason=None).to_json())


def print_to(log: str) -> None:
    """Let all that this process prints go to a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)


def _answer(handle: int, pipe: int, word: str, text: str) -> None:
    """Write an answer on a line of its own, whatever a cell wrote into the pipe before."""
    if os.fstat(handle).st_ino != pipe:  # a cell closed it, and the number is that of another file now
        _end()
    os.write(handle, f"\n{word} {text}\n".encode())


def _end() -> None:
    """End this process, and its group where it leads one: what cells started ends with it."""
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
