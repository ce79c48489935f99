"""The command line is `finetune-bench COMMAND`. It loads nothing heavy before a command needs it."""

from __future__ import annotations

from finetune_bench.cli.entry import main

__all__ = ["main"]
