"""`reproduce` runs a published study from its preset, in full or at a small scale, or says what it would take."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_bench.cli.console import say, show
from finetune_bench.cli.train import flags_of, plan_study, run_study
from finetune_bench.errors import MachineError, UsageError
from finetune_bench.files import make_folder, write_text
from finetune_bench.papers.presets import FULL, SCALES, Preset, load_preset, preset_names
from finetune_bench.study.sources import OPTIONS, study_of_file

if TYPE_CHECKING:
    from finetune_bench.study.study import Study

ANALYSES = "analyses"


def reproduce_command(parsed: argparse.Namespace) -> int:
    """List the presets, or run or plan one; return 1 where cells failed."""
    if parsed.list:
        _show_presets()
        return 0
    if parsed.preset is None:
        raise UsageError(
            "reproduce: expected the name of a preset; got none. 'finetune-bench reproduce --list' shows them."
        )
    preset = load_preset(parsed.preset)
    if parsed.scale not in SCALES:
        raise UsageError(f"--scale: expected {' or '.join(SCALES)}; got '{parsed.scale}'.")
    study = study_of(preset, parsed.scale, parsed)
    say(study.preset)
    if parsed.action == "plan":
        return _plan(study, parsed.scale)
    try:
        code = run_study(study)
    except (UsageError, MachineError):
        _refuse_missing(preset, study)
        raise
    for path in _write_page(preset, study):
        show(str(path))
    if preset.paper:
        say(f"'finetune-bench verify {preset.paper} RUN' holds the run against the published numbers.")
    return code


def _plan(study: Study, scale: str) -> int:
    """Print what a study takes: from declared sizes, and calibrated where all that it needs is here."""
    from tabulate import tabulate

    from finetune_bench.cli import preset_plan

    if scale == FULL:
        lines = preset_plan.rows(preset_plan.needs(study))
        show(tabulate(lines, preset_plan.HEADER, tablefmt="simple", disable_numparse=True))
        show(f"\n{preset_plan.HOW}")
    missing = list(preset_plan.told(study))
    for sentence in missing:
        show(f"missing: {sentence}.")
    if missing:
        say("With all of that here, 'plan' measures on this machine, too.")
        return 0
    return plan_study(study)


def _refuse_missing(preset: Preset, study: Study) -> None:
    """Say all that a preset lacks at once, where it lacks checkpoints or data.

    Raises:
        UsageError: it does.
    """
    from finetune_bench.cli.preset_plan import told

    if missing := list(told(study)):
        lines = "".join(f"\n  {sentence}." for sentence in missing)
        raise UsageError(f"reproduce {preset.name}: expected its checkpoints and data; missing are:{lines}") from None


def _write_page(preset: Preset, study: Study) -> list[Path]:
    """Write the page that lays what was published beside the run; return its files."""
    from finetune_bench.report import Options
    from finetune_bench.reports.html import render
    from finetune_bench.reports.markdown import as_markdown
    from finetune_bench.reports.published.beside import beside_blocks
    from finetune_bench.reports.rows.load import load
    from finetune_bench.store.store import Store
    from finetune_bench.study.study import run_name

    store = Store.open(str(study.out or Path("runs") / run_name(study)))
    data = load(store, Options(all_cells=True))
    blocks = beside_blocks(preset, data)
    folder = store.root / "reproduce"
    make_folder(folder)
    pages = {f"{preset.name}.md": as_markdown(blocks), f"{preset.name}.html": render(blocks, data.rows)}
    for name, text in pages.items():
        write_text(folder / name, text)
    return [folder / name for name in pages]


def study_of(preset: Preset, scale: str, parsed: argparse.Namespace) -> Study:
    """Return the study of a preset at a scale, with the flags of where and how to run.

    Raises:
        UsageError: it needs analyses that this version has no option for.
    """
    from finetune_bench import registry

    values = preset.at(scale)
    if analyses := preset.analyses_at(scale):
        if ANALYSES not in {option.name for option in OPTIONS}:
            raise UsageError(
                f"reproduce {preset.name}: it is made of the analyses {', '.join(analyses)}, and this version "
                f"has no --{ANALYSES}; 'finetune-bench reproduce --list' shows which presets need none."
            )
        values |= {ANALYSES: analyses}
    study = study_of_file(values, f"preset {preset.name}", flags_of(parsed), registry.default_options)
    return dataclasses.replace(study, preset=preset.described(scale))


def _show_presets() -> None:
    from tabulate import tabulate

    presets = [load_preset(name) for name in preset_names()]
    lines = [[preset.name, preset.title, preset.source, ", ".join(preset.analyses)] for preset in presets]
    header = ["preset", "reproduces", "source", "needs analyses"]
    show(tabulate(lines, header, tablefmt="simple", disable_numparse=True, maxcolwidths=[None, 44, 60, None]))
