"""DFT: dynamic fine-tuning, each example weighted by the probability that the model gives its label.

**In one sentence.** The loss of every example is multiplied by the model's own probability of the label, as a number
without gradient, so that examples that the model finds hopeless push little.

**Formula.** Per example sg(p_y^ρ) · ℓ with ℓ = −log p_y; sg stops the gradient. At ρ = 1 the gradient on the logits is
p_y · (p − onehot), that of −p_y: it is largest at p_y = ½, and vanishes for learned and for hopeless examples alike.

**Hyper-parameters.** `power` ρ ≥ 0, 1 by default (the paper); 0.1 to 2 is a sensible search · `weights`: `own` is DFT;
`shared` gives all examples of a batch their mean weight, the control that has DFT's loss scale and none of its
selection; `normalised` divides own weights by that mean: DFT's selection at vanilla's loss scale.

**Where it acts.** On the losses of single examples, in every pass whose loss counts. Evaluation is untouched. The trace
has the mean weight of each step as `dft_weight`.

**Cost.** One forward and one backward pass; some numbers per example.

**Randomness drawn.** None.

**Interactions.** `kl_anchor+dft` is ASFT, its penalty unweighted. The leftmost method is the outermost:
`label_smoothing+dft` smooths the weighted loss; `dft+label_smoothing` weights by the smoothed loss, which is defined
and said before a run. With `rdrop` each pass is weighted by its own p. Refused: regression, tasks with a loss of their
own, and for `shared` and `normalised` gradient accumulation, which cuts the batch whose mean they take.

**How to read a comparison.** A constant factor of the loss is invisible to Adam but for clipping, its ε and the weight
decay beside it; a factor that rises during training, as the mean of p_y does, acts like a schedule. With K classes the
loss begins about K times smaller. Users of the official code report gains at 10 times the learning rate only. So give
each side its own best rate, inside its grid (vanilla's times 1, 3 and 10), and divide the gain by `--attribution`.
Weights go to 0 where the model errs with confidence: it is slow to leave a wrong minimum, and a prediction of one class
for all is a fixed point. Watch the share of runs that did not learn.

**Deviations from the paper and its code.**
1. One prediction per example, not one per token.
2. The mean is over examples, as in vanilla; public codes divide by tokens, and none by the sum of the weights.
3. `power` and the two other choices of `weights` are ours. No neutral setting exists without `power`.
4. For soft targets, which a partner may bring, the weight is exp(−ℓ).

**Source.** Wu et al. 2025 (arXiv 2508.05629); code yongliang-wu/DFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from finetune_bench.functional import weighted
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import losses_changed_before, without_whole_batch
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output


class DFT(Method):
    """Each example weighted by the probability of its label."""

    name = "dft"
    acts_on = "loss"
    batch_layout = "unpadded_trimmed"
    classes_only = True
    own_learning_rate = "its weights divide the loss, by the number of classes at first: 1 to 10 times vanilla's rate"

    power: float = parameter(
        1.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.1, 2, log=True),
        help="power of the label's probability (paper: 1)",
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
        if self.weights != "own" or self.power == 0:
            return {self.name: self}
        return {"loss scale": replace(self, weights="shared"), "per-example weights": self}

    def memory(self, inner: Memory) -> Memory:
        """Return what weights and losses add."""
        return inner.plus(saved={"L": 1}) if self.power else inner

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Multiply every loss by its weight."""
        probabilities = (-self.power * losses.detach()).exp()
        self.mean_ = probabilities.mean()
        return weighted(losses, probabilities, self.weights)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Log the mean weight of the last pass."""
        objective = inner(view)
        if self.power == 0:
            return objective
        return replace(objective, logs={**objective.logs, "dft_weight": self.mean_})
