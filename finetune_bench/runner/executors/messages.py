"""A runner and its workers talk in messages: a worker is given settings at its start, and answers for each cell.

A local worker reads and writes them as lines of JSON, each after a word that the answer to a message repeats; Ray and
SLURM carry them as they are. A cell is its own message.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

_AT = "at"  # the first word of a line that tells a cell's progress


class EventStatus(StrEnum):
    """One of these things has happened to a cell."""

    STARTED = "started"
    TRAINING = "training"  # it has come to a step
    DONE = "done"
    FAILED = "failed"
    CACHED = "cached"  # another process had finished it already
    BUSY = "busy"  # another process is running it; executors try again later
    DIED = "died"  # with its worker, which left no row


@dataclass(frozen=True)
class Progress:
    """Progress says how far a cell's training has come.

    Attributes:
        step: the last step that was read.
        steps: how many steps there are.
        loss: the training loss of that step.
    """

    step: int
    steps: int
    loss: float

    def to_line(self) -> str:
        """Return the progress as a worker tells it; no answer begins like that."""
        return f"{_AT} {self.step} {self.steps} {self.loss}"

    @classmethod
    def from_line(cls, line: str) -> Progress | None:
        """Read what `to_line` wrote; None for any other line."""
        mark, _, rest = line.partition(" ")
        if mark != _AT:
            return None
        step, steps, loss = rest.split(" ")
        return cls(int(step), int(steps), float(loss))


@dataclass(frozen=True)
class WorkerSettings:
    """A worker is given these at its start; all of a run's workers have the same, but for the device.

    Attributes:
        out: the run folder, as an absolute path.
        data_root: the folder that data sets are read from, as an absolute path; None for the hub.
        save_model: whether trained models are kept.
        checkpoint_every: steps from one checkpoint to the next.
        retry_failed: whether cells that failed before, and would fail again, are run all the same.
        plugins: modules and files that register methods, tasks or reports.
        foreign: by group, the names that don't come from this package, as `foreign_names` of `runner.leftovers` gives.
        trust_plugins: whether a process goes on with other cells after one that ran code from elsewhere.
        shares_device: whether other workers of the run use the device, too.
        device: the torch device of the worker, as "cpu" or "cuda:0"; executors set it.
        log: the file that takes what the worker prints from now on; None where it has one.
    """

    out: str
    data_root: str | None
    save_model: bool
    checkpoint_every: int
    retry_failed: bool
    plugins: tuple[str, ...]
    foreign: Mapping[str, Sequence[str]]
    trust_plugins: bool = False
    shares_device: bool = False
    device: str = "cpu"
    log: str | None = None

    def to_json(self) -> str:
        """Return the settings as one line, which `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> WorkerSettings:
        """Read the settings that `to_json` wrote."""
        values = json.loads(line)
        return cls(**values | {"plugins": tuple(values["plugins"])})


@dataclass(frozen=True)
class Answer:
    """An answer is what a worker says of a cell that it was given.

    Attributes:
        id: the cell's.
        status: done, failed, cached or busy.
        reason: why it failed, a sentence; None where it didn't.
        seconds: wall seconds that the cell took; 0 where it didn't run.
        broken: whether the worker's device failed.
        foreign: whether the cell ran code from elsewhere that isn't trusted: it may have left anything in the process.
    """

    id: str
    status: EventStatus
    reason: str | None = None
    seconds: float = 0.0
    broken: bool = False
    foreign: bool = False

    @property
    def is_last(self) -> bool:
        """Tell whether the worker's process should run no more cells."""
        return self.broken or self.foreign

    def to_json(self) -> str:
        """Return the answer as one line, which `from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Answer:
        """Read the answer that `to_json` wrote."""
        values = json.loads(line)
        return cls(**values | {"status": EventStatus(values["status"])})
