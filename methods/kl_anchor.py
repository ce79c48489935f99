"""KL anchor: predictions are held near those of the starting model; with DFT it is ASFT.

**In one sentence.** A penalty grows with the distance between the prediction and that of the model before any training.

**Formula.** L + λ · mean over the batch of KL(q‖p), with q the prediction of the starting weights, without dropout, and
p the present one (`forward`); KL(p‖q) (`reverse`), or their sum, the task's divergence (`symmetric`). Regression: the
squared difference of both predictions, whatever the direction.

**Hyper-parameters.** `strength` λ ≥ 0, 0.1 by default (the code of ASFT; its example has 0.05); 0.01 to 10 is a
sensible search · `direction`: `forward` by default, as in that code.

**Where it acts.** Objective. The starting model predicts the batch as it comes, without the noise of partners, in
evaluation mode. The trace has the distance (`kl_anchor_distance`), and for classification the entropy of q as a share
of log K (`kl_anchor_entropy`; 1 is uniform).

**Cost.** One more forward pass for each evaluation of the inner loss, without a graph; one copy of the pre-trained
weights.

**Randomness drawn.** None.

**Interactions.** `kl_anchor+dft` is ASFT: the penalty is unweighted. **A fresh head has no opinion**: its q is nearly
uniform, and λ · KL(uniform‖p) is label smoothing with ε = λ / (1 + λ) at a loss 1 + λ times as large. So from a fresh
head ASFT is DFT with label smoothing, and that is said before a run. A reference with an opinion needs a trained head:
`--keep-head`, or `lp_ft+kl_anchor`, where the head is trained first and the reference has it. `kl_anchor+rdrop` anchors
the first pass, `rdrop+kl_anchor` both, with a reference for each. `lora`: the adapters are at their start in the
reference. `noisytune`: the reference is without its noise. Refused: `mixup`, for the reference would have to be given
the mixed texts.

**Deviations from the paper and its code.**
1. One prediction per example, not one per token.
2. The reference is computed in the run's precision, and without dropout also beside adapters; the code takes bfloat16,
and leaves dropout on beside adapters.
3. The distance is computed in float32.

**Source.** Zhu et al. 2025 (arXiv 2509.23753); code zhuchichi56/ASFT.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.functional import kl, log_probabilities
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.dropout import evaluation_mode
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output


class KLAnchor(Method):
    """Predictions are held near those of the starting model."""

    name = "kl_anchor"
    acts_on = "loss"
    batch_layout = "unpadded"
    reads_pretrained = True

    strength: float = parameter(
        0.1, interval="[0, inf)", neutral=0.0, search=Range(0.01, 10, log=True), help="λ: weight of the distance (code)"
    )
    direction: str = parameter(
        "forward", choices=("forward", "reverse", "symmetric"), help="KL(start‖present), the other way, or both"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse partners that give the passes other texts than the reference has."""
        if any(partner.name == "mixup" for partner in facts.partners):
            return "its reference predicts single texts, and mixup trains on mixed ones"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say what the penalty is where the reference has a fresh head."""
        trains_first = any(getattr(partner, "trains_head_first", False) for partner in facts.partners)
        if self.strength == 0 or facts.keeps_head or trains_first:
            return None
        advice = "start from a trained head: --keep-head, or lp_ft beside it"
        if facts.task.kind == "regression":
            return f"its reference has a fresh head, whose predictions it pulls to are arbitrary; {advice}"
        said = (
            "its reference has a fresh head and predicts all classes about alike (kl_anchor_entropy in the trace is 1)"
        )
        if self.direction != "forward":
            return f"{said}, so it pulls predictions towards the uniform one; {advice}"
        epsilon = self.strength / (1 + self.strength)
        smoothed = [partner.name for partner in facts.partners if partner.name == "label_smoothing"]
        twice = ", and label_smoothing beside it is the same penalty again" if smoothed else ""
        return (
            f"{said}, so it is label smoothing with epsilon={epsilon:.2g} at a loss {1 + self.strength:g} times as "
            f"large{twice}; {advice}"
        )

    def passes(self, inner: Passes) -> Passes:
        """Add the reference's forward pass."""
        return Passes(inner.forwards + (self.strength > 0), inner.backwards)

    def memory(self, inner: Memory) -> Memory:
        """Add the distance, of which one side has no gradient, and the pre-trained weights."""
        return inner.plus(saved={"D": 2 / 3} if self.strength else {}, kept={"P": 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Keep what other methods have added to the parameters, as adapters, at its start."""
        added = set(run.params) - set(run.pretrained)
        self.start_ = {name: run.params[name].detach().clone() for name in added}
        return optimizer

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the distance to the starting model's prediction."""
        if self.strength == 0:
            return inner(view)
        reference = self.reference(step)
        objective = inner(view)
        distance = self.distance(step, reference, objective.output)
        logs = {**objective.logs, "kl_anchor_distance": distance.detach()}
        if step.run.task.kind == "classification":
            log_q = log_probabilities(reference.logits)
            logs["kl_anchor_entropy"] = -(log_q.exp() * log_q).sum(-1).mean() / math.log(log_q.shape[-1])
        return replace(objective, loss=objective.loss + self.strength * distance, logs=logs)

    @torch.no_grad()
    def reference(self, step: Step) -> Output:
        """Predict the batch as the starting model does."""
        with evaluation_mode(step.run.model):
            return step.forward(View(weights={**step.run.pretrained, **self.start_}, perturb=False))

    def distance(self, step: Step, reference: Output, output: Output) -> Tensor:
        """Compute the distance of a prediction from the reference's, 0-dim."""
        if self.direction == "symmetric" or step.run.task.kind == "regression":
            return step.divergence(reference, output)
        sides = reference.logits, output.logits
        return kl(*sides) if self.direction == "forward" else kl(*reversed(sides))
