"""Checkpoints as people hand them in: copies of a tiny one with something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from finetune_bench.runner.plan import Plan, make_plan
from finetune_bench.study.study import Study

Weights = dict[str, Tensor]
FILE = "model.safetensors"


def weights_of(folder: Path) -> Weights:
    """A checkpoint's weights."""
    return load_file(folder / FILE)


def body_only(weights: Weights) -> Weights:
    """The weights without a classification head."""
    return {key: value for key, value in weights.items() if not key.startswith("classifier")}


def variant(checkpoint: Path, folder: Path, change: Callable[[Weights], Weights] | None = None, **config: Any) -> Path:
    """Copy a checkpoint, with other weights or other values in its configuration; returns the copy."""
    shutil.copytree(checkpoint, folder)
    if change is not None:
        changed = {key: value.clone() for key, value in change(weights_of(checkpoint)).items()}
        save_file(changed, folder / FILE, metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(values | config), "utf-8")
    return folder


def with_tokenizer_of(checkpoint: Path, folder: Path) -> Path:
    """Put a checkpoint's tokenizer beside another model's files; returns their folder."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    return folder


def planned(model: Path, data: Path, out: Path, methods: Iterable[str] = ("vanilla",), **options: Any) -> Plan:
    """The plan of a small study of one checkpoint."""
    return make_plan(Study(tuple(methods), (str(data),), (str(model),), seeds=(1,), device="cpu", out=out, **options))
