"""Prior weight decay: weight decay toward the pre-trained weights in the place of zero.

**In one sentence.** Each step draws the body a little back to its pre-trained weights, and the head to zero, apart from
the gradient.

**Formula.** θ ← θ − η_t · λ · (θ − θ⁰) before each step of Adam, with η_t the scheduled rate of the tensor's group; for
the head θ⁰ = 0.

**Hyper-parameters.** `decay` is λ ≥ 0, 0.1 by default: the recipe's own weight decay, with another target. 1e-3 (sample
command) to 1 is the usual search. The whole pull is λ times the sum of η_t: at η = 2e-5 and 500 steps λ has to be near
100 to close half of the distance, so usual values do little but to keep the recipe's decay from pulling to zero.

**Where it acts.** In the optimiser's step, just before Adam's, as AdamW decays. It takes the place of the recipe's
weight decay on the same tensors: all but biases and norms. `decay=0` turns it off, and the recipe's decay stays.

**Cost.** One forward and one backward pass; one copy of the pre-trained weights.

**Randomness drawn.** None.

**Interactions.** The anchor is the pre-trained weights, also under `noisytune`; for re-drawn layers it is the fresh
draw. `l2_sp` is refused: both pull to the same point. `mixout+prior_decay` lets W decay to Mixout's own anchor, where
the recipe's decay pulls it away. `layerwise_lr_decay` scales the pull with the rate. `top_k`: frozen tensors stay.
`child_tuning_f` and `child_tuning_d` mask gradients, not the pull, as with ordinary weight decay; `strict` puts masked
weights back.

**Deviations from the paper and its code.**
1. The reference code means to exclude the head from the pull to its start, but compares an index with the number of
   groups, which is never true: its head is pulled to its random start. Here it decays to zero.
2. The default is ours, see above.

**Source.** "Prior weight decay" in asappresearch/revisit-bert-finetuning (Zhang et al., ICLR 2021, arXiv 2006.05987);
the decoupled form of Li, Grandvalet and Davoine, ICML 2018 (arXiv 1802.01483).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body
from finetune_bench.optimizers import regroup
from finetune_bench.parameters import Range, parameter


@torch.no_grad()
def pull_weight(weight: Tensor, anchor: Tensor | None, share: float | Tensor) -> None:
    """Move a tensor by `share` of its way to an anchor of its shape, in place; None is zero.

    A weight at its anchor stays there to the last bit.
    """
    if anchor is None:
        weight.mul_(1 - share)
    else:
        weight.lerp_(anchor, share)


class PriorDecay(Method):
    """Weight decay toward the pre-trained weights."""

    name = "prior_decay"
    acts_on = "gradients"
    batch_layout = "unpadded"
    reads_pretrained = True

    decay: float = parameter(
        0.1,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.01, 1, log=True),
        help="λ: strength, as the recipe's weight decay (its default)",
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It pulls the weights back."""
        return ("pull to the pre-trained weights",)

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights."""
        return inner.plus(kept={"P": 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Turn the recipe's weight decay off, and pull before each step in its place."""
        if self.decay == 0:
            return optimizer
        inside = {id(weight) for weight in body(run.model).parameters()}
        anchors = {
            weight: run.pretrained[name] if id(weight) in inside else None
            for name, weight in run.params.items()
            if weight.requires_grad and name not in run.undecayed
        }

        def off(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            return {"weight_decay": 0.0} if weight in anchors else {}

        def pull(optimizer: Optimizer, *_: Any) -> None:
            # Under fp16 the fused step itself finds out, on the device, whether it is left out.
            overflow: Tensor | None = getattr(optimizer, "found_inf", None)
            for group in optimizer.param_groups:
                share = group["lr"] * self.decay
                for weight in group["params"]:
                    if weight in anchors:
                        pull_weight(weight, anchors[weight], share if overflow is None else share * (1 - overflow))

        regroup(optimizer, off)
        optimizer.register_step_pre_hook(pull)
        return optimizer
