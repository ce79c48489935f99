"""finetune-bench: which regulariser helps when fine-tuning a pre-trained transformer, on which task, at what price.

The Python door is `run(study)`; the command line is `finetune-bench`. Importing this package is cheap: torch and
transformers are loaded only by the parts that train.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finetune_bench.runner import run
    from finetune_bench.study import Recipe, Study

__version__ = "0.1.0"
__all__ = ["Recipe", "Study", "__version__", "run"]

# In a checkout `methods/`, `tasks/` and `reports/` lie beside this folder; an installed package holds them inside. When
# the checkout shadows an installed wheel (python -m pytest at the root does that), let the checkout win as a whole.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "methods" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name == "run":
        from finetune_bench.runner import run

        return run
    if name in ("Recipe", "Study"):
        from finetune_bench import study

        return getattr(study, name)
    raise AttributeError(f"module 'finetune_bench' has no attribute {name!r}")
