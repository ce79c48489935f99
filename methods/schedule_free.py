"""Schedule-free AdamW: an average of the weights is evaluated, and the learning rate is never lowered.

**In one sentence.** Steps are made on a fast sequence, gradients are taken between it and its running average, and the
average, which is what is evaluated, stands in for a learning rate that falls.

**Formula.** y = (1 − β) z + β x; with ĝ = gradient at y / (√v̂ + ε) + λ y: z ← z − γ_t ĝ, x ← (1 − c_t) x + c_t z, and
c_t = w_t / Σ w, w_t = γ_max². v is AdamW's second moment with bias correction, γ_t the learning rate, γ_max its largest
so far.

**Hyper-parameters.** `beta` is β in (0, 1), 0.9 by default · `rate` multiplies the recipe's learning rate, 1 by
default: the authors want 1 to 10 times the rate of a schedule, so that a comparison at one rate says little; let
`--search` choose it, or give several with `--lr`.

**Where it acts.** It makes the optimiser's steps in AdamW's place, with the recipe's second β, ε, weight decay and
groups. The recipe's warm-up stays, from 1/warm-up on, and nothing falls after it. In training the weights hold y; in
evaluation, and in what is saved, x, and afterwards y to the last bit.

**Cost.** One forward and one backward pass; z is kept in the place of AdamW's first moment, and a copy of the weights
while evaluating. In fp16 the host waits for the device once a step, to learn whether the step is left out.

**Randomness drawn.** None.

**Interactions.** `ema` and `swa` are refused: it is an average itself. `sage` and `recadam` make the steps, too, and
are refused; so are `prior_decay`, which pulls y without z, and `child_tuning_d(strict=true)`, which puts y back without
z. Methods that make weights of their own for evaluation, as `lora`, `r4f` and `wise_ft`, stand to its right, so that
they start from x. `layerwise_lr_decay`: every group has its own rate, and all the same c.

**Deviations from the paper and its code.**
1. The warm-up is the recipe's, made by its scheduler; the code has one of its own inside the optimiser.
2. The powers of the weights w are the code's defaults, 0 for the step and 2 for the rate. Its momentum within the steps
   of z, which newer versions have, is left out.
3. There is no batch norm here, whose statistics would have to be computed again at x.

**Source.** Defazio et al., NeurIPS 2024 (arXiv 2405.15682); code facebookresearch/schedule_free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.step import Run
from finetune_bench.model.structure import weights_replaced
from finetune_bench.parameters import Range, parameter


class ScheduleFreeAdamW(Optimizer):
    """This optimiser keeps y in the parameters, and z beside them; x is computed from both.

    Args:
        groups: groups of parameters, each with `lr`, `betas` (of which the second is used), `eps` and `weight_decay`.
        beta: β, the share of x in y.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], beta: float) -> None:
        super().__init__(groups, {"steps": 0, "largest_lr": 0.0, "weight_sum": 0.0})
        self.beta = beta

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step of every parameter that has a gradient."""
        for group in self.param_groups:
            group["steps"] += 1
            group["largest_lr"] = max(group["largest_lr"], group["lr"])
            weight = group["largest_lr"] ** 2
            group["weight_sum"] += weight
            share = weight / group["weight_sum"] if weight else 0.0
            for parameter_ in group["params"]:
                if parameter_.grad is not None:
                    self._move(parameter_, group, share)

    def _move(self, y: Tensor, group: dict[str, Any], share: float) -> None:
        state, gradient = self.state[y], y.grad
        assert gradient is not None
        if not state:
            state |= {"z": y.clone(), "exp_avg_sq": torch.zeros_like(y)}
        beta2, rate = group["betas"][1], group["lr"]
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (second / (1 - beta2 ** group["steps"])).sqrt_().add_(group["eps"])
        direction = (gradient / spread).add_(y, alpha=group["weight_decay"])
        # What y = (1 − β) z + β x becomes where both z and x move, without x.
        y.lerp_(state["z"], share).add_(direction, alpha=rate * (self.beta * (1 - share) - 1))
        state["z"].sub_(direction, alpha=rate)

    def average(self, y: Tensor) -> Tensor:
        """Return x of a parameter; the parameter itself before its first step."""
        state = self.state.get(y)
        return y.detach().clone() if not state else torch.lerp(state["z"], y.detach(), 1 / self.beta)


class ScheduleFree(Method):
    """AdamW without a falling learning rate, whose average is evaluated."""

    name = "schedule_free"
    acts_on = "averages of weights"
    batch_layout = "unpadded"
    needs_adamw = "it makes all steps itself, as AdamW without a schedule"
    own_learning_rate = "its best rate is 1 to 10 times that of AdamW"

    beta: float = parameter(
        0.9, interval="(0, 1)", search=Range(0.9, 0.98), help="β: share of the average in where gradients are taken"
    )
    rate: float = parameter(
        1.0, interval="(0, inf)", search=Range(1, 10, log=True), help="factor on the recipe's learning rate"
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It makes the steps, and needs the weights to stay as it left them."""
        return ("update rule", "weights after the step")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse what moves the weights beside it, and methods to the left that start from the weights they find."""
        for partner in facts.partners:
            if partner.name == "prior_decay":
                return "prior_decay pulls the weights before each step, and the sequence beneath them would stay behind"
        for partner in facts.outer:
            if type(partner).evaluating is not Method.evaluating:
                return (
                    f"{partner.name} makes its weights for evaluation from those it finds; write "
                    f"schedule_free+{partner.name}"
                )
        return None

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Make the steps in AdamW's place, with its groups."""
        kept = ("params", "lr", "betas", "eps", "weight_decay")
        groups = [{key: group[key] for key in kept} for group in optimizer.param_groups]
        self.optimizer_ = ScheduleFreeAdamW(groups, self.beta)
        return self.optimizer_

    def schedule(self, run: Run) -> Callable[[int], float]:
        """Return the recipe's warm-up, from its first step's share on, and a constant after it."""
        warmup, rate = max(1, run.recipe.warmup_steps(run.total_steps)), self.rate
        return lambda step: rate * min(1.0, (step + 1) / warmup)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Put the average into the weights' place."""
        averages = {
            name: self.optimizer_.average(weight) for name, weight in run.params.items() if weight.requires_grad
        }
        with weights_replaced(run.params, averages):
            yield
