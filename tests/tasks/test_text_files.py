"""A user's own file as a task: what it yields, and the sentence for everything that can be wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest

from finetune_bench.errors import DataError
from finetune_bench.registry import task as find_task
from finetune_bench.tasks.text_files import text_file

ROWS: list[dict[str, object]] = [{"text": f"text number {i}", "label": "good" if i % 3 else "bad"} for i in range(60)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, rows: list[dict[str, object]] | str | bytes) -> str:
    if isinstance(rows, str | bytes):
        Path(name).write_bytes(rows.encode() if isinstance(rows, str) else rows)
        return name
    if name.endswith(".csv"):
        with Path(name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".tsv"):
        lines = ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif name.endswith(".json"):
        Path(name).write_text(json.dumps(rows), encoding="utf-8")
    elif name.endswith(".jsonl"):
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        pd.DataFrame(rows).to_parquet(name)
    return name


def refusal(path: str, options: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        text_file(path, options or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_every_format_yields_the_same_examples(ending: str) -> None:
    made = text_file(write(f"reviews.{ending}", ROWS), {})
    data = made.load(None)
    same = text_file(write("other.csv", ROWS), {}).load(None)
    assert (made.kind, made.labels, made.metrics, made.outputs) == ("classification", ("bad", "good"), ("accuracy",), 2)
    assert data.fingerprint() == same.fingerprint()
    assert data.train.pairs is None
    examples = dict(zip(data.train.texts, data.train.labels, strict=True))
    validation = data.evaluation["validation"]
    examples.update(zip(validation.texts, validation.labels, strict=True))
    assert examples == {str(row["text"]): int(row["label"] == "good") for row in ROWS}


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_a_label_is_a_text_first(ending: str) -> None:
    rows: list[dict[str, object]] = [{"text": f"t {i}", "label": i % 2 + 1} for i in range(40)]
    made = text_file(write(f"numbers.{ending}", rows), {"validation": write("dev.csv", rows)})
    assert made.labels == ("1", "2")


def test_texts_that_look_like_nothing_survive() -> None:
    odd = ["NA", "None", "null", "nan", "", "N/A"]
    rows: list[dict[str, object]] = [{"text": text or "x", "label": i % 2} for i, text in enumerate(odd)]
    data = text_file(write("odd.csv", rows), {"validation": "odd.csv"}).load(None)
    assert list(data.train.texts) == ["NA", "None", "null", "nan", "x", "N/A"]
    assert data.notes == (
        "6 texts of the validation file are in the training file too.",
        "2 classes, rows in train + validation: '0' 3 + 3, '1' 3 + 3.",
    )


def test_quotes_lines_and_a_mark_of_excel() -> None:
    body = '\ufefftext,label\r\n"He said ""yes"",\r\nthen left",1\r\n\r\nplain,0\r\n"a ""quote""",1\r\nother,0\r\n'
    data = text_file(write("quoted.csv", body), {"validation": "quoted.csv"}).load(None)
    assert list(data.train.texts) == ['He said "yes",\r\nthen left', "plain", 'a "quote"', "other"]
    body = 'text\tlabel\n"open quote\t1\nplain\t0\n"both"\t1\nother\t0\n'
    data = text_file(write("raw.tsv", body), {"validation": "raw.tsv"}).load(None)
    assert list(data.train.texts) == ['"open quote', "plain", '"both"', "other"]


def test_columns_pairs_and_a_validation_file() -> None:
    rows: list[dict[str, object]] = [{"stars": i % 5, "title": f"title {i}", "body": f"body {i}"} for i in range(10)]
    options = {"text": "body", "text_pair": "title", "label": "stars", "validation": "dev.jsonl", "kind": "regression"}
    write("dev.jsonl", [{"body": "b", "title": "t", "stars": 2.5}])
    made = text_file(write("reviews.csv", rows), options)
    data = made.load(Path("ignored"))
    assert (made.kind, made.labels, made.metrics, made.outputs) == ("regression", (), ("pearson_spearman",), 1)
    assert (data.train.texts[3], data.train.pairs and data.train.pairs[3], data.train.labels[3]) == (
        "body 3",
        "title 3",
        3.0,
    )
    assert data.evaluation["validation"].labels == [2.5]
    assert data.notes == ("The training labels are numbers from 0 to 4.",)
    assert made.name == "reviews.csv(text=body,text_pair=title,label=stars,validation=dev.jsonl,kind=regression)"


