"""R3F: robust representations through regularised fine-tuning.

**In one sentence.** A second forward pass with slightly noisy token embeddings is made, and the change that the noise
makes to the prediction is penalised.

**Formula.** L = loss(f(x), y) + λ · D(f(x), f(x + z)), with z ~ U(−ε, ε) or N(0, ε²) for each entry of the raw token
embeddings. D is the task's divergence, a mean over the batch: KL(p‖q) + KL(q‖p), or (p − q)² for regression. Gradients
flow through both passes, but for the embedding table through the first alone.

**Hyper-parameters.** `strength` is λ ≥ 0, 1.0 in the official code; 0.1 to 5 is a sensible search · `eps` ≥ 0, 1e-5 in
the official code: the bound of the uniform noise, the standard deviation of the normal one · `noise`: `uniform` (the
official default), `normal`, or `none`: then the second pass differs by what the stack adds and by dropout only.

**Where it acts.** In the objective. The noise goes in before position embeddings, norm and dropout. Evaluation is one
plain pass.

**Cost.** One more forward pass; one backward pass through both graphs, so the activations of two passes are kept.

**Randomness drawn.** batch · seq · dim numbers per micro-batch from the method's own stream, in float32. The second
pass draws its own dropout masks.

**Interactions.** The first pass is always free of the stack's perturbations, the second carries them on top of the
embedding noise: `hype+r3f` perturbs the second pass only, and `hype+r3f(noise=none)` puts HyPe's noise in the place of
R3F's. With dropout on, the divergence measures the two dropout masks far more than a noise of 1e-5; with dropout off it
almost vanishes at that size. The logged `divergence` shows which it is. A low-precision run that can't carry ε is
refused.

**Deviations from the paper and its code.**
1. Regression is supported, with the squared difference of the predictions, as HyPe's authors do; the official code adds
   nothing there, since a distribution over one logit never changes.
2. The noise is drawn where the model lies, in float32; the official code draws on the CPU and casts to the model's
   precision, where half precision loses most of it.
3. With `noise=none` the second pass looks its embeddings up by itself, so the embedding table learns from both passes.
4. R4F, which is R3F with a spectrally normalised head, is another method and not in this file.

**Source.** Aghajanyan et al., ICLR 2021 (arXiv 2008.03156); code facebookresearch/fairseq, examples/rxf.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method import Facts, Inner, Memory, Method, Objective, Passes, Run, Step, View
from finetune_bench.parameters import parameter


def add_noise(embeds: Tensor, noise: str, eps: float, generator: Generator) -> Tensor:
    """Token embeddings with noise on every entry.

    Args:
        embeds: (batch, seq, dim).
        noise: "uniform" for U(−eps, eps), "normal" for N(0, eps²).
        eps: the noise's size.
        generator: on the embeddings' device.

    Returns:
        (batch, seq, dim), in the embeddings' dtype.
    """
    if noise == "normal":
        drawn = torch.randn(embeds.shape, generator=generator, device=embeds.device)
    else:
        drawn = torch.rand(embeds.shape, generator=generator, device=embeds.device).mul_(2).sub_(1)
    return embeds + drawn.mul_(eps).to(embeds.dtype)


class R3F(Method):
    """A penalty on the change of the prediction under embedding noise."""

    name = "r3f"
    neutral = {"strength": 0.0, "dropout": "all_off"}

    strength: float = parameter(1.0, interval="[0, inf)", help="λ: weight of the divergence (official code)")
    eps: float = parameter(1e-5, interval="[0, inf)", help="bound or standard deviation of the noise (official code)")
    noise: str = parameter("uniform", choices=("normal", "uniform", "none"), help="distribution of the noise")

    def unsupported(self, facts: Facts) -> str | None:
        noisy = self.noise != "none" and self.eps > 0
        if noisy or facts.active_dropout or any(partner.stochastic for partner in facts.partners):
            return None
        return (
            "its two passes would be identical, since it adds no noise, no dropout is active and no method "
            "stacked with it is stochastic"
        )

    def noise_scale(self) -> float | None:
        if self.noise == "none" or self.eps == 0:
            return None
        return self.eps if self.noise == "normal" else self.eps / 3**0.5

    def passes(self, inner: Passes) -> Passes:
        return replace(inner, forwards=inner.forwards + 1)

    def memory(self, inner: Memory) -> Memory:
        return inner.plus(saved={"F": 1, "D": 1})

    def setup(self, run: Run) -> None:
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        clean = inner(replace(view, perturb=False))
        if self.noise != "none":
            embeds = step.embeds(view).detach()
            view = replace(view, embeds=add_noise(embeds, self.noise, self.eps, self.generator_))
        divergence = step.divergence(clean.output, step.forward(view))
        return replace(
            clean,
            loss=clean.loss + self.strength * divergence,
            logs={**clean.logs, "divergence": divergence.detach()},
        )
