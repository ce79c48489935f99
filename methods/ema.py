"""EMA: what is evaluated is an exponential moving average of the weights.

**In one sentence.** Training runs as ever; beside it an average of the weights follows, smoother than the last step,
and takes their place in evaluation.

**Formula.** a ← β_t · a + (1 − β_t) · θ after every step, a = θ before the first. With `warmup` β_t = min(β, (1 + t) /
(10 + t)), t being the steps before this one; else β_t = β.

**Hyper-parameters.** `beta` is β in [0, 1), 0.99 by default; 0.995 and 0.999 suit longer runs: the average looks back
over about 1/(1 − β) steps · `warmup`, on by default: without it a run of 100 steps at β = 0.99 is still to 37 % its own
start, random head included.

**Where it acts.** After every step, on what trains. In evaluation, and in what is saved, the average stands in the
weights' own storage; afterwards the weights are put back to the last bit.

**Cost.** One forward and one backward pass, one pass over the weights per step; one float32 copy of what trains, and a
second one while evaluating.

**Randomness drawn.** None: the run beneath is that of the same stack without EMA, which is the pair to compare it with.

**Interactions.** `swa` is refused: only one set of weights can be evaluated. `mixout`: W is averaged, not the mixed
matrices nor the anchor. `child_tuning_d(strict=true)` is refused: it puts weights back after the step, and the average
could see them before. `lora` and `r4f` make the weights of their own for evaluation from the average, to the right of
it only. `top_k`: frozen tensors are not averaged. Noise on the weights before training is in the start.

**Deviations.** 1. The paper averages the iterates of a convex problem uniformly; the exponential form, and the warm-up,
are the common practice. 2. Buffers are not averaged: these encoders have only constant ones. Tied tensors are averaged
once.

**Source.** Polyak and Juditsky 1992 (averaging); Tarvainen and Valpola, NeurIPS 2017 (arXiv 1703.01780, as a teacher).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run, State
from finetune_bench.model.structure import weights_replaced
from finetune_bench.parameters import parameter


def scale_beta(beta: float, step: int, warmup: bool) -> float:
    """Compute β_t, the share of the old average that a step keeps.

    Args:
        beta: β, in [0, 1).
        step: how many steps came before this one.
        warmup: whether β_t starts small.
    """
    return min(beta, (1 + step) / (10 + step)) if warmup else beta


class EMA(Method):
    """An exponential moving average of the weights, for evaluation."""

    name = "ema"
    acts_on = "averages of weights"
    batch_layout = "unpadded"
    observer = True

    beta: float = parameter(
        0.99,
        interval="[0, 1)",
        neutral=0.0,
        search=(0.9, 0.97, 0.99, 0.997, 0.999),
        help="β: share of the old average that is kept per step",
    )
    warmup: bool = parameter(True, help="smaller β in the first steps, so that the start is forgotten")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It decides which weights are evaluated, and reads them after each step, when they have to be final."""
        return ("evaluated weights", "weights after the step")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse methods to the left that make weights for evaluation from those they find."""
        for partner in facts.outer:
            if type(partner).evaluating is not Method.evaluating:
                return f"{partner.name} makes its weights for evaluation from those it finds; write ema+{partner.name}"
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights."""
        return inner.plus(kept={"P": 1})

    def setup(self, run: Run) -> None:
        """Start the average at the present weights."""
        self.steps_ = 0
        self.average_ = {
            name: weight.detach().float().clone() for name, weight in run.params.items() if weight.requires_grad
        }

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Move the average toward the weights."""
        new = 1 - scale_beta(self.beta, self.steps_, self.warmup)
        for name, average in self.average_.items():
            # a + (1 − β)·(θ − a): equal values stay as they are, and β = 0 gives θ, both to the last bit.
            average.lerp_(run.params[name].float(), new)
        self.steps_ += 1

    def state(self) -> State:
        """Return the average and the count of steps."""
        return {"steps": self.steps_, **self.average_}

    def load_state(self, state: State) -> None:
        """Take both back."""
        self.steps_ = state["steps"]
        for name, average in self.average_.items():
            average.copy_(state[name])

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Put the average into the weights' place."""
        with weights_replaced(run.params, self.average_):
            yield
