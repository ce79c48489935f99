"""Without padding a batch is one row of real tokens, and this file lets every text attend within itself.

On the CPU a text is a call of its own. On an accelerator many small kernels would cost more than padding does here
alone, so there all texts are padded for one call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from finetune_bench import device as devices


@dataclass(frozen=True)
class Unpadding:
    """An unpadding says where a batch's real tokens are.

    Attributes:
        lengths: how many tokens each sequence has.
        tokens: (tokens,), positions of the real tokens in the flattened padded batch.
        positions: (batch · longest,), the token at each of those positions; padding has its sequence's first token.
        mask: (batch, 1, 1, longest), true for real tokens.
    """

    lengths: tuple[int, ...]
    tokens: Tensor
    positions: Tensor
    mask: Tensor

    def for_tokens(self, values: Tensor) -> Tensor:
        """Give every real token what its sequence has: (batch, …) → (1, tokens, …)."""
        longest = self.mask.shape[-1]
        return values.index_select(0, self.tokens.div(longest, rounding_mode="floor"))[None]


# The unpadding of the pass that is running; empty where its batch is padded.
running: list[Unpadding] = []


def make_unpadding(lengths: Sequence[int], device: torch.device) -> Unpadding:
    """Make the unpadding of a batch padded at its end, on the host, so that no device is waited for."""
    sizes = torch.tensor(lengths)
    column = torch.arange(int(sizes.max()))
    mask = column < sizes[:, None]
    starts = (sizes.cumsum(0) - sizes)[:, None]
    positions = torch.where(mask, starts + column, starts)
    tokens = mask.flatten().nonzero().flatten()
    return Unpadding(
        tuple(lengths),
        devices.put(tokens, device),
        devices.put(positions.flatten(), device),
        devices.put(mask[:, None, None, :], device),
    )


@dataclass(frozen=True)
class Pattern:
    """A Pattern is a limit of attention within a text, and a bias on its scores.

    Attributes:
        causal: whether a token sees itself and those before it only.
        window: how many of them it sees, itself included; None for all.
        bias: (1, heads, longest, longest), which is added to the scores of every text, from its first token on.
    """

    causal: bool = False
    window: int | None = None
    bias: Tensor | None = None

    def of(self, length: int, device: torch.device) -> Tensor | None:
        """Return which tokens see which in such a text, (length, length); None where `causal` says it all."""
        if self.window is None or length <= self.window:
            return None
        return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - self.window)


ALL = Pattern()

# Query, key and value, each (1, heads, tokens, width).
Parts = tuple[Tensor, Tensor, Tensor]


def attend_within_texts(parts: Parts, unpadding: Unpadding, pattern: Pattern = ALL, **options: Any) -> Tensor:
    """Compute attention in the way that suits the device; returns (1, heads, tokens, width)."""
    way = attend_one_by_one if parts[0].device.type == "cpu" else attend_padded
    return way(parts, unpadding, pattern, **options)


def attend_one_by_one(parts: Parts, unpadding: Unpadding, pattern: Pattern = ALL, **options: Any) -> Tensor:
    """Attend in one call per sequence; returns (1, heads, tokens, width)."""
    queries, keys, values = (torch.split(states, list(unpadding.lengths), 2) for states in parts)
    pieces = zip(queries, keys, values, _masks(parts[0], unpadding, pattern), strict=True)
    return torch.cat(
        [
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=pattern.causal and mask is None, **options
            )
            for q, k, v, mask in pieces
        ],
        2,
    )


def _masks(states: Tensor, unpadding: Unpadding, pattern: Pattern) -> Iterator[Tensor | None]:
    """Yield the mask of every text; texts of one length share it, and so the backward pass through its bias."""
    of_length: dict[int, Tensor | None] = {}
    for length in unpadding.lengths:
        if length not in of_length:
            if pattern.bias is not None:
                of_length[length] = pattern.bias[:, :, :length, :length]
            else:
                of_length[length] = pattern.of(length, states.device)
        yield of_length[length]


def attend_padded(parts: Parts, unpadding: Unpadding, pattern: Pattern = ALL, **options: Any) -> Tensor:
    """Attend in one call for all sequences, on padded views; returns (1, heads, tokens, width)."""
    query, key, value = (_pad(states, unpadding) for states in parts)
    mask = unpadding.mask
    if pattern.causal:
        longest = mask.shape[-1]
        seen = pattern.of(longest, mask.device)
        if seen is None:
            seen = torch.ones(longest, longest, dtype=torch.bool, device=mask.device).tril()
        # What is padding attends to itself: without any token that it sees, its gradients would not be finite.
        mask = (mask & seen) | torch.eye(longest, dtype=torch.bool, device=mask.device)
    if pattern.bias is not None:
        mask = pattern.bias.masked_fill(~mask, float("-inf"))
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, **options)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, unpadding.tokens).transpose(0, 1)[None]


def _pad(states: Tensor, unpadding: Unpadding) -> Tensor:
    """Pad (1, heads, tokens, width) to (batch, heads, longest, width)."""
    _, heads, _, width = states.shape
    wide = states[0].transpose(0, 1).index_select(0, unpadding.positions)
    return wide.view(len(unpadding.lengths), -1, heads, width).transpose(1, 2)
