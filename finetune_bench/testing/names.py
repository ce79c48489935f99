"""This file finds misspelt names of hooks and declarations in a method's class."""

from __future__ import annotations

import dataclasses
import difflib

from finetune_bench.method.base import Method


def misspelt(owner: type[Method]) -> list[str]:
    """List what a class defines under a name that is nearly one of the contract's, each with the name meant.

    Its parameters have names of their own, and so has what begins or ends with an underscore.
    """
    known = [name for name in dir(Method) if not name.startswith("_")]
    parameters = {field.name for field in dataclasses.fields(owner)}
    advice = []
    for name in vars(owner):
        if name in known or name in parameters or name.startswith("_") or name.endswith("_"):
            continue
        for near in difflib.get_close_matches(name, known, n=1, cutoff=0.85):
            advice.append(f"nothing asks for its `{name}`; did you mean `{near}`?")
    return advice
