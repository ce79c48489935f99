"""Child-Tuning: only a sub-network is trained. F draws it anew at every step, D chooses it once from the task's data.

**In one sentence.** Gradients are masked: F's at random, with the rest scaled up; D's so that only those encoder
weights move that matter most to the task.

**Formula.** F: g̃ = g · m / p with m ~ Bernoulli(p) for each entry, fresh at every step, so that E[g̃] = g. D: F_i is
the mean over batches of (∂L_batch/∂θ_i)², the diagonal of the Fisher information; m_i = 1 where F_i reaches the (1 − p)
quantile of all encoder-layer weights together, ties kept; g̃ = g · m.

**Hyper-parameters.** `reserve_p` is p, the share kept: 0.3 in the official script; the author names 0.2 to 0.4 for F
and 0.1 to 0.3 for D, by task. F in [0.001, 1], since its masks meet p to 2⁻¹⁷ only; D in (0, 1] · `fisher` (D): `batch`
squares the gradient of each batch's mean loss (official code), `example` that of each example's loss, the empirical
Fisher information of textbooks, at one backward pass per example · `strict` (D): masked weights are spared weight decay
too and never change.

**Where it acts.** After clipping and before the optimiser's moments. D measures in `setup`, over one epoch in training
mode, and masks the encoder's layers only: embeddings, pooler, head, and what layers share outside themselves (DeBERTa's
relative positions and convolution) always train fully.

**Cost.** One forward and one backward pass per step. F makes one mask per tensor and drops it. D costs one epoch of
forward and backward passes before training; it keeps a boolean per encoder weight, and two float32 numbers per encoder
weight while it measures. `strict` keeps a copy of the encoder.

**Randomness drawn.** F: 16 bits per weight and step on a CPU, from its own stream. D: the order of the examples, and
dropout, from streams of its own; training draws what it would draw without D.

**Interactions.** After F the gradient's norm can exceed the clipping bound, as a rule by 1/√p. A masked weight still
moves by momentum in F, and by weight decay in both, as in the official code. `hype+child_tuning_d`: HyPe's noise is on
while D measures. `mixout+child_tuning_d`: Mixout is off then, as it starts after every setup. With
`--optimizer muon`, which makes the step of an entry from its whole matrix, only `strict` is left.

**Deviations from the paper and its code.**
1. Encoder layers are found by structure. The official rule, names that contain "layer", picks the same weights in BERT,
   RoBERTa, ELECTRA, XLNet, DeBERTa, ALBERT, DistilBERT and ModernBERT.
2. Where so many values tie, most likely at zero, that more than p + 5 % of the weights would be kept, the run fails
   with that reason; the official code trains on with a mask that masks little.
3. `fisher=example` and `strict` are additions.
4. The optimiser is the run's AdamW. The official one is transformers' former AdamW: it adds ε before the second
   moment's bias correction, decays after Adam's step, and spares norms by the name `LayerNorm.weight`, so that XLNet's
   decay.

**Source.** Xu et al., EMNLP 2021 (arXiv 2109.05687); code alibaba/AliceMind ChildTuning, RunxinXu/ChildTuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Parameter

from finetune_bench.errors import FinetuneBenchError
from finetune_bench.functional import bernoulli_mask
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_masked_steps, without_part
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.structure import layers
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Batch

# The share kept beyond reserve_p before D refuses the mask.
TIES_ALLOWED = 0.05


def mask_gradient(gradient: Tensor, p: float, generator: Generator) -> None:
    """Set each entry to 0 with probability 1 − p and divide the rest by p, in place.

    Args:
        gradient: the gradient, of any shape, on the generator's device.
        p: the share kept, in [2⁻¹⁷, 1]; 1 changes nothing.
        generator: the stream of the mask.
    """
    gradient.mul_(bernoulli_mask(gradient.shape, p, generator)).div_(p)


def mean_squares(gradients: Iterable[Sequence[Tensor]], clip: float) -> list[Tensor]:
    """Average squared gradients, each tensor clipped to a norm of `clip` by itself before it is squared.

    Args:
        gradients: one sequence of tensors per loss, one at least, all of the same shapes.
        clip: the largest norm of a tensor; inf for none.

    Returns:
        One tensor per tensor, in float32: squares of small numbers vanish in half precision.
    """
    sums: list[Tensor] = []
    count = 0
    for tensors in gradients:
        count += 1
        if not sums:
            sums = [torch.zeros_like(gradient, dtype=torch.float32) for gradient in tensors]
        for total, gradient in zip(sums, tensors, strict=True):
            clipped = gradient.float() * (clip / (gradient.float().norm() + 1e-6)).clamp(max=1)
            total.addcmul_(clipped, clipped)
    return [total.div_(count) for total in sums]


def quantile(values: np.ndarray, q: float) -> float:
    """Return the q-quantile with linear interpolation, of any number of values (torch.quantile refuses 16 million).

    Args:
        values: (n,); they are reordered in place.
        q: the share of the values below, in [0, 1].
    """
    position = (len(values) - 1) * q
    below = math.floor(position)
    above = min(below + 1, len(values) - 1)
    values.partition((below, above))
    return float(values[below]) + (float(values[above]) - float(values[below])) * (position - below)


def choose_masks(fisher: Mapping[str, Tensor], p: float) -> dict[str, Tensor]:
    """Mark the entries that reach the (1 − p) quantile of all entries together; ties are kept.

    Args:
        fisher: Fisher information by name, each of its parameter's shape.
        p: the share to keep, in (0, 1].

    Returns:
        Booleans by the same names, of the same shapes and devices.
    """
    together = torch.cat([values.reshape(-1) for values in fisher.values()]).cpu().numpy()
    threshold = quantile(together, 1 - p)
    return {name: values >= threshold for name, values in fisher.items()}


class ChildTuningF(Method):
    """Random gradient masks, fresh at every step."""

    name = "child_tuning_f"
    acts_on = "gradients"
    batch_layout = "unpadded_trimmed"

    reserve_p: float = parameter(
        0.3,
        interval="[0.001, 1]",
        neutral=1.0,
        search=Range(0.1, 0.9),
        help="share of each gradient kept per step (script)",
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse steps that masks of gradients don't mask."""
        return without_masked_steps(facts) if self.reserve_p < 1 else None

    def gradients(self, run: Run) -> None:
        """Mask every gradient with a fresh mask."""
        generator = run.generator(self.name)
        for weight in run.params.values():
            if weight.grad is not None:
                mask_gradient(weight.grad, self.reserve_p, generator)


