"""The command line has a little language: `name(key=value, ...)`, stacked with `+`, listed with `,`.

A name or a value that holds brackets or commas stands in double quotes, a quotation mark inside them is doubled:
`"notes (1).csv"(text="title, body")`. The name of a file that exists needs none: `notes (1).csv(text=body)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finetune_bench.errors import UsageError
from finetune_bench.printable import brief

_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_AFTER_A_NAME = ("", "(", ")", ",", "+")
_END_OF_FILE_NAME = re.compile(r"\.\w+\s*(?=[(),+]|\Z)")
_LONGEST_NAME = 1024
_MOST_PARTS = 100  # of a stack
_LONGEST_TEXT = 100_000  # characters; what is longer is no list that someone typed, and would take long to read
_MOST_TRIES = 1000  # in one text: looking for files takes its time, and only a made-up text has more names


@dataclass(frozen=True)
class Call:
    """A call is written `name(key=value, ...)`; the values are still texts."""

    name: str
    arguments: dict[str, str] = field(default_factory=dict)


def split(text: str, separator: str) -> list[str]:
    """Split at a separator, but not inside brackets, quotes or the name of an existing file.

    Parts are stripped, empty parts are dropped, quotes stay.

    Raises:
        UsageError: a bracket or a quotation mark without its partner, or a character that is none.
    """
    return [part for part in _parts(text, separator) if part]


def _parts(text: str, separator: str) -> list[str]:
    """Split as `split` does, and keep empty parts."""
    check_text(text)
    parts, depth, begin = [], 0, 0
    for position, character in _outside(text, separator):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            raise UsageError(f"'{brief(text)}' has a ')' without its '('.")
        if character == separator and depth == 0:
            parts.append(text[begin:position])
            begin = position + 1
    if depth:
        raise UsageError(f"'{brief(text)}' has a '(' without its ')'.")
    parts.append(text[begin:])
    return [part.strip() for part in parts]


def check_text(text: str) -> None:
    """Check that a text can be hashed, printed and handed to the system.

    Raises:
        UsageError: it holds a NUL, or bytes that are not UTF-8 (a path's, which Python keeps as lone surrogates), or it
            is longer than anyone types.
    """
    if len(text) > _LONGEST_TEXT:
        raise UsageError(
            f"'{brief(text)}' has {len(text)} characters; expected {_LONGEST_TEXT} at most, for a list of names too (a "
            "TOML file takes a longer one, name by name)."
        )
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(
            f"'{brief(text)}' holds a NUL, or bytes that are not UTF-8, which no row can name; rename the file "
            "or the column."
        )


def _outside(text: str, separator: str) -> Iterator[tuple[int, str]]:
    """Yield every character, and its position, that is outside of quotes and of the names of existing files."""
    position, at_start = 0, True  # of a name or a value: quotes and files begin only there
    tries = iter(range(_MOST_TRIES))
    while position < len(text):
        character = text[position]
        if at_start and not character.isspace():
            end = _end_of_name(text, position, tries)
            if end > position:
                position, at_start = end, False
                continue
        yield position, character
        at_start = character in ("(", ",", "=", separator) or (at_start and character.isspace())
        position += 1


def _end_of_name(text: str, begin: int, tries: Iterator[int]) -> int:
    """Return where a quoted name, or that of an existing file, ends; `begin` where neither begins there."""
    if text[begin] == '"':
        quoted = _QUOTED.match(text, begin)
        if quoted is None:
            raise UsageError(f"'{brief(text)}' has a quotation mark without its partner.")
        return quoted.end()
    for ending in _END_OF_FILE_NAME.finditer(text, begin, begin + _LONGEST_NAME):
        if next(tries, None) is None:
            break
        if text[ending.end() : ending.end() + 1] in _AFTER_A_NAME and _is_file(text[begin : ending.end()].rstrip()):
            return ending.end()
    return begin


def _is_file(name: str) -> bool:
    try:
        return Path(name).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long, or the home of nobody
        return False


def parse_call(text: str) -> Call:
    """Read `name` or `name(key=value, ...)`; a name may be a path, in quotes or that of an existing file.

    Raises:
        UsageError: says which part could not be read.
    """
    check_text(text)
    text = text.strip()
    end = _end_of_name(text, 0, iter(range(_MOST_TRIES))) if text else 0
    end = end or next((position for position, character in enumerate(text) if character in "()"), len(text))
    name, rest = _unquote(text[:end].strip()), text[end:].strip()
    if not name or (rest and not (rest[0] == "(" and rest[-1] == ")")):
        raise UsageError(f"'{brief(text)}' can't be read; expected name or name(key=value,...).")
    arguments: dict[str, str] = {}
    for part in split(rest[1:-1], ","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not (key and equals and value):
            raise UsageError(f"'{brief(part)}' in '{brief(text)}' can't be read; expected key=value.")
        if key in arguments:
            raise UsageError(f"'{brief(key)}' is given twice in '{brief(text)}'.")
        arguments[key] = _unquote(value)
    return Call(name, arguments)


def parse_stack(text: str) -> list[Call]:
    """Read `a(x=1)+b`: the parts of a stack, outermost first.

    Raises:
        UsageError: an empty part, or one that can't be read.
    """
    if not text.strip() or text.strip()[0] == "+" or text.strip()[-1] == "+":
        raise UsageError(f"'{brief(text)}' can't be read; expected a method, or several joined by '+'.")
    parts = _parts(text, "+")
    if not all(parts):
        raise UsageError(f"'{brief(text)}' has nothing between two '+'; expected a method there, or one '+' less.")
    if len(parts) > _MOST_PARTS:
        raise UsageError(f"'{brief(text)}' stacks {len(parts)} methods; expected {_MOST_PARTS} at most.")
    return [parse_call(part) for part in parts]


def quote(text: str) -> str:
    """Put a name or a value in double quotes, if it could not be read back without them."""
    try:
        plain = not text.startswith('"') and text == text.strip() and split(text, ",") == [text]
    except UsageError:
        plain = False
    return text if plain else '"' + text.replace('"', '""') + '"'


def _unquote(text: str) -> str:
    quoted = _QUOTED.fullmatch(text)
    return quoted[1].replace('""', '"') if quoted else text


def short_names(tasks: Sequence[str], longest: int = 24) -> dict[str, str]:
    """Return a short name of each task, for where there is little room: of a file, its name without folder and ending.

    Args:
        tasks: the tasks as typed.
        longest: characters of a name; tasks that have no more keep theirs.
    """
    names: dict[str, str] = {}
    for task in dict.fromkeys(tasks):
        name = task
        if len(task) > longest:
            try:
                name = parse_call(task).name
            except UsageError:  # from a store, where a file may be gone by whose existence its name ended
                name = task.partition("(")[0] or task
            name = brief(Path(name).stem if Path(name).suffix else name, longest)
        taken = sum(other == name or other.startswith(f"{name} (") for other in names.values())
        names[task] = f"{name} ({taken + 1})" if taken else name
    return names
