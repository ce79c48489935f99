"""Decoders: what a real token comes to without padding, the last token that a head reads, and a trimmed vocabulary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.match_tuning import MatchTuning
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model import unpadding
from finetune_bench.model.attention import make_unpadding
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.pretrained import build, save, tokenizer
from finetune_bench.model.structure import is_decoder, last_tokens_read
from finetune_bench.model.weights import identity
from finetune_bench.testing.toys import (
    ARCHITECTURES,
    CPU,
    RECIPE,
    VOCABULARY,
    toy_examples,
    toy_model,
    toy_run,
    toy_task,
    toy_train,
    weights,
)
from finetune_bench.training.evaluation import predict
from finetune_bench.training.loop import train
from finetune_bench.training.run import TrainingRun
from finetune_bench.training.vocabulary import trimmed
from tests.model.checkpoints import variant, with_tokenizer_of

LENGTHS = (5, 11, 1, 8)
PAD, END = 0, 2

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": END,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
WINDOW = 4  # shorter than the longest text
WINDOWS = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
# What a model type needs beside the sizes: for its shapes, for no dropout, or for a window that texts exceed.
OWN: dict[str, dict[str, Any]] = {
    "gpt2": NO_DROPOUT,
    "phi3": NO_DROPOUT | {"sliding_window": WINDOW},
    "mistral": {"sliding_window": WINDOW},
    "starcoder2": {"sliding_window": WINDOW, "residual_dropout": 0.0, "embedding_dropout": 0.0},
    "qwen2": WINDOWS,
    "qwen3": WINDOWS | {"head_dim": 8},
    "gemma": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {"rotary_pct": 0.5},
    "opt": {"dropout": 0.0, "ffn_dim": 24, "word_embed_proj_dim": 16},
    "modernbert-decoder": {"local_attention": WINDOW, "global_attn_every_n_layers": 2},
    "smollm3": WINDOWS,
}


def tiny(model_type: str, **values: Any) -> nn.Module:
    """A random classifier of three classes, of weights that look at their input."""
    config = AutoConfig.for_model(model_type, **(SIZES | OWN.get(model_type, {}) | values))
    config.num_labels = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = build(config)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.normal_(std=0.2)
    return model.train()


def texts(pad: int = PAD) -> dict[str, Tensor]:
    """A ragged batch, padded at its end."""
    random = np.random.default_rng(1)
    ids, mask = np.full((len(LENGTHS), max(LENGTHS)), pad), np.zeros((len(LENGTHS), max(LENGTHS)), dtype=int)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = random.integers(5, VOCABULARY - 1, size=length)
        mask[row, :length] = 1
    return {"input_ids": torch.as_tensor(ids), "attention_mask": torch.as_tensor(mask)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("model_type", unpadding.DECODERS)
def test_without_padding_a_decoder_computes_what_it_does_with_it(model_type: str) -> None:
    model, inputs = tiny(model_type), texts()
    assert is_decoder(model)
    labels = torch.tensor([0, 1, 2, 1])
    padded = model(**inputs).logits
    loss = nn.functional.cross_entropy(padded, labels)
    loss.backward()
    expected = gradients(model)

    unpadding.prepare_for(model, CPU, "unpadded")
    with unpadding.unpadded(model, make_unpadding(LENGTHS, CPU)):
        logits = model(**inputs).logits
    torch.testing.assert_close(logits, padded, rtol=0, atol=2e-6)
    unpadded_loss = nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(unpadded_loss, loss, rtol=1e-6, atol=1e-6)
    unpadded_loss.backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-6, msg=name)

    # A text's numbers are the same without its neighbours.
    with unpadding.unpadded(model, make_unpadding(LENGTHS[:1], CPU)):
        alone = model(**{name: values[:1, : LENGTHS[0]] for name, values in inputs.items()}).logits
    torch.testing.assert_close(alone, logits[:1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_head_reads_the_last_real_token_by_the_mask(model_type: str) -> None:
    model = tiny(model_type, pad_token_id=END).eval()
    inputs = texts(pad=END)
    for row, length in enumerate(LENGTHS):
        inputs["input_ids"][row, length - 1] = END  # the tokenizer ends texts with the token that pads them
    one_by_one = [
        model.score(model.base_model(input_ids=inputs["input_ids"][row : row + 1, :length]).last_hidden_state)[0, -1]  # type: ignore[operator]
        for row, length in enumerate(LENGTHS)
    ]
    expected = torch.stack(one_by_one)
    assert not torch.allclose(model(**inputs).logits, expected, atol=1e-2)  # the library's own rule
    with last_tokens_read(model, inputs["attention_mask"]):
        torch.testing.assert_close(model(**inputs).logits, expected)
        embeds = model.get_input_embeddings()(inputs["input_ids"])  # type: ignore[operator]
        rest = {"attention_mask": inputs["attention_mask"]}
        torch.testing.assert_close(model(**rest, inputs_embeds=embeds).logits, expected)


def test_the_head_reads_the_last_real_token_after_padding_at_the_start() -> None:
    model, inputs = tiny("llama").eval(), texts()
    at_start = {name: values.clone() for name, values in inputs.items()}
    for row, length in enumerate(LENGTHS):
        for values in at_start.values():
            values[row] = values[row].roll(max(LENGTHS) - length)
    expected = model(**inputs).logits
    with last_tokens_read(model, at_start["attention_mask"]):
        torch.testing.assert_close(model(**at_start).logits, expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_decoders_are_decoders(architecture: str) -> None:
    model = toy_model(architecture, "classification", Dropout.KEEP)
    assert is_decoder(model) == (architecture in unpadding.DECODERS)


def test_match_tuning_mixes_the_last_tokens_of_a_decoder() -> None:
    """Between the other tokens there is nothing to match: each is read by nobody."""
    run, _ = toy_run(MatchTuning(), "llama")
    run.method.setup(run)
    batch = run.examples.batch(range(6), CPU)
    mixed = run.forward(batch)
    assert mixed.logits.shape == (6, 3)
    plain = run.forward(batch, View(perturb=False))
    assert not torch.allclose(mixed.logits, plain.logits, atol=1e-3)


def test_a_decoder_s_rows_are_none_of_before(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Before, the library looked for a decoder's last token by its id."""
    folder = tmp_path / "decoder"
    tiny("gpt2").save_pretrained(folder)  # type: ignore[operator]
    with_tokenizer_of(tiny_checkpoint, folder)
    assert "-last-token" in identity(str(folder))
    assert "last-token" not in identity(str(tiny_checkpoint))


