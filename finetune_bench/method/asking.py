"""Ask a method what it says before a run, where a plugin may raise, leave the process or answer anything."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any

from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.model.dropout import Rates
from finetune_bench.printable import LONGEST_REASON, brief

# By hook: what it is asked, in words, and what may come back.
_QUESTIONS: dict[str, tuple[str, tuple[type, ...], str]] = {
    "unsupported": ("what it supports", (str, NoneType), "a sentence or None"),
    "warning": ("for its warning", (str, NoneType), "a sentence or None"),
    "noise_scale": ("how large its noise is", (float, int, NoneType), "a number or None"),
    "passes": ("for its passes", (Passes,), "Passes"),
    "memory": ("for its memory", (Memory,), "Memory"),
    "stochastic": ("whether its passes differ", (bool,), "True or False"),
    "exclusive": ("what it needs for itself", (tuple,), 'a tuple of texts, as ("evaluated weights",)'),
    "rates": ("for its dropout rates", (Rates,), "Rates"),
    "effects": ("for its effects", (Mapping,), "methods by name, one at least"),
}


def ask(method: Method, hook: str, *arguments: Any) -> Any:
    """Call one of the hooks, or read one of the properties, that say something of a method without training it.

    Args:
        method: whose hook it is.
        hook: unsupported, warning, noise_scale, passes, memory, effects, stochastic, exclusive or rates.
        *arguments: the hook's.

    Raises:
        UsageError: the hook raised, called sys.exit, or answered with something else than it may.
    """
    question, kinds, expected = _QUESTIONS[hook]
    try:
        answer = getattr(method, hook)
        answer = answer(*arguments) if callable(answer) else answer
    except FinetuneBenchError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"'{method.name}': asking it {question} failed with {type(error).__name__}: {brief(error)}; mend its "
            f"`{hook}`."
        ) from error
    wrong = not isinstance(answer, kinds)
    if isinstance(answer, Mapping):
        wrong = wrong or not answer or not all(isinstance(twin, Method) for twin in answer.values())
    if isinstance(answer, tuple):
        wrong = wrong or not all(isinstance(claim, str) for claim in answer)
    if isinstance(answer, Passes):
        wrong = not all(isinstance(count, int | float) for count in (answer.forwards, answer.backwards))
    if wrong:
        raise UsageError(f"'{method.name}': its `{hook}` must return {expected}; got {brief(answer, write=repr)}.")
    return brief(answer, LONGEST_REASON) if isinstance(answer, str) else answer
