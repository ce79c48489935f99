"""Layer-wise learning-rate decay: the lower a layer, the smaller its learning rate.

**In one sentence.** Lower layers hold what is general in the pre-trained model and should move less than the top ones
and the head.

**Formula.** η_l = η · ξ^(L−l) for layer l = 0 … L−1; η for pooler and head; η · ξ^(L+1) for the embeddings. The
schedule multiplies each of these rates alike.

**Hyper-parameters.** `decay` is ξ in (0, 1], 0.95 in the sample command; 0.8, 0.9 and 0.95 are the usual grid; 1 is
off. At 0.9 the embeddings of a model of 24 layers learn at 0.072 of the rate.

**Where it acts.** On the optimiser's parameter groups, once. The embeddings' rate holds for whatever the body has
outside its layers: projections, tables of relative positions, DeBERTa-v2's convolution. What comes after the layers has
the head's rate. A shared layer (ALBERT) has the rate of the highest place in which it runs.

**Cost.** None: one forward and one backward pass.

**Randomness drawn.** None.

**Interactions.** Weight decay, and decay toward the pre-trained weights, are scaled by the learning rate and so shrink
with it. `top_k`: what is frozen is in no group. Gradient masks and clipping come before the rates.

**Deviations from the paper and its code.**
1. Weight decay follows the run's rules everywhere; the reference code decays pooler and head not at all.
2. The reference code leaves a tensor that is neither embedding, layer, pooler nor head (ELECTRA's projection) out of
   the optimiser; here every parameter that trains is in exactly one group.
3. Howard and Ruder divide by 2.6 from layer to layer of an LSTM and unfreeze gradually; only the rates are here.

**Source.** Howard and Ruder, ACL 2018 (arXiv 1801.06146); Zhang et al., ICLR 2021 (arXiv 2006.05987), code
asappresearch/revisit-bert-finetuning.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run
from finetune_bench.model.structure import layers, parameter_depths
from finetune_bench.optimizers import regroup
from finetune_bench.parameters import Range, parameter


def scale_rate(decay: float, depth: int, count: int) -> float:
    """Compute the factor of a learning rate, ξ^(L − depth).

    Args:
        decay: ξ, in (0, 1].
        depth: −1 for embeddings, a layer's index, or L for what comes after the layers.
        count: L, the number of layers.
    """
    return decay ** (count - depth)


class LayerwiseLRDecay(Method):
    """Smaller learning rates for lower layers."""

    name = "layerwise_lr_decay"
    acts_on = "gradients"
    batch_layout = "unpadded_trimmed"

    decay: float = parameter(
        0.95,
        interval="(0, 1]",
        neutral=1.0,
        search=Range(0.7, 0.99),
        help="ξ: factor from a layer to the one below (sample command)",
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose layers are not found."""
        return without_part(facts, layers)

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Give every parameter the rate of its depth."""
        depth, count = parameter_depths(run.model), len(layers(run.model))

        def rate(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            assert isinstance(weight, Parameter)
            return {"lr": group["lr"] * scale_rate(self.decay, depth.get(weight, count), count)}

        regroup(optimizer, rate)
        return optimizer
