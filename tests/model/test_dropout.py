"""Hidden dropout off is off: whatever its configuration calls it, and only what acts on hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, BertForSequenceClassification

from finetune_bench.errors import ModelError
from finetune_bench.model import active_dropout, build, identity, switch_off, with_dropout
from finetune_bench.model.dropout import Dropout, stays_on
from finetune_bench.model.structure import layers, positions
from finetune_bench.testing.toys import toy_config
from tests.model.checkpoints import with_tokenizer_of

SMALL = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": SMALL | {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40},
    "t5": SMALL | {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0},
    "bart": SMALL
    | {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "attention_dropout": 0.1, "dropout": 0.1}
    | {"activation_dropout": 0.1, "classifier_dropout": 0.1, "max_position_embeddings": 40},
    "opt": SMALL
    | {"hidden_size": 16, "num_hidden_layers": 2, "ffn_dim": 24, "num_attention_heads": 2, "word_embed_proj_dim": 16}
    | {"max_position_embeddings": 40, "attention_dropout": 0.1},
    "funnel": SMALL
    | {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1], "num_decoder_layers": 1},
    "xlm": SMALL | {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 40},
    "modernbert": SMALL
    | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    | {"mlp_dropout": 0.1, "embedding_dropout": 0.1, "classifier_dropout": 0.1, "attention_dropout": 0.1}
    | {"cls_token_id": 2, "sep_token_id": 3},
    "deberta-v2": SMALL
    | {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    | {"cls_dropout": 0.3, "pooler_dropout": 0.2},
}
ATTENTION = {
    "gpt2": {"transformer.h.*.attn.attn_dropout"},
    "t5": {
        "transformer.encoder.block.*.layer.*.SelfAttention.dropout",
        "transformer.decoder.block.*.layer.*.SelfAttention.dropout",
        "transformer.decoder.block.*.layer.*.EncDecAttention.dropout",
    },
    "bart": {
        "model.encoder.layers.*.self_attn.dropout",
        "model.decoder.layers.*.self_attn.dropout",
        "model.decoder.layers.*.encoder_attn.dropout",
    },
    "opt": {"model.decoder.layers.*.self_attn.dropout"},
    "funnel": {"funnel.encoder.blocks.*.*.attention.attention_dropout"},
    "xlm": {"transformer.attentions.*.dropout"},
    "modernbert": {"model.layers.*.attn.attention_dropout"},
    "deberta-v2": {"deberta.encoder.layer.*.attention.self.dropout"},
}


def config_of(family: str) -> Any:
    return AutoConfig.for_model(family, **CONFIGS[family])


def made(family: str, policy: Dropout) -> nn.Module:
    torch.manual_seed(1)
    model = build(with_dropout(config_of(family), policy))
    switch_off(model, policy)
    return model


@pytest.mark.parametrize("family", CONFIGS)
def test_what_acts_on_hidden_states_goes_and_what_acts_on_attention_stays(family: str) -> None:
    model = made(family, Dropout.HIDDEN_OFF)
    assert {name.removesuffix(".attention_dropout") for name in active_dropout(model)} == {
        name.removesuffix(".attention_dropout") for name in ATTENTION[family]
    }
    with torch.device("meta"):
        assert not stays_on(made(family, Dropout.HIDDEN_OFF), Dropout.HIDDEN_OFF)
        assert not stays_on(made(family, Dropout.ALL_OFF), Dropout.ALL_OFF)
        assert stays_on(made(family, Dropout.KEEP), Dropout.HIDDEN_OFF)


@pytest.mark.parametrize("family", CONFIGS)
def test_without_any_dropout_two_passes_are_one(family: str) -> None:
    model = made(family, Dropout.ALL_OFF).train()
    assert active_dropout(model) == {}
    ids = torch.tensor([[2, *range(5, 15), 3]] * 2)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_a_request_that_reached_less_before_marks_the_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Rows of the time when the dropout stayed on are none of today's; BERT's were right, and stay."""
    build(config_of("gpt2")).save_pretrained(tmp_path)  # type: ignore[operator]
    assert "-dropout" in identity(str(with_tokenizer_of(tiny_checkpoint, tmp_path)))
    assert "-dropout" not in identity(str(tiny_checkpoint))


def test_dropout_that_no_attribute_holds_is_seen() -> None:
    class Stubborn(BertForSequenceClassification):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            return nn.functional.dropout(output.logits, 0.5, self.training)

    with torch.device("meta"):
        model = Stubborn(with_dropout(toy_config("bert", "classification", Dropout.ALL_OFF), Dropout.ALL_OFF))
    assert switch_off(model, Dropout.ALL_OFF) == []
    assert stays_on(model, Dropout.ALL_OFF)


def test_switching_off_draws_nothing_and_leaves_weights_alone() -> None:
    plain, off = made("gpt2", Dropout.KEEP), made("gpt2", Dropout.KEEP)
    before = torch.random.get_rng_state()
    switch_off(off, Dropout.HIDDEN_OFF)
    assert torch.equal(before, torch.random.get_rng_state())
    for key, weight in plain.state_dict().items():
        assert torch.equal(weight, off.state_dict()[key])


@pytest.mark.parametrize("family", ["xlm", "funnel", "t5", "bart"])
def test_what_is_no_layer_is_not_taken_for_one(family: str) -> None:
    with pytest.raises(ModelError, match="no list of 2 layers|an encoder and a decoder"):
        layers(build(config_of(family)))


@pytest.mark.parametrize("family", ["gpt2", "opt", "modernbert", "deberta-v2"])
def test_layers_hand_their_output_to_the_next(family: str) -> None:
    model = made(family, Dropout.ALL_OFF).eval()
    first, second = layers(model)
    seen: list[Any] = []
    first.register_forward_hook(lambda module, args, output: seen.append(output))
    second.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    model(input_ids=torch.tensor([[2, 5, 6, 3]]))
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert output is seen[1] or torch.equal(output, seen[1])


@pytest.mark.parametrize(("family", "count"), [("gpt2", 40), ("bart", 40), ("opt", 40), ("xlm", 40), ("t5", None)])
def test_positions_are_found_under_every_name(family: str, count: int | None) -> None:
    assert positions(build(config_of(family))) == count
