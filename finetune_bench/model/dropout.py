"""This file puts what a method asks of a model's dropout into a configuration, and reads what is realised."""

from __future__ import annotations

import copy
import re
from enum import StrEnum
from typing import Any

from torch import nn


class Dropout(StrEnum):
    """A method asks one of these of the model's dropout. In a stack the strongest *off* wins."""

    KEEP = "keep"
    # What HyPe's script zeroes, see HIDDEN_DROPOUT_FIELDS and HyPe's card.
    HIDDEN_OFF = "hidden_off"
    ALL_OFF = "all_off"


# What HyPe's script sets to zero, wherever a configuration has it. Heads whose own rate is None fall back to it.
HIDDEN_DROPOUT_FIELDS = ("hidden_dropout_prob", "dropout")


def with_dropout(config: Any, policy: Dropout) -> Any:
    """Copy a configuration under a dropout policy, before the modules exist: later edits change nothing."""
    config = copy.deepcopy(config)
    for field, value in config.to_dict().items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool)
        hidden = policy is Dropout.HIDDEN_OFF and field in HIDDEN_DROPOUT_FIELDS
        everything = policy is Dropout.ALL_OFF and "drop" in field
        if is_rate and (hidden or everything):
            setattr(config, field, 0.0)
    return config


def active_dropout(model: nn.Module) -> dict[str, float]:
    """Return the dropout rates above zero, by module and attribute; layer numbers are written as `*`."""
    active: dict[str, float] = {}
    for name, module in model.named_modules():
        for key, rate in dropout_rates(module).items():
            if rate > 0:
                shown = filter(None, (name, "" if key == "p" else key))
                active[re.sub(r"\.\d+(?=\.|$)", ".*", ".".join(shown))] = float(rate)
    return active


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Return a module's dropout rates, by attribute, without those of the modules in it."""
    is_dropout = "dropout" in type(module).__name__.lower()
    rates = {key: rate for key, rate in vars(module).items() if "dropout" in key or (is_dropout and key == "p")}
    return {key: rate for key, rate in rates.items() if isinstance(rate, float | int) and not isinstance(rate, bool)}
