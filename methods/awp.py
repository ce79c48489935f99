"""AWP: adversarial weight perturbation, the gradient is taken where each matrix was moved to make the loss higher.

**In one sentence.** Before each step every weight matrix climbs along its own gradient, by a share of its own norm and
within a small box around each entry; the gradient found up there moves the weights below.

**Formula.** For each matrix W that trains: W' = clip(W + η · ‖W‖ · g / ‖g‖, W − ε·|W|, W + ε·|W|) with g = ∇L(W); the
step uses ∇L at W'. Norms are Frobenius norms of single matrices.

**Hyper-parameters.** `radius` is η ≥ 0, 5e-4: how far a matrix climbs, as a share of its norm · `box` is ε ≥ 0, 0.01:
how far an entry may move, as a share of its size. Both are ours. The paper works with 0.005 for images, with which
MiniLM learned nothing from 400 short texts; common code for texts has η = 1e-5 with ε = 1e-3, which moves almost
nothing, or η = 1 with ε of 1e-3 to 1e-2, where the box alone decides. 0 for either is vanilla. `start` in [0, 1) is
the share of the run's steps that are vanilla's before the climbs begin, 0.

**Where it acts.** In the objective: two evaluations of it, on the same examples with the same dropout masks and noise.
The second one uses W' in the place of W, which itself never moves; clipping, masks and the optimiser see the second
gradient alone.

**Cost.** Twice the forward passes, and one more backward pass, from `start` on; W' is kept until the backward pass.

**Randomness drawn.** None; the second evaluation repeats the first one's draws.

**Interactions.** As SAM's: the leftmost is the outermost, `awp+rdrop` climbs R-Drop's whole loss. `child_tuning_d`:
what D keeps fixed doesn't climb. `top_k`, `lora`: nor do frozen matrices. Refused: `sam` and `recadam`, which decide
where the gradient is taken as well; `freelb`, `fgm` and `bi_drop`, whose early backward passes can't be climbed;
gradient accumulation, which would need two sweeps over all micro-batches; fp16, whose loss scaling the climb doesn't
know; gradient checkpointing, which would compute the layers again at W.

**Deviations from the paper and common code.**
1. The paper perturbs in adversarial training of image classifiers; here inputs are clean, as in common code for texts.
2. Matrices are told by their shape; common code takes every name with `weight` in it, norms among them.
3. The weights are not moved and put back: W' is a function of W, and the gradient at W' reaches W as it is.
4. The gradient is that of W' alone, as in the code that drops the clean one; other copies add both.
5. It climbs from the first step on; common code begins at the second of its epochs, as `start` does.
6. Both evaluations see the same dropout masks; in common code they differ.

**Source.** Wu, Xia and Wang, NeurIPS 2020 (arXiv 2004.05884).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_second_point
from finetune_bench.method.step import Inner, Objective, Run, State, Step, View
from finetune_bench.parameters import Range, parameter


@torch.no_grad()
def climb_matrix(weight: Tensor, gradient: Tensor, radius: float, box: float) -> Tensor:
    """Compute W' − W for one matrix: a climb along the gradient, cut to the box around each entry.

    Args:
        weight: W.
        gradient: g, of the weight's shape.
        radius: η, at least 0: the climb's length is η · ‖W‖.
        box: ε, at least 0: no entry moves by more than ε · |W|.

    Returns:
        A tensor of the same shape; zero where the gradient is zero.
    """
    length = torch.linalg.vector_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    climbed = (gradient / length) * (radius * torch.linalg.vector_norm(weight))
    bound = box * weight.abs()
    return torch.minimum(torch.maximum(climbed, -bound), bound)


class AWP(Method):
    """The gradient from where each matrix climbed."""

    name = "awp"
    acts_on = "weights"
    # Rows of embeddings that do not occur are part of a matrix's norm.
    batch_layout = "unpadded"

    radius: float = parameter(
        5e-4,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(5e-5, 5e-3, log=True),
        help="η: climb of a matrix, as a share of its norm (ours)",
    )
    box: float = parameter(
        0.01,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(1e-3, 0.1, log=True),
        help="ε: largest move of an entry, as a share of its size (ours)",
    )
    start: float = parameter(
        0.0, interval="[0, 1)", search=Range(0.0, 0.5), help="share of the steps before the first climb (ours)"
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Its climb needs the gradient of the whole loss, and its gradient is taken elsewhere than at the weights."""
        return ("backward passes of a step", "point at which gradients are taken")

    @property
    def climbs(self) -> bool:
        """Say whether any matrix moves."""
        return self.radius > 0 and self.box > 0

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse accumulation, gradient checkpointing and fp16."""
        return without_second_point(facts)

    def passes(self, inner: Passes) -> Passes:
        """Return twice the passes, for the share of the steps that climb."""
        factor = 2 - self.start
        return Passes(factor * inner.forwards, factor * inner.backwards) if self.climbs else inner

    def memory(self, inner: Memory) -> Memory:
        """Add the weights that the second evaluation uses."""
        return inner.plus(saved={"P_used": 1}) if self.climbs else inner

    def setup(self, run: Run) -> None:
        """Count from the first step."""
        self.steps_ = 0

    def after_step(self, run: Run) -> None:
        """Count a step."""
        self.steps_ += 1

    def state(self) -> State:
        """Return how many steps were made."""
        return {"steps": self.steps_}

    def load_state(self, state: State) -> None:
        """Take the count back."""
        self.steps_ = state["steps"]

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate the loss twice, the second time where every matrix climbed."""
        if not self.climbs or self.steps_ < round(self.start * step.run.total_steps):
            return inner(view)
        mark = step.mark()
        first = inner(view)
        present = view.weights or {}
        matrices = {
            name: present.get(name, weight)
            for name, weight in step.run.params.items()
            if weight.requires_grad and weight.ndim > 1
        }
        gradients = step.run.grad(first.loss, list(matrices.values()), view)
        above = {}
        for (name, weight), gradient in zip(matrices.items(), gradients, strict=True):
            trained = gradient * step.run.trained[name] if name in step.run.trained else gradient
            above[name] = weight + climb_matrix(weight, trained, self.radius, self.box)
        with step.replay(mark):
            second = inner(replace(view, weights={**present, **above}))
        rise = second.loss.detach() - first.loss.detach()
        return replace(second, logs={**second.logs, "awp_rise": rise})
