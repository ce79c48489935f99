"""A method may bring the schedule of the learning rates; two of a stack may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from finetune_bench import home, registry
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run
from finetune_bench.parameters import parameter
from finetune_bench.recipe import Recipe
from finetune_bench.testing import checks, toys
from finetune_bench.training.loop import make_scheduler


class Halving(Method):
    """Twice the learning rate at first, half of it a step later, and so on."""

    name = "halving"
    used: bool = parameter(True, help="or the recipe's")

    def schedule(self, run: Run) -> Callable[[int], float] | None:
        return (lambda step: 2.0 * 0.5**step) if self.used else None


class Constant(Method):
    """The learning rate as it is."""

    name = "constant"

    def schedule(self, run: Run) -> Callable[[int], float] | None:
        return lambda step: 1.0


def rates(schedule: Callable[[int], float] | None, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = make_scheduler(optimizer, Recipe(warmup=0.0), steps, schedule)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_the_factors_by_hand() -> None:
    assert rates(lambda step: 2.0 * 0.5**step, 4) == [1.0, 0.5, 0.25, 0.125]
    assert rates(None, 4) == [0.5, 0.375, 0.25, 0.125]
    assert rates(lambda step: [3, 0][step], 2) == [1.5, 0.0]  # it is asked for no step beyond the last


def test_a_run_follows_its_methods_schedule() -> None:
    """At a factor of 0 nothing trains; what leaves the recipe's schedule alone is vanilla to the last bit."""

    class Still(Method):
        name = "still"

        def schedule(self, run: Run) -> Callable[[int], float]:
            return lambda step: 0.0

    recipe = Recipe(lr=1e-3, batch_size=8, steps=4, warmup=0.0, weight_decay=0.0)
    vanilla = registry.method_class("vanilla")
    start = toys.toy_run(vanilla(), recipe=recipe)[0]
    runs = {owner.name: toys.toy_train(owner(), recipe=recipe)[0] for owner in (vanilla, Still, Halving, Constant)}
    assert toys.same(runs["still"], start)
    assert not toys.same(runs["halving"], runs["constant"])
    assert toys.same(toys.toy_train(Halving(used=False), recipe=recipe)[0], runs["vanilla"])


def test_it_goes_on_from_a_checkpoint() -> None:
    checks.resumes(Halving)


def test_two_schedules_are_refused() -> None:
    said = "halving and constant both decide about the schedule of the learning rates, and only one method can"
    assert toys.unsupported([Halving(), Constant()]) == said
    assert toys.unsupported([Halving(), registry.method_class("hype")()]) is None
    assert Stack([Halving()]).exclusive == ("schedule of the learning rates",)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_factor_that_is_none_is_refused_before_the_first_step(value: float) -> None:
    with pytest.raises(FinetuneBenchError, match=r"from 0; at step 2 of 4 it gave"):
        rates(lambda step: value if step == 2 else 1.0, 4)


def test_a_schedule_that_is_no_function_is_refused() -> None:
    class Wrong(Method):
        name = "wrong"

        def schedule(self, run: Run) -> Any:
            return 0.5

    with pytest.raises(
        FinetuneBenchError, match=r"'wrong': its `schedule` must return a function of the step, or None"
    ):
        toys.toy_train(Wrong())


def test_at_home_the_schedule_is_the_users() -> None:
    model = toys.toy_model("bert", "classification", toys.Dropout.KEEP)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="'constant' brings a schedule of the learning rates, and in your loop"):
        home.attach(Constant(), model, total_steps=2)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