def test_the_name_is_one_spelling_of_what_was_typed_and_finds_the_task_again() -> None:
    write("reviews.csv", ROWS)
    made = text_file("reviews.csv", {"metric": "f1", "label": "label"})
    assert made.name == "reviews.csv(label=label,metric=f1)"
    assert text_file("reviews.csv", {}).name == "reviews.csv"
    Path("other").mkdir()
    assert text_file(write("other/reviews.csv", ROWS), {}).name == "other/reviews.csv"


def test_the_registry_finds_it_by_its_ending() -> None:
    write("reviews.csv", ROWS)
    try:
        found = find_task("reviews.csv( metric = matthews )")
    except Exception as error:
        if "There is no task" in str(error):
            pytest.skip("finetune-bench is not installed, so there are no entry points")
        raise
    assert found.name == "reviews.csv(metric=matthews)"
    assert find_task(found.name) == found


def test_the_hold_out_goes_by_the_text_alone() -> None:
    again: list[dict[str, object]] = [{"text": f"  TEXT   number {i} ", "label": ROWS[i]["label"]} for i in range(60)]
    rows = [*ROWS, *again]
    data = text_file(write("a.csv", rows), {}).load(None)
    validation = data.evaluation["validation"]
    folded = [{" ".join(text.casefold().split()) for text in split.texts} for split in (data.train, validation)]
    assert folded[0].isdisjoint(folded[1])
    assert len(folded[0] | folded[1]) == 60
    assert len(validation) == 2 * len(folded[1])
    assert "held out" in data.notes[0]
    assert f"{len(validation)} of 120" in data.notes[0]
    # In another order, and with other rows around it, each row stays on its side.
    more: list[dict[str, object]] = [{"text": f"a new text {i}", "label": "bad"} for i in range(500)]
    other = text_file(write("b.csv", [*more, *reversed(ROWS)]), {}).load(None)
    assert set(other.evaluation["validation"].texts) >= {text for text in validation.texts if text.startswith("text")}
    assert not set(other.train.texts) & set(validation.texts)
    assert 0.15 < len(other.evaluation["validation"]) / 560 < 0.25


def test_metrics_by_choice() -> None:
    made = text_file(write("reviews.csv", ROWS), {"metric": "f1"})
    assert made.metrics == ("f1",)
    assert "F1 counts 'good' as the positive class." in made.load(None).notes


def test_a_wrong_path_option_or_column_is_named() -> None:
    write("reviews.csv", ROWS)
    assert "There is no file 'missing.csv'" in refusal("missing.csv")
    assert "expected a file ending in csv, tsv" in refusal("reviews.xls")
    assert "Did you mean 'validation'?" in refusal("reviews.csv", {"validate": "x"})
    message = refusal("reviews.csv", {"text": "tekst"})
    assert "Did you mean 'text'?" in message
    assert "columns are text, label" in message
    assert "text=COLUMN" in message
    assert "Did you mean 'regression'?" in refusal("reviews.csv", {"kind": "regresion"})
    assert "Did you mean 'accuracy'?" in refusal("reviews.csv", {"metric": "acuracy"})
    assert "can't score classification into 2 classes" in refusal("reviews.csv", {"metric": "pearson"})
    assert "There is no file 'dev.csv'" in refusal("reviews.csv", {"validation": "dev.csv"})


def test_a_validation_file_is_looked_for_in_the_current_folder() -> None:
    Path("data").mkdir()
    write("data/dev.csv", ROWS)
    message = refusal(write("data/reviews.csv", ROWS), {"validation": "dev.csv"})
    assert "did you mean 'data/dev.csv'?" in message


