"""What the command line says to its user, apart from the data that it prints."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)
