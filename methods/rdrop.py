"""R-Drop: two passes with different dropout masks, pulled together.

**In one sentence.** Every example passes twice with independent dropout; both passes are trained on, and the
symmetric divergence between their predictions is a penalty.

**Formula.** L = ½ (ℓ₁ + ℓ₂) + α · ½ · mean over the batch of [KL(p₁‖p₂) + KL(p₂‖p₁)]. Regression: the squared
difference of the two outputs in place of the symmetric divergence, with the same factors.

**Hyper-parameters.** `alpha` ≥ 0. Default 1. Ours from the published ones: alpha = α_paper / 2 for the paper's
summed loss. For classification alpha = α_code · B for the RoBERTa file and α_code · B / 2 for the BERT file of the
reference, whose divergence is a batch sum there (batch of B). Its squared difference for regression is a batch mean: B
has no part in it, and its STS-B terms are alpha = 1 (BERT file, 1.0) and alpha = 1.6 (RoBERTa file, 0.8). Suggested
grid: 0.1, 0.5, 1, 2, 4, 8.

**Where it acts.** Objective. Evaluation is one pass.

**Cost.** Two forward passes and one backward pass through both; the activations of both are kept.

**Randomness drawn.** The second pass draws its own dropout masks (and noise of the stack's other methods) from the
streams they come from.

**Interactions.** Needs passes that differ: without active dropout and without a stochastic partner it is vanilla at
twice the price, and refused. With HyPe at 1e-5 the passes differ by the attention dropout. The leftmost objective is
the outermost: `rdrop+r3f` runs R3F in both passes, `r3f+rdrop` R-Drop within R3F's clean pass.

**Deviations from the paper and its code.**
1. The task losses are averaged, not summed, so that the learning rate means the same as in vanilla.
2. The divergence is a batch mean like the task loss; the reference adds a mean and, for classification, a sum, which
   ties α to the batch size.
3. Both passes' task losses count; in the reference's RoBERTa file the second one is never reached.
4. Two passes one after the other, not one concatenated batch: equal in distribution, and batch-dependent partners
   work.
5. One pass in evaluation; the reference runs two.

**Source.** Liang et al., NeurIPS 2021 (arXiv 2106.14448); code dropreg/R-Drop.
"""

from __future__ import annotations

from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_dropout
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import Range, parameter


def combine_passes(first: Tensor, second: Tensor, divergence: Tensor, alpha: float) -> Tensor:
    """Compute R-Drop's loss from half of each pass's loss and their divergence, all 0-dim."""
    return first + second + alpha * 0.5 * divergence


# Noise below this, at the inputs of the layers, changes predictions so little that the divergence does nothing.
NOTICEABLE = 1e-2


class RDrop(Method):
    """Two passes, pulled together."""

    name = "rdrop"
    acts_on = "loss"
    batch_layout = "unpadded_trimmed"

    alpha: float = parameter(
        1.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.1, 10, log=True),
        help="weight of the divergence (see the card for conversions)",
    )

    dropout: Dropout = parameter(
        Dropout.KEEP, neutral=Dropout.ALL_OFF, help="what is asked of the model's dropout (neutral: passes are equal)"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse a cell in which both passes would be identical."""
        return without_dropout(self, facts, "rdrop+dropout(hidden=0.1)")

    def warning(self, facts: Facts) -> str | None:
        """Say where the passes hardly differ."""
        scales = [partner.noise_scale() for partner in facts.partners if partner.stochastic]
        if self.alpha == 0 or facts.active_dropout or None in scales or not scales:
            return None
        largest = max(scale for scale in scales if scale is not None)
        if largest >= NOTICEABLE:
            return None
        return (
            f"no dropout is active, so its two passes differ by noise of {largest:.0e} only, and their divergence, "
            "which grows with the square of it, is next to 0"
        )

    def passes(self, inner: Passes) -> Passes:
        """Return twice the passes, but for the last backward pass."""
        # The last backward pass is of both.
        return Passes(2 * inner.forwards, 2 * inner.backwards - 1)

    def memory(self, inner: Memory) -> Memory:
        """Return twice what is saved, and the divergence."""
        return inner.times(2).plus(saved={"D": 1})

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Average the loss of two passes, and add their divergence."""
        first, second = inner(view, weight=0.5), inner(view, weight=0.5)
        divergence = step.divergence(first.output, second.output)
        loss = combine_passes(first.loss, second.loss, divergence, self.alpha)
        return Objective(loss, first.output, {**first.logs, "rdrop_divergence": divergence})
