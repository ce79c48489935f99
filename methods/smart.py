"""SMART: predictions are kept smooth around each text, and near those of the weights of before.

**In one sentence.** A small noise on the embeddings is sought that changes the prediction most, and that change is
penalised; so is the distance to the predictions of a moving average of the weights.

**Formula.** L + λ · D(f(x + d), f(x)) + μ · D(f(x; θ), f(x; θ̄)). D is the task's divergence, a mean over the batch:
KL(p‖q) + KL(q‖p), or (p − q)². d₀ ~ N(0, s²); K times d ← Π(d + η · g / ‖g‖_∞) with g = ∇_d D(f(x + d), f(x)), ‖·‖_∞
the largest entry of a token, Π cutting every entry to [−ε, ε]. θ̄ ← β · θ̄ + (1 − β) · θ after every step.

**Hyper-parameters.** Where the paper's values are not in the sources we have, the default is what we recall of them:
`strength` is λ ≥ 0, 1 · `eps` is ε, 1e-5 · `init_scale` is s, 1e-5 (public code) · `learning_rate` is η, 1e-3 · `steps`
is K ≥ 1, 1 (public code) · `mu` is μ ≥ 0, 1; 0 leaves the teacher out · `beta` is β, 0.99 · `scale`: `paper`, or
`mtdnn` for the size that the public code really uses: d ← (d + η · g) / ‖d + η · g‖_∞ with g the gradient of the
batch's sum of D, so that its size is 1, whatever ε says · `share_masks`: all passes of a step have the same dropout
masks.

**Where it acts.** In the objective, on the raw token embeddings of real tokens; the teacher moves after each step.
Evaluation is one plain pass.

**Cost.** K + 2 more forward passes, one of them the teacher's without a graph, and K more backward passes, which reach
the noise only. One float32 copy of what trains.

**Randomness drawn.** batch · seq · dim numbers per micro-batch from the method's own stream.

**Interactions.** With `share_masks` the stack's noise (HyPe, Mixout) is the same in all passes too. `smart+rdrop`: the
clean pass is R-Drop's first. At ε = 1e-5 the adversarial term is next to 0, as no noise of that size changes a
prediction; that is said before a run. Refused: fp16, whose loss scaling the inner climb doesn't know.

**Deviations from the paper and its code.**
1. Masks are shared by default, so that D measures the noise; with `share_masks=false` the last pass draws its own, as
   in the public code, and D measures the masks. The climb always repeats the clean pass's masks.
2. The noise goes on raw token embeddings. The public code puts it on the output of the whole embedding block and feeds
   that in again, so that positions, norm and dropout apply twice and the passes differ without any noise.
3. The public code has no teacher term and no cut to ε.
4. D is a plain symmetric divergence with gradients to both sides in the penalty; the public code detaches one side of
   each half, and climbs a doubled surrogate of it. Its penalty has half of this one's gradient, so its weight of 1 is
   about strength=0.5 here.
5. θ̄ starts at the weights after every method's set-up; the paper raises β late in training, which is left out.
6. Under `scale=mtdnn` the gradient that is added to d is that of a sum over texts, as in the public code, so that what
   a text's noise becomes depends on that text alone. In version 1 it was that of a mean over the micro-batch, whose
   step was smaller by the number of its texts. Under `scale=paper` the gradient's size has no influence.

**Source.** Jiang et al., ACL 2020 (arXiv 1911.03437); code namisan/mt-dnn.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.step import Inner, Objective, Run, State, Step, View
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output

# Noise whose entries are below this moves no prediction by an amount that its square would show.
NOTICEABLE = 1e-3
# The public code adds this to denominators.
TINY = 1e-6


def climb_adversary(noise: Tensor, gradient: Tensor, learning_rate: float, eps: float, scale: str) -> Tensor:
    """Make one step of the climb.

    Args:
        noise: d, (batch, seq, dim).
        gradient: g, (batch, seq, dim); its size counts under `mtdnn` only.
        learning_rate: η, at least 0.
        eps: ε, the largest entry under `paper`.
        scale: the rule for the noise's size: paper or mtdnn.
    """
    if scale == "mtdnn":
        moved = noise + learning_rate * gradient
        return moved / (largest_entry(moved) + TINY)
    direction = gradient / largest_entry(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    return (noise + learning_rate * direction).clamp(-eps, eps)


def largest_entry(values: Tensor) -> Tensor:
    """Compute ‖·‖_∞ of each token, (batch, seq, 1) of (batch, seq, dim)."""
    return values.abs().amax(-1, keepdim=True)


class SMART(Method):
    """Smooth predictions, and no sudden changes of them."""

    name = "smart"
    acts_on = "inputs"
    batch_layout = "unpadded"
    noises = "token embeddings"

    strength: float = parameter(
        1.0, interval="[0, inf)", neutral=0.0, search=Range(0.1, 10, log=True), help="λ: weight of the adversarial term"
    )
    eps: float = parameter(
        1e-5, interval="[0, inf)", search=Range(1e-6, 0.1, log=True), help="ε: largest entry of the noise (scale=paper)"
    )
    init_scale: float = parameter(1e-5, interval="[0, inf)", help="s: standard deviation of the first noise (code)")
    learning_rate: float = parameter(1e-3, interval="[0, inf)", help="η: step of the climb")
    steps: int = parameter(1, interval="[1, inf)", help="K: steps of the climb (code)")
    mu: float = parameter(1.0, interval="[0, inf)", neutral=0.0, help="μ: weight of the distance to the teacher")
    beta: float = parameter(0.99, interval="[0, 1]", help="β: memory of the teacher")
    scale: str = parameter("paper", choices=("paper", "mtdnn"), help="the noise's size: the paper's, or the code's")
    share_masks: bool = parameter(True, help="the same dropout masks in all passes of a step")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.version = 2 if self.scale == "mtdnn" else 1  # type: ignore[misc]  # only this scale's numbers have changed

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse fp16."""
        if facts.dtype == torch.float16:
            return "its climb doesn't know the loss scaling of fp16; use fp32 or bf16"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where the noise is too small to matter."""
        if self.strength == 0 or self.scale == "mtdnn" or self.eps >= NOTICEABLE or not self.share_masks:
            return None
        rest = "only its teacher term acts" if self.mu > 0 else "it has next to no effect"
        return f"a noise of at most {self.eps:.0e} changes predictions so little that its penalty is about 0; {rest}"

    def effects(self) -> Mapping[str, Method]:
        """Split it into the teacher and the adversary."""
        if self.mu == 0 or self.strength == 0:
            return {self.name: self}
        return {"teacher": replace(self, strength=0.0), "adversary": self}

    def passes(self, inner: Passes) -> Passes:
        """Add the passes of the climb, of the adversary and of the teacher."""
        return Passes(inner.forwards + self.steps + 1 + (self.mu > 0), inner.backwards + self.steps)

    def memory(self, inner: Memory) -> Memory:
        """Add one forward pass, the divergences and the teacher's weights."""
        # The teacher's divergence keeps two thirds: one side has no gradient.
        teacher = 1 if self.mu > 0 else 0
        return inner.plus(saved={"F": 1, "D": 1 + teacher * 2 / 3}, kept={"P": teacher})

    def setup(self, run: Run) -> None:
        """Keep the stream of the noise; the teacher starts at the present weights."""
        self.generator_ = run.generator(self.name)
        self.teacher_ = {
            name: weight.detach().float().clone()
            for name, weight in run.params.items()
            if weight.requires_grad and self.mu > 0
        }

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the adversary's and the teacher's divergence to the loss."""
        mark = step.mark()
        clean = inner(view)
        noise = self.find_noise(step, clean.output, view, mark)
        with step.replay(mark) if self.share_masks else nullcontext():
            adversary = step.forward(replace(view, embeds=step.embeds(view) + noise))
        change = step.divergence(clean.output, adversary)
        loss, logs = clean.loss + self.strength * change, {**clean.logs, "smart_divergence": change.detach()}
        if self.mu > 0:
            with torch.no_grad(), step.replay(mark):
                teacher = step.forward(replace(view, weights=self.teacher_))
            distance = step.divergence(clean.output, teacher)
            loss = loss + self.mu * distance
            logs["smart_teacher_divergence"] = distance.detach()
        return replace(clean, loss=loss, logs=logs)

    def find_noise(self, step: Step, clean: Output, view: View, mark: Mapping[str, Tensor]) -> Tensor:
        """Find d by the climb, (batch, seq, dim), detached; zero on padding."""
        embeds, reference = step.embeds(view).detach(), Output(clean.logits.detach())
        real = step.batch.inputs["attention_mask"][..., None]
        noise = torch.randn(embeds.shape, generator=self.generator_, device=embeds.device) * self.init_scale * real
        for _ in range(self.steps):
            noise.requires_grad_()
            with step.replay(mark):
                moved = step.forward(replace(view, embeds=embeds + noise))
            change = step.divergence(reference, moved)
            if self.scale == "mtdnn":
                change = change * len(step.batch)  # the batch's sum
            (gradient,) = step.run.grad(change, [noise])
            noise = climb_adversary(noise.detach(), gradient, self.learning_rate, self.eps, self.scale) * real
        return noise

    def state(self) -> State:
        """Return the teacher's weights."""
        return self.teacher_

    def load_state(self, state: State) -> None:
        """Take them back."""
        for name, teacher in self.teacher_.items():
            teacher.copy_(state[name])

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Let the teacher follow the weights."""
        for name, teacher in self.teacher_.items():
            teacher.lerp_(run.params[name].float(), 1 - self.beta)
