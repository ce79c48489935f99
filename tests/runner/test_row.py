"""What a row says of a training, computed from its trace."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune_bench.runner.row import training_facts
from finetune_bench.testing import toys


@pytest.mark.parametrize(
    ("norms", "middle", "share"),
    [
        ([0.5, 3.0, 1.0, 2.0], 1.5, 0.5),  # a norm that is the limit is not clipped
        ([0.5, math.inf, 0.7, math.nan], 0.6, 0.5),  # in fp16 a step may overflow
        ([math.inf], math.nan, 1.0),
    ],
)
def test_gradients_are_told_by_their_median_and_the_share_that_was_clipped(
    norms: list[float], middle: float, share: float
) -> None:
    trace: Any = SimpleNamespace(steps={"task_loss": np.ones(len(norms)), "grad_norm": np.array(norms)})
    facts = training_facts(toys.toy_task("classification"), trace, torch.tensor([0, 1]), clip=1.0)
    assert facts["grad_norm"] == pytest.approx(middle, nan_ok=True)
    assert facts["clipped_share"] == share
