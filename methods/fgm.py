"""FGM: each text is also trained on where one step along the gradient of its embeddings makes the loss highest.

**In one sentence.** A second pass starts from token embeddings that were moved a fixed distance along the gradient of
the first pass's loss; both losses train.

**Formula.** δ = ε · g / ‖g‖ for each text by itself, with g = ∇ℓ(X) with respect to its token embeddings X and the
Frobenius norm of a text. L = ½ · (ℓ(X) + ℓ(X + δ)), or the sum of both.

**Hyper-parameters.** `epsilon` is ε ≥ 0, 0.25 (ours): common code's 1.0 is the length of a whole batch's move, which
for a batch of 16 alike texts is 0.25 for each. 0.02 to 1 is a sensible search; with 1.0 for each text MiniLM learned
next to nothing from 400 short ones. It is an absolute length: what it means depends on the norm of the embeddings ·
`combine`: `mean` of both losses, so that the learning rate means what it means in vanilla, or their `sum`, as common
code has it.

**Where it acts.** In the objective, on the raw token embeddings of real tokens. Evaluation is one plain pass.

**Cost.** Two forward and two backward passes, one graph at a time: the first is freed at once, and its gradient trains
the weights as well as it gives the direction.

**Randomness drawn.** None; the second pass repeats the first one's dropout masks and noise.

**Interactions.** It is one step of FreeLB's climb that starts at zero: `fgm(epsilon=0.1)` equals `freelb(steps=2,
init_magnitude=0, learning_rate=0.1, max_norm=0)`. `rdrop+fgm` moves both of R-Drop's passes, and the divergence is that
of the moved ones; `fgm+rdrop` moves along the gradient of R-Drop's loss. `neftune+fgm` starts from the noised point.
Refused: `freelb`, `sam` and `awp`, whose gradients have to be of a whole loss; fp16, whose loss scaling it doesn't
know.

**Deviations from the paper and common code.**
1. The paper normalises the embeddings first and trains LSTMs; here, as in common code, they are what they are.
2. Common code moves the table of embeddings, by one norm of its whole gradient; here each text is moved by itself, as
   in the paper, so that its move doesn't depend on its batch.
3. The mean of both losses is the default, where the paper and common code add them.
4. Both passes have the same dropout masks; in common code they differ.

**Source.** Miyato, Dai and Goodfellow, ICLR 2017 (arXiv 1605.07725).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.parameters import Range, parameter


def move_embeddings(gradient: Tensor, mask: Tensor, epsilon: float) -> Tensor:
    """Compute δ = ε · g / ‖g‖ for each text.

    Args:
        gradient: g, (batch, seq, dim).
        mask: (batch, seq), 1 for real tokens; others neither count nor move.
        epsilon: ε, the length of δ, at least 0.

    Returns:
        (batch, seq, dim); zero for a text whose gradient is zero.
    """
    real = gradient * mask[..., None]
    norm = torch.linalg.vector_norm(real, dim=(1, 2), keepdim=True)
    move: Tensor = epsilon * (real / norm.clamp(min=torch.finfo(real.dtype).tiny))
    return move


class FGM(Method):
    """Each text and its neighbour of highest loss."""

    name = "fgm"
    acts_on = "inputs"
    batch_layout = "unpadded_trimmed"
    noises = "token embeddings"

    epsilon: float = parameter(
        0.25,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.02, 1, log=True),
        help="ε: how far a text's embeddings are moved (ours; common code: 1.0 for the whole batch)",
    )
    combine: str = parameter(
        "mean", choices=("mean", "sum"), neutral="mean", help="how the losses of both passes are put together"
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It ends a pass early: of the loss that it returns, a part is gone."""
        return ("backward passes of a step",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse fp16."""
        if facts.dtype == torch.float16:
            return "its step along the gradient doesn't know the loss scaling of fp16; use fp32 or bf16"
        return None

    def passes(self, inner: Passes) -> Passes:
        """Return twice the passes."""
        return inner if self.epsilon == 0 else Passes(2 * inner.forwards, 2 * inner.backwards)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate the loss at the embeddings, and a step along its gradient from there."""
        if self.epsilon == 0:
            return inner(view)
        weight = 0.5 if self.combine == "mean" else 1.0
        mask = step.batch.inputs["attention_mask"] if view.mask is None else view.mask
        mark = step.mark()
        embeds = step.embeds(view)
        zero = torch.zeros_like(embeds, requires_grad=True)
        clean = inner(replace(view, embeds=embeds + zero), weight=weight)
        before = step.backward(clean.loss)
        assert zero.grad is not None
        move = move_embeddings(zero.grad.float(), mask, self.epsilon)
        # Looked up anew: the early backward pass has freed the graph of the first.
        embeds = step.embeds(view)
        with step.replay(mark):
            moved = inner(replace(view, embeds=embeds + move.to(embeds.dtype)), weight=weight)
        rise = (moved.loss.detach() - before) / weight
        return replace(moved, loss=before + moved.loss, logs={**moved.logs, "fgm_rise": rise})
