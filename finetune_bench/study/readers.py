"""A reader takes an option's value from a flag or a TOML file, and checks one that was set from Python.

A flag gives a text; a file a text, a number, a list or a boolean; Python what a `Study` holds, which is what every
function here returns. What can't be read is a ValueError that says what was expected; who catches it adds the option's
name and what came.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from finetune_bench.printable import brief
from finetune_bench.spec import check_text, split

_MOST_NAMES = 10_000
_MOST_SEEDS = 10_000
_LARGEST = 10**9  # of a count: further up nothing is meant, and libraries compute with 64 bits
_LARGEST_SEED = 2**63 - 1
_LONGEST = 10**9  # seconds of a duration, thirty years: clocks of the system take no more

LEAST_JOB_MINUTES = 5
LEAST_MEMORY = 100 * 10**6  # bytes that a process takes which does nothing yet


def names(value: Any) -> tuple[str, ...]:
    """Read names, separated by commas outside of brackets; each at most once."""
    parts = value if isinstance(value, list | tuple) else split(value, ",") if isinstance(value, str) else None
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError("one name or more, separated by commas")
    if len(parts) > _MOST_NAMES:
        raise ValueError(f"{_MOST_NAMES} names at most")
    for part in parts:
        check_text(part)
    if doubled := sorted(part for part, count in Counter(parts).items() if count > 1):
        raise ValueError(f"each name once ('{brief(doubled[0])}' is given twice)")
    return tuple(parts)


def paths(value: Any) -> tuple[str, ...]:
    """Read paths, separated by commas; they become absolute."""
    return tuple(os.path.abspath(os.path.expanduser(part)) for part in names(value))  # noqa: PTH100, PTH111


def seeds(value: Any) -> tuple[int, ...]:
    """Read how many seeds (5: seeds 1 to 5), or which ones (11,12)."""
    expected = "a number of seeds (5), or a list of them (11,12 or 11,)"
    try:
        if isinstance(value, str) and "," in value:
            value = [int(part) for part in split(value, ",")]
        if not isinstance(value, list | tuple):
            value = range(1, min(number(int, expected)(value), _MOST_SEEDS + 1) + 1)
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if len(value) > _MOST_SEEDS:
        raise ValueError(f"{_MOST_SEEDS} seeds at most; 99, is the seed 99 alone")
    right = all(type(seed) is int and 0 <= seed <= _LARGEST_SEED for seed in value)
    if not value or not right or len(set(value)) < len(value):
        raise ValueError(f"{expected}, each from 0 to {_LARGEST_SEED} and given once")
    return tuple(value)


def number(kind: type[int] | type[float], expected: str) -> Callable[[Any], Any]:
    """Make a reader of a number; its range is left to whoever holds it.

    Args:
        kind: int, which refuses 1.5, or float.
        expected: what the error says was expected.
    """

    def read(value: Any) -> Any:
        try:
            result = kind(value)
            is_another = kind is int and float(value) != result
        except (OverflowError, TypeError, ValueError):
            raise ValueError(expected) from None
        if isinstance(value, bool) or is_another:
            raise ValueError(expected)
        return result

    return read


def numbers(value: Any) -> tuple[float, ...]:
    """Read numbers, separated by commas; each once."""
    expected = "one number or more, separated by commas"
    parts = split(value, ",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    results = tuple(number(float, expected)(part) for part in parts)
    if not results or len(set(results)) < len(results):
        raise ValueError(expected + ", each once")
    return results


def whole_number(least: int, most: int = _LARGEST) -> Callable[[Any], int]:
    """Make a reader of a whole number from `least` to `most`."""
    expected = f"a whole number of at least {least}"

    def read(value: Any) -> int:
        result: int = number(int, expected)(value)
        if result < least:
            raise ValueError(expected)
        if result > most:
            raise ValueError(f"a whole number of at most {most}")
        return result

    return read


def share(value: Any) -> float:
    """Read a number in (0, 1]."""
    expected = "a number above 0 and at most 1"
    result: float = number(float, expected)(value)
    if not 0 < result <= 1:
        raise ValueError(expected)
    return result


def betas(value: Any) -> tuple[float, float]:
    """Read two numbers, separated by a comma."""
    expected = "two numbers, as 0.9,0.99"
    parts = split(value, ",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or len(parts) != 2:
        raise ValueError(expected)
    read = number(float, expected)
    return read(parts[0]), read(parts[1])


def text(value: Any) -> str:
    """Read a text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    check_text(value)
    return value


