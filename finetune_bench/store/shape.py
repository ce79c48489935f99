"""Values from a JSON file are held against the types that the code declares for them, before anything reads them.

A type becomes a function that checks values of it, once: a store has ten thousand rows of a hundred values each.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache, partial
from typing import Any, NotRequired, TypeAlias, Union, get_args, get_origin, get_type_hints, is_typeddict

LARGEST_INTEGER = 2**63 - 1  # what arrays and tables can hold

_OTHER_TYPE, _NO_TABLE, _NO_LIST, _MISSING = (
    "{} of another type",
    "{} that are no table",
    "{} that are no list",
    "no {}",
)
# Python's types of which every value is of the declared one.
_ALWAYS: dict[Any, frozenset[type]] = {
    str: frozenset({str}),
    bool: frozenset({bool}),
    int: frozenset({bool}),
    float: frozenset({float, types.NoneType}),
    types.NoneType: frozenset({types.NoneType}),
    Any: frozenset({str, bool, int, float, types.NoneType, list, dict}),
}

# The names that lead to a value, joined by dots, and what is wrong with it; None where nothing is.
Misfit: TypeAlias = tuple[str, str] | None
Check: TypeAlias = Callable[[Any], Misfit]


def misfit(value: Any, kind: Any) -> str:
    """Return what of a value first isn't of its declared type, as the end of "a file has …"; "" where all of it is.

    A number may be null, which stands for NaN, and so may a key that needn't be there; Any may be anything.

    Args:
        value: as JSON gave it.
        kind: a TypedDict, or what its keys are declared as.
    """
    wrong = _check_of(kind)(value)
    return "" if wrong is None else wrong[1].format(wrong[0])


@cache
def _check_of(kind: Any) -> Check:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_typeddict(kind):
        declared = get_type_hints(kind, include_extras=True)
        return partial(_check_table, [_key(name, hint, kind) for name, hint in declared.items()])
    if origin is NotRequired:
        return _check_of(arguments[0])
    if origin in (Union, types.UnionType):
        return partial(_check_union, [_check_of(option) for option in arguments])
    if origin is list:
        return partial(_check_list, _check_of(arguments[0]), _always(arguments[0]))
    if origin is dict:
        return partial(_check_dict, _check_of(arguments[1]), _always(arguments[1]))
    return partial(_check_value, kind)


def _key(name: str, hint: Any, kind: Any) -> tuple[str, Check, frozenset[type], bool]:
    """Return a key of a TypedDict: its name, its check, what always fits, and whether it has to be there."""
    is_required = name in kind.__required_keys__ and get_origin(hint) is not NotRequired
    always = _always(hint) if is_required else _always(hint) | {types.NoneType}
    return name, _check_of(hint), always, is_required


def _always(kind: Any) -> frozenset[type]:
    if get_origin(kind) in (Union, types.UnionType, NotRequired):
        return frozenset().union(*map(_always, get_args(kind)))
    return _ALWAYS.get(kind, frozenset())


def _check_table(keys: Iterable[tuple[str, Check, frozenset[type], bool]], value: Any) -> Misfit:
    if not isinstance(value, dict):
        return "", _NO_TABLE
    for name, check, always, is_required in keys:
        if name not in value:
            if is_required:
                return name, _MISSING
        elif type(value[name]) not in always and (wrong := check(value[name])) is not None:
            return _below(name, wrong)
    return None


def _check_dict(check: Check, always: frozenset[type], value: Any) -> Misfit:
    if not isinstance(value, dict):
        return "", _NO_TABLE
    for name, item in value.items():
        if type(item) not in always and (wrong := check(item)) is not None:
            return _below(name, wrong)
    return None


def _check_list(check: Check, always: frozenset[type], value: Any) -> Misfit:
    if not isinstance(value, list):
        return "", _NO_LIST
    wrong = (check(item) for item in value if type(item) not in always)
    return next((misfit for misfit in wrong if misfit is not None), None)


def _check_union(options: Iterable[Check], value: Any) -> Misfit:
    return None if any(check(value) is None for check in options) else ("", _OTHER_TYPE)


def _check_value(kind: Any, value: Any) -> Misfit:
    return None if _fits(value, kind) else ("", _OTHER_TYPE)


def _below(name: str, wrong: tuple[str, str]) -> Misfit:
    path, text = wrong
    return f"{name}.{path}" if path else name, text


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
