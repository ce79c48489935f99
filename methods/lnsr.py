"""LNSR: noise on the input of one layer should change the states above it little.

**In one sentence.** A second pass carries noise on one layer's input, and the squared distance of all hidden states
above it to those of the first pass is a penalty.

**Formula.** L + λ · Σ over r = b+1 … L of the mean over texts of the mean over a text's real tokens of ‖h̃_r − h_r‖² /
dim, where h_r is what leaves layer r−1 in the task's own pass, and h̃_r the same with noise on the input of layer b:
h_b + s · rms(h_b) · N(0, 1), the root mean square taken for each token, and no noise on padding. No code of the authors
is known to us, and the paper's constants are not in the sources we have: formula and defaults are our definition.

**Hyper-parameters.** `strength` is λ ≥ 0, 0.1 by default; 0.01 to 1 is a sensible search · `noise` is s ≥ 0, 0.05: 5 %
of the state's norm, as in the paper's motivating figure · `layer` is b, from 0, 1 by default · `detach_clean`: no
gradient to the first pass's states.

**Where it acts.** In the objective. Evaluation is one plain pass.

**Cost.** One more forward pass, kept until the backward pass, and two hidden states per layer above b for the distance.

**Randomness drawn.** batch · seq · dim numbers per micro-batch from the method's own stream.

**Interactions.** Both passes have the same dropout masks and the same noise of the stack's other methods, so that the
distance measures this noise alone. `hype` puts noise on the same places; that is said before a run. `lnsr+rdrop`: the
first of R-Drop's passes is compared.

**Deviations from the paper and its code.**
1. The states' distance is a mean over a text's tokens and their entries; a sum would grow with length and width, and
   outweigh the loss. Then it is a mean over texts, as the loss is, so that every text counts alike and micro-batches
   change nothing; before version 2 it was a mean over all tokens of the micro-batch, in which long texts count more.
2. The noise is relative to the state, so that one s fits every model.
3. The distance at layer b's input itself is the noise, which no weight can change; it is left out.
4. The second pass runs from the embeddings on, not from layer b: more work, and right for every architecture.

**Source.** Hua et al., NAACL 2021 (arXiv 2107.04835).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.structure import layer_inputs_changed, layers
from finetune_bench.parameters import Range, parameter


@torch.no_grad()
def draw_noise(hidden: Tensor, mask: Tensor, noise: float, generator: Generator) -> Tensor:
    """Draw noise relative to each token's root mean square, zero on padding.

    Args:
        hidden: (batch, seq, dim).
        mask: (batch, seq), 1 for real tokens.
        noise: s, at least 0.
        generator: the stream, on the device of `hidden`.

    Returns:
        (batch, seq, dim), float32.
    """
    drawn = torch.randn(hidden.shape, generator=generator, device=hidden.device)
    size = hidden.float().square().mean(-1, keepdim=True).sqrt()
    return drawn * size * (noise * mask[..., None])


def state_distance(noised: Sequence[Tensor], clean: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Sum the squared differences of states, each the mean over a text's real tokens, then over texts; 0-dim.

    Args:
        noised: the noised pass's states, each (batch, seq, dim); one at least.
        clean: as many states of the clean pass, of the same shapes.
        mask: (batch, seq), 1 for real tokens; one at least in every row.
    """
    real = mask.float()
    share = (real / real.sum(1, keepdim=True))[..., None] / (clean[0].shape[0] * clean[0].shape[-1])
    parts = [((a - b).float().square() * share).sum() for a, b in zip(noised, clean, strict=True)]
    return torch.stack(parts).sum()


class LNSR(Method):
    """A penalty on what noise at one layer does to the states above."""

    name = "lnsr"
    acts_on = "hidden states"
    version = 2  # in 1 long texts counted more
    noises = "layer inputs"

    strength: float = parameter(
        0.1, interval="[0, inf)", neutral=0.0, search=Range(0.01, 1, log=True), help="λ: weight of the distance (ours)"
    )
    noise: float = parameter(
        0.05,
        interval="[0, inf)",
        search=Range(0.01, 0.2, log=True),
        help="s: size of the noise, as a share of the state's (figure)",
    )
    layer: int = parameter(1, interval="[0, inf)", help="b: the layer whose input is noised, from 0 (ours)")
    detach_clean: bool = parameter(False, help="no gradient to the states of the first pass")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models without the layer that is noised."""
        if reason := without_part(facts, layers):
            return reason
        count = len(layers(facts.skeleton))
        if self.layer >= count:
            return f"layer={self.layer} is none of the {count} layers of {type(facts.skeleton).__name__}, from 0"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where there is no noise."""
        return "without noise its penalty is 0" if self.noise == 0 and self.strength > 0 else None

    def passes(self, inner: Passes) -> Passes:
        """Add one forward pass."""
        return replace(inner, forwards=inner.forwards + 1)

    def memory(self, inner: Memory) -> Memory:
        """Add one forward pass, and the hidden states above the noised layer."""
        # The states above the noised layer; the last one costs nothing, for the second pass's head is let go.
        return inner.plus(saved={"F": 1, "H_all": 1, "H": -self.layer - 1})

    def setup(self, run: Run) -> None:
        """Keep the stream of the noise."""
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the distance between clean and noised states to the loss."""
        mark = step.mark()
        first = inner(replace(view, hidden=True))
        clean = first.output.hidden
        mask = step.batch.inputs["attention_mask"]
        noise = draw_noise(clean[self.layer], mask, self.noise, self.generator_)

        def noised(index: int, hidden: Tensor) -> Tensor:
            return hidden + noise.to(hidden.dtype) if index == self.layer else hidden

        with step.replay(mark), layer_inputs_changed(step.run.model, noised):
            second = step.forward(replace(view, hidden=True)).hidden
        above = clean[self.layer + 1 :]
        if self.detach_clean:
            above = tuple(state.detach() for state in above)
        distance = state_distance(second[self.layer + 1 :], above, mask)
        logs = {**first.logs, "lnsr_distance": distance.detach()}
        return replace(first, loss=first.loss + self.strength * distance, logs=logs)
