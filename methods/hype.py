"""HyPe: hidden representation perturbation.

**In one sentence.** While training, random noise is added to the hidden states that enter each Transformer layer, and
hidden dropout is off.

**Formula.** h̃_l = h_l + e_l, h_{l+1} = layer_l(h̃_l) for l = 0 … L−1, with e_l drawn anew for every entry, layer, step
and sequence: N(0, ε²) (`normal`, HyPe-N), U[−ε, ε) (`uniform_symmetric`, HyPe-U of the paper: mean 0, standard
deviation 0.577 ε) or U[0, ε) (`uniform_onesided`, HyPe-U as the official code draws it: mean ε/2, standard deviation
0.289 ε).

**Hyper-parameters.** `eps` ≥ 0, 1e-5 in the official code; the paper takes the better of 1e-5 and 1e-4 · `noise` ·
`where`: `between` layers (the paper), `within` (the attention block's output, which is the feed-forward block's input
and residual) or `both` · `top`, `bottom`: only the last or first k layers, both together their union; they restrict the
noise between layers only, as in the official code · `dropout`: `hidden_off` by default; `keep` is the paper's Table 9.

**Where it acts.** In every training forward pass. Layer 0 receives the noised embedding output (after its norm and
dropout); the last layer's output, pooler and head are never noised. No noise in evaluation.

**Cost.** One forward and one backward pass; one random tensor per layer, not kept for the backward pass.

**Randomness drawn.** L · batch · seq · dim numbers per pass from the method's own stream, in float32.

**Interactions.** `hype+rdrop`: noise in both passes; at ε = 1e-5 their difference comes from the attention dropout that
stays on, not from the noise. `hype+r3f(noise=none)`: HyPe as R3F's noised pass. `hype+child_tuning_d`: noise in the
Fisher pass too. `hype+noisytune`: weights first, then HyPe. Within layers, gradient checkpointing is refused: its
second forward would see no noise.

**Deviations from the paper and its code.**
1. Paper and official code differ in HyPe-U. The paper's formula is `uniform_symmetric`; the code, from which its
   numbers may come, is `uniform_onesided`, half as wide and with a mean.
2. k = 0 is refused: the official options read it as "all layers".
3. `where=within` alone adds noise; in the official code that flag alone turns all noise off.
4. Layer subsets and noise within layers work on every encoder that has the place, not on BERT and RoBERTa alone.
5. DeBERTa is not in the official code: the noise enters each layer; v2's convolution branch reads the clean embeddings.
6. XLNet's query stream, which the official code noises as well, does not exist in sequence classification.
7. Noise is drawn on the model's device, and a low-precision run that can't carry ε is refused.
8. Hidden dropout off means all dropout that acts on hidden states, found in the modules. The official script zeroes two
   fields, which leaves a head's own rate on (XLNet 0.1, ALBERT 0.1, DistilBERT 0.2) and most of other architectures'.

**Source.** Yuan et al., ACL 2023 (arXiv 2212.08853); code Yuanhy1997/HyPe.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import attention_blocks, attention_outputs_changed, layer_inputs_changed, layers
from finetune_bench.parameters import Range, parameter

# Standard deviation of each noise at eps = 1.
SPREAD = {"normal": 1.0, "uniform_onesided": 1 / math.sqrt(12), "uniform_symmetric": 1 / math.sqrt(3)}


def perturb_hidden(hidden: Tensor, eps: float, noise: str, generator: Generator) -> Tensor:
    """Add HyPe's noise to hidden states.

    Args:
        hidden: hidden states of any shape and floating dtype.
        eps: the standard deviation (`normal`) or the upper end (the uniforms), at least 0.
        noise: the distribution: normal, uniform_onesided or uniform_symmetric.
        generator: the stream, on the device of `hidden`.

    Returns:
        A new tensor of that shape and dtype; the gradient to `hidden` is the identity.
    """
    drawn = torch.empty_like(hidden, dtype=torch.float32)
    # Drawn in the order in which the states lie in memory: XLNet's lie there as (seq, batch, dim).
    in_memory = drawn.permute(sorted(range(drawn.ndim), key=drawn.stride, reverse=True))
    if noise == "normal":
        in_memory.normal_(0.0, eps, generator=generator)
    else:
        in_memory.uniform_(0.0 if noise == "uniform_onesided" else -eps, eps, generator=generator)
    return hidden + drawn.to(hidden.dtype)


def select_layers(count: int, top: int | None, bottom: int | None) -> set[int]:
    """Choose the layers that are noised: the last `top` and the first `bottom`; all where neither is given."""
    if top is None and bottom is None:
        return set(range(count))
    return set(range(count - (top or 0), count)) | set(range(bottom or 0))


class HyPe(Method):
    """Noise between layers, hidden dropout off."""

    name = "hype"
    acts_on = "hidden states"
    batch_layout = "unpadded_trimmed"
    phase = Phase.WRAP
    noises = "layer inputs"

    eps: float = parameter(
        1e-5,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(1e-6, 0.1, log=True),
        help="scale of the noise (official code: 1e-5)",
    )
    noise: str = parameter(
        "normal",
        choices=tuple(SPREAD),
        search=("normal", "uniform_symmetric"),
        help="distribution (HyPe-U: paper symmetric)",
    )
    where: str = parameter("between", choices=("between", "within", "both"), help="between layers, within, or both")
    top: int | None = parameter(None, interval="[1, inf)", help="only the last k layers (none: all)")
    bottom: int | None = parameter(None, interval="[1, inf)", help="only the first k layers (none: all)")
    dropout: Dropout = parameter(Dropout.HIDDEN_OFF, help="the official script turns hidden dropout off")

    @property
    def stochastic(self) -> bool:
        """Say whether there is noise."""
        return self.eps > 0

    def noise_scale(self) -> float | None:
        """Return the standard deviation of the noise."""
        return self.eps * SPREAD[self.noise]

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models without the layers or blocks that are asked for, and choices that contradict each other."""
        if reason := without_part(facts, layers if self.where == "between" else attention_blocks):
            return reason
        count = len(layers(facts.skeleton))
        for name, wanted in (("top", self.top), ("bottom", self.bottom)):
            if wanted is not None and wanted > count:
                return f"{name}={wanted} layers are more than the {count} of {type(facts.skeleton).__name__}"
        if self.where == "within" and not (self.top is None and self.bottom is None):
            return "top and bottom choose among the places between layers, and where=within has none"
        if self.where != "between" and facts.recipe.gradient_checkpointing:
            return "noise within a layer can't be repeated when gradient checkpointing computes the layer again"
        return None

    def effects(self) -> Mapping[str, Method]:
        """Split one-sided noise into a symmetric one and the shift of its mean."""
        if self.noise != "uniform_onesided" or self.eps == 0:
            return {"noise": self}
        # U[0, ε) is U[−ε/2, ε/2) shifted by ε/2: the same draws, the same spread, no mean.
        return {"noise": replace(self, noise="uniform_symmetric", eps=self.eps / 2), "mean shift": self}

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Add noise to the chosen hidden states."""
        generator = run.generator(self.name)
        chosen = select_layers(len(layers(run.model)), self.top, self.bottom)

        def noised(hidden: Tensor) -> Tensor:
            return perturb_hidden(hidden, self.eps, self.noise, generator)

        with ExitStack() as hooks:
            if self.where != "within":
                between = layer_inputs_changed(run.model, lambda l, h: noised(h) if l in chosen else h)  # noqa: E741
                hooks.enter_context(between)
            if self.where != "between":
                hooks.enter_context(attention_outputs_changed(run.model, lambda _, hidden: noised(hidden)))
            yield
