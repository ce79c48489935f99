"""Which layers train when: `gradual_unfreezing` and `lisa`.

**In one sentence.** Every weight trains, but not at every step: from the top down one layer after the other
(`gradual_unfreezing`), or a few layers at a time, drawn anew every so often (`lisa`).

**Formula.** At step t of T a weight sleeps or is awake; asleep it has no gradient, no decay, and moments that stay.
- `gradual_unfreezing`: of the groups head, layer L − 1 … layer 0, embeddings, numbered 0 … L + 1, group g is awake from
  step g · share · T / (L + 1) on.
- `lisa`: embeddings, head and what comes after the layers are always awake, and so are γ of the L layers, drawn without
  replacement every `interval` steps.

**Hyper-parameters.** `share` in [0, 1), 0.5 (our choice) · `layers` is γ ≥ 1, 1 here, none or L and more: all ·
`interval` ≥ 1, 5; the code's users take 5 to 20.

**Where it acts.** At the end of `optimizer`, and after each step, for the next one. After the last step every weight is
awake.

**Cost.** One forward and one backward pass, which ends at the lowest weight that is awake. The formulas are those of
all weights awake; `lisa` reads its draw on the host, once every `interval` steps.

**Randomness drawn.** `lisa`: L numbers every `interval` steps, from its own stream.

**Interactions.** They refuse each other and all others that decide which weights train (`lora`, `peft`, `bitfit`,
`top_k`). What changes the optimiser has to see all weights, and stands on the left: `sage+lisa`,
`layerwise_lr_decay+gradual_unfreezing`. `sam` and `freelb` take the gradients of what is awake.

**Deviations from the papers and their code.**
1. `gradual_unfreezing`: one layer per epoch and rates by layer there; here the groups wake evenly over a share of the
   steps, at one rate. Its slanted triangle is the recipe's warm-up and decay.
2. `lisa`: γ is 1, for encoders have a third as many layers as the paper's models, of which 2 are awake. A public code
   draws at steps 0 and 1; here no layer is drawn twice in the first interval.
3. Gradient checkpointing is refused: while embeddings sleep it needs a hook of its own on the inputs.

**Source.** Howard and Ruder, ACL 2018 (arXiv 1801.06146); Pan et al., NeurIPS 2024 (arXiv 2403.17919), code
axolotl-ai-cloud/axolotl.
"""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run, State
from finetune_bench.model.structure import layers, parameter_depths
from finetune_bench.parameters import Range, parameter


class _Sleeping(Method):
    """What both have in common; each says which weights are awake at a step."""

    # The rows of a trimmed table would have no decay while it sleeps.
    batch_layout = "unpadded"

    def _awake(self, depth: int) -> bool:
        raise NotImplementedError

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Claim the choice of the weights that train."""
        return ("weights that train",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose layers are not found, and gradient checkpointing."""
        if reason := without_part(facts, layers):
            return reason
        for partner in facts.partners:
            if partner not in facts.outer and type(partner).optimizer is not Method.optimizer:
                return f"{partner.name} would find weights asleep that train later; write {partner.name}+{self.name}"
        if facts.recipe.gradient_checkpointing:
            return "gradient checkpointing while embeddings sleep needs a hook on the inputs that it does not set"
        return None

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Put to sleep what sleeps at the first step."""
        depth = parameter_depths(run.model)
        self.count_, self.total_, self.step_ = len(layers(run.model)), run.total_steps, 0
        self.depths_ = [(w, depth.get(w, self.count_)) for w in run.params.values() if w.requires_grad]
        self._wake()
        return optimizer

    def _wake(self) -> None:
        for weight, depth in self.depths_:
            weight.requires_grad_(self.step_ >= self.total_ or self._awake(depth))

    def after_step(self, run: Run) -> None:
        """Wake, or put to sleep, for the next step."""
        self.step_ += 1
        self._wake()

    def state(self) -> State:
        """Return the count of steps."""
        return {"step": self.step_}

    def load_state(self, state: State) -> None:
        """Take it back, and wake what is awake then."""
        self.step_ = state["step"]
        self._wake()

    def teardown(self, run: Run) -> None:
        """Let all weights train again."""
        for weight, _ in getattr(self, "depths_", []):
            weight.requires_grad_(True)


class GradualUnfreezing(_Sleeping):
    """Layers that begin to train from the top down."""

    name = "gradual_unfreezing"
    acts_on = "which weights train"

    share: float = parameter(
        0.5, interval="[0, 1)", neutral=0.0, search=Range(0.1, 0.9), help="share of the steps after which all train"
    )

    def _awake(self, depth: int) -> bool:
        return self.step_ >= (self.count_ - depth) * self.share * self.total_ / (self.count_ + 1)


class LISA(_Sleeping):
    """A few layers train at a time, drawn anew every so often."""

    name = "lisa"
    acts_on = "which weights train"

    layers: int | None = parameter(
        1, interval="[1, inf)", neutral=None, search=(1, 2, 4), help="γ: how many layers are awake (none: all)"
    )
    interval: int = parameter(5, interval="[1, inf)", search=(5, 10, 20), help="steps from one draw to the next")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse shared layers as well."""
        reason = super().unsupported(facts)
        if reason is None and len(set(runs := layers(facts.skeleton))) < len(runs):
            return f"{type(facts.skeleton).__name__} runs one layer {len(runs)} times, which can't sleep in part"
        return reason

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Draw the first layers."""
        self.drawn_ = self._draw(run)
        return super().optimizer(optimizer, run)

    def _draw(self, run: Run) -> list[int]:
        count = len(layers(run.model))
        if self.layers is None or self.layers >= count:
            return list(range(count))
        # On the host: which weights sleep is decided there, at a step in so many.
        order = torch.rand(count, generator=run.generator(self.name), device=run.device).argsort()
        return sorted(order[: self.layers].tolist())

    def _awake(self, depth: int) -> bool:
        return depth in self.drawn_ or not 0 <= depth < self.count_

    def after_step(self, run: Run) -> None:
        """Draw anew every so many steps."""
        if (self.step_ + 1) % self.interval == 0:
            self.drawn_ = self._draw(run)
        super().after_step(run)

    def state(self) -> State:
        """Return the layers that are awake as well."""
        return {**super().state(), "drawn": self.drawn_}

    def load_state(self, state: State) -> None:
        """Take them back."""
        self.drawn_ = state["drawn"]
        super().load_state(state)
