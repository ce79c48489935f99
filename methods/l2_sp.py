"""L2-SP: a squared penalty on the distance to the pre-trained weights.

**In one sentence.** What pre-training found is the reference, not zero: the body is held near its start, and the new
head near zero, by a penalty in the loss.

**Formula.** L + α/2 · ‖w_S − w_S⁰‖² + β/2 · ‖w_head‖², over all tensors of the body (S), biases and norms among them,
and all of the head.

**Hyper-parameters.** `alpha` ≥ 0 for the body, 0.01 by default; 1e-4 to 0.1 is a sensible search · `beta` ≥ 0 for the
head, 0.01. What trains is penalised; 0 turns either part off.

**Where it acts.** In the loss, so that the penalty's gradient is clipped and passes through Adam's moments like the
task's. Where a part is penalised, the recipe's weight decay toward zero is off for its tensors.

**Cost.** One forward and one backward pass; one copy of the pre-trained weights, and until the backward pass the
difference to them.

**Randomness drawn.** None.

**Interactions.** The anchor is the pre-trained weights, also under `noisytune`, whose noise is then penalised; for
re-drawn layers it is the fresh draw. `prior_decay` is refused: both pull to the same point. `mixout`: the penalty is on
W, not on the mixed matrix. `child_tuning_f` and `child_tuning_d` mask the penalty's gradient with the task's; D's
Fisher information is the task's alone. `rdrop`, left or right: the penalty counts once. With accumulation it counts
once per step. `layerwise_lr_decay` scales the pull with the rate.

**Deviations from the paper and its code.**
1. The paper trains by SGD. Under Adam the second moment normalises the penalty's gradient as well, which is why the
   decoupled `prior_decay` is another method.
2. A pooler that the checkpoint brings counts as body, and the head's biases are penalised too.
3. The defaults are ours: the paper chooses alpha by validation.

**Source.** Li, Grandvalet and Davoine, ICML 2018 (arXiv 1802.01483).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.structure import body
from finetune_bench.optimizers import regroup
from finetune_bench.parameters import Range, parameter


def squared_distance(weights: Sequence[Tensor], anchors: Sequence[Tensor | None]) -> Tensor:
    """Compute Σ ‖w − w⁰‖² over pairs of tensors of one shape, 0-dim; an anchor of None is zero; one pair at least."""
    parts = [w.square().sum() if a is None else (w - a).square().sum() for w, a in zip(weights, anchors, strict=True)]
    return torch.stack(parts).sum()


class L2SP(Method):
    """A penalty on the distance to the pre-trained weights."""

    name = "l2_sp"
    acts_on = "loss"
    batch_layout = "unpadded"
    reads_pretrained = True

    alpha: float = parameter(
        0.01,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(1e-4, 0.1, log=True),
        help="α: weight of the body's distance (default: ours)",
    )
    beta: float = parameter(
        0.01,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(1e-4, 0.1, log=True),
        help="β: weight of the head's norm (default: ours)",
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It pulls the weights back."""
        return ("pull to the pre-trained weights",)

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights, and the body's differences from it."""
        return inner.plus(saved={"P_body": 1 if self.alpha > 0 else 0}, kept={"P": 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Remember what is pulled, and turn its weight decay off."""
        inside = {id(weight) for weight in body(run.model).parameters()}
        trained = {name: weight for name, weight in run.params.items() if weight.requires_grad}
        self.body_ = {name: weight for name, weight in trained.items() if self.alpha > 0 and id(weight) in inside}
        self.anchors_ = [run.pretrained[name] for name in self.body_]
        self.head_ = {name: weight for name, weight in trained.items() if self.beta > 0 and id(weight) not in inside}
        pulled = {id(weight) for weight in (*self.body_.values(), *self.head_.values())}

        def off(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            return {"weight_decay": 0.0} if id(weight) in pulled else {}

        regroup(optimizer, off)
        return optimizer

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the penalty to the loss."""
        objective = inner(view)
        swapped = view.weights or {}
        trunk, head = ([swapped.get(name, w) for name, w in part.items()] for part in (self.body_, self.head_))
        parts = []
        if trunk:
            parts.append(self.alpha / 2 * squared_distance(trunk, self.anchors_))
        if head:
            parts.append(self.beta / 2 * squared_distance(head, [None] * len(head)))
        if not parts:
            return objective
        penalty = torch.stack(parts).sum()
        return replace(objective, loss=objective.loss + penalty, logs={**objective.logs, "l2_sp_penalty": penalty})
