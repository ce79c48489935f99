"""Measure what a run costs and where it went: passes, and sketches of the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from finetune_bench import device as devices

# The first steps pay for allocation and caches; they are not timed.
WARMUP_STEPS = 3
SKETCHES = 10
SKETCH_WIDTH = 64
_SKETCH_SEED = 20230711


@dataclass
class Counter:
    """A Counter holds the numbers of forward and backward passes so far."""

    forwards: int = 0
    backwards: int = 0


def sketch_steps(total_steps: int) -> list[int]:
    """Return after which steps, from 1, the weights are sketched: ten, evenly spread, the last among them."""
    return sorted({round(total_steps * part / SKETCHES) for part in range(1, SKETCHES + 1)} - {0})


@torch.no_grad()
@devices.exact_products()
def sketch(parameters: Iterable[Tensor]) -> np.ndarray:
    """Return a count-sketch of the weights: equal for equal weights, almost surely different for different ones.

    Each row of 64 neighbouring weights is added to the sum with a random sign; signs come from a fixed seed. No weight
    is rounded, whatever the precision: of TF32's ten bits, many that differ would be equal.

    Returns:
        (64,), float64.
    """
    total: Tensor | None = None
    signs: dict[int, Tensor] = {}
    for index, parameter in enumerate(parameters):
        # A view: a copy in double would be the run's peak memory.
        flat = parameter.detach().reshape(-1)
        if short := -flat.numel() % SKETCH_WIDTH:
            flat = torch.nn.functional.pad(flat, (0, short))  # which copies even where there is nothing to add
        flat = flat.view(-1, SKETCH_WIDTH)
        rows = len(flat)
        if rows not in signs:
            generator = torch.Generator(flat.device).manual_seed(_SKETCH_SEED + rows)
            signs[rows] = torch.empty(rows, device=flat.device).bernoulli_(0.5, generator=generator) * 2 - 1
        # Rolled by the tensor's index, so that swapping two tensors is seen.
        part = (signs[rows] @ flat).double().roll(index % SKETCH_WIDTH)
        total = part if total is None else total + part
    return np.zeros(SKETCH_WIDTH) if total is None else total.cpu().numpy()
