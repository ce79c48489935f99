"""Match-Tuning: each example's representation is mixed with those of its batch mates that are like it.

**In one sentence.** While training, what the classifier sees of an example is an average over the batch, weighted by
similarity: mates with other labels disturb it early, mates with the same label smooth it later.

**Formula.** z' = (1 − s) · z + s · M z, M = softmax over rows of z zᵀ / τ, with z (batch, dim) what enters the head's
last layer, and τ = `temperature` · √dim.

**Hyper-parameters.** `temperature` > 0, 1 by default (ours: the published fragment of code names no τ); toward 0 each
example is its own best match, toward ∞ M averages the batch · `strength` is s in [0, 1], 1 by default, the published
mixture; ours, 0 is vanilla.

**Where it acts.** In every training forward pass, before the head's last layer; where the head has a dense layer of its
own after the first token (BERT's pooler, RoBERTa's head), z is its output. In evaluation nothing is mixed, so that a
prediction depends on its own text only.

**Cost.** One forward and one backward pass; batch² numbers and a few vectors.

**Randomness drawn.** None. An example's loss depends on its batch mates, which the data order chooses.

**Interactions.** `rdrop`: the two passes run one after the other, so each mixes within itself. Passes without
perturbations (R3F's first) don't mix: `r3f+match_tuning` penalises the mixing too. `child_tuning_d` measures its
Fisher information with mixing. Refused: gradient accumulation, which would cut the batch that is mixed. The logged
`self_match` is the mean weight of an example in its own mixture: near 1 nothing happens.

**Deviations from the paper and its code.**
1. The published code adds a dim × dim matrix before the mixture. Here the head's own dense layer is that matrix, so
   that the saved model stays plain; DistilBERT, XLNet and ModernBERT have one as well.
2. Whether the paper mixes at test time is not in the sources we have; here it doesn't.
3. The last, smaller batch of an epoch mixes fewer examples.
4. The mixture is computed in fp32 in a run of any precision; version 1 did so in fp32 runs only.

**Source.** Tong et al., IJCAI 2022 (arXiv 2205.00633); code tongshoujie/MATCH-TUNING, a fragment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.structure import output_layer
from finetune_bench.parameters import Range, parameter


def match_batch(vectors: Tensor, temperature: float) -> Tensor:
    """Compute M, the softmax over rows of z zᵀ / (temperature · √dim).

    Args:
        vectors: z, (batch, dim).
        temperature: τ as a multiple of √dim, above 0.

    Returns:
        (batch, batch), float32; rows sum to 1.
    """
    z = vectors.float()
    matches: Tensor = (z @ z.T / (temperature * z.shape[-1] ** 0.5)).softmax(-1)
    return matches


class MatchTuning(Method):
    """Representations mixed within the batch."""

    name = "match_tuning"
    acts_on = "hidden states"
    version = 2  # 1 mixed in the run's precision
    batch_layout = "unpadded_trimmed"
    # Before anyone measures with it.
    phase = Phase.WRAP

    temperature: float = parameter(
        1.0, interval="(0, inf)", search=Range(0.3, 3, log=True), help="τ as a multiple of √dim (ours)"
    )
    strength: float = parameter(
        1.0, interval="[0, 1]", neutral=0.0, search=Range(0.2, 1), help="s: share of the mixture (ours; 1 is the paper)"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse gradient accumulation, and heads that end in no linear layer."""
        if facts.recipe.accumulation > 1:
            return "gradient accumulation cuts the batch within which it mixes"
        return without_part(facts, output_layer)

    def setup(self, run: Run) -> None:
        """Start without a mixture to log."""
        self.self_match_: list[Tensor] = []

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Mix what enters the head's last layer."""
        if self.strength == 0:
            yield
            return

        def mix(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            # Autocast would multiply in the run's precision, whatever the operands' is.
            with torch.autocast(args[0].device.type, enabled=False):
                matches = match_batch(args[0], self.temperature)
                mixed = matches @ args[0].float()
            self.self_match_.append(matches.detach().diagonal().mean())
            return torch.lerp(args[0], mixed.to(args[0].dtype), self.strength), *args[1:]

        handle = output_layer(run.model).register_forward_pre_hook(mix)
        try:
            yield
        finally:
            handle.remove()

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Log the mean weight of an example in its own mixture."""
        self.self_match_.clear()
        objective = inner(view)
        if not self.self_match_:
            return objective
        return replace(objective, logs={**objective.logs, "self_match": torch.stack(self.self_match_).mean()})
