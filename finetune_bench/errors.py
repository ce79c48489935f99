"""These are the exceptions that finetune-bench raises on purpose.

    FinetuneBenchError
    ├── UsageError            what was typed or written in a file is wrong; exit code 2
    │   ├── UnknownName       no such method, task, report or option; says what was meant
    │   ├── ParameterError    a hyper-parameter's value is out of its range (also a ValueError)
    │   ├── DataError         a data set is missing, empty or malformed
    │   ├── ModelError        a checkpoint is missing or can't be used
    │   └── Unsupported       the study asks for what no cell of it can do
    ├── MachineError          the machine lacks something: a device, a package; exit code 3
    └── Diverged              training led to NaN or infinity; ends its cell, never the grid

Every message says what was expected, what came, where, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from finetune_bench.printable import brief, listed

_LONGEST_NAME = 100  # characters of a name that may be a misspelt one
_MOST_NAMES = 5_000  # among which the nearest is looked for: comparing two takes some microseconds


class FinetuneBenchError(Exception):
    """Everything that is raised on purpose is of this class."""


class UsageError(FinetuneBenchError):
    """The user has typed something wrong, or has written it in a file."""


class UnknownName(UsageError):
    """A name is not in the list of known names.

    Args:
        kind: what the name should be, in the singular ("method").
        name: the name that came.
        known: the names that exist; the message offers the nearest.
        where: a sentence that says how to see them all; "" for none.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        names = sorted(known)
        near = []
        if len(name) <= _LONGEST_NAME and len(names) <= _MOST_NAMES:
            near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f" Did you mean '{brief(near[0])}'?" if near else f" Known: {listed(names) or 'none'}."
        super().__init__(f"There is no {kind} called '{brief(name)}'.{hint}{' ' + where if where else ''}")


class ParameterError(UsageError, ValueError):
    """A hyper-parameter's value is of the wrong type or out of its range."""


class DataError(UsageError):
    """A data set is missing, empty or malformed."""


class ModelError(UsageError):
    """A checkpoint is missing or can't be used."""


class Unsupported(UsageError):
    """The study asks for something that none of its cells can do."""


class MachineError(FinetuneBenchError):
    """The machine lacks something for the study, such as a device or a package."""


class Diverged(FinetuneBenchError):
    """Training has led to NaN or infinity."""

    step: int  # the first step whose loss, or what the model predicts after it, was not finite

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}: the loss, or what the model predicts after it, was not finite")
        self.step = step
