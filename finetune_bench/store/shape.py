"""Values from a JSON file are held against the types that the code declares for them, before anything reads them."""

from __future__ import annotations

import types
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST_INTEGER = 2**63 - 1  # what arrays and tables can hold


def misfits(value: Any, kind: Any, name: str) -> Iterator[str]:
    """Yield what of a value isn't of its declared type, each as the end of "a file has …".

    A number may be null, which stands for NaN, and so may a key that needn't be there; Any may be anything.

    Args:
        value: as JSON gave it.
        kind: a TypedDict, or what its keys are declared as.
        name: what the value is called.
    """
    origin, arguments = _parts(kind)
    if origin is TypedDict:
        yield from _misfits_of_table(value, kind, name)
    elif origin is NotRequired:
        yield from misfits(value, arguments[0], name)
    elif origin in (Union, types.UnionType):
        if all(any(misfits(value, option, name)) for option in arguments):
            yield f"{name} of another type"
    elif origin is list:
        if isinstance(value, list):
            for item in value:
                yield from misfits(item, arguments[0], name)
        else:
            yield f"{name} that are no list"
    elif origin is dict:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from misfits(item, arguments[1], f"{name}.{key}")
        else:
            yield f"{name} that are no table"
    elif not _fits(value, kind):
        yield f"{name} of another type"


def _misfits_of_table(value: Any, kind: Any, name: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{name} that are no table"
        return
    for key, (declared, is_required) in _keys(kind).items():
        inside = f"{name}.{key}".lstrip(".")
        if is_required and key not in value:
            yield f"no {inside}"
        elif is_required or value.get(key) is not None:
            yield from misfits(value[key], declared, inside)


@cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return what a type is made of, as `dict` and its arguments; `TypedDict` for a table with declared keys."""
    return TypedDict if is_typeddict(kind) else get_origin(kind), get_args(kind)


@cache
def _keys(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the keys of a TypedDict: what each is declared as, and whether it has to be there."""
    declared = get_type_hints(kind, include_extras=True)
    return {
        key: (hint, key in kind.__required_keys__ and get_origin(hint) is not NotRequired)
        for key, hint in declared.items()
    }


def _fits(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is type(None):
        return value is None
    if type(value) is int:
        return kind in (int, float) and abs(value) <= LARGEST_INTEGER
    if kind is float:
        return value is None or type(value) is float
    if isinstance(kind, type) and issubclass(kind, Enum):
        return value in list(kind)
    return isinstance(value, kind)
