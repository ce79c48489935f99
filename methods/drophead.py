"""DropHead: while training, whole attention heads are left out at random.

**In one sentence.** In every training pass each attention head of each layer is dropped with a fixed probability, for
each example by itself, so that attention does not come to rest on a few heads.

**Formula.** What head h gives for an example is multiplied by ξ_h · H/Σξ, with ξ_h ~ Bernoulli(1 − p) for the H heads
of a layer; draws in which all heads are dropped don't count. The factors of a layer have the mean 1 over its heads.

**Hyper-parameters.** `p` in [0, 1), 0.1 by default; the paper's values for text classification are 0.1 to 0.2.

**Where it acts.** In every training forward pass, between the heads and the matrix that mixes them. None in evaluation.

**Cost.** One forward and one backward pass; one number per example, head and layer, and one hidden state per layer
where the attention kernel keeps its output for itself, as CUDA's do.

**Randomness drawn.** H + 1 numbers per example and layer, from the method's own stream: one says which head is the
first that is kept, given that one is, the others which of the later ones are.

**Interactions.** `drophead+rdrop`: the two passes drop different heads, and so differ even without dropout. Gradient
checkpointing is refused: a layer's second forward pass would have all its heads.

**Deviations from the paper and its code.**
1. Draws without any head are left out exactly, by one draw; the code draws the whole batch again.
2. The paper's schedule, p falling to 0 and rising again over training, is left out.
3. XLNet is refused: the heads are mixed in one product with no place in between.

**Source.** Zhou et al., EMNLP Findings 2020 (arXiv 2004.13342); code of others:
Kirill-Kravtsov/drophead-pytorch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run
from finetune_bench.model.structure import attention_heads_scaled, attention_output_layers
from finetune_bench.parameters import Range, parameter


def draw_scales(batch: int, heads: int, p: float, generator: Generator) -> Tensor:
    """Draw the factors of every head: ξ · H/Σξ.

    Args:
        batch: the number of examples.
        heads: H, the number of heads.
        p: the probability of a head to be dropped, in (0, 1).
        generator: the stream; the answer is on its device.

    Returns:
        (batch, heads), float32; each row has a head above 0, and the mean 1.
    """
    drawn = torch.rand(batch, heads + 1, generator=generator, device=generator.device)
    # The first head that is kept: geometric, cut off after the last one.
    tail = 1 - drawn[:, :1].double() * (1 - p**heads)
    first = (tail.log() / math.log(p)).floor().clamp(max=heads - 1)
    index = torch.arange(heads, device=generator.device)
    kept = (index == first) | ((index > first) & (drawn[:, 1:] >= p))
    return kept.float() * heads / kept.sum(1, keepdim=True)


class DropHead(Method):
    """Attention heads dropped at random."""

    name = "drophead"
    version = 2  # 1 scaled an adapter's matrix where one was put around the attention's last layer
    acts_on = "hidden states"
    batch_layout = "unpadded_trimmed"
    phase = Phase.WRAP

    p: float = parameter(
        0.1,
        interval="[0, 1)",
        neutral=0.0,
        search=Range(0.02, 0.5, log=True),
        help="probability of a head to be dropped (paper: 0.1 to 0.2)",
    )

    @property
    def stochastic(self) -> bool:
        """Say whether heads are dropped."""
        return self.p > 0

    def memory(self, inner: Memory) -> Memory:
        """Add what heads give after the factors, where the attention kernel keeps what they gave before."""
        return inner.plus(saved={"H_heads": 1}) if self.p > 0 else inner

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose heads are not found, and gradient checkpointing."""
        if facts.recipe.gradient_checkpointing and self.p > 0:
            return "gradient checkpointing runs each layer again in the backward pass, when no head is dropped"
        return without_part(facts, attention_output_layers)

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Drop some heads of each layer."""
        if self.p == 0:
            yield
            return
        heads = run.model.config.get_text_config().num_attention_heads  # type: ignore[union-attr, operator]
        generator = run.generator(self.name)
        with attention_heads_scaled(run.model, lambda batch: draw_scales(batch, heads, self.p, generator)):
            yield
