"""Schedule-free AdamW against its three sequences, computed one by one in plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from finetune_bench.method.base import Method
from finetune_bench.methods.child_tuning import ChildTuningD
from finetune_bench.methods.ema import EMA
from finetune_bench.methods.lora import LoRA
from finetune_bench.methods.prior_decay import PriorDecay
from finetune_bench.methods.recadam import RecAdam
from finetune_bench.methods.sage import SAGE
from finetune_bench.methods.schedule_free import ScheduleFree, ScheduleFreeAdamW
from finetune_bench.methods.swa import SWA
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.methods.wise_ft import WiseFT
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from tests.tiny_run import tiny_run

RECIPE = Recipe(lr=1e-3, batch_size=8, steps=4, warmup=0.5)


def test_three_sequences_by_hand() -> None:
    beta, beta2, eps, decay = 0.8, 0.95, 1e-8, 0.1
    y = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    group = {"params": [y], "lr": 0.0, "betas": (0.9, beta2), "eps": eps, "weight_decay": decay}
    optimizer = ScheduleFreeAdamW([group], beta)
    z = x = 2.0
    second = weights = largest = 0.0
    for step, (rate, slope) in enumerate([(0.05, 3.0), (0.1, -1.0), (0.1, 0.5)], start=1):
        at = (1 - beta) * z + beta * x
        assert float(y.detach()) == pytest.approx(at, rel=1e-12)
        second = beta2 * second + (1 - beta2) * slope**2
        direction = slope / (math.sqrt(second / (1 - beta2**step)) + eps) + decay * at
        z -= rate * direction
        largest = max(largest, rate)
        weights += largest**2
        share = largest**2 / weights
        x = (1 - share) * x + share * z
        y.grad = torch.tensor([slope], dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert float(optimizer.average(y)) == pytest.approx(x, rel=1e-12)


def test_the_warm_up_is_counted_once_and_nothing_falls() -> None:
    run = tiny_run()
    run.recipe, run._total_steps = Recipe(warmup=0.4), 10
    factor = ScheduleFree(rate=3.0).schedule(run)
    assert [factor(step) for step in range(10)] == pytest.approx([0.75, 1.5, 2.25, *[3.0] * 7])
    run.recipe = Recipe(warmup=0.0)
    assert {ScheduleFree().schedule(run)(step) for step in range(10)} == {1.0}


def test_the_average_is_evaluated_and_the_weights_come_back() -> None:
    run, stack = toys.toy_run(ScheduleFree(), recipe=RECIPE)
    train(run)
    raw = {name: weight.detach().clone() for name, weight in run.params.items()}
    (method,) = stack.methods
    with pytest.raises(RuntimeError, match="inside"), stack.evaluating(run):
        for name, weight in run.params.items():
            z = method.optimizer_.state[weight]["z"]  # type: ignore[attr-defined]
            torch.testing.assert_close(0.9 * weight.detach() + 0.1 * z, raw[name])
        raise RuntimeError("inside")
    assert all(torch.equal(weight, raw[name]) for name, weight in run.params.items())


def test_it_starts_from_the_groups_of_the_recipe() -> None:
    run, _ = toys.toy_run(ScheduleFree(), recipe=RECIPE)
    optimizer = ScheduleFree().optimizer(
        torch.optim.AdamW([{"params": list(run.params.values()), "weight_decay": 0.03}], lr=0.2, eps=1e-5), run
    )
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], group["eps"]) == (0.2, 0.03, 1e-5)
    vanilla, averaged = toys.toy_train(Vanilla(), recipe=RECIPE)[2], toys.toy_train(ScheduleFree(), recipe=RECIPE)[2]
    assert not np.array_equal(vanilla, averaged)


@pytest.mark.parametrize("partner", [EMA(), SWA(), SAGE(), RecAdam(), PriorDecay(), ChildTuningD(strict=True)])
def test_what_moves_the_weights_beside_it_is_refused(partner: Method) -> None:
    assert toys.unsupported([ScheduleFree(), partner])
    assert toys.unsupported([partner, ScheduleFree()])


def test_weights_for_evaluation_are_made_from_the_average() -> None:
    for partner in (LoRA(), WiseFT()):
        assert f"write schedule_free+{partner.name}" in str(toys.unsupported([partner, ScheduleFree()]))
        assert toys.unsupported([ScheduleFree(), partner]) is None
