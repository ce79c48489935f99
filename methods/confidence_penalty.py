"""Confidence penalty: predictions of low entropy cost something.

**In one sentence.** The entropy of the prediction is rewarded, so that the model stays less sure than the labels ask.

**Formula.** Per example ℓ − β · H(p), with H(p) = −Σ_k p_k · log p_k: ℓ + β · [KL(p‖uniform) − log K]. Label smoothing
has the other direction, KL(uniform‖p).

**Hyper-parameters.** `beta` ≥ 0, 0.1 by default; 0.01 to 1 is a sensible search.

**Where it acts.** On the losses of single examples, in every pass whose loss counts. Evaluation is untouched.

**Cost.** One forward and one backward pass; one more table of log-probabilities, (batch, classes).

**Randomness drawn.** None.

**Interactions.** The leftmost method is the outermost: left of `dft` or `focal` the penalty is added to the weighted
loss. `rdrop`, `r3f`, `smart`, `freelb` and `sam` are given the changed loss; divergences stay plain. Refused:
regression, and tasks with a loss of their own.

**How to read a comparison.** Accuracy can't tell it from vanilla for long; look at NLL and calibration error.

**Deviations from the paper and its code.**
1. β is constant, and no threshold says from which confidence on the penalty acts.

**Source.** Pereyra et al., ICLR 2017 workshop (arXiv 1701.06548).
"""

from __future__ import annotations

from torch import Tensor

from finetune_bench.functional import log_probabilities
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of every prediction in nats, (batch,), of logits (batch, classes)."""
    log_p = log_probabilities(logits)
    return -(log_p.exp() * log_p).sum(-1)


class ConfidencePenalty(Method):
    """The entropy of predictions is rewarded."""

    name = "confidence_penalty"
    acts_on = "loss"
    batch_layout = "unpadded_trimmed"
    classes_only = True

    beta: float = parameter(
        0.1, interval="[0, inf)", neutral=0.0, search=Range(0.01, 1, log=True), help="weight of the entropy"
    )

    def memory(self, inner: Memory) -> Memory:
        """Return what one more table of log-probabilities adds."""
        return inner.plus(saved={"L": 1}) if self.beta else inner

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Take the weighted entropy off the losses."""
        return losses - self.beta * entropy(output.logits)