@pytest.mark.parametrize("decoder", [True, False])
def test_a_decoder_is_padded_at_the_end_whatever_its_tokenizer_does(
    decoder: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Padding at the start is for generation; positions that are absolute would count from it."""
    folder = tmp_path / "model"
    if decoder:
        tiny("gpt2").save_pretrained(folder)  # type: ignore[operator]
        with_tokenizer_of(tiny_checkpoint, folder)
    else:
        variant(tiny_checkpoint, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"padding_side": "left"}), "utf-8")
    assert tokenizer(str(folder)).padding_side == ("right" if decoder else "left")


def test_an_empty_text_trains_and_is_predicted_in_every_layout() -> None:
    """Its one token is the end token, which here is padding's, too."""
    last = VOCABULARY - 1
    found = []
    for layout in ("padded", "unpadded_trimmed"):
        run = run_of(tiny("gpt2", pad_token_id=last), last, layout)
        columns = {name: [column[0], column[1][:1], *column[2:]] for name, column in run.examples.columns.items()}
        columns["input_ids"][1] = np.array([last])
        run.examples = dataclasses.replace(run.examples, columns=columns)
        losses = train(run).steps["loss"]
        found.append((losses, predict(run, run.examples)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def run_of(model: nn.Module, pad: int, layout: str) -> TrainingRun:
    examples = dataclasses.replace(toy_examples("classification"), padding={"input_ids": pad, "attention_mask": 0})
    recipe = dataclasses.replace(RECIPE, batch_layout=layout)
    unpadding.prepare_for(model, CPU, layout)
    stack = Stack([Vanilla(dropout=Dropout.ALL_OFF)])
    return TrainingRun(model, toy_task("classification"), examples, recipe, stack, seed=3, device=CPU)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_vocabulary_is_trimmed_whatever_the_padding_s_id(model_type: str) -> None:
    """Also where padding is the end token, the last of all, and the checkpoint ties its embeddings."""
    last = VOCABULARY - 1
    trained = []
    for layout in ("padded", "unpadded_trimmed"):
        run = run_of(tiny(model_type, pad_token_id=last, tie_word_embeddings=True), last, layout)
        lookup = run.model.get_input_embeddings()  # type: ignore[operator]
        before, rows = lookup.padding_idx, []
        run.model.register_forward_pre_hook(lambda *_, lookup=lookup, rows=rows: rows.append(len(lookup.weight)))
        losses = train(run).steps["loss"]
        assert lookup.padding_idx == before
        assert run.examples.padding["input_ids"] == last
        trained.append((losses, weights(run), max(rows)))
    (losses, whole, rows), (trimmed_losses, again, fewer) = trained
    assert fewer < rows == VOCABULARY
    np.testing.assert_allclose(trimmed_losses, losses, atol=1e-5)
    for name, weight in whole.items():
        torch.testing.assert_close(again[name], weight, rtol=0, atol=3e-5, msg=name)


def test_a_trimmed_decoder_is_saved_whole(tmp_path: Path) -> None:
    class NoTokenizer:
        def save_pretrained(self, folder: Path) -> None: ...

    model = tiny("llama", tie_word_embeddings=True)
    config = model.config
    run = run_of(model, PAD, "unpadded_trimmed")
    train(run)
    save(model, NoTokenizer(), config, tmp_path, ("a", "b", "c"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.tie_word_embeddings
    assert loaded.get_input_embeddings().weight.shape == (VOCABULARY, 16)
    inputs = texts()
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_ids_alone_tell_a_decoder_s_padding_where_there_is_no_mask() -> None:
    last = VOCABULARY - 1
    run = run_of(tiny("llama", pad_token_id=last), last, "unpadded_trimmed")
    columns = {"input_ids": run.examples.columns["input_ids"]}
    run.examples = dataclasses.replace(run.examples, columns=columns, padding={"input_ids": last})
    with trimmed(run) as vocabulary:
        assert vocabulary is None
        assert len(run.model.get_input_embeddings().weight) == VOCABULARY  # type: ignore[operator]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_hidden_states_of_a_decoder_are_batch_by_token(architecture: str) -> None:
    run, _, _ = toy_train(Vanilla(), architecture)
    batch = run.examples.batch(range(6), CPU)
    states = run.forward(batch, View(hidden=True)).hidden
    assert [state.shape for state in states] == [(*batch.inputs["input_ids"].shape, 16)] * 3


def test_the_table_of_models_says_every_layout() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "models.md").read_text("utf-8").splitlines()
    rows = [line.split("|")[1:3] for line in lines if line.startswith("| `")]
    said = {name.strip(" `"): layout.strip() for name, layout in rows[1:] if layout.strip() != "—"}
    assert said == {name: unpadding.furthest(SimpleNamespace(model_type=name)) for name in said}
    assert set(unpadding.MODEL_TYPES) <= said.keys()
