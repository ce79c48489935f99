"""`reproduce` runs a published study from its preset, in full or at a small scale, or says what it would take."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from finetune_bench.cli.console import say, show
from finetune_bench.cli.train import flags_of, plan_study, run_study
from finetune_bench.errors import UsageError
from finetune_bench.papers.presets import SCALES, Preset, load_preset, preset_names
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
        return plan_study(study)
    code = run_study(study)
    if preset.paper:
        say(f"'finetune-bench verify {preset.paper} RUN' holds the run against the published numbers.")
    return code


def study_of(preset: Preset, scale: str, parsed: argparse.Namespace) -> Study:
    """Return the study of a preset at a scale, with the flags of where and how to run.

    Raises:
        UsageError: it needs analyses that this version has no option for.
    """
    from finetune_bench import registry

    values = preset.at(scale)
    if preset.analyses:
        if ANALYSES not in {option.name for option in OPTIONS}:
            raise UsageError(
                f"reproduce {preset.name}: it is made of the analyses {', '.join(preset.analyses)}, and this version "
                f"has no --{ANALYSES}; 'finetune-bench reproduce --list' shows which presets need none."
            )
        values |= {ANALYSES: list(preset.analyses)}
    study = study_of_file(values, f"preset {preset.name}", flags_of(parsed), registry.default_options)
    return dataclasses.replace(study, preset=preset.described(scale))


def _show_presets() -> None:
    from tabulate import tabulate

    presets = [load_preset(name) for name in preset_names()]
    lines = [[preset.name, preset.title, preset.source, ", ".join(preset.analyses)] for preset in presets]
    header = ["preset", "reproduces", "source", "needs analyses"]
    show(tabulate(lines, header, tablefmt="simple", disable_numparse=True, maxcolwidths=[None, 44, 60, None]))
