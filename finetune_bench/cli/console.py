"""The command line has two doors: `say` talks to its user on stderr, `show` prints the data of a command on stdout.

Nothing that data, plugins or paths bring along steers the terminal through them: see `finetune_bench.printable`.
"""

from __future__ import annotations

import sys
from typing import TextIO

from finetune_bench.printable import printable


def say(text: str) -> None:
    """Print a text on stderr."""
    _print(text, sys.stderr)


def show(text: str) -> None:
    """Print a text on stdout."""
    _print(text, sys.stdout)


def _print(text: str, stream: TextIO) -> None:
    # A terminal of another encoding than UTF-8 gets escapes for the characters that it lacks, as − and ×.
    encoding = stream.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
