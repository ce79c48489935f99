"""Mixout: dropout that replaces weights by their pre-trained values in the place of zero.

**In one sentence.** In every training forward pass a random part of each weight matrix is swapped for its pre-trained
values, with a correction that keeps the expected weights; that holds the model near its pre-trained point.

**Formula.** W̃ = U + m · (W − U) / (1 − p), with U the pre-trained weights and m = 0 with probability p, else 1; E[W̃]
= W. One m for each input column of a matrix: all weights that leave one neuron are swapped together. p = 1 gives U.

**Hyper-parameters.** `p`, the probability of replacement, in [0, 1], 0.9 in the official example; 0.7 to 0.9 is usual ·
`include_head`: mix the head too, whose anchor is its own random start · `reference_gradient`: the official backward
pass, see deviation 1 · `dropout`: `all_off` by default, as in the official example: Mixout takes its place.

**Where it acts.** In every training forward pass, on each linear layer of the body (a pooler inside it included), and
on XLNet's attention weights, which are bare tensors. For the length of the pass the mixed matrix stands in the module's
attribute; the parameter, its name and its value are never touched. In evaluation, and until every method's setup is
done, the model uses W.

**Cost.** One forward and one backward pass; one copy of the pre-trained weights, and the mixed weights until the
backward pass. One pass over those weights per forward pass.

**Randomness drawn.** One number per input column of every mixed matrix and pass, from the method's own stream.

**Interactions.** Passes without perturbations use W. Methods with two forward passes draw two masks, and their
divergence then measures the masks. Weight decay still pulls W to zero, not to U; a study of Mixout may want it off.
`child_tuning_d+mixout`: the Fisher information is measured during setup, hence on W. `noisytune+mixout`: the noise
moves W, not U. Gradient checkpointing is refused: it computes a layer again in the backward pass, when the mixed
weights are gone.

**Deviations from the paper and its code.**
1. The gradient is that of the formula. The official backward pass multiplies by m and leaves 1/(1 − p) out, so its
   gradient is a tenth of ours at p = 0.9: Adam hides that, clipping does not. `reference_gradient` does the same.
2. The official form [m·W + (1 − m)·U − p·U] / (1 − p) is equal on paper, but divides a rounding error by 1 − p and does
   not give W back where W = U.
3. All linear layers of the body are mixed, as in the official example, not only those after a dropout. The head is left
   out by default: it has no pre-trained values. DeBERTa-v2's convolution is not a linear layer and is left out.
4. A shared layer (ALBERT) has one mask per pass, not one per call: its weights are one matrix.

**Source.** Lee, Cho and Kang, ICLR 2020 (arXiv 1909.11299); code bloodwass/mixout.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import body
from finetune_bench.parameters import Range, parameter


def mix_weights(weight: Tensor, anchor: Tensor, keep: Tensor, p: float, *, reference_gradient: bool = False) -> Tensor:
    """Mix weights with their anchor: U + m·(W − U)/(1 − p).

    Args:
        weight: W; gradients flow to it.
        anchor: U, of W's shape.
        keep: m, zeros and ones in W's dtype, broadcastable to W's shape.
        p: the probability with which entries of m are zero, in [0, 1].
        reference_gradient: whether the backward pass multiplies by m in the place of m/(1 − p).

    Returns:
        The mixed weights, of W's shape; exactly U where W = U.
    """
    scale = keep / (1 - p) if p < 1 else torch.zeros_like(keep)
    if reference_gradient:
        mixed: Tensor = _MixWithReferenceGradient.apply(  # type: ignore[no-untyped-call]
            weight, anchor, scale, keep
        )
        return mixed
    return torch.addcmul(anchor, weight - anchor, scale)


class _MixWithReferenceGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, anchor: Tensor, scale: Tensor, keep: Tensor) -> Tensor:
        ctx.save_for_backward(keep)
        return torch.addcmul(anchor, weight - anchor, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (keep,) = ctx.saved_tensors
        return gradient * keep, None, None, None


def column_shape(owner: nn.Module, attribute: str, shape: torch.Size) -> torch.Size | None:
    """Return the shape of the mask with one entry per input column; None where the tensor is no linear layer's weight.

    Args:
        owner: the module that holds the tensor.
        attribute: the tensor's name in it.
        shape: the tensor's shape.
    """
    if isinstance(owner, nn.Linear) and attribute == "weight":
        return torch.Size((1, shape[1]))
    # Told by their names: importing the classes takes seconds. GPT-2's linear layer has its weight the other way round.
    if type(owner).__name__ == "Conv1D" and attribute == "weight":
        return torch.Size((shape[0], 1))
    # XLNet's tensors are (width, heads, width of a head).
    if type(owner).__name__ == "XLNetRelativeAttention":
        if attribute in ("q", "k", "v", "r"):
            return torch.Size((shape[0], 1, 1))
        # The tensor that leads from the heads back to the width.
        if attribute == "o":
            return torch.Size((1, *shape[1:]))
    return None


@dataclass(frozen=True)
class _Target:
    name: str
    owner: nn.Module
    attribute: str
    weight: Tensor
    anchor: Tensor
    columns: torch.Size


class Mixout(Method):
    """Weights mixed with their pre-trained values in every training forward."""

    name = "mixout"
    acts_on = "weights"
    batch_layout = "unpadded_trimmed"
    phase = Phase.WRAP
    reads_pretrained = True

    p: float = parameter(
        0.9,
        interval="[0, 1]",
        neutral=0.0,
        search=Range(0.1, 0.95),
        help="probability of replacement (official example)",
    )
    include_head: bool = parameter(False, help="mix the head too")
    reference_gradient: bool = parameter(False, help="the official backward pass, without 1/(1 − p)")
    dropout: Dropout = parameter(Dropout.ALL_OFF, help="what is asked of the model's dropout")

    @property
    def stochastic(self) -> bool:
        """Say whether passes differ: at 0 and at 1 all are the same."""
        return 0 < self.p < 1

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse gradient checkpointing."""
        if facts.recipe.gradient_checkpointing and self.p > 0:
            return (
                "gradient checkpointing runs each layer again in the backward pass, when the mixed weights are gone, "
                "and the gradient would be wrong"
            )
        named = body(facts.skeleton).named_parameters()
        owners = ((body(facts.skeleton).get_submodule(name.rpartition(".")[0]), name, weight) for name, weight in named)
        if all(column_shape(owner, name.rpartition(".")[2], weight.shape) is None for owner, name, weight in owners):
            return f"{type(facts.skeleton).__name__} has no linear layer in its body"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say where dropout stays on."""
        if facts.active_dropout and self.p > 0:
            return "dropout stays on beside it, which is not the published method: dropout=all_off is"
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights, the mixed ones and their masks."""
        return inner.plus(saved={"P_linear": 1, "C": 1}, kept={"P": 1})

    def setup(self, run: Run) -> None:
        """Find the matrices to mix."""
        self.mixing_ = False
        in_body = {id(weight) for weight in body(run.model).parameters()}
        self.targets_ = []
        for name, weight in run.params.items():
            path, _, attribute = name.rpartition(".")
            owner = run.model.get_submodule(path)
            columns = column_shape(owner, attribute, weight.shape)
            if columns is None or not (self.include_head or id(weight) in in_body):
                continue
            if getattr(owner, attribute) is not weight:
                raise FinetuneBenchError(f"Mixout can't mix '{name}': another method has re-parametrised it.")
            self.targets_.append(_Target(name, owner, attribute, weight, run.pretrained[name].to(weight), columns))
        if not self.targets_:
            raise FinetuneBenchError(f"Mixout found no linear layer in {type(run.model).__name__}.")

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Begin to mix."""
        # Not before: what other methods measure in their setup is measured on W.
        self.mixing_ = self.p > 0
        return optimizer

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Put mixed matrices in the modules' attributes."""
        if not self.mixing_:
            yield
            return
        sizes = [target.columns.numel() for target in self.targets_]
        drawn = torch.empty(sum(sizes), device=run.device).bernoulli_(1 - self.p, generator=run.generator(self.name))
        try:
            for target, columns in zip(self.targets_, torch.split(drawn, sizes), strict=True):
                keep = columns.view(target.columns).to(target.weight.dtype)
                weight = run.weights.get(target.name, target.weight)
                mixed = mix_weights(weight, target.anchor, keep, self.p, reference_gradient=self.reference_gradient)
                # An instance attribute hides the registered parameter from the module's own code and from nobody else.
                vars(target.owner)[target.attribute] = mixed
            yield
        finally:
            for target in self.targets_:
                vars(target.owner).pop(target.attribute, None)
