"""RecAdam: recall the pre-trained weights first, learn the task later.

**In one sentence.** The objective slides from "stay at the pre-trained weights" to "solve the task" while training goes
on, and the pull to the pre-trained weights is kept apart from Adam's moments.

**Formula.** λ(t) = 1 / (1 + exp(−k · (t − t₀))) for step t = 1, 2, … (`sigmoid`), min(1, t/t₀) (`linear`) or 1
(`none`). For the body: θ ← θ − η_t · λ(t) · Adam's direction, then θ ← θ − η_t · (1 − λ(t)) · γ · (θ − θ⁰). Adam's
moments see the task's gradient alone. The head is trained by plain AdamW.

**Hyper-parameters.** `anneal` · `k`, 0.5 in the official script; 0.05 to 1 in its grid · `t0`, 250 steps in the script;
below 1 it is a share of the run's steps, as `--warmup` is · `gamma` is γ ≥ 0, 5000 in the paper. **A run that is not
much longer than t₀ hardly trains its body**: at the published 250 steps that holds for three epochs of a thousand
examples; t0=0.3 is a sensible share then.

**Where it acts.** In the optimiser's step: the body's learning rate is multiplied by λ(t) for the length of the step,
and the pull follows it.

**Cost.** One forward and one backward pass; one copy of the pre-trained weights, and one pass over them per step.

**Randomness drawn.** None.

**Interactions.** The anchor is the pre-trained weights, also under `noisytune`; for re-drawn layers it is the fresh
draw. `layerwise_lr_decay` slows the pull with the rate. Gradient masks (`child_tuning_f`, `child_tuning_d`) don't mask
the pull. Weight decay to zero stays on beside the pull, as in the official code; where it is strong, that is said
before a run. Refused: `l2_sp` and `prior_decay`, which pull to the same point; `sage` and `sam`, which own the
update rule as well; `lora`, whose adapters have no pre-trained values.

**Deviations from the paper and its code.**
1. The pull is cut at the whole way to θ⁰. The official one overshoots where η · γ · (1 − λ) is above 1 and diverges
   from 2 on, that is at learning rates from 4e-4.
2. Training starts at the pre-trained weights, as the paper says; the official script starts from random ones unless it
   is told otherwise.
3. The body is found by structure; the official test, the model type in a parameter's name, takes all of XLNet and
   DeBERTa-v2 for the head.
4. Adam's direction and the weight decay are those of the run's AdamW. The official optimiser builds on transformers'
   former AdamW: it adds ε before the second moment's bias correction, and decays last, after the pull; its script
   spares norms by the name `LayerNorm.weight`, so that XLNet's norms decay.

**Source.** Chen et al., EMNLP 2020 (arXiv 2004.12651); code Sanyuan-Chen/RecAdam.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run, State
from finetune_bench.model.structure import body
from finetune_bench.optimizers import regroup
from finetune_bench.parameters import Range, parameter

# The smallest λ: the weight decay is divided by it.
SMALLEST = 1e-30
# From this weight decay on, the user is told that it pulls to zero.
STRONG_DECAY = 0.1


def anneal_task(anneal: str, step: int, k: float, t0: float) -> float:
    """Compute λ(t), the task's share of the objective, in [0, 1].

    Args:
        anneal: the schedule: sigmoid, linear or none.
        step: t, from 1.
        k: the steepness of the sigmoid.
        t0: the step at which the sigmoid is ½ and the line is 1.
    """
    if anneal == "none":
        return 1.0
    if anneal == "linear":
        return min(1.0, step / t0) if t0 > 0 else 1.0
    # The logistic function, without overflow.
    return 0.5 * (1 + math.tanh(k * (step - t0) / 2))


class RecAdam(Method):
    """A pull to the pre-trained weights that fades."""

    name = "recadam"
    acts_on = "gradients"
    batch_layout = "unpadded"
    reads_pretrained = True
    needs_adamw = "it weighs its pull against Adam's direction"

    anneal: str = parameter(
        "sigmoid", choices=("sigmoid", "linear", "none"), neutral="none", help="how λ goes from 0 to 1 (script)"
    )
    k: float = parameter(
        0.5, interval="(0, inf)", search=Range(0.01, 1, log=True), help="steepness of the sigmoid, per step (script)"
    )
    t0: float = parameter(
        250.0,
        interval="[0, inf)",
        search=Range(0.1, 0.6),
        help="middle of it: steps, or a share of the run below 1 (script)",
    )
    gamma: float = parameter(
        5000.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(50, 5000, log=True),
        help="γ: strength of the pull (paper)",
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It pulls the weights back, by a rule of its own for gradients at the weights."""
        return ("pull to the pre-trained weights", "update rule", "point at which gradients are taken")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse fp16."""
        if facts.dtype == torch.float16:
            return "under fp16 a step may be left out after its pull was planned; use fp32 or bf16"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where the run ends before the task counts, and where weight decay pulls elsewhere."""
        steps = facts.recipe.steps
        if self.anneal != "none" and self.t0 >= 1 and steps is not None and steps < self.t0:
            return (
                f"the body hardly trains before step t0={self.t0:g}, and there are {steps}; give t0 as a share, as 0.3"
            )
        if facts.recipe.weight_decay >= STRONG_DECAY and self.gamma > 0 and self.anneal != "none":
            return (
                f"weight decay of {facts.recipe.weight_decay:g} pulls to zero while it pulls to the pre-trained weights"
            )
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights."""
        return inner.plus(kept={"P": 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Slow the body's steps by λ(t), and pull its weights after each."""
        inside = {id(weight) for weight in body(run.model).parameters()}
        anchors = {
            weight: run.pretrained[name]
            for name, weight in run.params.items()
            if weight.requires_grad and id(weight) in inside
        }
        middle = self.t0 if self.t0 >= 1 else self.t0 * run.total_steps
        self.steps_ = 0

        def mark(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            return {"recalls": weight in anchors}

        def slow(optimizer: Optimizer, *_: Any) -> None:
            self.steps_ += 1
            share = max(anneal_task(self.anneal, self.steps_, self.k, middle), SMALLEST)
            for group in optimizer.param_groups:
                group["planned"] = (group["lr"], group["weight_decay"], share)
                # Decay is the product of both, and stays what it was.
                if group["recalls"] and share < 1:
                    group["lr"], group["weight_decay"] = group["lr"] * share, group["weight_decay"] / share

        @torch.no_grad()
        def pull(optimizer: Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"], share = group.pop("planned")
                way = min(1.0, group["lr"] * (1 - share) * self.gamma)
                if group["recalls"] and way > 0:
                    for weight in group["params"]:
                        weight.lerp_(anchors[weight], way)

        regroup(optimizer, mark)
        optimizer.register_step_pre_hook(slow)
        optimizer.register_step_post_hook(pull)
        return optimizer

    def state(self) -> State:
        """Return the count of steps."""
        return {"steps": self.steps_}

    def load_state(self, state: State) -> None:
        """Take it back."""
        self.steps_ = state["steps"]
