"""Label smoothing: a share of every target goes to all classes alike.

**In one sentence.** The model is trained towards the label with a share ε of the target spread over all K classes, so
that it gains nothing from ever larger logits.

**Formula.** Per example (1 − ε) · ℓ + (ε / K) · Σ_k −log p_k, with ℓ = −log p_y: the cross-entropy against the target
(1 − ε) · onehot + ε / K, which equals (1 − ε) · ℓ + ε · [KL(uniform‖p) + log K].

**Hyper-parameters.** `epsilon`, 0.1 by default; 0.01 to 0.4 is a sensible search. Papers that spread their ε over the K
− 1 other classes mean ε_theirs = ε · (K − 1) / K · `uniform`: off, the loss is multiplied by 1 − ε and nothing is
smoothed, which is the matched control.

**Where it acts.** On the losses of single examples, in every pass whose loss counts. Evaluation is untouched: the
reported NLL is that of the labels.

**Cost.** One forward and one backward pass; one more table of log-probabilities, (batch, classes).

**Randomness drawn.** None.

**Interactions.** The leftmost method is the outermost: `label_smoothing+dft` smooths what DFT weights. `rdrop`, `r3f`,
`smart`, `freelb` and `sam` are given the smoothed loss; divergences stay plain. Soft targets of a partner are smoothed
exactly. Refused: regression, and tasks with a loss of their own.

**How to read a comparison.** Accuracy can't tell it from vanilla for long; look at NLL and calibration error. It
worsens the NLL of a confident model by construction, so quote both.

**Deviations from the paper and its code.**
1. The target's share is spread over all K classes, as torch and transformers do, the label among them.

**Source.** Szegedy et al., CVPR 2016 (arXiv 1512.00567); equal to `label_smoothing=` of torch's cross-entropy and to
transformers' LabelSmoother.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from finetune_bench.functional import log_probabilities
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output


def smooth(losses: Tensor, logits: Tensor, epsilon: float) -> Tensor:
    """Draw losses of single examples, (batch,), towards those of a uniform target, by the share epsilon."""
    return (1 - epsilon) * losses - epsilon * log_probabilities(logits).mean(-1)


class LabelSmoothing(Method):
    """A share of every target goes to all classes alike."""

    name = "label_smoothing"
    acts_on = "loss"
    batch_layout = "unpadded_trimmed"
    classes_only = True

    epsilon: float = parameter(
        0.1,
        interval="[0, 1)",
        neutral=0.0,
        search=Range(0.01, 0.4, log=True),
        help="share of the target that is spread over all classes",
    )
    uniform: bool = parameter(True, help="off: the loss is only multiplied by 1 − epsilon, as a control")

    def effects(self) -> Mapping[str, Method]:
        """Split the smaller loss from the pull towards the uniform distribution."""
        if self.epsilon == 0 or not self.uniform:
            return {"loss scale": self}
        return {"loss scale": replace(self, uniform=False), "uniform share": self}

    def memory(self, inner: Memory) -> Memory:
        """Return what one more table of log-probabilities adds."""
        return inner.plus(saved={"L": 1}) if self.epsilon else inner

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Smooth the losses."""
        return smooth(losses, output.logits, self.epsilon) if self.uniform else (1 - self.epsilon) * losses