def test_f1_needs_two_classes() -> None:
    rows: list[dict[str, object]] = [{"text": f"t {i}", "label": i % 3} for i in range(60)]
    assert "'f1' can't score classification into 3 classes" in refusal(write("three.csv", rows), {"metric": "f1"})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", " \n\n", "is empty"),
        ("a.csv", "text,label\n", "has no rows, only the columns text, label"),
        ("a.json", "[]", "has no rows"),
        ("a.csv", "text,label\nx,1\n,0\n", "line 3: 'text' is missing"),
        ("a.csv", "text,label\nx,1\ny, \n", "line 3: 'label' is missing"),
        ("a.csv", 'text,label\n"a\nb",1\ny\n', "line 4: expected 2 values (text, label); got 1"),
        ("a.csv", "text,label\nx,1\ny, z,0\n", "line 3: expected 2 values (text, label); got 3"),
        ("a.csv", "text,text\nx,1\n", "two columns have the same name"),
        ("a.csv", 'text,label\nx,1\n"y,0\nz,1\n', "from line 3: can't be read"),
        ("a.csv", b"text,label\nx,1\n\xea\xe0\xf4\xe5,0\n", "line 3: byte 16 (0xea) is not UTF-8"),
        ("a.json", '{"text": "x"}', "expected a list of objects"),
        ("a.json", '[{"text": "x"},\n', "line 2: not valid JSON"),
        ("a.json", '[{"text": "x", "label": 1}, {"text": "y"}]', "row 2: 'label' is missing"),
        ("a.json", '[{"text": ["x"], "label": 1}]', "row 1: 'text' must be a text or a number; got list"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"\n', "line 2: not valid JSON"),
        ("a.jsonl", '{"text": "x", "label": 1}\n\n3\n', "line 3: expected an object"),
        ("a.parquet", "not parquet", "can't be read as parquet"),
        ("a.csv", "text,label\nx,1\ny,0\n", "too few to hold out"),
    ],
)
def test_a_broken_file_is_one_sentence_with_the_place(name: str, content: str | bytes, expected: str) -> None:
    assert expected in refusal(write(name, content))


def test_a_missing_value_in_parquet_is_found_and_its_integers_stay() -> None:
    path = write("gap.parquet", [{"text": "x", "label": 1}, {"text": "y", "label": None}, {"text": "z", "label": 2}])
    assert "row 2: 'label' is missing" in refusal(path)


def test_labels_that_can_not_be_learnt_are_refused() -> None:
    same: list[dict[str, object]] = [{"text": f"t {i}", "label": "a"} for i in range(30)]
    assert "every row has the label 'a'" in refusal(write("one.csv", same))
    nearly: list[dict[str, object]] = [{"text": f"t {i}", "label": f"{i / 7:.2f}"} for i in range(30)]
    message = refusal(write("nearly.csv", [*nearly, *nearly[:5]]))
    assert "line 7: the class '0.71' occurs only once, as 25 of 30 do" in message
    assert "kind=regression" in message
    write("dev.csv", [{"text": "v", "label": "good"}, {"text": "w", "label": "gooood"}])
    message = refusal(write("reviews.csv", ROWS), {"validation": "dev.csv"})
    assert message.startswith("'dev.csv', line 3: the class 'gooood' is not in the training file")


@pytest.mark.parametrize("label", ["three", "3,5", "inf"])
def test_a_regression_label_must_be_a_number(label: str) -> None:
    rows: list[dict[str, object]] = [{"text": f"t {i}", "label": i / 2} for i in range(30)]
    path = write("numbers.csv", [*rows, {"text": "t", "label": label}])
    assert f"line 32: the label of a regression must be a number such as 3.5; got '{label}'" in refusal(
        path, {"kind": "regression"}
    )
    write("dev.csv", [{"text": "t", "label": label}])
    message = refusal(write("fine.csv", rows), {"kind": "regression", "validation": "dev.csv"})
    assert message.startswith("'dev.csv', line 2:")
