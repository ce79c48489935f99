"""Write the tables of docs/toolbox.md, what a method may touch, from the public names of the contract and its tools.

    python -m scripts.toolbox            write them anew
    python -m scripts.toolbox --check    write nothing; say whether the page is up to date

The tables stand between `<!-- tables: … -->` and `<!-- end of tables -->`; all else is written by hand.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from finetune_bench import functional, optimizers, parameters
from finetune_bench.method import Facts, reasons
from finetune_bench.method.step import Objective, Run, Step, View
from finetune_bench.model import structure
from finetune_bench.task import Batch, Output
from scripts.architecture import first_sentence

PAGE = Path(__file__).resolve().parents[1] / "docs" / "toolbox.md"
START, END = "<!-- tables: written by python -m scripts.toolbox -->", "<!-- end of tables -->"

# What a method is handed, and the modules of functions that it may import from.
HANDED = (Step, View, Objective, Run, Batch, Output, Facts)
MODULES = (parameters, structure, optimizers, functional, reasons)
# What a stack calls, the registry, or whoever makes a method: a method itself has no use for it.
OF_THE_CORE = {
    "within",
    *("accepts", "as_text", "check_fields", "choices_of", "expectation", "from_text", "inside", "kind_of"),
    *("neutral_setting", "search_space", "validate", "Space", "checkpoint_activations", "is_sequence_first", "weigh"),
}


def tables() -> str:
    """Return a table for everything that a method is handed, and one for each module that it may import from."""
    parts = [_table(f"`{owner.__name__}`", _summary(owner), sorted(members(owner))) for owner in HANDED]
    for module in MODULES:
        parts.append(_table(f"`{module.__name__}`", _summary(module), list(functions(module))))
    return "\n\n".join(parts)


def _summary(owner: Any) -> str:
    return first_sentence(inspect.getdoc(owner) or "")


def _table(heading: str, sentence: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"## {heading}", "", sentence, "", "| name | what it is |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {_cell(text)} |" for name, text in rows)])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def members(owner: type) -> Iterator[tuple[str, str]]:
    """Yield the public attributes and methods of a class that a method is handed, each with what it is."""
    yield from attributes(inspect.getdoc(owner) or "")
    for name, value in vars(owner).items():
        if name.startswith("_") or name in OF_THE_CORE or not (callable(value) or isinstance(value, property)):
            continue
        shown = name if isinstance(value, property) else f"{name}({_arguments(value)})"
        yield shown, first_sentence(inspect.getdoc(value) or "")


def attributes(text: str) -> Iterator[tuple[str, str]]:
    """Yield the names and the texts of a docstring's part `Attributes:`."""
    _, _, part = text.partition("Attributes:\n")
    for entry in re.split(r"\n(?=    \w)", "\n" + part.partition("\n\n")[0])[1:]:
        name, _, said = entry.partition(":")
        yield name.strip(), " ".join(said.split())


def functions(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield the public functions and classes that a module defines, each with what it does."""
    for name, value in vars(module).items():
        if name.startswith("_") or name in OF_THE_CORE or getattr(value, "__module__", "") != module.__name__:
            continue
        yield f"{name}({_arguments(value)})", first_sentence(inspect.getdoc(value) or "")


def _arguments(function: Callable[..., Any]) -> str:
    return ", ".join(name for name in inspect.signature(function).parameters if name != "self")


def render(page: str) -> str:
    """Return the page with its tables written anew."""
    before, _, rest = page.partition(START)
    return f"{before}{START}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write the page, or check it; return 1 if it was checked and is out of date."""
    old = PAGE.read_text("utf-8")
    new = render(old)
    if "--check" in sys.argv:
        if new != old:
            print("docs/toolbox.md is out of date; run: python -m scripts.toolbox", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
