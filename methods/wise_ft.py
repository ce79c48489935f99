"""WiSE-FT: what is evaluated lies on the line from the pre-trained weights to the fine-tuned ones.

**In one sentence.** Training runs as ever; in evaluation the weights are a mean of the checkpoint's and of those that
were trained, which keeps more of what the checkpoint could do elsewhere.

**Formula.** θ(α) = (1 − α) · θ₀ + α · θ₁: θ₀ as loaded, θ₁ after the last step.

**Hyper-parameters.** `alpha` is α in [0, 1], 0.5 by default: the sources draw 0, 0.1, … 1 and recommend none; 1 is
vanilla · `head` says what of the head is scored: `final`, the default, takes the trained head whole; `all`
interpolates it too, from its random start, which is the formula to the letter. With `final`, α = 0 is the trained
head on an untouched body, neither zero-shot nor a linear probe, and may score as chance does.

**Where it acts.** In evaluation, and in what is saved, the means stand in the weights' own storage; afterwards the
weights are put back to the last bit. Every α of one training is on one line, so that a best one is always found:
choose α by `--search`, on data that was set aside, or report the whole line.

**Cost.** One forward and one backward pass; one copy of the weights, and a second one while evaluating.

**Randomness drawn.** None: the run beneath is that of the same stack without WiSE-FT.

**Interactions.** `ema` and `swa` are refused: only one set of weights can be evaluated. Methods that make weights of
their own for evaluation, as `lora` and `r4f`, stand to the left, so that theirs are interpolated: `lora+wise_ft`
scales the merged update by α. `noisytune`: θ₀ is before the noise. `reinit_layers`: what was re-drawn has no
pre-trained value and is treated as the head is. `top_k`: frozen tensors are equal at both ends.

**Deviations from the paper and its code.**
1. CLIP's head has a zero-shot start, made of texts; a classifier's start is random, hence `head=final`.
2. The code interpolates all that is in the state dict, integers included; here it is the parameters, and buffers
   stay.
3. Its Fisher-weighted mean is left out.

**Source.** Wortsman et al., CVPR 2022 (arXiv 2109.01903); code mlfoundations/wise-ft.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body, weights_replaced
from finetune_bench.parameters import Range, parameter


def interpolate(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    """Compute (1 − α) · start + α · end; both ends are exact, and equal values stay as they are.

    Args:
        start: the pre-trained weight.
        end: the fine-tuned weight, of the same shape.
        alpha: α, in [0, 1].
    """
    return torch.lerp(start.to(end), end, alpha)


class WiseFT(Method):
    """A mean of the pre-trained and the fine-tuned weights, for evaluation."""

    name = "wise_ft"
    acts_on = "averages of weights"
    batch_layout = "unpadded_trimmed"
    reads_pretrained = True
    observer = True

    alpha: float = parameter(
        0.5,
        interval="[0, 1]",
        neutral=1.0,
        search=Range(0.0, 1.0),
        help="α: share of the fine-tuned weights",
    )
    head: str = parameter("final", choices=("final", "all"), help="the trained head, or a mean with its start too")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It decides which weights are evaluated."""
        return ("evaluated weights",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse methods to the right that make weights for evaluation: theirs would take the place of the means."""
        for partner in facts.partners[len(facts.outer) :]:
            if type(partner).evaluating is not Method.evaluating:
                return (
                    f"{partner.name} would put weights of its own in place of the means; write {partner.name}+wise_ft"
                )
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights."""
        return inner.plus(kept={"P": 1})

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Put the means into the weights' place."""
        if self.alpha == 1:
            yield
            return
        in_body = {id(weight) for weight in body(run.model).parameters()}
        means = {
            name: interpolate(start, run.params[name].detach(), self.alpha)
            for name, start in run.pretrained.items()
            if self.head == "all" or (id(run.params[name]) in in_body and name not in run.reanchored)
        }
        with weights_replaced(run.params, means):
            yield
