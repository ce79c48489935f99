"""The command line has two doors: `say` talks to its user on stderr, `show` prints the data of a command on stdout.

Nothing that data, plugins or paths bring along steers the terminal through them: see `finetune_bench.printable`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from finetune_bench.errors import MachineError
from finetune_bench.printable import printable

WIDTH = 100  # columns of a text, where stdout is no terminal
NARROWEST, WIDEST = 60, 120  # columns within which a text follows the terminal

_data: TextIO | None = None  # where `show` prints while stdout is redirected


def say(text: str) -> None:
    """Print a text on stderr; where nobody can read it, a run goes on all the same."""
    with contextlib.suppress(OSError):
        _print(text, sys.stderr)


def show(text: str) -> None:
    """Print a text on stdout.

    Raises:
        BrokenPipeError: whoever read it went away.
        MachineError: it can't be written, as to a full disk.
    """
    try:
        _print(text, _data or sys.stdout)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError(f"What this prints can't be written to stdout: {error.strerror}.") from None


def terminal_width() -> int:
    """Return how many columns a text on stdout may have: those of the terminal within bounds, and 100 elsewhere."""
    if not (_data or sys.stdout).isatty():
        return WIDTH
    return max(NARROWEST, min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDEST))


@contextmanager
def only_shown() -> Iterator[None]:
    """Keep stdout for what `show` prints: what plugins and libraries print there goes to stderr."""
    global _data  # noqa: PLW0603 — a process has one stdout
    _data = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _data = None


def open_streams() -> None:
    """Open what of stdout and stderr was closed when the process began (`>&-`), so that it is lost and breaks nothing.

    Left closed, its number would be given to the next file that is opened, and what a library prints would land in it.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 — as long as the process


def _print(text: str, stream: TextIO) -> None:
    # A terminal of another encoding than UTF-8 gets escapes for the characters that it lacks, as − and ×.
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
