"""Change an optimiser's settings per parameter, in methods' `optimizer` hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def regroup(optimizer: Optimizer, change: Callable[[Tensor, dict[str, Any]], dict[str, Any]]) -> None:
    """Give parameters settings of their own, by splitting the optimiser's groups in place.

    Every parameter stays in exactly one group and keeps all settings that are not changed, so that several methods can
    regroup one optimiser one after the other. Call it before the first step and before a scheduler exists.

    Args:
        optimizer: the optimiser; its `param_groups` are replaced, and a group's parameters keep their order.
        change: gets a parameter and its present group, and returns the settings that differ from the group's.
    """
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        parts: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
        for weight in group["params"]:
            settings = change(weight, group)
            key = tuple(sorted(settings.items()))
            parts.setdefault(key, {**group, **settings, "params": []})["params"].append(weight)
        # A group without parameters stays.
        groups += parts.values() or [group]
    optimizer.param_groups[:] = groups
