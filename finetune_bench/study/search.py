"""A random search gives every method the same budget: N settings each, the first always the default.

The learning rate is part of every method's space, so that vanilla has something to tune too; setting i has the same
learning rate for all methods. What else may be tried, a method says in its `search_space`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.parameters import Range, kind_of
from finetune_bench.seeds import derive

# The share of the training data that a search chooses by.
HELD_OUT_SHARE = 0.2

# The factors of the study's learning rate that a search may try.
LEARNING_RATES = Range(1 / 4, 4, log=True)


def settings(text: str, count: int, learning_rate: float) -> list[tuple[str, float]]:
    """Return the settings of a method or stack that a search tries.

    Args:
        text: the stack as typed; what it says stands in the first setting, and is drawn anew where the space has it.
        count: the number of settings, at least 1.
        learning_rate: the learning rate of the first setting.

    Returns:
        Pairs of the stack with every parameter spelt out and the learning rate. The same arguments give the same
        settings, and a larger count begins with those of a smaller one.
    """
    stack = registry.make_stack(text)
    drawn = [(registry.describe(stack, full=True), learning_rate)]
    for index in range(1, count):
        factor = _draw(LEARNING_RATES, derive(index, "search", "learning rate"))
        methods = [_draw_setting(method, index) for method in stack.methods]
        drawn.append((registry.describe(Stack(methods), full=True), _rounded(learning_rate * factor)))
    return drawn


def _draw_setting(method: Method, index: int) -> Method:
    """Return the method at the search's setting of that index; parameters outside of its space stay."""
    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    kinds = {field.name: kind_of(type(method), field)[0] for field in dataclasses.fields(method)}
    for name, space in method.search_space.items():
        seed = derive(index, "search", method.name, name)
        if isinstance(space, Range):
            value = _draw(space, seed)
            values[name] = round(value) if kinds[name] is int else _rounded(value)
        else:
            values[name] = space[seed % len(space)]
    return type(method)(**values)


def _draw(space: Range, seed: int) -> float:
    """Draw a value, uniform or log-uniform."""
    share = float(np.random.default_rng(seed).random())
    if space.log:
        return math.exp(math.log(space.low) + share * (math.log(space.high) - math.log(space.low)))
    return space.low + share * (space.high - space.low)


def _rounded(value: float) -> float:
    """Round to three digits: a setting that can be typed again."""
    return float(f"{value:.3g}")
