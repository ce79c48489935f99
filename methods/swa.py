"""SWA: what is evaluated is the mean of the weights over the last part of training.

**In one sentence.** The weights of the last steps lie around a flatter point than any of them; their mean is evaluated
in their place.

**Formula.** a = mean of θ_t over t = T, T − c, T − 2c, … as long as t lies in the last share s of the T steps.

**Hyper-parameters.** `share` is s in [0, 1], 0.25 by default; 0.25 to 0.5 is usual; 0 leaves the last step alone, which
is vanilla · `every` is c ≥ 1, 1 by default: the original takes one point per epoch, common practice one per 1 % of the
run.

**Where it acts.** After the steps that count, on what trains. In evaluation, and in what is saved, the mean stands in
the weights' own storage; afterwards the weights are put back to the last bit. Before the first step that counts the
weights themselves are evaluated.

**Cost.** One forward and one backward pass, one pass over the weights per step that counts; one float32 copy of what
trains, and a second one while evaluating.

**Randomness drawn.** None: the run beneath is that of the same stack without SWA, which is the pair to compare it with.

**Interactions.** `ema` is refused: only one set of weights can be evaluated. `mixout`: W is averaged, not the mixed
matrices nor the anchor. `child_tuning_d(strict=true)` is refused: it puts weights back after the step, and the mean
could see them before. `lora` and `r4f` make the weights of their own for evaluation from the mean, to the right of it
only. `top_k`: frozen tensors are not averaged.

**Deviations from the paper and its code.**
1. The paper keeps a constant or cyclical, high learning rate while it averages. The recipe's schedule stays here, so
   that SWA differs from its pair in nothing else; under linear decay to zero the late points differ little.
2. There are no batch statistics to compute again: these encoders have no batch norm. Buffers are constant, and stay.

**Source.** Izmailov et al., UAI 2018 (arXiv 1803.05407); code timgaripov/swa.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run, State
from finetune_bench.model.structure import weights_replaced
from finetune_bench.parameters import Range, parameter


def counts(step: int, total: int, share: float, every: int) -> bool:
    """Return whether the weights after a step are part of the mean; the last step's always are.

    Args:
        step: the step, from 1 to `total`.
        total: how many steps the run has.
        share: s, in [0, 1].
        every: c, at least 1.
    """
    window = max(1, round(share * total))
    return step > total - window and (total - step) % every == 0


class SWA(Method):
    """The mean of the last weights, for evaluation."""

    name = "swa"
    acts_on = "averages of weights"
    batch_layout = "unpadded"
    observer = True

    share: float = parameter(
        0.25,
        interval="[0, 1]",
        neutral=0.0,
        search=Range(0.1, 0.75),
        help="s: last share of the steps that is averaged",
    )
    every: int = parameter(1, interval="[1, inf)", help="c: steps from one averaged point to the next")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It decides which weights are evaluated, and reads them after each step, when they have to be final."""
        return ("evaluated weights", "weights after the step")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse methods to the left that make weights for evaluation from those they find."""
        for partner in facts.outer:
            if type(partner).evaluating is not Method.evaluating:
                return f"{partner.name} makes its weights for evaluation from those it finds; write swa+{partner.name}"
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights."""
        return inner.plus(kept={"P": 1})

    def setup(self, run: Run) -> None:
        """Start without a point."""
        self.steps_ = self.points_ = 0
        self.average_: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Take the weights into the mean, where the step counts."""
        self.steps_ += 1
        if not counts(self.steps_, run.total_steps, self.share, self.every):
            return
        self.points_ += 1
        for name, weight in run.params.items():
            if name in self.average_:
                # Equal values stay as they are, to the last bit.
                self.average_[name].lerp_(weight.float(), 1 / self.points_)
            elif weight.requires_grad:
                self.average_[name] = weight.detach().float().clone()

    def state(self) -> State:
        """Return the mean, and the counts of steps and points."""
        return {"steps": self.steps_, "points": self.points_, **self.average_}

    def load_state(self, state: State) -> None:
        """Take them back."""
        averages = dict(state)
        self.steps_, self.points_ = averages.pop("steps"), averages.pop("points")
        self.average_ = averages

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Put the mean into the weights' place."""
        with weights_replaced(run.params, self.average_):
            yield