class ChildTuningD(Method):
    """One gradient mask, from the Fisher information of the task."""

    name = "child_tuning_d"
    acts_on = "gradients"
    batch_layout = "unpadded_trimmed"

    reserve_p: float = parameter(
        0.3,
        interval="(0, 1]",
        neutral=1.0,
        search=Range(0.1, 0.9),
        help="share of the encoder's weights that train (script)",
    )
    fisher: str = parameter("batch", choices=("batch", "example"), help="what the squared gradients are of")
    strict: bool = parameter(False, help="spare masked weights from weight decay too")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Under `strict` it puts weights back after the step."""
        return ("weights after the step",) if self.strict else ()

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse models whose layers are not found, and steps that masks don't mask unless weights are put back."""
        if reason := without_part(facts, layers):
            return reason
        return without_masked_steps(facts) if self.reserve_p < 1 and not self.strict else None

    def memory(self, inner: Memory) -> Memory:
        """Add a boolean for each weight of the layers, and their copy under `strict`."""
        return inner.plus(kept={"P_layers": 1.25 if self.strict else 0.25})

    def setup(self, run: Run) -> None:
        """Measure the Fisher information and choose the masks."""
        weights = encoder_weights(run)
        was_training = run.model.training
        run.model.train()
        try:
            with run.own_randomness(self.name):
                squares = mean_squares(self._gradients(run, list(weights.values())), run.recipe.clip)
        finally:
            run.model.train(was_training)
        information = dict(zip(weights, squares, strict=True))
        if not all(bool(values.isfinite().all()) for values in squares):
            raise FinetuneBenchError(
                "Child-Tuning-D could not choose its weights: the loss or its gradient was not finite before training."
            )
        self.masks_ = choose_masks(information, self.reserve_p)
        kept = sum(int(mask.sum()) for mask in self.masks_.values())
        self.kept_ = kept / sum(mask.numel() for mask in self.masks_.values())
        if self.kept_ > self.reserve_p + TIES_ALLOWED:
            raise FinetuneBenchError(
                f"Child-Tuning-D would keep {self.kept_:.0%} of the encoder's weights where reserve_p asks for "
                f"{self.reserve_p:.0%}: too many have the same Fisher information, most likely zero. "
                "Give it more training examples, or train in fp32."
            )
        run.trained |= self.masks_
        # No later setup changes weights, so the masked ones can be put back from here at any step.
        self.start_ = {name: weights[name].detach().clone() for name in weights if self.strict}

    def _gradients(self, run: Run, weights: list[Parameter]) -> Iterator[list[Tensor]]:
        for batch in run.batches("fisher"):
            for part in cut(batch, 1) if self.fisher == "example" else [batch]:
                yield mean_gradient(run, part, weights)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Log the share of the encoder's weights that is kept."""
        objective = inner(view)
        return replace(objective, logs={**objective.logs, "kept": self.kept_})

    def gradients(self, run: Run) -> None:
        """Mask the gradients of the encoder's layers."""
        for name, mask in self.masks_.items():
            gradient = run.params[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """Put the masked weights back, under `strict`."""
        for name, start in self.start_.items():
            weight = run.params[name]
            weight.copy_(torch.where(self.masks_[name], weight, start))


def encoder_weights(run: Run) -> dict[str, Parameter]:
    """Return the trainable weights of the encoder's layers, by canonical name, in the order of `run.params`.

    Raises:
        FinetuneBenchError: there are none, or one has no canonical name and would train without a mask.
    """
    inside = {id(weight) for layer in layers(run.model) for weight in layer.parameters() if weight.requires_grad}
    weights = {name: weight for name, weight in run.params.items() if id(weight) in inside}
    if not weights or len(weights) != len(inside):
        raise FinetuneBenchError(
            f"Child-Tuning-D can mask {len(weights)} of {len(inside)} trainable tensors in the encoder's layers by "
            "name."
        )
    return weights


def mean_gradient(run: Run, batch: Batch, weights: list[Parameter]) -> list[Tensor]:
    """Compute the gradient of a batch's mean loss, in the recipe's micro-batches, so that memory is training's."""
    sums: list[Tensor] = []
    for part in cut(batch, run.recipe.batch_size // run.recipe.accumulation):
        loss = run.loss(part) * (len(part) / len(batch))
        gradients = run.grad(loss, weights)
        sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)] if sums else gradients
    return sums


def cut(batch: Batch, size: int) -> list[Batch]:
    """Cut a batch into pieces of `size` examples; the last may be smaller."""
    starts = range(0, len(batch), size)
    return [
        Batch(
            {key: values[i : i + size] for key, values in batch.inputs.items()},
            batch.labels[i : i + size],
            batch.lengths and batch.lengths[i : i + size],
        )
        for i in starts
    ]
