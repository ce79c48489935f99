"""A model's dropout: what a method asks of it, how that is put into a configuration, and what is realised."""

from __future__ import annotations

import copy
import re
from enum import StrEnum
from typing import Any

from torch import nn


class Dropout(StrEnum):
    """What a method asks of the model's dropout. In a stack the strongest *off* wins."""

    KEEP = "keep"
    HIDDEN_OFF = "hidden_off"  # what HyPe's script zeroes: `hidden_dropout_prob`, `dropout`; see model.py and its card
    ALL_OFF = "all_off"


# What HyPe's script sets to zero, wherever a configuration has it. Heads whose own rate is None fall back to it.
HIDDEN_DROPOUT_FIELDS = ("hidden_dropout_prob", "dropout")


def with_dropout(config: Any, policy: Dropout) -> Any:
    """A copy of a configuration under a dropout policy. Set before the modules exist: later edits change nothing."""
    config = copy.deepcopy(config)
    for field, value in config.to_dict().items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool)
        hidden = policy is Dropout.HIDDEN_OFF and field in HIDDEN_DROPOUT_FIELDS
        everything = policy is Dropout.ALL_OFF and "drop" in field
        if is_rate and (hidden or everything):
            setattr(config, field, 0.0)
    return config


def active_dropout(model: nn.Module) -> dict[str, float]:
    """Dropout that is above zero, by module; layer numbers are written as `*`. Heads that never run are left out."""
    active: dict[str, float] = {}
    for name, module in model.named_modules():
        for key, rate in dropout_rates(module).items():
            if rate > 0:
                shown = filter(None, (name, "" if key == "p" else key))
                active[re.sub(r"\.\d+(?=\.|$)", ".*", ".".join(shown))] = float(rate)
    return active


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """A module's own dropout rates, by attribute."""
    is_dropout = "dropout" in type(module).__name__.lower()
    own = {key: rate for key, rate in vars(module).items() if "dropout" in key or (is_dropout and key == "p")}
    return {key: rate for key, rate in own.items() if isinstance(rate, float | int) and not isinstance(rate, bool)}
