"""What a model takes of a checkpoint: all of its body and none of another task's head, or nothing."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from finetune_bench import registry
from finetune_bench.errors import ModelError
from finetune_bench.model import digest, identity, load, pretrained, taken
from finetune_bench.model.files import INDEX, check_weights, weight_files
from finetune_bench.model.weights import check_head
from finetune_bench.recipe import Recipe
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.inputs import initial_model
from finetune_bench.testing.toys import ARCHITECTURES, CPU
from tests.model.checkpoints import FILE, Weights, body_only, planned, variant, weights_of, with_tokenizer_of

SHORT = Recipe(lr=1e-3, batch_size=8, epochs=None, steps=2)


def prefixed(prefix: str) -> object:
    return lambda weights: {prefix + key: value for key, value in weights.items()}


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (prefixed("module."), {}, "with 'module.' before their names, as DistributedDataParallel saves them"),
        (prefixed("_orig_mod."), {}, "with '_orig_mod.' before their names, as torch.compile saves them"),
        (prefixed("model."), {}, "with 'model.' before their names, as Lightning saves them"),
        (prefixed("student.encoder."), {}, "with 'student.encoder.' before their names. Take it away"),
        (lambda weights: {k: v for k, v in weights.items() if "layer.1." not in k}, {}, "16 weights of .* random"),
        (lambda weights: weights | {"bert.adapter.weight": torch.zeros(3)}, {}, "no place for.*'bert.adapter.weight'"),
        (None, {"num_hidden_layers": 3}, "would be random: 'bert.encoder.layer.2"),
        (None, {"num_hidden_layers": 1}, "no place for"),
        (None, {"intermediate_size": 48}, "is 24 × 16 in the file and 48 × 16|is 24 in the file and 48 by"),
    ],
)
def test_weights_that_are_not_taken_are_refused(  # noqa: PLR0917 — fixtures
    change: object, config: dict[str, int], message: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = variant(tiny_checkpoint, tmp_path / "model", change, **config)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=message):
        planned(model, tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", ["body", "masked language model", "classifier"])
def test_what_is_fresh_is_the_head(architecture: str, kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Poolers of a body saved without one are fresh too; ModernBERT's head was pre-trained, and is kept."""
    classes = {
        "body": AutoModel,
        "masked language model": AutoModelForMaskedLM,
        "classifier": AutoModelForSequenceClassification,
    }
    model_type, values = ARCHITECTURES[architecture]
    config = AutoConfig.for_model(model_type, **values)
    try:
        saved = classes[kind].from_config(config)
    except ValueError:
        pytest.skip("there is no such class")
    saved.save_pretrained(tmp_path)
    with_tokenizer_of(tiny_checkpoint, tmp_path)
    judged = taken(str(tmp_path))
    assert judged.redraw == (kind == "classifier")
    heads = ("classifier", "logits_proj", "score")
    assert any(head in name for name in judged.fresh for head in heads)
    parts = (*heads, "pooler", "sequence_summary", "head.")
    assert all(any(part in name for part in parts) for name in judged.fresh)
    if architecture == "modernbert" and kind == "masked language model":
        assert not any(name.startswith("head.") for name in judged.fresh)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_checkpoint_without_a_head_starts_as_the_library_starts_it(
    architecture: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model_type, values = ARCHITECTURES[architecture]
    AutoModel.from_config(AutoConfig.for_model(model_type, **values)).save_pretrained(tmp_path)
    name = str(with_tokenizer_of(tiny_checkpoint, tmp_path))
    torch.manual_seed(7)
    plain = AutoModelForSequenceClassification.from_pretrained(
        name, config=pretrained.config(name, 2), use_safetensors=True, dtype=torch.float32
    )
    assert digest(load(name, pretrained.config(name, 2), 7)) == digest(plain)
    assert "fresh-head" not in identity(name)


@pytest.mark.slow
def test_a_head_of_another_task_is_drawn_anew(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Also one of the same width: seeds then start from different heads, and say which weights are fresh."""
    hashes = set()
    for seed in (1, 2):
        plan = planned(tiny_checkpoint, tiny_data, tmp_path / str(seed), recipe=SHORT, baseline=False)
        cell = plan.cells[0]
        assert cell.weights.endswith("-fresh-head")
        row = run_cell(dataclasses.replace(cell, seed=seed), WorkerContext(plan.store, CPU))
        assert row["fresh_weights"] == ["classifier.bias", "classifier.weight"]
        hashes.add(row["hashes"]["init"])
    assert len(hashes) == 2
    name, config = str(tiny_checkpoint), pretrained.config(str(tiny_checkpoint), 2)
    stored = weights_of(tiny_checkpoint)["classifier.weight"]
    assert not torch.equal(load(name, config, 1).state_dict()["classifier.weight"], stored)
    assert torch.equal(load(name, config, 1, keep_head=True).state_dict()["classifier.weight"], stored)
    for width in (2, 3):
        head = load(name, pretrained.config(name, width), 1).state_dict()
        assert head["classifier.weight"].std() == pytest.approx(0.02, rel=0.3)
        assert not head["classifier.bias"].any()


def test_a_head_is_redrawn_as_one_that_is_missing_is_drawn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    bare = variant(tiny_checkpoint, tmp_path / "bare", body_only)
    models = [load(str(folder), pretrained.config(str(folder), 2), 3) for folder in (tiny_checkpoint, bare)]
    scales = [model.state_dict()["classifier.weight"].std().item() for model in models]
    assert scales[0] == pytest.approx(scales[1], rel=0.5)


def test_the_whole_head_is_fresh(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """RoBERTa's head has a layer before the last one; from another task it would come along unseen."""
    model_type, values = ARCHITECTURES["roberta"]
    AutoModelForSequenceClassification.from_config(AutoConfig.for_model(model_type, **values)).save_pretrained(tmp_path)
    name = str(with_tokenizer_of(tiny_checkpoint, tmp_path))
    stored = weights_of(tmp_path)
    for width in (2, 5):
        loaded = load(name, pretrained.config(name, width), 1).state_dict()
        assert not torch.equal(loaded["classifier.dense.weight"], stored["classifier.dense.weight"])
        key = "roberta.encoder.layer.1.output.dense.weight"
        assert torch.equal(loaded[key], stored[key])


def test_a_head_is_kept_only_where_the_classes_agree(tiny_checkpoint: Path, tmp_path: Path) -> None:
    named = variant(tiny_checkpoint, tmp_path / "named", id2label={"0": "Bad", "1": "Good"})
    check_head(str(named), ("bad", "good"))
    with pytest.raises(ModelError, match="predicts Bad, Good; the task's classes are good, bad"):
        check_head(str(named), ("good", "bad"))
    with pytest.raises(ModelError, match="none, but a number"):
        check_head(str(named), ())
    bare = variant(tiny_checkpoint, tmp_path / "bare", body_only)
    with pytest.raises(ModelError, match="has no classification head"):
        check_head(str(bare), ("bad", "good"))


@pytest.mark.slow
def test_a_kept_head_is_another_cell(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """Every seed begins with the checkpoint's own head, nothing is fresh, and no row is shared with a fresh head."""
    plain = planned(tiny_checkpoint, tiny_data, tmp_path / "plain", recipe=SHORT, baseline=False)
    names = registry.task(plain.study.tasks[0]).labels
    named = variant(tiny_checkpoint, tmp_path / "named", id2label=dict(enumerate(names)))
    fresh, kept = (
        planned(named, tiny_data, tmp_path / "out", recipe=SHORT, baseline=False, keep_head=keep)
        for keep in (False, True)
    )
    assert fresh.cells[0].id != kept.cells[0].id
    cell = kept.cells[0]
    rows = [run_cell(dataclasses.replace(cell, seed=seed), WorkerContext(kept.store, CPU)) for seed in (1, 2)]
    assert rows[0]["hashes"]["init"] == rows[1]["hashes"]["init"]
    assert rows[0]["hashes"]["order"] != rows[1]["hashes"]["order"]
    assert rows[0]["fresh_weights"] == []
    model = initial_model(cell, cell.make_stack(), CPU)
    assert torch.equal(model.state_dict()["classifier.weight"], weights_of(named)["classifier.weight"])


def test_a_head_that_is_not_the_tasks_stops_the_plan(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="predicts LABEL_0, LABEL_1; the task's classes are"):
        planned(tiny_checkpoint, tiny_data, tmp_path / "out", recipe=SHORT, keep_head=True)


def test_the_classes_of_a_head_are_those_of_its_ids(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A file lists ten before two."""
    names = {str(index): f"class {index}" for index in sorted(range(12), key=str)}
    folder = variant(tiny_checkpoint, tmp_path / "named", id2label=names)
    check_head(str(folder), tuple(f"class {index}" for index in range(12)))


# --- files ------------------------------------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    whole = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(whole[: len(whole) // 2])


def pointer(folder: Path) -> None:
    (folder / FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 99\n", "utf-8")


def without_a_part(folder: Path) -> None:
    os.rename(folder / FILE, folder / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": parts}), "utf-8")


def junk_index(folder: Path) -> None:
    os.rename(folder / FILE, folder / "model-00001-of-00002.safetensors")
    (folder / INDEX).write_text("[]", "utf-8")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", "utf-8")


def renamed(folder: Path) -> None:
    os.rename(folder / FILE, folder / "pytorch.safetensors")


def quantised(folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "damaged or cut short"),
        (pointer, "pointer of Git LFS.*git lfs pull"),
        (without_a_part, "1 of the 2 files of weights .* missing: model-00002-of-00002"),
        (junk_index, "can't be read"),
        (adapter, "an adapter of peft, not a model"),
        (renamed, "neither a model.safetensors nor an index"),
        (quantised, r"quantised \(gptq\)"),
        (lambda folder: (folder / "config.json").write_text("[]", "utf-8"), "configuration .* can't be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": 3}', "utf-8"), "can't be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "t-rex"}', "utf-8"), "can't be read"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}", "utf-8"), "tokenizer .* can't be read"),
    ],
)
def test_damaged_folders_are_refused(
    damage: object, message: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = variant(tiny_checkpoint, tmp_path / "model")
    damage(model)  # type: ignore[operator]
    with pytest.raises(ModelError, match=message):
        planned(model, tiny_data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    value: float, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    def spoil(key: str) -> object:
        def change(weights: Weights) -> Weights:
            weights[key].view(-1)[3] = value
            return weights

        return change

    key = "bert.encoder.layer.1.output.dense.weight"
    model = variant(tiny_checkpoint, tmp_path / "model", spoil(key))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"'{key}' in model.safetensors of .* NaN or infinite"):
        planned(model, tiny_data, tmp_path / "run")
    check_weights("x", tuple(weight_files("x", model)), frozenset({key}))  # what no model takes may be anything
