"""Answers that are computed once per section: its rows never change, and every table asks the same of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
Answer = TypeVar("Answer")
Owner = TypeVar("Owner")


def cached(question: Callable[Concatenate[Owner, P], Answer]) -> Callable[Concatenate[Owner, P], Answer]:
    """Make a function keep its answers with its first argument; they are shared, so nobody may change them.

    Args:
        question: A function or method whose first argument is a section, a document's data or the like, and whose
            other arguments are hashable.
    """

    @functools.wraps(question)
    def asked(owner: Owner, /, *arguments: P.args, **named: P.kwargs) -> Answer:
        answers: dict[Any, Answer] = owner.__dict__.setdefault("_answers", {})
        key = (question, arguments, *named.items())
        if key not in answers:
            answers[key] = question(owner, *arguments, **named)
        return answers[key]

    return asked
