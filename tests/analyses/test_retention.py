"""Retention: losses against the library's own, what is masked, and what stands in for a missing head."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from finetune_bench import registry
from finetune_bench.analyses.retention import (
    Losses,
    Retention,
    causal_losses,
    masked_losses,
    masked_positions,
)
from finetune_bench.analysis import Network, Trained, measured_before
from finetune_bench.errors import DataError, ModelError, UsageError
from finetune_bench.model import language, pretrained
from finetune_bench.task import Split, TaskData
from finetune_bench.testing.toys import toy_examples, toy_task
from tests.analyses.test_probe import Lengths
from tests.analyses.test_transfer import Words

CPU = torch.device("cpu")
BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 40,
}  # fmt: skip
LLAMA = BERT | {"num_key_value_heads": 2, "pad_token_id": 0, "tie_word_embeddings": True}


def made(kind: str, folder: Path) -> Path:
    """A checkpoint with a language-modelling head and without a tokenizer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = AutoConfig.for_model("llama", **LLAMA) if kind == "causal" else AutoConfig.for_model("bert", **BERT)
        owner: Any = AutoModelForCausalLM if kind == "causal" else AutoModelForMaskedLM
        model = owner.from_config(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def forget() -> None:
    language.kind_of.cache_clear()
    pretrained.raw_config.cache_clear()


def network(model: torch.nn.Module) -> Network:
    params = dict(model.named_parameters())
    return Network(model.eval(), params, CPU, lambda: torch.autocast("cpu", enabled=False))


def test_the_next_tokens_loss_is_the_librarys(tmp_path: Path) -> None:
    model = language.load(str(made("causal", tmp_path)), "causal")
    examples = toy_examples("classification", 5)
    losses = causal_losses(network(model), examples)
    for index in range(5):
        inputs = examples.batch([index], CPU).inputs
        with torch.no_grad():
            expected = model(**inputs, labels=inputs["input_ids"]).loss
        assert losses.tokens[index] == len(examples.columns["input_ids"][index]) - 1
        assert losses.by_text()[index] == pytest.approx(float(expected), rel=1e-5)
    assert losses.level() == pytest.approx(losses.total.sum() / losses.tokens.sum())


def test_the_masked_tokens_loss_is_the_librarys(tmp_path: Path) -> None:
    model = language.load(str(made("masked", tmp_path)), "masked")
    examples = toy_examples("classification", 5)
    losses = masked_losses(network(model), examples, [5, 6], 4)
    for index in range(5):
        inputs = examples.batch([index], CPU).inputs
        ids = inputs["input_ids"]
        places = torch.from_numpy(masked_positions(examples.columns["input_ids"][index], [5, 6]))
        labels = torch.full_like(ids, -100)
        labels[0, places] = ids[0, places]
        hidden = ids.clone()
        hidden[0, places] = 4
        with torch.no_grad():
            expected = model(**inputs | {"input_ids": hidden}, labels=labels).loss
        assert losses.by_text()[index] == pytest.approx(float(expected), rel=1e-5)


def test_fifteen_per_cent_are_masked_and_never_a_special_token() -> None:
    ids = np.arange(200) % 50
    places = masked_positions(ids, [0, 1])
    assert len(places) == round(0.15 * (200 - 8))
    assert not set(ids[places]) & {0, 1}
    assert (places == masked_positions(ids, [0, 1])).all()
    assert len(masked_positions(np.array([0, 7, 1]), [0, 1])) == 1
    assert len(masked_positions(np.array([0, 1]), [0, 1])) == 0


def test_a_text_without_predictions_has_no_mean() -> None:
    losses = Losses(np.array([2.0, 0.0]), np.array([4.0, 0.0]))
    assert losses.by_text().tolist() == [0.5, pytest.approx(np.nan, nan_ok=True)]
    assert losses.level() == 0.5


def test_a_head_is_found_by_its_weights_not_by_its_name(tmp_path: Path, tiny_checkpoint: Path) -> None:
    masked, causal = made("masked", tmp_path / "masked"), made("causal", tmp_path / "causal")
    assert language.kind_of(str(masked)) == "masked"
    assert language.kind_of(str(causal)) == "causal"
    assert language.kind_of(str(tiny_checkpoint)) is None
    bare = tmp_path / "bare"  # names the head, and has left it out, as exports for sentence embeddings do
    language.load(str(masked), "masked").base_model.save_pretrained(bare)
    config = (bare / "config.json").read_text("utf-8").replace("BertModel", "BertForMaskedLM")
    (bare / "config.json").write_text(config, "utf-8")
    assert "BertForMaskedLM" in config
    assert language.kind_of(str(bare)) is None


def test_the_tuned_body_is_taken_and_the_output_as_asked(tmp_path: Path) -> None:
    folder = str(made("causal", tmp_path))
    tuned = {name: weight + 1 for name, weight in language.load(folder, "causal").named_parameters()}
    tied, apart = language.load(folder, "causal"), language.load(folder, "causal")
    before = apart.get_output_embeddings().weight.clone()  # type: ignore[operator]
    language.take_body(tied, tuned)
    language.take_body(apart, tuned, keep_output=True)
    for model in (tied, apart):
        assert torch.equal(model.get_input_embeddings().weight, before + 1)  # type: ignore[operator]
    assert torch.equal(tied.get_output_embeddings().weight, before + 1)  # type: ignore[operator]
    assert torch.equal(apart.get_output_embeddings().weight, before)  # type: ignore[operator]
    with pytest.raises(ModelError, match="has no weight"):
        language.take_body(tied, {})


def trained(folder: Path, shift: float, tmp: Path) -> Trained:
    model = language.load(str(folder), "causal")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(shift * torch.sin(torch.arange(parameter.numel(), dtype=torch.float32)).view_as(parameter))
    texts = [f"{'x' * index}" for index in range(1, 21)]
    split = Split(texts, ["y" * (3 * index % 50) for index in range(1, 21)], [0] * 20)
    return Trained(
        task=toy_task("classification"), data=TaskData(split, {"validation": split}), splits={}, predictions={},
        checkpoint="tiny", checkpoint_name=str(folder), tokenizer=Words(), max_length=8, data_root=tmp,
        network=network(model), untouched=lambda: network(model),
    )  # fmt: skip


@pytest.mark.slow
def test_an_untouched_model_keeps_everything_and_a_moved_one_does_not(tmp_path: Path) -> None:
    folder = made("causal", tmp_path / "model")
    same = Retention(texts=20).measure(trained(folder, 0.0, tmp_path))
    assert same.numbers["own: change"] == 0
    assert same.numbers["own: before"] == same.numbers["own: after"]
    moved = Retention(texts=20).measure(trained(folder, 0.3, tmp_path))
    assert moved.numbers["own: change"] != 0
    assert moved.numbers["own: low"] < moved.numbers["own: change"] < moved.numbers["own: high"]
    assert moved.numbers["own: perplexity after"] == pytest.approx(np.exp(moved.numbers["own: after"]))
    assert moved.better["own: change"] == "lower"
    assert moved.facts["output"] == "the tuned embeddings, to which it is tied"
    kept = Retention(texts=20, output="pretrained").measure(trained(folder, 0.3, tmp_path))
    assert kept.facts["output"] == "the pre-trained output matrix"
    assert kept.numbers["own: after"] != moved.numbers["own: after"]


def test_a_model_without_that_head_is_probed(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._added, "tasks", {"lengths": Lengths("lengths", labels=("short", "long"))})
    from tests.tiny_run import tiny_model

    model = network(tiny_model())
    of_causal = trained(made("causal", tmp_path / "model"), 0.0, tmp_path)
    given = dataclasses.replace(of_causal, checkpoint_name=str(tiny_checkpoint), network=model, untouched=lambda: model)
    findings = Retention(on="lengths").measure(given)
    assert findings.numbers == {"lengths: change": 0}
    assert "has no language-modelling head" in findings.notes[0]


def test_what_a_probe_needs_is_checked_before_any_compute(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(DataError, match="nyu-mll/glue"):
        Retention().check(registry.task("mrpc"), tmp_path, str(tiny_checkpoint))
    with pytest.raises(UsageError, match="no other task"):
        Retention(on="cola").check(registry.task("cola"), tmp_path, str(tiny_checkpoint))
    Retention().check(registry.task("mrpc"), tmp_path, str(made("causal", tmp_path / "model")))


def test_unknown_words_are_words_and_what_stands_for_an_end_is_not(tmp_path: Path) -> None:
    given = trained(made("causal", tmp_path / "model"), 0.0, tmp_path)
    tokenizer = Words()
    tokenizer.all_special_ids, tokenizer.unk_token_id = [0, 1], 1  # type: ignore[assignment]
    assert dataclasses.replace(given, tokenizer=tokenizer).special_ids() == [0]
    tokenizer.eos_token_id = 1  # type: ignore[attr-defined]
    assert dataclasses.replace(given, tokenizer=tokenizer).special_ids() == [0, 1]


@pytest.mark.slow
def test_the_loss_before_training_is_measured_once_for_all_runs_that_begin_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    load = language.load

    def counted(name: str, kind: language.Kind) -> torch.nn.Module:
        loads.append(name)
        return load(name, kind)

    given = trained(made("causal", tmp_path / "model"), 0.3, tmp_path)
    anew = Retention(texts=20).measure(given)
    monkeypatch.setattr(language, "load", counted)
    measured_before.clear()
    shared = dataclasses.replace(given, begins_with="the same model")
    for expected in (2, 3):
        assert Retention(texts=20).measure(shared).numbers == anew.numbers
        assert len(loads) == expected
    assert Retention(texts=5).measure(shared).numbers != anew.numbers
    assert len(loads) == 5
