"""FreeLB: the loss under a noise on the embeddings that climbs it, the gradients of the whole climb averaged.

**In one sentence.** K passes climb the loss in the space of the token embeddings, and each pass's gradient, which the
climb computes anyway, also trains the weights.

**Formula.** δ₀ = m / √(tokens · dim) · U(−1, 1) on real tokens; for k = 0 … K−1 the loss ℓ(X + δ_k) counts 1/K, and δ ←
Π(δ + α · g / ‖g‖) with g = ∇_δ ℓ; ‖·‖ is the Frobenius norm of a sentence, Π shrinks each sentence's δ to a norm of at
most ρ. L = (1/K) Σ ℓ(X + δ_k).

**Hyper-parameters.** `steps` is K ≥ 1, 4 · `learning_rate` is α ≥ 0, 0.1 · `init_magnitude` is m ≥ 0, 0.16 ·
`max_norm` is ρ ≥ 0, 0.28, and 0 for no bound: the official values for RoBERTa-large on STS-B; on other tasks 2 to 4,
0.025 to 0.2, 0 to 1 and 0 to 0.7. K counts passes: a published `--adv-steps` of the authors' code on fairseq (that of
the RoBERTa runs, 3 on STS-B) is K − 1, one of their code on transformers (the ALBERT runs) is K. α is an absolute
length: what it means depends on the norm of the embeddings.

**Where it acts.** In the objective, on the raw token embeddings. Evaluation is one plain pass.

**Cost.** K forward and K backward passes, one graph at a time: the first K−1 are freed at once, the last is left to the
loop, so that other methods can use its output.

**Randomness drawn.** batch · seq · dim numbers per micro-batch from the method's own stream. All K passes have the same
dropout masks and the same noise of the stack's other methods, as in the official code.

**Interactions.** `rdrop+freelb` climbs in both of R-Drop's passes, and the divergence is that of the two last points;
`freelb+rdrop` climbs R-Drop's loss, the same two masks at each point. `freelb+r3f`: R3F's noise goes on top of δ.
`mixout`, `hype`: one mask and one noise for the whole climb. Refused: `sam`, which would have to climb a loss of which
parts are gone; fp16, whose loss scaling the climb doesn't know.

**Deviations from the paper and its code.**
1. K passes in all, each loss times 1/K. The authors' code on fairseq counts the steps of the climb, and makes one
   pass more than it counts; until version 2 of this method its 3 stood here as K, one pass too few.
2. A step of the climb of length 0, where the gradient is 0, moves nothing in place of dividing by a clamp of 1e-8.
3. Padding gets no noise at any step; the official code leaves it out at the start only. It reaches no prediction.

**Source.** Zhu et al., ICLR 2020 (arXiv 1909.11764); code zhuchen03/FreeLB.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.parameters import Range, parameter


def start_noise(mask: Tensor, dim: int, magnitude: float, generator: Generator) -> Tensor:
    """Draw δ₀, the noise where the climb starts.

    Args:
        mask: (batch, seq), 1 for real tokens.
        dim: the width of the embeddings.
        magnitude: m, at least 0.
        generator: the stream, on the mask's device.

    Returns:
        (batch, seq, dim), float32, zero on padding.
    """
    drawn = torch.rand((*mask.shape, dim), generator=generator, device=mask.device).mul_(2).sub_(1)
    real = mask.float()
    width = magnitude / (real.sum(1) * dim).sqrt()
    return drawn * (real * width[:, None])[..., None]


def climb_noise(noise: Tensor, gradient: Tensor, learning_rate: float, max_norm: float) -> Tensor:
    """Make one step of the climb, Π(δ + α · g / ‖g‖), for each sentence by itself.

    Args:
        noise: δ, (batch, seq, dim).
        gradient: g, (batch, seq, dim).
        learning_rate: α, at least 0.
        max_norm: ρ; 0 for no bound.
    """
    direction = gradient / sentence_norm(gradient).clamp(min=torch.finfo(gradient.dtype).tiny)
    moved = noise + learning_rate * direction
    if max_norm == 0:
        return moved
    return moved * (max_norm / sentence_norm(moved).clamp(min=torch.finfo(moved.dtype).tiny)).clamp(max=1)


def sentence_norm(values: Tensor) -> Tensor:
    """Compute the Frobenius norm of each sentence, (batch, 1, 1) of (batch, seq, dim)."""
    norm: Tensor = torch.linalg.vector_norm(values, dim=(1, 2), keepdim=True)
    return norm


class FreeLB(Method):
    """Gradients averaged over a climb in the embeddings."""

    name = "freelb"
    acts_on = "inputs"
    version = 2  # 1 had another default of `steps`, under the same label
    batch_layout = "unpadded_trimmed"
    noises = "token embeddings"

    steps: int = parameter(4, interval="[1, inf)", neutral=1, help="K: passes (STS-B: 3 steps of the climb)")
    learning_rate: float = parameter(
        0.1, interval="[0, inf)", search=Range(0.01, 0.3, log=True), help="α: length of a step of the climb (STS-B)"
    )
    init_magnitude: float = parameter(0.16, interval="[0, inf)", neutral=0.0, help="m: size of the first noise (STS-B)")
    max_norm: float = parameter(
        0.28,
        interval="[0, inf)",
        search=Range(0.1, 1, log=True),
        help="ρ: largest norm per sentence, 0 for no bound (STS-B)",
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It ends passes early: of the loss that it returns, parts are gone."""
        return ("backward passes of a step",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse fp16."""
        if facts.dtype == torch.float16:
            return "its climb doesn't know the loss scaling of fp16; use fp32 or bf16"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where the noise stays 0."""
        stays_zero = self.init_magnitude == 0 and (self.steps == 1 or self.learning_rate == 0)
        return f"its noise stays 0, so it is vanilla in {self.steps} passes" if stays_zero and self.steps > 1 else None

    def passes(self, inner: Passes) -> Passes:
        """Multiply the passes by K."""
        return Passes(self.steps * inner.forwards, self.steps * inner.backwards)

    def setup(self, run: Run) -> None:
        """Keep the stream of the first noise."""
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Make K passes that climb the loss; the gradient of each counts 1/K."""
        mask = step.batch.inputs["attention_mask"]
        dim = step.embeds(view).shape[-1]
        noise = start_noise(mask, dim, self.init_magnitude, self.generator_)
        mark = step.mark()
        before: Tensor | float = 0.0
        for number in range(self.steps):
            noise = noise.detach().requires_grad_()
            # Looked up anew: the early backward pass has freed the graph of the last.
            embeds = step.embeds(view)
            with step.replay(mark) if number else nullcontext():
                objective = inner(replace(view, embeds=embeds + noise), weight=1 / self.steps)
            if number == self.steps - 1:
                break
            before = before + step.backward(objective.loss)
            assert noise.grad is not None
            climbed = climb_noise(noise.detach(), noise.grad.float(), self.learning_rate, self.max_norm)
            noise = climbed * mask[..., None]
        norm = sentence_norm(noise.detach()).mean()
        return replace(objective, loss=before + objective.loss, logs={**objective.logs, "freelb_norm": norm})
