"""This file imports transformers, late and quietly."""

from __future__ import annotations

from functools import cache
from types import ModuleType


@cache
def library() -> ModuleType:
    """Import transformers when it is first needed, for it takes seconds, and silence its reports of loading."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers
