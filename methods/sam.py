"""SAM: the gradient is taken at the point near by where the loss is highest.

**In one sentence.** Before each step the weights climb a little along the gradient; the gradient found up there moves
the weights below, which leads to flat minima.

**Formula.** e = ρ · g / (‖g‖₂ + 1e-12) with g = ∇L(θ) over all weights that train; the step uses ∇L(θ + e). Adaptive
(ASAM): e = ρ · θ² · g / (‖ |θ| · g ‖₂ + 1e-12), so that the ball scales with the weights.

**Hyper-parameters.** `rho` is ρ ≥ 0, 0.05 by default, as in the paper and its code; 0.01 to 0.15 is a sensible search
for language models (ours) · `adaptive`: the ball of ASAM, with a ρ about ten times as large.

**Where it acts.** In the objective: two evaluations of it, on the same examples with the same dropout masks and noise.
The second one uses θ + e in the place of the weights, which themselves never move; clipping, masks and the optimiser
see the second gradient alone.

**Cost.** Twice the forward passes, and one more backward pass; θ + e is kept until the backward pass. The graph of the
first evaluation is gone before the second is built.

**Randomness drawn.** None; the second evaluation repeats the first one's draws.

**Interactions.** The leftmost is the outermost: `sam+rdrop` climbs R-Drop's whole loss, `rdrop+sam` climbs twice, from
each of the two passes. `child_tuning_d`: what D keeps fixed doesn't climb. `top_k`: nor do frozen tensors. `mixout`:
W climbs, under one mask. `l2_sp` inside: the penalty's gradient is taken at θ + e too. `ema` and `swa` average the
weights, not θ + e. Refused: `freelb`, whose early backward passes can't be climbed; `recadam`, which owns the update
rule as well; gradient accumulation, which would need two sweeps over all micro-batches; fp16, whose loss scaling the
climb doesn't know; gradient checkpointing, which would compute the layers again at θ.

**Deviations from the paper and its code.**
1. Both evaluations see the same dropout masks; in the public code they differ, and the climb follows the masks as well.
2. The weights are not moved and put back: θ + e is a function of θ, and the gradient at θ + e reaches θ through it.
3. The paper's neighbourhood is that of a whole batch, as here; on several devices the public code takes one per device.

**Source.** Foret et al., ICLR 2021 (arXiv 2010.01412); Kwon et al., ICML 2021 (arXiv 2102.11600), adaptive; code
davda54/sam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_second_point
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.parameters import Range, parameter


@torch.no_grad()
def climb_weights(
    weights: Sequence[Tensor], gradients: Sequence[Tensor], rho: float, *, adaptive: bool = False
) -> list[Tensor]:
    """Compute the step e to the highest point of a ball around the weights, by the loss's slope.

    Args:
        weights: one tensor at least.
        gradients: as many gradients, of the weights' shapes.
        rho: the ball's radius, at least 0.
        adaptive: whether the ball is ASAM's, scaled by the weights.

    Returns:
        Tensors of the same shapes; ‖e‖₂ = rho over all of them together, unless adaptive.
    """
    scales = [weight.abs() if adaptive else torch.ones_like(weight) for weight in weights]
    steep = [scale * gradient for scale, gradient in zip(scales, gradients, strict=True)]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part.float()) for part in steep]))
    return [scale * part * (rho / (norm + 1e-12)) for scale, part in zip(scales, steep, strict=True)]


class SAM(Method):
    """The gradient from the highest point near by."""

    name = "sam"
    acts_on = "weights"
    batch_layout = "unpadded_trimmed"

    rho: float = parameter(
        0.05,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.01, 0.15, log=True),
        help="ρ: radius of the climb (paper and code)",
    )
    adaptive: bool = parameter(False, help="scale the ball by the weights (ASAM)")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Its climb needs the gradient of the whole loss, and its gradient is taken elsewhere than at the weights."""
        return ("backward passes of a step", "point at which gradients are taken")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse accumulation, gradient checkpointing and fp16."""
        return without_second_point(facts)

    def passes(self, inner: Passes) -> Passes:
        """Return twice the passes."""
        return Passes(2 * inner.forwards, 2 * inner.backwards)

    def memory(self, inner: Memory) -> Memory:
        """Add the weights that the second evaluation uses."""
        return inner.plus(saved={"P_used": 1})

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate the loss twice, the second time at the highest point near by."""
        mark = step.mark()
        first = inner(view)
        present = view.weights or {}
        weights = {name: present.get(name, weight) for name, weight in step.run.params.items() if weight.requires_grad}
        gradients = step.run.grad(first.loss, list(weights.values()), view)
        for index, name in enumerate(weights):
            if name in step.run.trained:
                gradients[index] = gradients[index] * step.run.trained[name]
        steps = climb_weights(list(weights.values()), gradients, self.rho, adaptive=self.adaptive)
        above = {name: weight + step for (name, weight), step in zip(weights.items(), steps, strict=True)}
        with step.replay(mark):
            second = inner(replace(view, weights={**present, **above}))
        rise = second.loss.detach() - first.loss.detach()
        return replace(second, logs={**second.logs, "sam_rise": rise})
