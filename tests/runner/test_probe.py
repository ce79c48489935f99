"""Tests that a checkpoint is tried in the plan: what it can't do is refused, or done in another way, and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from finetune_bench.errors import ModelError, Unsupported
from finetune_bench.method.stack import Stack
from finetune_bench.methods.mixout import Mixout
from finetune_bench.model import body, build, pretrained, unpadding
from finetune_bench.model.attention import Parts, Pattern, Unpadding, attend_within_texts
from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.testing.toys import CPU, toy_examples
from finetune_bench.training.run import TrainingRun
from tests.model.checkpoints import planned, variant, with_tokenizer_of
from tests.model.test_dropout import CONFIGS
from tests.tiny_run import CLASSIFICATION

SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=2, max_length=32)


def made(family: str, checkpoint: Path, folder: Path, **config: Any) -> Path:
    torch.manual_seed(1)
    build(AutoConfig.for_model(family, **CONFIGS[family] | config)).save_pretrained(folder)  # type: ignore[operator]
    return with_tokenizer_of(checkpoint, folder)


def without_padding_token(folder: Path, *, end: bool) -> Path:
    path = folder / "tokenizer_config.json"
    values = {k: v for k, v in json.loads(path.read_text("utf-8")).items() if k != "pad_token"}
    path.write_text(json.dumps(values | ({"eos_token": "[SEP]"} if end else {})), "utf-8")
    return folder


@pytest.mark.parametrize("decoder", [True, False])
def test_a_pass_without_padding_attends_as_the_models_own(
    decoder: bool, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = variant(tiny_checkpoint, tmp_path / "model", is_decoder=decoder)
    plan = planned(model, tiny_data, tmp_path / "run", recipe=SHORT)
    assert plan.cells[0].recipe.batch_layout == "unpadded_trimmed"


def test_what_attends_otherwise_without_padding_is_padded(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both_ways(parts: Parts, where: Unpadding, pattern: Pattern, **options: Any) -> torch.Tensor:
        return attend_within_texts(parts, where, **options)

    monkeypatch.setattr(unpadding, "attend_within_texts", both_ways)
    model = variant(tiny_checkpoint, tmp_path / "model", is_decoder=True)
    plan = planned(model, tiny_data, tmp_path / "run", recipe=SHORT)
    assert plan.cells[0].recipe.batch_layout == "padded"
    assert any("attends otherwise without padding" in note for note in plan.notes)


def test_a_decoder_finds_its_padding_token_in_the_tokenizer(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = made("gpt2", tiny_checkpoint, tmp_path / "model", pad_token_id=None)
    plan = planned(model, tiny_data, tmp_path / "run", recipe=SHORT)
    assert pretrained.config(str(model), 2).pad_token_id == AutoTokenizer.from_pretrained(model).pad_token_id
    assert "-padding" not in plan.cells[0].weights
    assert run_cell(plan.cells[0], WorkerContext(plan.store, CPU))["status"] == "done"


def test_a_stale_padding_token_is_put_right_and_marked(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """A decoder of this kind would read its prediction from a padding token."""
    model = made("gpt2", tiny_checkpoint, tmp_path / "model", pad_token_id=7)
    plan = planned(model, tiny_data, tmp_path / "run", recipe=SHORT)
    assert "-padding" in plan.cells[0].weights
    assert not any("padding beside it" in note for note in plan.notes)


def test_without_a_padding_token_the_end_token_stands_for_it(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = without_padding_token(made("gpt2", tiny_checkpoint, tmp_path / "model"), end=True)
    plan = planned(model, tiny_data, tmp_path / "run", recipe=SHORT)
    assert any("has no padding token; its end token, [SEP], stands for it" in note for note in plan.notes)
    assert run_cell(plan.cells[0], WorkerContext(plan.store, CPU))["status"] == "done"
    bare = without_padding_token(variant(tiny_checkpoint, tmp_path / "bare"), end=False)
    with pytest.raises(ModelError, match="neither a padding token"):
        planned(bare, tiny_data, tmp_path / "none")


@pytest.mark.parametrize("family", ["gpt2", "opt", "bart", "xlm"])
def test_texts_longer_than_the_positions_are_refused(
    family: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = made(family, tiny_checkpoint, tmp_path / "model")
    planned(model, tiny_data, tmp_path / "run", recipe=Recipe(max_length=40))
    with pytest.raises(ModelError, match="--max-length 41: .* positions for 40 tokens"):
        planned(model, tiny_data, tmp_path / "run", recipe=Recipe(max_length=41))


@pytest.mark.parametrize("method", ["r3f", "smart", "freelb"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_noise_on_the_embeddings_is_refused_where_they_are_not_the_tokens(
    method: str, family: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """T5 and BART fail without tokens."""
    model = made(family, tiny_checkpoint, tmp_path / "model")
    with pytest.raises(Unsupported, match="computes something else of its token embeddings"):
        planned(model, tiny_data, tmp_path / "run", (method,), recipe=SHORT)


def test_noise_on_the_embeddings_of_a_decoder_leaves_its_last_token_in_place(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """Embeddings have no ids by which the library would find the padding; the mask has it."""
    model = made("gpt2", tiny_checkpoint, tmp_path / "model")
    plan = planned(model, tiny_data, tmp_path / "run", ("r3f",), recipe=SHORT, baseline=False)
    assert run_cell(plan.cells[0], WorkerContext(plan.store, CPU))["status"] == "done"


def test_mixout_mixes_the_matrices_of_gpt2(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Its matrices stand in another class, input before output; one draw swaps all that leaves an input."""
    model = made("gpt2", tiny_checkpoint, tmp_path / "model")
    plan = planned(model, tiny_data, tmp_path / "run", ("mixout",), recipe=SHORT, baseline=False)
    assert run_cell(plan.cells[0], WorkerContext(plan.store, CPU))["status"] == "done"
    mixout = Mixout(p=0.5)
    run = TrainingRun(
        build(pretrained.config(str(model), 3)), CLASSIFICATION, toy_examples("classification"), SHORT, Stack([mixout]),
        seed=1, device=CPU,
    )  # fmt: skip
    mixout.setup(run)
    assert {target.owner for target in mixout.targets_} == {
        module for module in body(run.model).modules() if type(module).__name__ == "Conv1D"
    }
    for target in mixout.targets_:
        assert target.columns == (target.weight.shape[0], 1)


