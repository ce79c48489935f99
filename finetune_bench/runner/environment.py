"""A row's environment tells where it was made: versions of libraries, the machine, and the state of the code."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from finetune_bench import device as devices
from finetune_bench._version import __version__

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "numpy", "scikit-learn", "scipy")


@cache
def environment(device: torch.device) -> dict[str, Any]:
    """Return versions, device, platform, and, in a checkout, the commit and whether it had changes."""
    commit = _git("rev-parse", "HEAD")
    return {
        "finetune_bench": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "platform": platform.platform(),
        "device": devices.describe(device),
        **({"attention": ", else ".join(devices.ATTENTION_KERNELS)} if device.type == "cuda" else {}),
        "commit": commit,
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
    }


def _git(*arguments: str) -> str | None:
    """Return what git says of the checkout that holds this file; None where it is none, or git doesn't answer."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
