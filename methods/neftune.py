"""NEFTune: uniform noise on the token embeddings while training, shorter per entry where a text is longer.

**In one sentence.** Every training pass starts from token embeddings with fresh uniform noise on every entry, of one
norm for every text.

**Formula.** x' = x + (α / √(L·d)) · u with u ~ U(−1, 1) for each entry; x are the raw token embeddings, d is their
width, and L the length of the text. An entry's standard deviation is α / √(3·L·d), the norm of a text's noise about
α / √3.

**Hyper-parameters.** `alpha` ≥ 0, 5 in the authors' README; 0.05 to 15 is a sensible search. At 32 tokens of 384
numbers α = 5 bounds the noise by 0.045, which is as large as the word embeddings of BERT-like models are: try 0.05 and
0.5 there, too, and look at the logged `neftune_ratio`, the noise's root mean square over that of the embeddings ·
`length`: `real` counts a text's own tokens, and padding gets no noise; `padded` takes the longest text of the batch for
all, and puts noise on padding as well, as transformers' Trainer does.

**Where it acts.** In the objective, before position embeddings, norm and dropout. Gradients reach the table of
embeddings through the noised ones. Evaluation is free of it, and so are passes that ask for no perturbations.

**Cost.** One forward and one backward pass; one random tensor of the embeddings' shape.

**Randomness drawn.** batch · seq · dim numbers for each evaluation of the objective, from the method's own stream.

**Interactions.** It stands left of methods that make passes of their own: `neftune+r3f`, `neftune+smart` and
`neftune+lnsr` start from the noised embeddings in all of their passes. Right of `r3f` and `r4f` it is refused, since
their first pass is clean and their second knows nothing of it; right of `smart` and `lnsr` a warning says that their
second pass is without its noise. `rdrop+neftune`: each of R-Drop's passes draws its own noise. `freelb`, `fgm`: the
climb starts from the noised point. `sam+neftune`: both evaluations have the same noise. `hype`: noise at other places,
which adds up.

**Deviations from the paper and its code.**
1. The paper's experiments divide by each text's own length and leave padding alone, as `real` does; the README's code
   and transformers divide by the padded length, so that a text's noise depends on the batch it is in. `padded` is
   refused with gradient accumulation, which cuts batches.
2. Without padding, `padded` means the same length: the noise on padding, which no token sees, is dropped with it.
3. The noise is drawn in float32 and then takes the embeddings' dtype.

**Source.** Jain et al., ICLR 2024 (arXiv 2310.05914); code neelsjain/NEFTune, and transformers' integration of it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.parameters import Range, parameter

# Their second pass is made beside the objectives to their right, and the first of R3F's is clean.
CLEAN_FIRST = ("r3f", "r4f")
PLAIN_SECOND = ("smart", "lnsr")


def draw_noise(mask: Tensor, dim: int, alpha: float, length: str, generator: Generator) -> Tensor:
    """Draw uniform noise, bounded by alpha / √(length · dim).

    Args:
        mask: (batch, seq), 1 for real tokens.
        dim: the width of the embeddings.
        alpha: α, at least 0.
        length: "real" for every text's own, without noise on padding; "padded" for the batch's, with it.
        generator: the stream, on the mask's device.

    Returns:
        (batch, seq, dim), float32.
    """
    drawn = torch.rand((*mask.shape, dim), generator=generator, device=mask.device).mul_(2).sub_(1)
    if length == "padded":
        return drawn.mul_(alpha / (mask.shape[1] * dim) ** 0.5)
    real = mask.float()
    bounds = alpha / (real.sum(1) * dim).sqrt()
    return drawn.mul_((real * bounds[:, None])[..., None])


def noise_ratio(noise: Tensor, embeds: Tensor, mask: Tensor) -> Tensor:
    """Compute the root mean square of noise over that of embeddings, both (batch, seq, dim), on real tokens; 0-dim."""
    real = mask[..., None]
    sizes = [(values.detach().float() * real).square().sum() for values in (noise, embeds)]
    return (sizes[0] / sizes[1].clamp(min=1e-12)).sqrt()


class NEFTune(Method):
    """Uniform noise on the token embeddings."""

    name = "neftune"
    acts_on = "inputs"
    batch_layout = "unpadded_trimmed"
    noises = "token embeddings"

    alpha: float = parameter(
        5.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.05, 15, log=True),
        help="α: the noise of a text has a norm of α / √3 (README of the authors' code)",
    )
    length: str = parameter(
        "real", choices=("real", "padded"), help="what counts as a text's length: its tokens, or those of the batch"
    )

    @property
    def stochastic(self) -> bool:
        """Say whether it draws noise."""
        return self.alpha > 0

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse stacks in which its noise would reach no pass, and accumulation where batches make the noise."""
        if self.length == "padded" and facts.recipe.accumulation > 1:
            return "length=padded ties a text's noise to its batch, which gradient accumulation cuts; use length=real"
        for partner in facts.outer:
            if partner.name in CLEAN_FIRST:
                return f"right of {partner.name} its noise reaches neither pass; write neftune+{partner.name}"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where a pass is without its noise."""
        for partner in facts.outer:
            if partner.name in PLAIN_SECOND and self.alpha > 0:
                return (
                    f"right of {partner.name} its noise is in the first pass only, and {partner.name} measures it; "
                    f"neftune+{partner.name} has it in both"
                )
        return None

    def setup(self, run: Run) -> None:
        """Keep the stream of the noise."""
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate the loss from noised embeddings."""
        if self.alpha == 0 or not view.perturb:
            return inner(view)
        embeds, mask = step.embeds(view), step.batch.inputs["attention_mask"]
        noise = draw_noise(mask, embeds.shape[-1], self.alpha, self.length, self.generator_)
        objective = inner(replace(view, embeds=embeds + noise.to(embeds.dtype)))
        return replace(objective, logs={**objective.logs, "neftune_ratio": noise_ratio(noise, embeds, mask)})
