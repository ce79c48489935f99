"""NoisyTune: one dose of noise on the weights before fine-tuning starts.

**In one sentence.** Every tensor is shifted once by uniform noise in proportion to its own spread, so that fine-tuning
starts a little away from the point on which pre-training had settled.

**Formula.** W' = W + U(−λ/2, λ/2) · std(W), entry by entry; std is the unbiased one over the whole tensor. The shift
has λ/√12 of the tensor's standard deviation, 4.3 % at λ = 0.15.

**Hyper-parameters.** `intensity` is λ ≥ 0, 0.15 by default; 0.05 to 0.3 is a sensible search · `scope`:
`all` perturbs every tensor of more than one entry, among them embeddings, biases, norms and the fresh head;
`matrices_only` leaves out biases and norms.

**Where it acts.** In `setup`, in the phase that changes weights, before the optimiser exists.

**Cost.** One pass over the weights. One forward and one backward pass per step, as without it; nothing is kept.

**Randomness drawn.** One number per perturbed entry, once, from the method's own stream, in float32.

**Interactions.** Methods that pull toward the pre-trained weights pull toward the clean ones; the noisy point is where
training starts. A norm's weight that is 1 everywhere and a bias that is 0 everywhere have no spread and stay. Tied
tensors are perturbed once.

**Deviations from the paper and its code.**
1. The paper speaks of matrices; the default `all` follows the implementation in HyPe's repository. `matrices_only` is
   the narrower reading.
2. A 1×1 matrix, whose spread is undefined, is left alone; that implementation turns it into NaN.
3. The embedding of the padding token is perturbed like any other, as there; attention never reads it.

**Source.** Wu et al., ACL 2022 (arXiv 2202.12024); code Yuanhy1997/HyPe.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Method, Phase
from finetune_bench.method.step import Run
from finetune_bench.parameters import Range, parameter


def perturb_weight(weight: Tensor, intensity: float, generator: Generator) -> Tensor:
    """Return `weight` plus uniform noise of width `intensity` times its standard deviation.

    Args:
        weight: a tensor of any shape, two entries at least.
        intensity: λ, at least 0.
        generator: the stream, on the weight's device.

    Returns:
        A new tensor of the same shape and dtype.
    """
    noise = torch.rand(weight.shape, generator=generator, device=weight.device) - 0.5
    return weight + (noise * (intensity * weight.float().std())).to(weight.dtype)


class NoisyTune(Method):
    """Uniform noise on the weights, once, before training."""

    name = "noisytune"
    acts_on = "weights"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SURGERY

    intensity: float = parameter(
        0.15,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.05, 0.3),
        help="λ: width of the noise in standard deviations",
    )
    scope: str = parameter("all", choices=("all", "matrices_only"), help="which tensors are perturbed")

    @torch.no_grad()
    def setup(self, run: Run) -> None:
        """Add the noise to the weights."""
        if getattr(self, "perturbed_", False):
            raise FinetuneBenchError("NoisyTune was applied twice to one run; its noise would add up.")
        self.perturbed_ = True
        if self.intensity == 0:
            return
        generator = run.generator(self.name)
        for weight in run.params.values():
            if weight.numel() > 1 and (self.scope == "all" or weight.ndim > 1):
                weight.copy_(perturb_weight(weight, self.intensity, generator))

    def teardown(self, run: Run) -> None:
        """Forget that the noise was added."""
        self.perturbed_ = False
