"""This room loads pre-trained models and finds layers, head and dropout in them; it also computes without padding."""

from __future__ import annotations

from finetune_bench.model.dropout import (
    HIDDEN_DROPOUT_FIELDS,
    active_dropout,
    dropout_rates,
    switch_off,
    with_dropout,
)
from finetune_bench.model.pretrained import (
    CONTENT,
    build,
    check_fit,
    config,
    digest,
    fingerprint,
    hash_files,
    label,
    looks_like_folder,
    save,
    skeleton,
    tokenizer,
)
from finetune_bench.model.structure import (
    attention_blocks,
    attention_heads_scaled,
    attention_output_layers,
    attention_outputs_changed,
    body,
    checkpoint_activations,
    hidden_states_captured,
    is_sequence_first,
    layer_inputs_changed,
    layer_outputs_changed,
    layers,
    output_layer,
    parameter_depths,
    positions,
    undecayed,
    weights_replaced,
)
from finetune_bench.model.weights import identity, load, taken

# The former name, which plugins may use.
places = parameter_depths

__all__ = [
    "CONTENT",
    "HIDDEN_DROPOUT_FIELDS",
    "active_dropout",
    "attention_blocks",
    "attention_heads_scaled",
    "attention_output_layers",
    "attention_outputs_changed",
    "body",
    "build",
    "check_fit",
    "checkpoint_activations",
    "config",
    "digest",
    "dropout_rates",
    "fingerprint",
    "hash_files",
    "hidden_states_captured",
    "identity",
    "is_sequence_first",
    "label",
    "layer_inputs_changed",
    "layer_outputs_changed",
    "layers",
    "load",
    "looks_like_folder",
    "output_layer",
    "parameter_depths",
    "places",
    "positions",
    "save",
    "skeleton",
    "switch_off",
    "taken",
    "tokenizer",
    "undecayed",
    "weights_replaced",
    "with_dropout",
]
