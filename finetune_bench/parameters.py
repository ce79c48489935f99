"""A hyper-parameter is a dataclass field: declared once, validated on construction, readable from text.

    eps: float = parameter(1e-5, interval="[0, inf)", neutral=0.0, help="standard deviation of the noise")

A wrong value is refused with one sentence form:
"The 'eps' parameter of HyPe must be a float in [0, inf); got -1."
"""

from __future__ import annotations

import dataclasses
import math
import typing
from enum import Enum
from functools import cache
from typing import Any

from finetune_bench.errors import ParameterError, UnknownName
from finetune_bench.printable import brief


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a search may try lie from `low` to `high`, uniformly, or with `log` on the logarithm."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low) or (self.log and self.low <= 0):
            raise ParameterError(
                f"A Range goes from a number up to a larger one, with log=True from above 0; got {brief(self)}."
            )


# What `Range` or choices a search may try of a parameter.
Space = Range | tuple[Any, ...]


def parameter(
    default: Any,
    *,
    interval: str = "",
    choices: tuple[str, ...] = (),
    neutral: Any = dataclasses.MISSING,
    search: Space | None = None,
    help: str = "",
) -> Any:
    """Return a dataclass field that is a hyper-parameter: all that is declared of it.

    Args:
        default: the value when none is given.
        interval: the range of a number, in mathematical notation: "[0, 1)", "(0, inf)".
        choices: the values that a string may have.
        neutral: the value at which, with those of the other parameters that have one, a method equals vanilla (with the
            same dropout) to the last bit. A method without such a setting gives it nowhere, and its card says why.
        search: the range, or the choices, that a search may try; the default need not be inside.
        help: a text that says what it is, its unit and where its default comes from; `finetune-bench show` prints it.
    """
    declared = {"interval": interval, "choices": choices, "neutral": neutral, "search": search, "help": help}
    return dataclasses.field(default=default, metadata=declared)


def neutral_setting(owner: type) -> dict[str, Any] | None:
    """Return the neutral values of an owner's parameters by name; None where none of them has one."""
    declared = {field.name: field.metadata.get("neutral", dataclasses.MISSING) for field in dataclasses.fields(owner)}
    return {name: value for name, value in declared.items() if value is not dataclasses.MISSING} or None


def search_space(owner: type) -> dict[str, Space]:
    """Return what a search may try, by parameter."""
    declared = {field.name: field.metadata.get("search") for field in dataclasses.fields(owner)}
    return {name: space for name, space in declared.items() if space is not None}


def inside(value: float, interval: str) -> bool:
    """Return whether `value` lies in an interval such as "[0, inf)"; NaN lies in none."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    return above and below


def kind_of(owner: type, field: dataclasses.Field[Any]) -> tuple[type, bool]:
    """Return the declared type of a field, and whether None is allowed too."""
    hint = _hints(owner)[field.name]
    options = typing.get_args(hint)
    if not options:
        return hint, False
    return next(option for option in options if option is not type(None)), type(None) in options


@cache  # a plan makes hundreds of methods and recipes, and each has all of its fields checked
def _hints(owner: type) -> dict[str, Any]:
    return typing.get_type_hints(owner)


def check_fields(owner: type) -> None:
    """Check that every parameter has a default and a type that can be read from text, and accepts what is declared.

    Its neutral value and the ends or the choices of its search have to be values that it may have.

    Raises:
        ParameterError: names the parameter and says what is wrong with its declaration.
    """
    for field in dataclasses.fields(owner):
        kind, _ = kind_of(owner, field)
        readable = isinstance(kind, type) and (kind in (bool, int, float, str) or issubclass(kind, Enum))
        if not readable or field.default is dataclasses.MISSING:
            raise ParameterError(
                f"The '{field.name}' parameter of {owner.__name__} must be declared as bool, int, float, str or an "
                "enumeration, or one of them | None, with a default: x: float = parameter(0.1, ...)."
            )
        for argument, values in (("neutral", _neutral_values(field)), ("search", _search_values(field, kind))):
            for value in values:
                if not accepts(owner, field, value):
                    raise ParameterError(
                        f"The '{field.name}' parameter of {owner.__name__} must be {expectation(owner, field)}; its "
                        f"{argument}= says {brief(value)}."
                    )


def _neutral_values(field: dataclasses.Field[Any]) -> tuple[Any, ...]:
    value = field.metadata.get("neutral", dataclasses.MISSING)
    return () if value is dataclasses.MISSING else (value,)


def _search_values(field: dataclasses.Field[Any], kind: type) -> tuple[Any, ...]:
    """Return the ends of a parameter's search, as the search would round them, or its choices."""
    space = field.metadata.get("search")
    if isinstance(space, Range):
        return tuple(round(end) if kind is int else end for end in (space.low, space.high))
    return tuple(space or ())


