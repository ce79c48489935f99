"""The optimisers beside AdamW are here: Lion, and Muon for the layers' matrices with AdamW for all other weights."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import AdamW, Muon, Optimizer

from finetune_bench.model.structure import layers, undecayed


class Lion(Optimizer):
    """Lion takes a step of the whole rate in each entry, in the direction of a momentum's sign.

    Chen et al. 2023 (arXiv 2302.06675): θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ), then m ← β₂ m + (1 − β₂) g. It
    keeps one number per weight. An entry that never had a gradient only decays.

    Args:
        groups: groups of parameters.
        lr: η, of groups without a rate of their own.
        betas: β₁ and β₂.
        weight_decay: λ, of groups without a decay of their own.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step of every parameter that has a gradient."""
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                direction = state["momentum"].lerp(weight.grad, 1 - beta1).sign_()
                weight.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction, alpha=group["lr"])
                state["momentum"].lerp_(weight.grad, 1 - beta2)


class MuonAndAdamW(Optimizer):
    """A MuonAndAdamW is torch's Muon and AdamW as one, with the groups of both: those with a momentum are Muon's.

    Both parts share its state and its groups, so that methods, schedulers and checkpoints see one optimiser.

    Args:
        matrices: what Muon steps; there may be groups of settings.
        groups: groups of parameters that AdamW steps.
        lr: the rate of both. Muon's steps are scaled to the size of AdamW's, 0.2 per entry at rate 1 whatever a
            matrix's shape ("match_rms_adamw", Liu et al. 2025, arXiv 2502.16982): its own scale would need another
            rate than the weights beside it, and a recipe has one.
        weight_decay: Muon's; AdamW's stands in its groups.
        betas: AdamW's.
        eps: AdamW's.
    """

    def __init__(
        self,
        matrices: list[Parameter],
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self._muon = Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self._adamw = AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make one step of every parameter that has a gradient."""
        of_muon = [group for group in self.param_groups if "momentum" in group]
        of_adamw = [group for group in self.param_groups if "momentum" not in group]
        for part, groups in ((self._muon, of_muon), (self._adamw, of_adamw)):
            # Each time: methods split groups, and a checkpoint that is read replaces both groups and state.
            part.param_groups, part.state = groups, self.state
            part.step()  # type: ignore[no-untyped-call]


def muon_matrices(model: nn.Module, others: Collection[Parameter] = ()) -> list[Parameter]:
    """Return the matrices that Muon is for: those within the layers that train, adapters' among them.

    Embeddings, norms, biases (also XLNet's, which have two axes) and tensors of more axes are none of them; neither is
    what lies outside the layers, as a pooler and the head.

    Args:
        model: the classifier.
        others: weights that a method put in and that are no matrices, whatever their axes.

    Raises:
        ModelError: the layers are not found.
    """
    spared = undecayed(model)
    left_out = {weight for name, weight in model.named_parameters() if name in spared} | set(others)
    chosen: dict[Parameter, None] = {}
    for layer in layers(model):
        for module in layer.modules():
            if not isinstance(module, nn.Embedding):
                chosen |= dict.fromkeys(module.parameters(recurse=False))
    return [weight for weight in chosen if weight.requires_grad and weight.ndim == 2 and weight not in left_out]
