"""An unpadded pass computes no padding: between the embeddings and the head a batch is one row of real tokens.

Hooks on the layers drop the padding, (batch, seq, dim) → (1, tokens, dim): of the hidden states before the first, and
of rotary positions before each. One on the last layer puts zeros in its place for the norm, the pooler and the head. In
between, linear layers, norms and dropout see real tokens only, and attention, registered with transformers under
`NAME`, sees each sequence by itself. What real tokens come to is what they come to with padding, but for rounding:
padding never reached them. Random draws have other shapes, so that with dropout the two layouts are two runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.model.attention import Pattern, Unpadding, attend_within_texts, running
from finetune_bench.model.structure import layers
from finetune_bench.recipe import BATCH_LAYOUTS

NAME = "finetune_bench_unpadded"
# Models with one mask for all layers or a window, and attention through the library's interface. Encoders add positions
# below their layers; MPNet has an attention of its own beside, with one bias by relative position. Decoders add
# positions below their layers, or rotate by them.
ENCODERS = ("bert", "distilbert", "electra", "roberta", "camembert", "xlm-roberta", "mpnet")
DECODERS = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma",
    "gemma3_text",
    "gpt_neox",
    "modernbert-decoder",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "smollm3",
    "starcoder2",
)
MODEL_TYPES = ENCODERS + DECODERS


def furthest(config: Any) -> str:
    """Return the furthest batch layout that a model of this configuration can do."""
    return BATCH_LAYOUTS[-1] if config.model_type in MODEL_TYPES else BATCH_LAYOUTS[0]


# What a layer gets beside its hidden states that has a row per token.
_PER_TOKEN = ("position_embeddings", "position_ids")


@contextmanager
def unpadded(model: nn.Module, unpadding: Unpadding) -> Iterator[None]:
    """Compute no padding in one forward pass inside, of a model under `prepare`."""
    runs = layers(model)
    shape: list[torch.Size] = []

    def drop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = args[0] if args else kwargs["hidden_states"]
        shape.append(hidden.shape)
        kept = _real_tokens(hidden, unpadding)
        return ((kept, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": kept})

    def drop_positions(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        per_token = {name: kwargs[name] for name in _PER_TOKEN if kwargs.get(name) is not None}
        return args, kwargs | {name: _real_tokens(value, unpadding) for name, value in per_token.items()}

    def put_back(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        batch, sequence, dim = shape.pop()
        full = hidden.new_zeros(batch * sequence, dim).index_copy(0, unpadding.tokens, hidden[0])
        full = full.view(batch, sequence, dim)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    handles = [module.register_forward_pre_hook(drop_positions, with_kwargs=True) for module in runs]
    handles.append(runs[0].register_forward_pre_hook(drop, with_kwargs=True, prepend=True))
    handles.append(runs[-1].register_forward_hook(put_back))
    with ExitStack() as contexts:
        for handle in handles:
            contexts.callback(handle.remove)
        running.append(unpadding)
        contexts.callback(running.pop)
        contexts.enter_context(_with_relative_bias(model, unpadding))
        yield


def _real_tokens(values: Any, unpadding: Unpadding) -> Any:
    """Return the rows of real tokens, (batch or 1, seq, …) → (1, tokens, …), of a tensor or of several."""
    if isinstance(values, tuple):
        return tuple(_real_tokens(value, unpadding) for value in values)
    whole = values.expand(len(unpadding.lengths), *values.shape[1:])
    return whole.flatten(0, 1).index_select(0, unpadding.tokens)[None]


@contextmanager
def _with_relative_bias(model: nn.Module, unpadding: Unpadding) -> Iterator[None]:
    """Let MPNet's attention, which is not the library's interface, attend through this file."""
    blocks = _relative_bias_blocks(model)
    for block in blocks:
        block.forward = partial(_attend_with_bias, block, unpadding)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _relative_bias_blocks(model: nn.Module) -> list[Any]:
    """Return the attention blocks that the library's interface doesn't reach."""
    # Told by their name: importing the class takes seconds.
    return [module for module in model.modules() if type(module).__name__ == "MPNetSelfAttention"]


def _attend_with_bias(  # noqa: PLR0917 — the library's own order
    block: Any,
    unpadding: Unpadding,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    output_attentions: bool = False,
    **kwargs: Any,
) -> tuple[Tensor]:
    """Compute what MPNet's attention block does, (1, tokens, dim) → (1, tokens, dim), within each sequence."""
    widths = (*hidden_states.shape[:-1], block.num_attention_heads, block.attention_head_size)
    query, key, value = (linear(hidden_states).view(widths).transpose(1, 2) for linear in (block.q, block.k, block.v))
    # The bias depends on how far two tokens are apart: it is the same in every row, and in a text of any length.
    pattern = Pattern(bias=None if position_bias is None else position_bias[:1])
    dropout = block.dropout.p if block.training else 0.0
    mixed = attend_within_texts((query, key, value), unpadding, pattern, dropout_p=dropout)
    return (block.o(mixed.transpose(1, 2).flatten(2)),)


def prepare_for(model: nn.Module, device: torch.device, batch_layout: str) -> None:
    """Let a model attend through this file where its batch layout asks for it, or its device.

    On an accelerator padded batches ask for it, too: the library's own mask looks whether there is any padding, for
    which the host waits in every pass.
    """
    if batch_layout != "padded" or (device.type != "cpu" and _attends_by_library(model)):
        prepare(model)
    if batch_layout != "padded" and getattr(model.config, "use_cache", False):
        # A decoder copies its keys and values for the tokens that would come next; here none does.
        model.config.use_cache = False  # type: ignore[union-attr]


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
    if not _relative_bias_blocks(model):
        model.set_attn_implementation(NAME)  # type: ignore[operator]


def make_mask(*args: Any, **kwargs: Any) -> Any:
    """Make the library's mask, or none in an unpadded pass.

    On an accelerator there always is one: to leave it out where nothing is padded is to look at the padding.
    """
    from transformers.masking_utils import sdpa_mask

    if running:
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

    if not running:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    # As the library has it: what a caller says comes before what the module is.
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    pattern = Pattern(causal=causal, window=kwargs.get("sliding_window") if causal else None)
    if (groups := getattr(module, "num_key_value_groups", 1)) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = query, key, value
    mixed = attend_within_texts(parts, running[-1], pattern, dropout_p=dropout, scale=scaling)
    return mixed.transpose(1, 2), None