def expectation(owner: type, field: dataclasses.Field[Any]) -> str:
    """Say what a field accepts: "a float in [0, inf)"."""
    kind, optional = kind_of(owner, field)
    if choices := choices_of(owner, field):
        text = "one of " + ", ".join(choices)
    else:
        text = {bool: "true or false", int: "an int", float: "a float", str: "a string"}[kind]
        if interval := field.metadata.get("interval"):
            text += f" in {interval}"
    return text + (" or none" if optional else "")


def choices_of(owner: type, field: dataclasses.Field[Any]) -> tuple[str, ...]:
    """Return the values that a string or enumeration field accepts; none for the other kinds."""
    kind, _ = kind_of(owner, field)
    if issubclass(kind, Enum):
        return tuple(str(member.value) for member in kind)
    return tuple(field.metadata.get("choices", ()))


def accepts(owner: type, field: dataclasses.Field[Any], value: Any) -> bool:
    """Return whether a field may have a value, as `validate` says."""
    kind, optional = kind_of(owner, field)
    if value is None:
        return optional
    if issubclass(kind, Enum):
        return value in tuple(kind) or value in choices_of(owner, field)
    # An integer is accepted where a float is declared.
    right_type = isinstance(value, (int, float) if kind is float else kind)
    interval, choices = field.metadata.get("interval"), field.metadata.get("choices")
    return (
        right_type
        and not (isinstance(value, bool) and kind is not bool)
        and not (choices and value not in choices)
        and not (interval and not inside(value, interval))
    )


def validate(instance: Any) -> None:
    """Check every declared parameter of a dataclass instance against its type and range.

    Integers are accepted where a float is declared, and the name of a member where an enumeration is.

    Raises:
        ParameterError: with the parameter, its owner, what was expected and what came.
    """
    owner = type(instance)
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        kind, _ = kind_of(owner, field)
        if not accepts(owner, field, value):
            # A float is shown as one, as it would have been kept.
            _refuse(owner, field, float(value) if kind is float and type(value) is int else value)
        if value is not None and (kind is float or issubclass(kind, Enum)):
            object.__setattr__(instance, field.name, kind(value))


def _refuse(owner: type, field: dataclasses.Field[Any], value: object) -> None:
    raise ParameterError(
        f"The '{field.name}' parameter of {owner.__name__} must be {expectation(owner, field)}; got {brief(value)}."
    )


def from_text(owner: type, texts: dict[str, str]) -> dict[str, Any]:
    """Turn the texts of `name(key=text, ...)` into values of the declared types.

    Raises:
        UnknownName: a key that the owner does not have.
        ParameterError: a text that is not of the declared type.
    """
    fields = {field.name: field for field in dataclasses.fields(owner)}
    values: dict[str, Any] = {}
    for key, text in texts.items():
        if key not in fields:
            raise UnknownName(f"parameter of {owner.__name__}", key, fields)
        kind, optional = kind_of(owner, fields[key])
        try:
            values[key] = None if optional and text.lower() == "none" else _parse(kind, text)
        except ValueError:
            _refuse(owner, fields[key], text)
    return values


def _parse(kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text) if kind in (int, float) else text


def as_text(value: Any) -> str:
    """Return a parameter's value as it is typed on the command line."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
