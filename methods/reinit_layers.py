"""Re-initialised layers: the top layers start from fresh random weights.

**In one sentence.** The top layers of a pre-trained encoder are specialised to its pre-training task; drawing them anew
can be a better start than unlearning.

**Formula.** For the last n layers, and the pooler: matrices ~ N(0, `initializer_range`²), biases 0, norms 1 and 0, by
the model's own rules (ModernBERT's are truncated, and smaller for what leads out of a block).

**Hyper-parameters.** `layers` is n ≥ 0, 1 by default; 1 to 6 is the usual search, by validation · `pooler`: re-draw the
body's pooler too, where it has one (BERT, ALBERT); those of other models stand in the head, which is new anyway.

**Where it acts.** In `setup`, in the phase that changes weights.

**Cost.** One draw of those weights. One forward and one backward pass per step, as without it.

**Randomness drawn.** The weights, once, from a stream of its own: the head, and dropout while training, are those of
vanilla.

**Interactions.** The anchor of methods that pull toward the pre-trained weights (Mixout, L2-SP, decay toward the
pre-trained weights) is the fresh draw for re-drawn tensors, not what was discarded. In the phase that changes weights
the stack's order counts: `reinit_layers+noisytune` noises the fresh layers as well, and their anchor is the draw before
the noise; `noisytune+reinit_layers` leaves them without noise. `top_k` with fewer layers than are re-drawn is refused:
random layers would be frozen.

**Deviations from the paper and its code.**
1. Rules are the model's own, so that every encoder works; the reference code has BERT, RoBERTa, ELECTRA, XLNet and
   BART. DeBERTa-v2's relative positions and convolution belong to no layer and stay.
2. Shared layers (ALBERT) can't be re-drawn in part: n = L or none.
3. `layers=0` with `pooler` re-draws the pooler alone; where there is none that is refused.
4. The reference code asserts the pooler's re-drawing for BERT and RoBERTa; here it is an option.

**Source.** Zhang et al., ICLR 2021 (arXiv 2006.05987); code asappresearch/revisit-bert-finetuning.
"""

from __future__ import annotations

import torch
from torch import nn

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body
from finetune_bench.model.structure import layers as layers_of
from finetune_bench.parameters import parameter

# transformers' mark on loaded tensors, which its initialisers leave alone.
_LOADED = "_is_hf_initialized"


@torch.no_grad()
def redraw_weights(model: nn.Module, parts: list[nn.Module]) -> None:
    """Initialise modules anew by the model's own `_init_weights`, from the global random stream.

    Args:
        model: a transformers model.
        parts: modules of the model, initialised whole and in this order.
    """
    for part in parts:
        tensors = [*part.parameters(), *part.buffers()]
        marks = {tensor: vars(tensor).pop(_LOADED) for tensor in tensors if _LOADED in vars(tensor)}
        try:
            part.apply(model._init_weights)  # type: ignore[arg-type]
        finally:
            for tensor, mark in marks.items():
                setattr(tensor, _LOADED, mark)


class ReinitLayers(Method):
    """Top layers drawn anew."""

    name = "reinit_layers"
    acts_on = "weights"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SURGERY

    layers: int = parameter(
        1, interval="[0, inf)", neutral=0, search=(1, 2, 3), help="n: how many layers are re-drawn, from the top"
    )
    pooler: bool = parameter(True, neutral=False, help="re-draw the body's pooler too, where it has one")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models of fewer or shared layers, and where nothing would be re-drawn."""
        kind = type(facts.skeleton).__name__
        if reason := without_part(facts, layers_of):
            return reason
        runs = layers_of(facts.skeleton)
        if self.layers > len(runs):
            return f"layers={self.layers} are more than the {len(runs)} of {kind}"
        kept = len(runs) - self.layers
        if set(runs[:kept]) & set(runs[kept:]):
            return f"{kind} shares its layers, and {self.layers} of {len(runs)} can't be re-drawn without the others"
        if self.layers == 0 and self.pooler and not self._parts(facts.skeleton):
            return f"nothing would be re-drawn: layers=0, and {kind} has no pooler in its body"
        return None

    def _parts(self, model: nn.Module) -> list[nn.Module]:
        runs = layers_of(model)
        parts = list(dict.fromkeys(runs[len(runs) - self.layers :]))
        pooler = getattr(body(model), "pooler", None)
        if self.pooler and isinstance(pooler, nn.Module):
            parts.append(pooler)
        return parts

    def setup(self, run: Run) -> None:
        """Re-draw the layers, and let them be their own anchors."""
        if not (parts := self._parts(run.model)):
            return
        with run.own_randomness(self.name):
            redraw_weights(run.model, parts)
        drawn = {id(weight) for part in parts for weight in part.parameters()}
        run.reanchor(name for name, weight in run.params.items() if id(weight) in drawn)
