"""Situations that public bug reports of other projects tell of; beside each stands where.

What would change the numbers is refused or told before any cell runs; what only looks odd changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from finetune_bench.errors import ModelError
from finetune_bench.model import load, pretrained
from finetune_bench.runner.inputs import encoded
from finetune_bench.runner.plan import Plan
from tests.model.checkpoints import FILE, planned, variant, weights_of

Change = Callable[[Path], object]


def tokenizer(**changes: Any) -> Change:
    """Change tokenizer.json."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        (folder / "tokenizer.json").write_text(json.dumps(values | changes), "utf-8")

    return change


def options(**changes: Any) -> Change:
    """Change tokenizer_config.json."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        (folder / "tokenizer_config.json").write_text(json.dumps(values | changes), "utf-8")

    return change


def configuration(**changes: Any) -> Change:
    """Change config.json."""

    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(values | changes), "utf-8")

    return change


def stored_as(dtype: torch.dtype) -> Change:
    """Store the weights in another type."""
    return lambda folder: save_file(
        {key: value.to(dtype) for key, value in weights_of(folder).items()}, folder / FILE, metadata={"format": "pt"}
    )


def texts(path: Path, text: Callable[[int], str]) -> Path:
    rows = [{"text": text(i), "label": i % 2} for i in range(60)]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def plan_of(model: Path, data: Path, tmp_path: Path, **recipe: Any) -> Plan:
    return planned(model, data, tmp_path / "run", baseline=False, **recipe)


def _add_token(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    values["added_tokens"].append(values["added_tokens"][0] | {"id": 999, "content": "<new>"})
    (folder / "tokenizer.json").write_text(json.dumps(values), "utf-8")


FIXED = {"strategy": {"Fixed": 16}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
SHORT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("change", "config"),
    [
        # spiceai/spiceai#13416, daulet/tokenizers#30: the tokenizer was saved while it padded and cut.
        (tokenizer(padding=FIXED | {"pad_to_multiple_of": None}, truncation=SHORT), {}),
        # huggingface/evaluate#739: no largest length, so 10³⁰, which overflows.
        (options(model_max_length=10**30), {}),
        # ThilinaRajapakse/simpletransformers#748, huggingface/transformers#10449: the classes of another task.
        (lambda _: None, {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}),
        # huggingface/transformers#14563: the kind of another task, which would choose another loss.
        (lambda _: None, {"problem_type": "multi_label_classification"}),
        # CarperAI/trlx#535: the type that the configuration names.
        (lambda _: None, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        (stored_as(torch.float64), {"dtype": "float64"}),
    ],
)
def test_what_a_checkpoint_says_beside_its_weights_changes_nothing(
    change: Change, config: dict[str, Any], tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = variant(tiny_checkpoint, tmp_path / "model", **config)
    change(model)
    cell = plan_of(model, tiny_data, tmp_path).cells[0]
    examples, usual = (encoded(str(folder), cell.task, None, None, 128)[0] for folder in (model, tiny_checkpoint))
    assert [ids.tolist() for ids in examples.columns["input_ids"]] == [
        ids.tolist() for ids in usual.columns["input_ids"]
    ]
    loaded, stored = load(str(model), pretrained.config(str(model), 2), 1).state_dict(), weights_of(tiny_checkpoint)
    key = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(loaded[key], stored[key])
    assert {value.dtype for value in loaded.values() if value.is_floating_point()} == {torch.float32}
    assert loaded["classifier.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # huggingface/tokenizers#2151, #1014: the library panics, which is no Exception of Python's.
        (tokenizer(pre_tokenizer={"type": "FixedLength", "length": 0}), "the tokenizer of .* fails on texts"),
        (
            tokenizer(
                post_processor={
                    "type": "TemplateProcessing",
                    "single": [{"SpecialToken": {"id": "[NO]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
                    "special_tokens": {},
                }
            ),
            "the tokenizer of .* fails on texts",
        ),
        # huggingface/transformers#47145: quantised weights, taken without their scale.
        (stored_as(torch.int8), r"is quantised \(I8\)"),
        (stored_as(torch.float8_e4m3fn), r"is quantised \(F8_E4M3\)"),
        # huggingface/transformers#12763: a token was added, and the embeddings were not.
        (_add_token, "knows 47 tokens, its model only 46"),
        # huggingface/transformers#3093: names of classes that are no numbers.
        (configuration(id2label={"a": "x"}), "the configuration of .* can't be read"),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    change: Change, message: str, tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    model = variant(tiny_checkpoint, tmp_path / "model")
    change(model)
    with pytest.raises(ModelError, match=message):
        plan_of(model, tiny_data, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_case_or_language_is_told(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """See huggingface/transformers#3823 and EmilyAlsentzer/clinicalBERT#26."""
    lines = [json.loads(line) for line in tiny_data.read_text("utf-8").splitlines()]
    upper = texts(tmp_path / "upper.jsonl", lambda i: lines[i]["text"].upper())
    notes = " ".join(plan_of(tiny_checkpoint, upper, tmp_path).notes)
    assert "doesn't know 100% of the tokens of the train split" in notes
    assert "doesn't know" not in " ".join(plan_of(tiny_checkpoint, tiny_data, tmp_path).notes)


def test_special_tokens_in_a_text_are_told(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """See huggingface/transformers#25081."""
    lines = [json.loads(line) for line in tiny_data.read_text("utf-8").splitlines()]
    data = texts(tmp_path / "special.jsonl", lambda i: lines[i]["text"] + (" [SEP] [PAD]" if i % 2 else ""))
    notes = " ".join(plan_of(tiny_checkpoint, data, tmp_path).notes)
    assert "examples of the train split have special tokens written out in their texts" in notes
    assert "written out" not in " ".join(plan_of(tiny_checkpoint, tiny_data, tmp_path).notes)


def test_a_tokenizer_that_cuts_the_beginning_is_told(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> None:
    """See vllm-project/vllm#12050."""
    from finetune_bench.recipe import Recipe

    model = variant(tiny_checkpoint, tmp_path / "model")
    options(truncation_side="left")(model)
    for folder, told in ((model, True), (tiny_checkpoint, False)):
        notes = " ".join(plan_of(folder, tiny_data, tmp_path, recipe=Recipe(max_length=4)).notes)
        assert "were cut to 4 tokens" in notes
        assert ("which leaves out their beginning" in notes) == told


def test_separators_of_lines_within_a_text_split_no_row(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """See huggingface/datasets#3910 and wbolster/jsonlines#53."""
    data = texts(tmp_path / "lines.jsonl", lambda i: f"t{i}\u2028a\x85b\x0cc\x1ed")
    assert "2 classes" in " ".join(plan_of(tiny_checkpoint, data, tmp_path).notes)


def test_a_text_that_says_null_is_a_text(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """See huggingface/datasets#4467 and pandas-dev/pandas#24681."""
    path = tmp_path / "null.csv"
    path.write_text(
        "text,label\n" + "".join(f"{('null', 'NA', 'nan')[i % 3]} {i},{i % 2}\n" for i in range(60)) + "null,1\n"
    )
    notes = " ".join(plan_of(tiny_checkpoint, path, tmp_path).notes)
    assert "of 61 rows were held out" in notes
