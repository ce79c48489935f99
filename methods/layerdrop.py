"""LayerDrop: while training, each layer is skipped now and then.

**In one sentence.** In every training pass each layer is left out with a fixed probability, for all examples together,
so that no layer can rely on the one below it.

**Formula.** h_{l+1} = layer_l(h_l) with probability 1 − p, else h_{l+1} = h_l, drawn anew for every layer and pass.
Nothing is rescaled, and in evaluation all layers run.

**Hyper-parameters.** `p` in [0, 1), 0.1 by default: 0.2 is the paper's, for pre-training; a model that was not
pre-trained with it bears 0.05 to 0.2 (our judgement).

**Where it acts.** In every training forward pass, on what leaves each layer; a shared layer (ALBERT) is drawn for each
time that it runs. A pass may lose all its layers. A layer that is skipped gets a gradient of exactly 0 from that pass.

**Cost.** One forward and one backward pass: a skipped layer is computed all the same, so that nothing waits for the
draw. L bytes for the draws.

**Randomness drawn.** L numbers per pass from the method's own stream.

**Interactions.** `hype+layerdrop`: the noise on a layer's input stays where the layer is skipped. `layerdrop+rdrop`:
the two passes skip different layers, and so differ even without dropout. With `top_k` frozen layers are skipped, too,
which is said before a run. `lnsr` is refused: it compares layers that may not have run.

**Deviations from the paper and its code.**
1. The official code leaves a skipped layer out of the graph, and its weights without a gradient; here the gradient is
   0, and momentum and decay still move them.
2. Pruning layers after training, the paper's other use, is left out.

**Source.** Fan et al., ICLR 2020 (arXiv 1909.11556); code facebookresearch/fairseq.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run
from finetune_bench.model.structure import layer_outputs_changed, layers
from finetune_bench.parameters import Range, parameter


def draw_kept(count: int, p: float, generator: Generator) -> Tensor:
    """Draw which layers of a pass run.

    Args:
        count: L, the number of layers.
        p: the probability of a layer to be skipped, in [0, 1).
        generator: the stream; the answer is on its device.

    Returns:
        (L,) booleans.
    """
    return torch.rand(count, generator=generator, device=generator.device) >= p


class LayerDrop(Method):
    """Whole layers skipped at random."""

    name = "layerdrop"
    acts_on = "hidden states"
    batch_layout = "unpadded_trimmed"
    phase = Phase.WRAP

    p: float = parameter(
        0.1,
        interval="[0, 1)",
        neutral=0.0,
        search=Range(0.02, 0.5, log=True),
        help="probability of a layer to be skipped (paper: 0.2 in pre-training)",
    )

    @property
    def stochastic(self) -> bool:
        """Say whether layers are skipped."""
        return self.p > 0

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose layers are not found, and comparisons of layers that may not have run."""
        if reason := without_part(facts, layers):
            return reason
        if any(partner.name == "lnsr" for partner in facts.partners):
            return "lnsr compares what leaves the layers of two passes, and each pass would skip others"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say that frozen layers are skipped, too."""
        if self.p > 0 and any(partner.name == "top_k" for partner in facts.partners):
            return "the layers that top_k freezes are skipped, too"
        return None

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Skip some layers."""
        if self.p == 0:
            yield
            return
        kept = draw_kept(len(layers(run.model)), self.p, run.generator(self.name))

        def left(index: int, entered: Tensor, left: Tensor) -> Tensor:
            return torch.where(kept[index], left, entered)

        with layer_outputs_changed(run.model, left):
            yield
