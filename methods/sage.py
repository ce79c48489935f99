"""SAGE: a learning rate for each weight, by how sensitive the loss is to it.

**In one sentence.** Weights whose sensitivity still changes are not trained enough and take larger steps; sensitive
ones that have settled take smaller ones.

**Formula.** I_t = |θ · g| for each entry; Î_t = β₀ · Î_{t−1} + (1 − β₀) · I_t, corrected for its start by 1 − β₀^t; U_t
= |I_t − Î_t|. The entry's learning rate is η_t · min(U_t / (Î_t + e), cap), with e = Adam's epsilon squared. For the
rest AdamW: θ ← θ · (1 − η_t · decay) − rate · m̂ / (√v̂ + ε).

**Hyper-parameters.** `beta0` is β₀ in [0, 1), 0.75 in the official code; 0.6 to 0.9 is useful · `cap`, the largest
factor, none by default as in the official code; the factor is then bounded by the data only. The official runs use 2 to
5 times the usual learning rate.

**Where it acts.** In the optimiser's step, on the weights and biases of the linear layers within the encoder's layers
(and on XLNet's attention tensors). Embeddings, norms, pooler and head are left to AdamW.

**Cost.** One forward and one backward pass; one number more per weight of those layers, and some passes over them.

**Randomness drawn.** None.

**Interactions.** It sees the gradient that Adam sees: clipped, and masked by `child_tuning_d`; masked entries have a
sensitivity of 0 and don't move. `layerwise_lr_decay`, `l2_sp` and `prior_decay` keep their meaning. With `sam` the
sensitivity is that of the gradient up there. Refused: `child_tuning_f`, whose masks would be read as insensitivity;
`recadam`, which owns the update rule as well; fp16, where a step may be left out after the sensitivity was taken.

**No neutral setting.** No β₀ makes every factor 1; tests hold the rule, with its factor set to 1, against AdamW.

**Deviations from the paper and its code.**
1. The paper adds e to numerator and denominator; this follows the official AdamW code, e = ε² in the denominator only.
   In it the first step moves nothing, since Î₁ = I₁ after the correction.
2. Layers are chosen by the type of module. The official name filter fits BERT, RoBERTa, ELECTRA and DeBERTa, and no
   weight of XLNet or ModernBERT.
3. `cap` is an addition: the factor has no bound where Î is tiny.
4. What is scaled is the step of the run's AdamW. The official one is a former AdamW: it adds ε before the second
   moment's bias correction, decays after Adam's step, and spares norms by the name `LayerNorm.weight`, so that XLNet's
   decay.

**Source.** Liang et al., ICLR 2022 (arXiv 2202.02664); code cliang1453/SAGE.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Run, State
from finetune_bench.model.structure import is_linear, layers
from finetune_bench.parameters import Range, parameter


def scale_by_sensitivity(sensitivity: Tensor, average: Tensor, e: float, cap: float | None) -> Tensor:
    """Compute the factor of the learning rate, U / (Î + e).

    Args:
        sensitivity: I, any shape.
        average: Î, corrected for its start, of that shape.
        e: keeps 0/0 at 0.
        cap: the largest factor; None for none.
    """
    factor = (sensitivity - average).abs_().div_(average + e)
    return factor if cap is None else factor.clamp_(max=cap)


def sensitive_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return weights and biases of the linear layers within the encoder's layers, and XLNet's attention tensors."""
    chosen: dict[nn.Parameter, None] = {}
    for layer in layers(model):
        for module in layer.modules():
            # Told by its name: importing the class takes seconds.
            if is_linear(module) or type(module).__name__ == "XLNetRelativeAttention":
                chosen |= dict.fromkeys(module.parameters(recurse=False))
    return list(chosen)


class SAGE(Method):
    """Learning rates by sensitivity."""

    name = "sage"
    acts_on = "gradients"
    batch_layout = "unpadded_trimmed"
    needs_adamw = "it makes the steps of some weights itself, by AdamW's moments"

    beta0: float = parameter(
        0.75, interval="[0, 1)", search=Range(0.5, 0.9), help="β₀: memory of the sensitivity's average (official code)"
    )
    cap: float | None = parameter(None, interval="(0, inf)", help="largest factor of a learning rate (none: unbounded)")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It makes the steps of some weights itself."""
        return ("update rule",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose layers are not found, random masks of gradients, and fp16."""
        if reason := without_part(facts, layers):
            return reason
        for partner in facts.partners:
            if partner.name == "child_tuning_f":
                return "child_tuning_f's random masks would be read as insensitivity"
        if facts.dtype == torch.float16:
            return "under fp16 a step may be left out after the sensitivity was taken; use fp32 or bf16"
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one average of the sensitivity."""
        return inner.plus(kept={"P_dense": 1})

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Make the steps of the chosen weights by this method's rule."""
        chosen = dict.fromkeys(weight for weight in sensitive_weights(run.model) if weight.requires_grad)
        self.averages_ = {weight: torch.zeros_like(weight) for weight in chosen}
        self.steps_ = 0
        held: dict[Tensor, Tensor] = {}

        def hide(optimizer: Optimizer, *_: Any) -> None:
            """Take the gradients away: AdamW leaves weights without one alone."""
            for weight in chosen:
                if weight.grad is not None:
                    held[weight], weight.grad = weight.grad, None

        def update(optimizer: Optimizer, *_: Any) -> None:
            """Make the step of those weights by the rule of this method."""
            self.steps_ += 1
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    if weight in held:
                        weight.grad = held.pop(weight)
                        self.update_weight(weight, group, optimizer.state[weight])

        optimizer.register_step_pre_hook(hide)
        optimizer.register_step_post_hook(update)
        return optimizer

    def state(self) -> State:
        """Return the averages and the count of steps."""
        return {"steps": self.steps_} | {str(index): average for index, average in enumerate(self.averages_.values())}

    def load_state(self, state: State) -> None:
        """Take them back."""
        self.steps_ = state["steps"]
        for index, average in enumerate(self.averages_.values()):
            average.copy_(state[str(index)])

    @torch.no_grad()
    def update_weight(self, weight: nn.Parameter, group: dict[str, Any], state: dict[str, Tensor]) -> None:
        """Make one step of one tensor, in place; `state` holds its two moments, as AdamW's does."""
        gradient, (beta1, beta2) = weight.grad, group["betas"]
        assert gradient is not None
        if not state:
            state |= {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
            # AdamW asks for it when it loads a state; nothing else does.
            state["step"] = torch.zeros(())
        sensitivity = (weight * gradient).abs_()
        average = self.averages_[weight].lerp_(sensitivity, 1 - self.beta0)
        corrected = average / (1 - self.beta0**self.steps_)
        factor = scale_by_sensitivity(sensitivity, corrected, group["eps"] ** 2, self.cap)
        first = state["exp_avg"].lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        spread = (second / (1 - beta2**self.steps_)).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.addcmul_(first / spread, factor, value=-group["lr"] / (1 - beta1**self.steps_))
