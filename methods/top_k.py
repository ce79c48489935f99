"""Top-K tuning: only the k layers nearest the head train, with pooler and head.

**In one sentence.** The lower part of the encoder keeps its pre-trained weights, so that less can be forgotten or
over-fitted, and less has to be computed backwards.

**Formula.** θ_j is fixed at its start for every j in the embeddings and in layers 0 … L−k−1; the rest trains as usual.

**Hyper-parameters.** `k` ≥ 0, 3 by default; 0, 3, 6 and 12 are the usual choices; 0 trains pooler and head only; L or
more, and none, train every layer · `embeddings`: train the embeddings too. Embeddings are whatever the body has outside
its layers and not after them: a projection (ELECTRA, ALBERT), tables of relative positions and the convolution
(DeBERTa). What comes after the layers, a pooler or ModernBERT's last norm, always trains.

**Where it acts.** In `setup`, in the phase that chooses what trains: frozen tensors require no gradient, and are left
out of the optimiser, so that neither momentum nor weight decay moves them. Teardown makes them trainable again.

**Cost.** One forward and one backward pass, which ends at the lowest tensor that trains; activations below it are not
kept, and neither are gradients and moments of what is frozen.

**Randomness drawn.** None. Dropout of frozen layers stays on as in vanilla: what trains sees the same noisy features.

**Interactions.** `child_tuning_d+top_k`: the Fisher mask is chosen among the layers that train; with k = 0 there are
none, and it is refused. `reinit_layers+top_k` is refused where re-drawn layers would be frozen. `noisytune+top_k`: the
noise on frozen tensors stays. Mixout does nothing to a frozen matrix, which is its own anchor. L2-SP and decay toward
the pre-trained weights act on what trains. A penalty on noisy embeddings (R3F) works with frozen ones.

**Deviations from the paper and its code.**
1. k beyond the model's L layers means all of them, so that one k can be asked of models of several depths;
   `trainable_parameters` of the row says what it came to.
2. Shared layers (ALBERT) can't be frozen in part: such k are refused.
3. `embeddings` is an addition; k = none with it is vanilla.

**Source.** Houlsby et al., ICML 2019 (arXiv 1902.00751), as a baseline; the choices of k after Xu et al., EMNLP 2021.
"""

from __future__ import annotations

from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_part, without_trained_matrices
from finetune_bench.method.step import Run
from finetune_bench.model.structure import layers, parameter_depths
from finetune_bench.parameters import parameter


class TopKTuning(Method):
    """The lower layers frozen."""

    name = "top_k"
    acts_on = "which weights train"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SELECT

    k: int | None = parameter(
        3,
        interval="[0, inf)",
        neutral=None,
        search=(1, 2, 3, 4),
        help="how many layers train, from the top (none: all)",
    )
    embeddings: bool = parameter(False, neutral=True, help="train the embeddings too")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Claim the choice of the weights that train."""
        return ("weights that train",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models of shared layers, and partners that need layers which are frozen."""
        if reason := without_part(facts, layers):
            return reason
        runs = layers(facts.skeleton)
        trained = self._trained(len(runs))
        split = len(runs) - trained
        if set(runs[:split]) & set(runs[split:]):
            shared = len(set(runs))
            return (
                f"k={self.k} can't be trained alone: {type(facts.skeleton).__name__} runs {shared} shared "
                f"layer{'s' if shared > 1 else ''} {len(runs)} times"
            )
        if trained == 0 and (reason := without_trained_matrices(facts)):
            return reason
        for partner in facts.partners:
            if partner.name == "child_tuning_d" and trained == 0:
                return "with k=0 no encoder layer trains that Child-Tuning-D could choose weights of"
            if partner.name == "reinit_layers" and (drawn := int(getattr(partner, "layers", 0))) > trained:
                return f"{drawn} layers would be re-drawn, and only {trained} of them trained"
        return None

    def _trained(self, count: int) -> int:
        return count if self.k is None else min(self.k, count)

    def memory(self, inner: Memory) -> Memory:
        """Take what is frozen off."""
        return inner.plus(saved={"F_frozen": -1}, kept={"P_frozen": -3})

    def setup(self, run: Run) -> None:
        """Freeze what lies below the top k layers."""
        depth, count = parameter_depths(run.model), len(layers(run.model))
        lowest = count - self._trained(count)
        self.frozen_ = [
            weight
            for weight in run.params.values()
            if (depth[weight] < lowest if depth[weight] >= 0 else not self.embeddings)
        ]
        for weight in self.frozen_:
            weight.requires_grad_(False)

    def teardown(self, run: Run) -> None:
        """Let all weights train again."""
        for weight in getattr(self, "frozen_", []):
            weight.requires_grad_(True)
