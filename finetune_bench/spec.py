"""The command line has a little language: `name(key=value, ...)`, stacked with `+`, listed with `,`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from finetune_bench.errors import UsageError


@dataclass(frozen=True)
class Call:
    """A call is written `name(key=value, ...)`; the values are still texts."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)


def split(text: str, separator: str) -> list[str]:
    """Split at a separator, but not inside brackets; parts are stripped, empty parts are dropped.

    Raises:
        UsageError: a bracket that is not closed, or closed twice.
    """
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            raise UsageError(f"'{text}' has a ')' without its '('.")
        if character == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    if depth:
        raise UsageError(f"'{text}' has a '(' without its ')'.")
    return [part.strip() for part in parts if part.strip()]


def parse_call(text: str) -> Call:
    """Read `name` or `name(key=value, ...)`; a name may be a path.

    Raises:
        UsageError: says which part could not be read.
    """
    match = re.fullmatch(r"([^()]+?)\s*(?:\((.*)\))?", text.strip(), flags=re.DOTALL)
    if match is None:
        raise UsageError(f"'{text}' can't be read; expected name or name(key=value,...).")
    arguments: dict[str, str] = {}
    for part in split(match[2] or "", ","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"'{part}' in '{text}' can't be read; expected key=value.")
        if key in arguments:
            raise UsageError(f"'{key}' is given twice in '{text}'.")
        arguments[key] = value
    return Call(match[1], arguments)


def parse_stack(text: str) -> list[Call]:
    """Read `a(x=1)+b`: the parts of a stack, outermost first.

    Raises:
        UsageError: an empty part, or one that can't be read.
    """
    if not text.strip() or text.strip()[0] == "+" or text.strip()[-1] == "+":
        raise UsageError(f"'{text}' can't be read; expected a method, or several joined by '+'.")
    return [parse_call(part) for part in split(text, "+")]
