"""Bi-Drop: several passes with other dropout masks choose the entries of the gradient that the step uses.

**In one sentence.** Each batch passes several times with independent dropout; where the passes' gradients agree, their
mean moves the weights, and elsewhere the weights stay.

**Formula.** g₁ … g_k are the gradients of k passes, ḡ their mean and s their standard deviation, entry by entry. Entry
j of a tensor is kept if |ḡ_j| / (s_j + 1e-12) is in the top share ρ of its tensor; the step uses ḡ where it is kept and
0 elsewhere.

**Hyper-parameters.** `passes_per_step` is k ≥ 2, 2 · `share` is ρ in (0, 1], 0.5 (ours): how many entries of each
tensor are kept; 0.1 to 1 is a sensible search.

**Where it acts.** In the objective, k evaluations of it, and on the gradients after clipping. Evaluation is one pass.

**Cost.** k forward and k backward passes, one graph at a time; k − 1 gradients of all weights are kept, and a moment
longer one mask.

**Randomness drawn.** None of its own: every pass draws its own dropout masks, and noise of the stack's other methods,
from the streams they come from.

**Interactions.** Needs passes that differ: without active dropout and without a stochastic partner it is refused. It
has to be the leftmost method with an objective, because what another one adds to the loss outside would count as the
last pass's gradient: `bi_drop+l2_sp`, `bi_drop+r3f`. `mixup` therefore goes with it in neither order. `mixout` and
`hype` draw anew for each pass, which makes passes differ as dropout does. The methods that change gradients, too, see
those that are left. Decoupled weight decay and Adam's moments move also what is not kept. Refused: `sam`, `awp`,
`freelb` and `fgm`, which end passes early themselves; gradient accumulation, where a pass's gradient is that of several
micro-batches; `--optimizer muon`, which makes the step of an entry from its whole matrix.

**Deviations from the paper.** The authors' repository has no code, and this file follows the abstract.
1. The paper selects by two factors, of which the second is the size of the weight; here the agreement of the gradients
   alone decides, by the ratio of mean and standard deviation.
2. Which share is kept, and that it is of each tensor, is ours. What is kept is not scaled up, as Child-Tuning does.

**Source.** Tong et al., Findings of EMNLP 2023 (arXiv 2305.14760).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_dropout, without_masked_steps
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import Range, parameter


def choose_entries(gradients: Sequence[Tensor], share: float) -> Tensor:
    """Choose the entries whose gradients agree best over passes.

    Args:
        gradients: those of one tensor, one for each of two passes or more.
        share: how many of its entries are chosen, above 0 and up to 1.

    Returns:
        A bool tensor of their shape; more than the share where ratios at its edge are equal.
    """
    stacked = torch.stack(list(gradients))
    mean = stacked.mean(0)
    # Written out, because `std` over a dimension of two takes several times as long.
    ratio = mean.abs() / ((stacked - mean).square().mean(0).sqrt() + 1e-12)
    flat = ratio.flatten().float()
    kept = max(1, round(share * flat.numel()))
    # Not `kthvalue`, which has no deterministic form on CUDA.
    edge = flat.topk(kept, sorted=False).values.min()
    return ratio >= edge


class BiDrop(Method):
    """Gradients kept where passes agree."""

    name = "bi_drop"
    acts_on = "gradients"
    batch_layout = "unpadded"

    passes_per_step: int = parameter(
        2, interval="[2, inf)", help="k: passes of a step, each with its own dropout (ours)"
    )
    share: float = parameter(
        0.5,
        interval="(0, 1]",
        neutral=1.0,
        search=Range(0.1, 1),
        help="ρ: share of each tensor's entries whose gradient is kept (ours)",
    )
    dropout: Dropout = parameter(
        Dropout.KEEP, neutral=Dropout.ALL_OFF, help="what is asked of the model's dropout (neutral: passes are equal)"
    )

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It ends passes early: of the loss that it returns, parts are gone."""
        return ("backward passes of a step",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse equal passes, accumulation, gradients that don't belong to one pass, and steps that aren't masked."""
        if reason := without_dropout(self, facts, "bi_drop+dropout(hidden=0.1)"):
            return reason
        if facts.recipe.accumulation > 1:
            return "with gradient accumulation a pass's gradient is that of several micro-batches"
        for partner in facts.outer:
            if type(partner).objective is not Method.objective:
                return (
                    f"what {partner.name} makes of the loss outside of it would count as the last pass's gradient; "
                    f"write bi_drop+{partner.name}"
                )
        return without_masked_steps(facts) if self.share < 1 else None

    def warning(self, facts: Facts) -> str | None:
        """Say where nothing is chosen."""
        if self.share == 1:
            return f"share=1 keeps every entry, so it is vanilla with the mean of {self.passes_per_step} passes"
        return None

    def passes(self, inner: Passes) -> Passes:
        """Multiply the passes by k."""
        return Passes(self.passes_per_step * inner.forwards, self.passes_per_step * inner.backwards)

    def memory(self, inner: Memory) -> Memory:
        """Add the gradients of all passes but the last."""
        return inner.plus(kept={"P": self.passes_per_step - 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Register hooks that see the gradient of every weight grow by one pass at a time."""
        self.sums_: dict[str, list[Tensor]] = {}
        self.chosen_: dict[str, Tensor] = {}
        self.handles_ = [
            weight.register_post_accumulate_grad_hook(self._watcher(name))  # type: ignore[no-untyped-call]
            for name, weight in run.params.items()
            if weight.requires_grad
        ]
        return optimizer

    def _watcher(self, name: str) -> Callable[[Tensor], None]:
        def note(weight: Tensor) -> None:
            assert weight.grad is not None
            sums = self.sums_.setdefault(name, [])
            if len(sums) < self.passes_per_step - 1:
                sums.append(weight.grad.detach().clone())
                return
            # Clipping comes between the last pass and the step, so what is chosen is chosen here.
            ends = [*sums, weight.grad.detach()]
            parts = [ends[0], *(after - before for before, after in itertools.pairwise(ends))]
            self.chosen_[name] = choose_entries(parts, self.share)
            del self.sums_[name]

        return note

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Make k passes; the gradient of each counts 1/k."""
        self.sums_.clear()
        self.chosen_.clear()
        before: Tensor | float = 0.0
        for _ in range(self.passes_per_step - 1):
            before = before + step.backward(inner(view, weight=1 / self.passes_per_step).loss)
        objective = inner(view, weight=1 / self.passes_per_step)
        return replace(objective, loss=before + objective.loss)

    def gradients(self, run: Run) -> None:
        """Leave the gradient's chosen entries only."""
        for name, chosen in self.chosen_.items():
            gradient = run.params[name].grad
            if gradient is not None and self.share < 1:
                gradient.mul_(chosen)
        self.chosen_.clear()

    def teardown(self, run: Run) -> None:
        """Remove the hooks."""
        for handle in getattr(self, "handles_", []):
            handle.remove()
