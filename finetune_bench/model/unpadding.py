"""An unpadded pass computes no padding: between the embeddings and the head a batch is one row of real tokens.

A hook on the first layer drops the padding, (batch, seq, dim) → (1, tokens, dim); one on the last layer puts zeros in
its place for the pooler and the head. In between, linear layers, norms and dropout see real tokens only, and attention,
registered with transformers under `NAME`, sees each sequence by itself. The model's own code is not touched. What real
tokens come to is what they come to with padding, but for rounding: padding never reached them. Random draws have other
shapes, so that with dropout the two layouts are two runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from finetune_bench import device as devices
from finetune_bench.model.structure import layers
from finetune_bench.recipe import BATCH_LAYOUTS

NAME = "finetune_bench_unpadded"
# Models with positions added below their layers, one mask for all layers, and attention through the interface.
MODEL_TYPES = ("bert", "distilbert", "electra", "roberta", "camembert", "xlm-roberta")


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


def furthest(config: Any) -> str:
    """Return the furthest batch layout that a model of this configuration can do."""
    return BATCH_LAYOUTS[-1] if config.model_type in MODEL_TYPES else BATCH_LAYOUTS[0]


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


# The unpadding of the pass that is running.
_current: list[Unpadding] = []


@contextmanager
def unpadded(model: nn.Module, unpadding: Unpadding) -> Iterator[None]:
    """Compute no padding in one forward pass inside, of a model under `prepare`."""
    runs = layers(model)
    shape: list[torch.Size] = []

    def drop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        shape.append(hidden.shape)
        kept = hidden.flatten(0, 1).index_select(0, unpadding.tokens)[None]
        return ((kept, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": kept})

    def put_back(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        batch, sequence, dim = shape.pop()
        full = hidden.new_zeros(batch * sequence, dim).index_copy(0, unpadding.tokens, hidden[0])
        full = full.view(batch, sequence, dim)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    _current.append(unpadding)
    handles = [
        runs[0].register_forward_pre_hook(drop, with_kwargs=True, prepend=True),
        runs[-1].register_forward_hook(put_back),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        _current.pop()


def prepare_for(model: nn.Module, device: torch.device, batch_layout: str) -> None:
    """Let a model attend through this file where its batch layout asks for it, or its device.

    On an accelerator padded batches ask for it, too: the library's own mask looks whether there is any padding, for
    which the host waits in every pass.
    """
    if batch_layout != "padded" or (device.type != "cpu" and _attends_by_library(model)):
        prepare(model)


def _attends_by_library(model: nn.Module) -> bool:
    config: Any = model.config
    return bool(config._attn_implementation == "sdpa")


def prepare(model: nn.Module) -> None:
    """Let a model attend through this file; outside `unpadded` that is the library's own attention."""
    # Here and below: importing transformers takes seconds, and only unpadded runs need it.
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, make_mask)
    model.set_attn_implementation(NAME)  # type: ignore[operator]


def make_mask(*args: Any, **kwargs: Any) -> Any:
    """Make the library's mask, or none in an unpadded pass.

    On an accelerator there always is one: to leave it out where nothing is padded is to look at the padding.
    """
    from transformers.masking_utils import sdpa_mask

    if _current:
        return None
    padding = kwargs.get("attention_mask")
    if padding is not None and padding.device.type != "cpu":
        kwargs |= {"allow_is_bidirectional_skip": False, "allow_is_causal_skip": False}
    return sdpa_mask(*args, **kwargs)


def attend(  # noqa: PLR0917 — the library's own order
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within each sequence; query, key and value are (1, heads, tokens, width) in an unpadded pass."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not _current:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    unpadding = _current[-1]
    parts = query, key, value
    if query.device.type == "cpu":
        mixed = attend_one_by_one(parts, unpadding, dropout_p=dropout, scale=scaling)
    else:
        # On an accelerator many small kernels would cost more than padding does here alone.
        mixed = attend_padded(parts, unpadding, dropout_p=dropout, scale=scaling)
    return mixed.transpose(1, 2), None


# Query, key and value, each (1, heads, tokens, width).
Parts = tuple[Tensor, Tensor, Tensor]


def attend_one_by_one(parts: Parts, unpadding: Unpadding, **options: Any) -> Tensor:
    """Attend in one call per sequence; returns (1, heads, tokens, width)."""
    queries, keys, values = (torch.split(states, list(unpadding.lengths), 2) for states in parts)
    pieces = zip(queries, keys, values, strict=True)
    return torch.cat([F.scaled_dot_product_attention(q, k, v, **options) for q, k, v in pieces], 2)


def attend_padded(parts: Parts, unpadding: Unpadding, **options: Any) -> Tensor:
    """Attend in one call for all sequences, on padded views; returns (1, heads, tokens, width)."""
    query, key, value = (_pad(states, unpadding) for states in parts)
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=unpadding.mask, **options)
    return mixed.transpose(1, 2).flatten(0, 1).index_select(0, unpadding.tokens).transpose(0, 1)[None]


def _pad(states: Tensor, unpadding: Unpadding) -> Tensor:
    """Pad (1, heads, tokens, width) to (batch, heads, longest, width)."""
    _, heads, _, width = states.shape
    wide = states[0].transpose(0, 1).index_select(0, unpadding.positions)
    return wide.view(len(unpadding.lengths), -1, heads, width).transpose(1, 2)