def test_saved_models_name_the_classes_of_the_task(tiny_checkpoint: Path, tmp_path: Path) -> None:
    named = variant(
        tiny_checkpoint, tmp_path / "named", id2label={"0": "entailment", "1": "neutral"}, label2id={"entailment": 0}
    )
    lines = [{"text": f"word{i} {('good', 'bad')[i % 2]}", "label": ("pos", "neg")[i % 2]} for i in range(40)]
    data = tmp_path / "own.jsonl"
    data.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    plan = planned(named, data, tmp_path / "run", recipe=SHORT, save_model=True, baseline=False)
    cell = plan.cells[0]
    assert run_cell(cell, WorkerContext(plan.store, CPU, save_model=True))["status"] == "done"
    saved = AutoConfig.from_pretrained(plan.store.folder(cell.id) / "model")
    assert sorted(saved.id2label.values()) == ["neg", "pos"]
    assert saved.label2id == {label: number for number, label in saved.id2label.items()}
    assert saved.problem_type == "single_label_classification"


def test_a_saved_regression_names_no_class(tiny_checkpoint: Path, tmp_path: Path) -> None:
    named = variant(tiny_checkpoint, tmp_path / "named", id2label={"0": "entailment"}, label2id={"entailment": 0})
    saved = pretrained.named(pretrained.config(str(named), 1), ())
    assert (saved.id2label, saved.num_labels, saved.problem_type) == ({0: "LABEL_0"}, 1, "regression")
