"""Find out which regulariser helps when fine-tuning a pre-trained transformer, on which task, at what price.

The Python door is `run(study)`; the command line is `finetune-bench`. Importing this package is cheap: torch and
transformers are loaded only by the parts that train.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_bench._version import __version__

if TYPE_CHECKING:
    from finetune_bench.recipe import Recipe
    from finetune_bench.runner.execution import run
    from finetune_bench.study.study import Study

__all__ = ["Recipe", "Study", "__version__", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from finetune_bench.runner.execution import run

        return run
    if name == "Recipe":
        from finetune_bench.recipe import Recipe

        return Recipe
    if name == "Study":
        from finetune_bench.study.study import Study

        return Study
    raise AttributeError(f"module 'finetune_bench' has no attribute {name!r}")
