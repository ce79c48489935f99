"""Find in a method's code what earlier versions of the contract had, and say what to write in its place."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from finetune_bench.errors import UsageError

PAGE = "docs/moving-a-plugin.md"


def refuse_former(owner: type) -> None:
    """Refuse a class with attributes that the contract had before, as soon as the class is made.

    Raises:
        UsageError: says for each of them what to write.
    """
    _refuse(owner, list(_attributes(owner)))


def refuse_former_code(owner: type) -> None:
    """Refuse a class whose code asks for what the contract had before: it would fail in the middle of a training.

    Raises:
        UsageError: says for each of them what to write.
    """
    _refuse(owner, [advice for advice, works in _code(owner) if not works])


def former_code(owner: type) -> list[str]:
    """List what is out of date in a class's code, what still works included, each with what to write."""
    return [advice for advice, _ in _code(owner)]


def _refuse(owner: type, advice: list[str]) -> None:
    if advice:
        raise UsageError(
            f"{owner.__name__} is written for an earlier version of finetune-bench: {'; '.join(advice)} ({PAGE})."
        )


def _attributes(owner: type) -> Iterator[str]:
    """Yield what to write in the place of each former attribute of a class."""
    declared = vars(owner)
    for attribute, argument in (("neutral", "neutral"), ("search_space", "search")):
        if attribute not in declared:
            continue
        values: Any = declared[attribute]
        if isinstance(values, Mapping) and values:
            name, value = next(iter(values.items()))
            yield f"write `{attribute}` at the parameter, as `{name}: ... = parameter(..., {argument}={value!r})`"
        else:
            yield f"leave `{attribute}` out, it is read off the parameters"
    if "early_backward" in declared:
        yield "leave `early_backward` out"
    if callable(declared.get("stochastic")):
        yield "write `@property` above `def stochastic(self)`"


def _code(owner: type) -> Iterator[tuple[str, bool]]:
    """Yield what to write in the place of each former use of the contract, and whether the former one still works."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError, SyntaxError):  # made in an interpreter, or of a file that is gone
        return
    nodes = list(ast.walk(tree))
    for is_former, advice, works in _FORMER:
        if any(is_former(node) for node in nodes):
            yield advice, works


def _asks_for_weight(node: ast.AST) -> bool:
    """Return whether code reads `view.weight` or makes a view with a weight."""
    if isinstance(node, ast.Attribute):
        return node.attr == "weight" and isinstance(node.value, ast.Name) and node.value.id == "view"
    if not isinstance(node, ast.Call) or not any(keyword.arg == "weight" for keyword in node.keywords):
        return False
    of_view = bool(node.args) and isinstance(node.args[0], ast.Name) and node.args[0].id == "view"
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called == "View" or (called == "replace" and of_view)


def _hands_backward_a_view(node: ast.AST) -> bool:
    """Return whether code calls `step.backward(part, view)`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "backward":
        return False
    of_step = isinstance(node.func.value, ast.Name) and node.func.value.id == "step"
    return of_step and len(node.args) + len(node.keywords) > 1


def _sets(name: str) -> Callable[[ast.AST], bool]:
    """Return a test of whether code sets an attribute of `self`."""
    return lambda node: (
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


# What tells a former use, what to write in its place, and whether it still works.
_FORMER: tuple[tuple[Callable[[ast.AST], bool], str, bool], ...] = (
    (_asks_for_weight, "write `inner(view, weight=c)`, which returns the loss times c, and no `view.weight`", False),
    (_hands_backward_a_view, "write `step.backward(part)` without the view", False),
    (_sets("stochastic"), "write `stochastic` as a property, and set it nowhere", False),
    (_sets("run_"), "write `step.run` where `objective` uses `self.run_`, and keep no run", True),
)
