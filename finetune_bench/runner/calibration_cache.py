"""Calibrations are kept in the user's cache folder, for the next plan on this machine.

A file per calibration, `calibrations/KEY.json` of the cache; the key is a hash of all that it depends on: the method,
the model, the longest text, the rest of the recipe that changes what a token costs, the code, the libraries and the
machine, but not the task. A file that is damaged, or that another process is just replacing, costs a calibration and
does no other harm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

import finetune_bench
from finetune_bench import device as devices
from finetune_bench.cache import cache_folder
from finetune_bench.errors import UsageError
from finetune_bench.files import Damaged, make_folder, read_json, sealed, write_text
from finetune_bench.runner.calibration import Allowance, Calibration, calibrate
from finetune_bench.study.grid import Cell

# Of a cell, and of its recipe: they change how many steps there are, and of how many tokens, but not what each costs.
_WITHOUT_EFFECT = ("id", "seed", "model", "task", "data", "limit_train", "held_out", "stretch")
_WITHOUT_EFFECT_IN_RECIPE = ("lr", "epochs", "steps", "warmup")


def calibrations_of(
    cells: Sequence[Cell],
    root: Path | None,
    device: torch.device,
    plugins: Sequence[str] = (),
    *,
    allowance: Allowance,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Calibration | None]:
    """Return the calibration of every cell, as `calibrate` does; those that are kept are read, the others kept."""
    files = [cache_folder() / "calibrations" / f"{_key(cell, device)}.json" for cell in cells]
    made = {file: kept for file in files if (kept := _read(file)) is not None}
    missing = {file: index for index, file in enumerate(files) if file not in made}
    if missing:
        if allowance.least is not None:
            allowance = replace(allowance, least=[allowance.least[index] for index in missing.values()])
        calibrated = calibrate(
            [cells[index] for index in missing.values()], root, device, plugins, allowance=allowance, tell=tell
        )
        for file, calibration in zip(missing, calibrated, strict=True):
            if calibration is not None:
                made[file] = calibration
                _keep(file, calibration)
    return [made.get(file) for file in files]


def _key(cell: Cell, device: torch.device) -> str:
    """Return a hash of all that a calibration depends on; where the checkpoint lies doesn't matter."""
    values = {name: value for name, value in cell.to_dict().items() if name not in _WITHOUT_EFFECT}
    values["recipe"] = {k: value for k, value in values["recipe"].items() if k not in _WITHOUT_EFFECT_IN_RECIPE}
    machine = [platform.node(), platform.machine(), platform.python_version(), devices.describe(device)]
    text = json.dumps([values, machine, _code()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@cache
def _code() -> str:
    """Return a hash of this package's code; a checkout has three folders of it behind links."""
    folders = [Path(root) / name for root in finetune_bench.__path__ for name in ("", "methods", "tasks", "reports")]
    digest = hashlib.sha256()
    for path in sorted({path for folder in folders for path in folder.glob("**/*.py")}):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _read(file: Path) -> Calibration | None:
    """Return what a file holds; None where there is none, or it is none that was written here."""
    try:
        values = read_json(file)
        calibration = Calibration(**values)
    except (OSError, Damaged, TypeError):
        return None
    return calibration if _is_sound(values) else None


def _is_sound(values: dict[str, Any]) -> bool:
    """Return whether a forecast can be made of these: numbers, and seconds that steps can be divided by."""
    peak, rest = values["peak_bytes"], [value for name, value in values.items() if name != "peak_bytes"]
    numbers = rest if peak is None else [*rest, peak]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers):
        return False
    return all(math.isfinite(value) and value >= 0 for value in numbers) and (
        values["step_seconds"] + values["token_seconds"] > 0
    )


def _keep(file: Path, calibration: Calibration) -> None:
    with contextlib.suppress(OSError, UsageError, ValueError):  # the next plan takes a little longer
        make_folder(file.parent)
        write_text(file, json.dumps(sealed(dataclasses.asdict(calibration))))
