"""Focal loss: examples that are learned count less.

**In one sentence.** Every example's loss is weighted by what its label's probability lacks to 1, so that what the model
is sure of gives little gradient.

**Formula.** Per example (1 − p_y)^γ · ℓ with ℓ = −log p_y; the gradient flows through the weight, too.

**Hyper-parameters.** `gamma` ≥ 0, 2 by default; 0.5 to 5 is a sensible search · `weights`: `own` is the focal loss;
`shared` gives all examples of a batch their mean weight (without gradient), the control that has its loss scale and
none of its selection; `normalised` divides own weights by that mean: its selection at vanilla's loss scale.

**Where it acts.** On the losses of single examples, in every pass whose loss counts. Evaluation is untouched.

**Cost.** One forward and one backward pass; some numbers per example.

**Randomness drawn.** None.

**Interactions.** The leftmost method is the outermost. To the left of another method that changes losses its weights
are of the changed losses, which is said before a run. `rdrop`, `r3f`, `smart`, `freelb` and `sam` are given the
weighted loss; divergences stay plain. A smaller loss reaches Adam through clipping and its ε only; the trace's gradient
norm shows by how much it is smaller. Refused: regression, tasks with a loss of their own, and for `shared` and
`normalised` gradient accumulation, which cuts the batch whose mean they take.

**Deviations from the paper and its code.**
1. The paper's weights of classes are left out.
2. The weight is written as (1 − exp(−ℓ))^γ: the same for labels, and defined for soft targets.
3. 1 − p_y is kept at 1e-12 at least, since the power's slope is infinite at 0 for γ < 1.

**Source.** Lin et al., ICCV 2017 (arXiv 1708.02002).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from finetune_bench.functional import weighted
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import losses_changed_before, without_whole_batch
from finetune_bench.method.step import Run
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output

# The least that 1 − p is taken for.
LEAST = 1e-12


def focal_weights(losses: Tensor, gamma: float) -> Tensor:
    """Compute (1 − exp(−ℓ))^γ of every loss, (batch,)."""
    return (-(-losses).expm1()).clamp_min(LEAST) ** gamma


class Focal(Method):
    """Examples that are learned count less."""

    name = "focal"
    acts_on = "loss"
    batch_layout = "unpadded_trimmed"
    classes_only = True

    gamma: float = parameter(
        2.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.5, 5, log=True),
        help="power of the weight (paper: 2)",
    )
    weights: str = parameter(
        "own", choices=("own", "shared", "normalised"), help="whose weight an example gets; shared is the control"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse micro-batches where a mean over the batch is taken."""
        return without_whole_batch(facts, self.weights)

    def warning(self, facts: Facts) -> str | None:
        """Say that losses which another method has changed are no longer −log p."""
        return losses_changed_before(facts)

    def effects(self) -> Mapping[str, Method]:
        """Split the smaller loss from the selection of examples."""
        if self.weights != "own" or self.gamma == 0:
            return {self.name: self}
        return {"loss scale": replace(self, weights="shared"), "per-example weights": self}

    def memory(self, inner: Memory) -> Memory:
        """Return what weights and losses add."""
        return inner.plus(saved={"L": 1}) if self.gamma else inner

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Multiply every loss by its weight."""
        return weighted(losses, focal_weights(losses, self.gamma), self.weights)
