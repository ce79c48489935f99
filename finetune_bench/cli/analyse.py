"""`analyse` measures finished runs, from their predictions and the models that were kept; it trains nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

from finetune_bench.cli.console import say, show
from finetune_bench.cli.show import load_plugins
from finetune_bench.errors import UsageError


def analyse_command(parsed: argparse.Namespace) -> int:
    """Measure what the finished runs of a folder lack of some analyses; return 1 where an analysis failed."""
    load_plugins(parsed.plugin)
    from finetune_bench import device as devices
    from finetune_bench.runner import afterwards
    from finetune_bench.store.store import Store
    from finetune_bench.study import readers

    try:
        texts = readers.names(parsed.analyses)
    except ValueError as error:
        raise UsageError(f"--with: expected {error}; got '{parsed.analyses}'.") from None
    store = Store.open(parsed.run)
    given = parsed.data_root or store.study().get("data_root")
    data_root = Path(given).expanduser().resolve() if given else None
    if data_root is not None and not data_root.is_dir():
        raise UsageError(f"--data-root: expected a folder laid out like the hub, but there is none at '{data_root}'.")
    device = devices.choose(parsed.device)[0]
    later = afterwards.prepare(store, texts, data_root)
    for note in later.notes:
        say(note)
    if later.without_model:
        say(
            f"{len(later.without_model)} runs kept no model and are left out; give --save-model to 'run', or measure "
            "while training: run --analyses LIST."
        )
    total = sum(len(analyses) for _, analyses in later.todo)
    say(f"{total} results to measure on {device}, {later.present} there already.")
    failed = measured = 0
    for cell, name, reason in afterwards.measure(later, device, data_root):
        failed, measured = failed + (reason is not None), measured + (reason is None)
        what = f"{name} of {cell.label} on {cell.task}, seed {cell.seed} ({cell.id})"
        say(f"{what}: measured." if reason is None else f"{what} failed: {reason}")
    show(f"{measured} results measured, {later.present} there already, {failed} failed.")
    return 1 if failed or later.without_model else 0
