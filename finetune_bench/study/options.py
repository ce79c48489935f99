"""An option is declared once, at the dataclass field that holds its value.

    threads: int = option(1, read=readers.whole_number(1), metavar="N", group="where", in_run_name=True,
                          help="torch threads of a CPU cell; part of the cell (default {default})")

The flag `--threads`, the TOML key `threads`, the line in `--help`, the check of a value set from Python, and whether
another value means another run folder all follow from it. A field of the `Recipe` is declared by `parameter`; how its
text is read follows from the field's type.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from finetune_bench.parameters import as_text, kind_of
from finetune_bench.study import readers

GROUPS = {"study": "what to compare", "where": "where and how", "recipe": "the training recipe"}


@dataclass(frozen=True)
class Option:
    """An option is a flag of the command line and a key of a TOML file.

    Attributes:
        name: the key in a TOML file; the flag is the same with dashes.
        field: the dataclass field that takes the value. An option `no_FIELD` turns a field off that is true by default.
        read: a function of `readers`.
        metavar: what stands for the value in the help; "" for a switch, which takes no value.
        help: the line of the help, with the default.
        group: a key of `GROUPS`, the part of the help that lists it.
        in_run_name: whether studies that differ in it get different run folders; False where their cells may lie
            beside each other.
        former_name: what the option was called before; understood for one more version.
    """

    name: str
    field: str
    read: Callable[[Any], Any]
    metavar: str
    help: str
    group: str
    in_run_name: bool = False
    former_name: str = ""

    @property
    def flag(self) -> str:
        """The flag is typed like this."""
        return "--" + self.name.replace("_", "-")

    def field_value(self, value: Any) -> Any:
        """Return what the field holds when the option has this value, which was read."""
        return not value if self.name == f"no_{self.field}" else value


def option(
    default: Any,
    *,
    read: Callable[[Any], Any],
    help: str,
    metavar: str = "",
    group: str = "study",
    name: str = "",
    in_run_name: bool = False,
    former_name: str = "",
) -> Any:
    """Return a dataclass field that is an option; the arguments are the attributes of `Option`.

    Args:
        default: the field's default.
        read: as in `Option`.
        help: as in `Option`, with `{default}` where the default is told.
        metavar: as in `Option`.
        group: as in `Option`.
        name: the option's name where it is not the field's.
        in_run_name: as in `Option`.
        former_name: as in `Option`.
    """
    declared = Option(name, "", read, metavar, _with_default(help, default), group, in_run_name, former_name)
    return dataclasses.field(default=default, metadata={"option": declared})


def options_of(owner: type) -> list[Option]:
    """Return the options that the fields of a dataclass declare, in their order."""
    return [
        dataclasses.replace(declared, name=declared.name or field.name, field=field.name)
        for field in dataclasses.fields(owner)
        if (declared := field.metadata.get("option")) is not None
    ]


def parameter_option(owner: type, field: dataclasses.Field[Any]) -> Option:
    """Return the option that sets a `parameter` of the recipe: how it is read follows from its type and interval."""
    kind, _ = kind_of(owner, field)
    read, metavar = {
        bool: (readers.switch, ""),
        int: (readers.whole_number(1), "N"),
        float: (readers.number(float, _expected(field.metadata["interval"])), "X"),
        str: (readers.text, "NAME"),
    }[kind]
    line = _with_default(field.metadata["help"], field.default)
    return Option(field.name, field.name, read, metavar, line, "recipe", in_run_name=True)


def default_text(value: Any) -> str:
    """Return a default as the help tells it: 2e-5, not 2e-05."""
    return re.sub(r"e([+-])0+", r"e\1", as_text(value))


def _with_default(help: str, default: Any) -> str:
    return help.replace("{default}", default_text(default))


def _expected(interval: str) -> str:
    """Say in words what a number in "[0, inf)" is."""
    if not interval:
        return "a number"
    low = interval[1:-1].split(",", maxsplit=1)[0]
    words = f"a number of at least {low}" if interval[0] == "[" else f"a number above {low}"
    return words + (" (inf for none)" if interval.endswith("inf]") else "")
