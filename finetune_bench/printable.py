"""Texts from data, plugins and paths become fit to be printed: they can neither steer a terminal nor fill it.

A label may hold an escape sequence that clears the screen, a mark that turns a line around, or five megabytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

# C0 without tab and line feed, DEL, C1, the marks that change the direction of writing, the separators of lines and
# paragraphs, and halves of characters.
UNPRINTABLE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LONGEST = 200  # characters of a value in a message
LONGEST_REASON = 2_000  # characters of why a cell failed or was skipped, in its row
MOST = 20  # names in a message


def printable(text: object) -> str:
    r"""Write what a terminal would obey as an escape, such as \x1b; tabs and line feeds stay."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], str(text))


def brief(value: object, most: int = LONGEST, write: Callable[[Any], str] = str) -> str:
    """Return a value as a message shows it: on one line, printable, and with `…` for the middle where it is long.

    Args:
        value: any value, also one that can't be written.
        most: the number of characters that are kept at most.
        write: turns the value into a text.
    """
    try:
        whole = write(value)
    except Exception as error:  # a number of thousands of digits, or whatever a plugin's __str__ does
        whole = f"a value of type {type(value).__name__} that can't be written ({type(error).__name__})"
    if len(whole) > most:  # cut first: an escape is longer than what it stands for
        whole = f"{whole[: most - most // 3 - 1]}…{whole[-(most // 3) :]}"
    return " ".join(line.strip() for line in printable(whole).split("\n")) if "\n" in whole else printable(whole)


def listed(names: Iterable[str]) -> str:
    """Join names by commas; of many the first and the number of the others."""
    every = list(names)
    more = f" and {len(every) - MOST} more" if len(every) > MOST else ""
    return ", ".join(brief(name, 60) for name in every[:MOST]) + more
