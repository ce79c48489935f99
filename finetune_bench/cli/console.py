"""The command line speaks to its user through `say`, on stderr; the data that it prints go to stdout."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
