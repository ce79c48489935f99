"""Pure functions on tensors that several methods or tasks share. Losses are computed in float32 at least."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def _full_precision(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Batch mean of −log p(label).

    Args:
        logits: (batch, classes).
        labels: (batch,), int64.

    Returns:
        0-dim.
    """
    return F.cross_entropy(_full_precision(logits), labels)


def mean_squared_error(predicted: Tensor, target: Tensor) -> Tensor:
    """Batch mean of (predicted − target)².

    Args:
        predicted: (batch, 1) or (batch,).
        target: (batch, 1) or (batch,).

    Returns:
        0-dim. A batch of one is fine.
    """
    return F.mse_loss(_full_precision(predicted).reshape(-1), _full_precision(target).reshape(-1))


def symmetric_kl(p: Tensor, q: Tensor) -> Tensor:
    """Batch mean of KL(p‖q) + KL(q‖p) = Σ (p − q)·(log p − log q), gradients flowing to both sides.

    Args:
        p: (batch, classes), logits.
        q: (batch, classes), logits.

    Returns:
        0-dim. Exactly 0 for identical logits, symmetric to the last bit.
    """
    log_p, log_q = _full_precision(p).log_softmax(-1), _full_precision(q).log_softmax(-1)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()


def bernoulli_mask(shape: torch.Size, p: float, generator: Generator) -> Tensor:
    """A mask that keeps each entry with probability p, drawn on the generator's device.

    On a CPU 16 random bits decide an entry, four entries to a 64-bit draw: several times faster than one draw each; p
    is met to 2⁻¹⁷.

    Args:
        shape: of the mask.
        p: in [2⁻¹⁷, 1].
        generator: the stream drawn from; the mask lies on its device.

    Returns:
        bool, of that shape.
    """
    device = generator.device
    if device.type != "cpu":
        return torch.empty(shape, device=device).bernoulli_(p, generator=generator).bool()
    entries = shape.numel()
    words = torch.empty(-(-entries // 4), dtype=torch.int64)
    words.random_(-(2**63), None, generator=generator)
    return (words.view(torch.int16)[:entries] <= round(p * 2**16) - 2**15 - 1).view(shape)
