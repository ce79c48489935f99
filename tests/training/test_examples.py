"""Tokenising: what is cut is counted, and lengths that leave no token of some text are refused before any training."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from finetune_bench.errors import DataError
from finetune_bench.model.pretrained import joins_pairs
from finetune_bench.recipe import Recipe
from finetune_bench.runner.inputs import load_data
from finetune_bench.runner.plan import make_plan
from finetune_bench.study.study import Study
from finetune_bench.task import Split
from finetune_bench.training.examples import Encoded, encode, truncation

WORDS = ["good", "good good", "good " * 9, "good " * 30]


def split(*texts: str, pairs: list[str] | None = None) -> Split:
    return Split(list(texts), pairs, [0] * len(texts))


@pytest.fixture
def tokenizer(tiny_checkpoint: Path) -> object:
    return AutoTokenizer.from_pretrained(tiny_checkpoint)


def test_what_is_cut_is_counted(tokenizer: object) -> None:
    whole = encode(split(*WORDS), tokenizer, 64, "classification")
    cut = encode(split(*WORDS), tokenizer, 8, "classification")
    assert whole.whole is not None
    assert cut.whole is not None
    assert list(whole.whole) == list(whole.lengths()) == list(cut.whole) == [3, 4, 11, 32]
    assert list(cut.lengths()) == [3, 4, 8, 8]
    assert truncation("train", whole, "tiny") == []
    assert truncation("train", cut, "tiny") == [
        "2 of 4 examples of the train split were cut to 8 tokens: by 14 on average and 24 at most, 54.0% of all tokens "
        "(--max-length, tokenizer of tiny)."
    ]
    exact = encode(split(*WORDS), tokenizer, 32, "classification")
    assert truncation("train", exact, "tiny") == []


def test_a_text_without_tokens_is_counted(tokenizer: object) -> None:
    examples = encode(split("good", "", " "), tokenizer, 8, "classification")
    assert truncation("validation", examples, "tiny") == [
        "2 of 3 examples of the validation split hold no token (tokenizer of tiny)."
    ]


@pytest.mark.parametrize("length", [1, 2])
def test_a_length_without_a_token_of_the_text_is_refused(tokenizer: object, length: int) -> None:
    with pytest.raises(DataError, match=f"--max-length {length}: of {length} tokens, 2 are special.* give 3 at least"):
        encode(split(*WORDS), tokenizer, length, "classification")
    assert (encode(split(*WORDS), tokenizer, 3, "classification").lengths() == 3).all()


@pytest.mark.parametrize("length", [2, 3, 4])
def test_of_a_pair_both_texts_keep_a_token(tokenizer: object, length: int) -> None:
    pairs = split(*WORDS, pairs=list(reversed(WORDS)))
    with pytest.raises(DataError, match="leaves none for one of two texts; give 5 at least"):
        encode(pairs, tokenizer, length, "classification")
    special = tokenizer.sep_token_id  # type: ignore[attr-defined]
    for ids in encode(pairs, tokenizer, 5, "classification").columns["input_ids"]:
        assert len(ids) == 5
        assert list(ids).index(special) == 2
        assert ids[4] == special


def study(checkpoint: Path, data: Path, out: Path, **options: object) -> Study:
    length = options.pop("max_length", 16)
    return Study(
        models=(str(checkpoint),), tasks=(str(data),), methods=("vanilla",), seeds=(1,), baseline=False, device="cpu",
        out=out, recipe=Recipe(max_length=length), **options,  # type: ignore[arg-type]
    )  # fmt: skip


def test_the_plan_tells_what_is_cut_and_refuses_what_leaves_nothing(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    notes = make_plan(study(tiny_checkpoint, tiny_data, tmp_path / "run", max_length=3)).notes
    assert any(f"{tiny_data}: " in note and "were cut to 3 tokens" in note for note in notes)
    notes = make_plan(study(tiny_checkpoint, tiny_data, tmp_path / "run", max_length=32)).notes
    assert not any("were cut" in note for note in notes)
    with pytest.raises(DataError, match="--max-length 2: of 2 tokens, 2 are special ones"):
        make_plan(study(tiny_checkpoint, tiny_data, tmp_path / "run", max_length=2))
    assert not (tmp_path / "run").exists()


def test_a_limit_that_leaves_out_a_class_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {i},{'rare' if i < 4 else i % 2}\n" for i in range(60)))
    _, data = load_data(str(path), 2, None)
    assert "--limit-train 2 leaves no training example of '" in data.notes[-1]
    assert "leaves no training example" not in " ".join(load_data(str(path), 46, None)[1].notes)


def test_examples_of_elsewhere_have_no_counts(tokenizer: object) -> None:
    examples = encode(split("good"), tokenizer, 8, "classification")
    assert (
        truncation("train", Encoded(examples.columns, examples.padding, examples.left, examples.labels), "tiny") == []
    )


def test_a_text_without_any_token_gets_one() -> None:
    """A decoder's tokenizer adds no special tokens; its head reads a text's last real token, so there has to be one."""
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[END]": 1, "word": 2}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[END]")
    examples = encode(split("word word", ""), tokenizer, 8, "classification")
    assert [ids.tolist() for ids in examples.columns["input_ids"]] == [[2, 2], [1]]
    assert [ids.tolist() for ids in examples.columns["attention_mask"]] == [[1, 1], [1]]
    assert "1 of 2 examples of the train split hold no token (tokenizer of tiny)." in truncation(
        "train", examples, "tiny"
    )


@pytest.mark.parametrize("separator", [False, True])
def test_a_newline_parts_two_texts_that_the_tokenizer_would_join(separator: bool) -> None:
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[SEP]": 1, "red": 2, "blue": 3, "\n": 4}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s"), "isolated")
    if separator:
        words.post_processor = processors.TemplateProcessing(
            single="$A", pair="$A [SEP] $B:1", special_tokens=[("[SEP]", 1)]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", sep_token="[SEP]")
    assert joins_pairs(tokenizer) is not separator
    examples = encode(split("red", pairs=["blue"]), tokenizer, 8, "classification")
    assert examples.columns["input_ids"][0].tolist() == ([2, 1, 3] if separator else [2, 4, 3])
    assert encode(split("red"), tokenizer, 8, "classification").columns["input_ids"][0].tolist() == [2]
