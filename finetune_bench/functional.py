"""These functions on tensors are pure, and shared by methods and tasks. They compute losses in float32 at least."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from finetune_bench.errors import FinetuneBenchError


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the batch mean of −log p(label).

    Args:
        logits: what the head puts out, (batch, classes).
        labels: class ids, (batch,), int64.

    Returns:
        A 0-dim tensor.
    """
    return F.cross_entropy(_full_precision(logits), labels)


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Return −log p(label) of every example, or −Σ q·log p for probabilities q.

    Args:
        logits: what the head puts out, (batch, classes).
        labels: class ids, (batch,), int64, or probabilities, (batch, classes).

    Returns:
        (batch,).
    """
    targets = _full_precision(labels) if labels.is_floating_point() else labels
    return F.cross_entropy(_full_precision(logits), targets, reduction="none")


def squared_errors(predicted: Tensor, target: Tensor) -> Tensor:
    """Return (predicted − target)² of every example, (batch,), of numbers as `mean_squared_error` takes them."""
    return F.mse_loss(_full_precision(predicted).reshape(-1), _full_precision(target).reshape(-1), reduction="none")


def mean_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the batch mean of (predicted − target)².

    Args:
        predicted: the predictions, (batch, 1) or (batch,).
        target: the numbers to be met, (batch, 1) or (batch,).

    Returns:
        A 0-dim tensor. A batch of one is fine.
    """
    return F.mse_loss(_full_precision(predicted).reshape(-1), _full_precision(target).reshape(-1))


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the batch mean of KL(p‖q) + KL(q‖p) = Σ (p − q)·(log p − log q); gradients flow to both sides.

    Args:
        p: logits, (batch, classes).
        q: logits, (batch, classes).

    Returns:
        A 0-dim tensor. Exactly 0 for identical logits, symmetric to the last bit.
    """
    log_p, log_q = _full_precision(p).log_softmax(-1), _full_precision(q).log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Return the batch mean of KL(p‖q) = Σ p · (log p − log q), 0-dim; both are logits, (batch, classes)."""
    log_p, log_q = log_probabilities(p), log_probabilities(q)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def log_probabilities(logits: Tensor) -> Tensor:
    """Return log p of every class, (batch, classes), in float32 at least."""
    return _full_precision(logits).log_softmax(-1)


def weighted(losses: Tensor, weights: Tensor, whose: str) -> Tensor:
    """Multiply losses of single examples by weights.

    Args:
        losses: (batch,).
        weights: (batch,), at least 0.
        whose: `own`; `shared`, which gives every loss the mean weight, without gradient: the same scale
            without selection; `normalised`, which divides by that mean: the selection at the scale of the losses.

    Returns:
        (batch,).
    """
    mean = weights.detach().mean()
    if whose == "shared":
        return mean * losses
    if whose == "normalised":
        return weights / mean.clamp_min(torch.finfo(mean.dtype).tiny) * losses
    return weights * losses


def weigh(loss: Tensor, weight: float | Tensor) -> Tensor:
    """Multiply a loss by a weight.

    Args:
        loss: a 0-dim tensor.
        weight: a number or a 0-dim tensor.

    Returns:
        A 0-dim tensor; at a weight of 1 the loss itself.

    Raises:
        FinetuneBenchError: the weight is a tensor of several numbers, which would make several losses of one.
    """
    if isinstance(weight, Tensor):
        if weight.ndim:
            raise FinetuneBenchError(
                "The weight of a loss must be a number or a 0-dim tensor; a method gave a tensor of the shape "
                f"{tuple(weight.shape)}. Give weights of single examples in `losses`."
            )
        return loss * weight
    if weight == 1:
        return loss
    # A third is rounded and three is not: K shares of 1/K are then the mean of K, to the last bit.
    if 0 < weight < 1 and (1 / weight).is_integer():
        return loss / (1 / weight)
    return loss * weight


def bernoulli_mask(shape: torch.Size, p: float, generator: Generator) -> Tensor:
    """Draw a mask that keeps each entry with probability p, on the generator's device.

    On a CPU 16 random bits decide an entry, four entries to a 64-bit draw: several times faster than one draw each; p
    is met to 2⁻¹⁷.

    Args:
        shape: the mask's shape.
        p: the probability, in [2⁻¹⁷, 1].
        generator: the stream to draw from; the mask lies on its device.

    Returns:
        A bool tensor of that shape.
    """
    device = generator.device
    if device.type != "cpu":
        return torch.empty(shape, device=device).bernoulli_(p, generator=generator).bool()
    entries = shape.numel()
    bits = torch.empty(-(-entries // 4), dtype=torch.int64)
    bits.random_(-(2**63), None, generator=generator)
    return (bits.view(torch.int16)[:entries] <= round(p * 2**16) - 2**15 - 1).view(shape)