def duration(value: Any) -> float:
    """Read `90`, `90s`, `30m` or `2h`; returns seconds."""
    match = re.fullmatch(r"([0-9]{0,20}\.?[0-9]{1,20}) ?([smh]?)", str(value).strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if not seconds > 0:
        raise ValueError("a duration above 0, as 90s, 30m or 2h")
    if seconds > _LONGEST:
        raise ValueError(f"a duration of at most {_LONGEST}s")
    return seconds


def memory(value: Any) -> int:
    """Read `8GB`, `500MB` or `8GiB`; returns bytes."""
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([KMGT]i?B)", value.strip()) if isinstance(value, str) else None
    if match:
        power = "KMGT".index(match[2][0]) + 1
        value = round(float(match[1]) * (1024 if "i" in match[2] else 1000) ** power)
    if type(value) is not int or value < LEAST_MEMORY:
        raise ValueError(f"an amount of memory of at least {LEAST_MEMORY // 10**6}MB, as 8GB or 500MB")
    return value


def shard(value: Any) -> tuple[int, int]:
    """Read `2/8`, the second of eight parts."""
    expected = "a part of so many, as 2/8: the first number from 1 to the second"
    parts = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", value.strip()) if isinstance(value, str) else None
    numbers = [int(part) for part in parts.groups()] if parts else value
    if not isinstance(numbers, list | tuple) or len(numbers) != 2 or not all(type(item) is int for item in numbers):
        raise ValueError(expected)
    index, count = numbers
    if not 1 <= index <= count:
        raise ValueError(expected)
    return index, count


def one_of(choices: tuple[str, ...], former: Mapping[str, str] | None = None) -> Callable[[Any], str]:
    """Make a reader that takes one of these names.

    Args:
        choices: the names.
        former: by earlier names, which are understood too, those of today.
    """

    def read(value: Any) -> str:
        name = (former or {}).get(value, value) if isinstance(value, str) else value
        if name not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(name)

    return read


def pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """Read `key=value,key=value`, a mapping, or pairs."""
    if isinstance(value, str):
        value = [part.partition("=")[::2] for part in split(value, ",")]
    results = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(results, list | tuple) or not all(map(_is_pair, results)):
        raise ValueError("pairs, as partition=gpu,time=04:00:00")
    return tuple((str(key).strip(), str(item).strip()) for key, item in results)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(str(part).strip() for part in value)


def job_minutes(value: str) -> int:
    """Read a job's time as sbatch does: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S; returns minutes, rounded up."""
    days, dash, clock = value.rpartition("-")
    parts = clock.split(":")
    if len(parts) > 3 or not all(re.fullmatch("[0-9]{1,9}", part) for part in [*parts, *([days] if dash else [])]):
        raise ValueError("minutes, or H:M:S or D-H:M:S, as 240, 04:00:00 or 1-12:00:00")
    if dash:
        hours, minutes, seconds = [*map(int, parts), 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = map(int, parts)
    else:
        hours, minutes, seconds = 0, *[*map(int, parts), 0][:2]
    total = int(days or 0) * 24 * 60 + hours * 60 + minutes + (seconds + 59) // 60
    if total < LEAST_JOB_MINUTES:
        raise ValueError(f"at least {LEAST_JOB_MINUTES} minutes, as a job is queued again 90 s before its end")
    return total


def folder(value: Any) -> Path:
    """Read a folder's path; `~` is the user's home."""
    path = value if isinstance(value, Path) else Path(text(value))
    check_text(str(path))
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("a folder's path ('~' begins one in a home, and there is no such user)") from None


def switch(value: Any) -> bool:
    """Read true or false; the flag takes no value, and says true."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value
