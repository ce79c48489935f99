"""From rows to examples: labels that stand for missing ones, classes with few rows, a test file, and metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from finetune_bench.errors import DataError
from finetune_bench.task import HELD_OUT, Split, TaskData, hold_out, on_both_sides
from finetune_bench.tasks.text_files import text_file

GOOD_BAD = ["good" if i % 3 else "bad" for i in range(60)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(labels: list[object], name: str = "a.jsonl", word: str = "text") -> str:
    rows = [{"text": f"{word} {i}", "label": label} for i, label in enumerate(labels)]
    Path(name).write_text("\n".join(map(json.dumps, rows)))
    return name


def refusal(path: str, options: Mapping[str, str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        text_file(path, options or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noted(path: str, options: Mapping[str, str] | None = None) -> str:
    return " ".join(text_file(path, options or {}).load(None).notes)


@pytest.mark.parametrize(
    "label", ["NA", "N/A", "NaN", "nan", "None", "null", "NULL", "<NA>", "#N/A", "?", "-1", "−1", -1, -1.0]
)
def test_a_label_that_stands_for_a_missing_one_is_never_silently_a_class(label: object) -> None:
    path = write([*GOOD_BAD, label, label])
    message = refusal(path)
    assert message.startswith(
        f"'a.jsonl', line 61: the label '{str(label).removesuffix('.0')}' usually stands for a missing"
    )
    assert "missing=drop" in message
    assert "missing=keep" in message
    dropped = text_file(path, {"missing": "drop"})
    assert dropped.labels == ("bad", "good")
    assert dropped.load(None).fingerprint() == text_file(write(list(GOOD_BAD), "b.jsonl"), {}).load(None).fingerprint()
    assert "2 of 62 rows of 'a.jsonl' were left out: 2 with the label" in noted(path, {"missing": "drop"})
    assert len(text_file(path, {"missing": "keep"}).labels) == 3


@pytest.mark.parametrize("label", [None, "", "  ", float("nan")])
def test_an_empty_label_is_refused_or_dropped(label: object) -> None:
    path = write([*GOOD_BAD, label])
    assert "line 61: 'label' is missing" in refusal(path)
    assert "missing=drop" in refusal(path)
    assert "line 61: 'label' is missing" in refusal(path, {"missing": "keep"})
    assert "1 of 61 rows of 'a.jsonl' were left out: 1 with no label." in noted(path, {"missing": "drop"})


def test_a_text_that_is_missing_can_be_dropped_too() -> None:
    path = write(list(GOOD_BAD))
    Path(path).write_text(Path(path).read_text() + '\n{"text": " ", "label": "good"}\n{"label": "bad"}')
    assert "line 61: 'text' is missing" in refusal(path)
    assert "2 of 62 rows of 'a.jsonl' were left out: 2 with no text." in noted(path, {"missing": "drop"})


def test_minus_one_beside_other_numbers_below_zero_or_one_class_is_a_class() -> None:
    assert text_file(write([-1 if i % 2 else 1 for i in range(60)]), {}).labels == ("-1", "1")
    assert text_file(write([i % 5 - 2 for i in range(100)]), {}).labels == ("-1", "-2", "0", "1", "2")
    assert "'-1' usually stands for a missing one" in refusal(write([i % 3 - 1 for i in range(90)]))
    kept = text_file("a.jsonl", {"missing": "keep"})
    assert kept.labels == ("-1", "0", "1")
    assert "'-1' " in " ".join(kept.load(None).notes)


def test_a_target_of_minus_one_is_missing_unless_targets_lie_around_zero() -> None:
    path = write([*(i / 4 for i in range(40)), -1.0])
    assert "line 41: the label '-1' usually stands for a missing one" in refusal(path, {"kind": "regression"})
    options = {"kind": "regression", "missing": "drop"}
    assert "numbers from 0 to" in noted(path, options)
    assert "1 of 41 rows" in noted(path, options)
    around = text_file(write([i / 4 - 5 for i in range(41)]), {"kind": "regression"}).load(None)
    assert -1.0 in [*around.train.labels, *around.evaluation["validation"].labels]
    assert "'nan' usually stands for a missing one" in refusal(write([*range(40), "nan"]), {"kind": "regression"})


def test_what_is_missing_is_told_from_all_files_together() -> None:
    write(list(GOOD_BAD))
    write([-1] * 20, "test.jsonl", "unseen")
    assert "'test.jsonl', line 1: the label '-1' usually stands" in refusal("a.jsonl", {"test": "test.jsonl"})
    options = {"test": "test.jsonl", "missing": "drop"}
    assert "'test.jsonl' has no row with a text and a label among its 20 rows" in refusal("a.jsonl", options)


def test_the_classes_are_told_with_their_counts() -> None:
    write(list(GOOD_BAD))
    write(["good", "bad", "bad"], "dev.jsonl", "new")
    assert "2 classes, rows in train + validation: 'bad' 20 + 2, 'good' 40 + 1." in noted(
        "a.jsonl", {"validation": "dev.jsonl"}
    )
    many = noted(write([f"c{i % 30:02}" for i in range(900)]))
    assert "30 classes, rows in train + validation: 'c" in many
    assert ", and 10 more, with " in many


# --- what is held out -------------------------------------------------------------------------------------------------


def held_out_texts(path: str) -> set[str]:
    return set(text_file(path, {}).load(None).evaluation["validation"].texts)


def test_a_class_that_would_be_held_out_as_a_whole_is_trained_on_too() -> None:
    out = sorted(held_out_texts(write(list(GOOD_BAD))), key=lambda text: int(text.split()[1]))[:2]
    labels: list[object] = ["rare" if f"text {i}" in out else label for i, label in enumerate(GOOD_BAD)]
    data = text_file(write(labels, "rare.jsonl"), {}).load(None)
    assert Counter(data.train.labels)[2] == Counter(data.evaluation["validation"].labels)[2] == 1
    assert "rows of these changed sides: 'rare'." in " ".join(data.notes)
    assert len(held_out_texts("a.jsonl") ^ set(data.evaluation["validation"].texts)) == 1


def test_a_class_that_would_not_be_held_out_at_all_is_scored_too() -> None:
    out = held_out_texts(write(list(GOOD_BAD)))
    rare = [i for i in range(60) if f"text {i}" not in out][:5]
    data = text_file(write(["rare" if i in rare else label for i, label in enumerate(GOOD_BAD)]), {}).load(None)
    assert Counter(data.train.labels)[2] == 4
    assert Counter(data.evaluation["validation"].labels)[2] == 1


@pytest.mark.parametrize("position", range(0, 60, 7))
def test_a_class_with_one_row_is_trained_on_with_a_note(position: int) -> None:
    labels: list[object] = list(GOOD_BAD)
    labels[position] = "odd"
    data = text_file(write(labels), {}).load(None)
    assert f"text {position}" in data.train.texts
    assert "Trained on but not in the validation rows, so never scored: 'odd'." in data.notes


def test_the_sides_depend_on_the_rows_and_not_on_their_order() -> None:
    labels: list[object] = [("rare" if i in (3, 4, 5) else label) for i, label in enumerate(GOOD_BAD)]
    path = write([*labels, "odd"])
    lines = Path(path).read_text().splitlines()
    before = held_out_texts(path)
    Path(path).write_text("\n".join(reversed(lines)))
    assert held_out_texts(path) == before


def test_a_class_that_only_evaluation_has_stays_an_error() -> None:
    write(list(GOOD_BAD))
    write(["good", "new", "bad"], "dev.jsonl", "new")
    for option in ("validation", "test"):
        message = refusal("a.jsonl", {option: "dev.jsonl"})
        assert message.startswith("'dev.jsonl', line 2: the class 'new' is not in the training file")


def test_repeats_with_two_labels_stay_together() -> None:
    assert on_both_sides([True, True, False], ["a", "b", "b"], [1, 1, 2]) == [False, False, True]
    assert on_both_sides([False] * 4, ["a", "b", "b", "a"], [1, 1, 2, 3]) == [True, True, False, False]
    assert on_both_sides([True, False, True, False], ["a", "a", "b", "b"], [1, 4, 2, 3]) == [True, False, True, False]


def test_the_share_held_out_for_a_search_has_every_class_on_both_sides() -> None:
    labels = [0] * 40 + [1] * 40 + [2] * 3 + [3]
    data = TaskData(Split([f"t {i}" for i in range(84)], None, labels), {})
    for name in "abcdefghijkl":
        cut = hold_out(data, 0.2, name)
        assert set(cut.train.labels) == {0, 1, 2, 3}
        assert set(cut.evaluation[HELD_OUT].labels) == {0, 1, 2}
        assert sorted([*cut.train.texts, *cut.evaluation[HELD_OUT].texts]) == sorted(data.train.texts)


def test_a_search_of_common_classes_holds_out_what_it_did() -> None:
    """The fingerprints are those of commit 4c157d9."""
    data = TaskData(Split([f"t {i}" for i in range(60)], None, [i % 2 for i in range(60)]), {})
    numbers = TaskData(Split([f"t {i}" for i in range(60)], None, [float(i) for i in range(60)]), {})
    assert hold_out(data, 0.2, "a").fingerprint() == "54518f69461e313c"
    assert hold_out(numbers, 0.2, "a").fingerprint() == "6fc060cbc6975064"


# --- a test file, and metrics -----------------------------------------------------------------------------------------


def test_a_test_file_is_scored_beside_validation() -> None:
    write(list(GOOD_BAD))
    write(["good", "bad"] * 5, "test.jsonl", "new")
    write(["good", "bad", "bad"], "dev.jsonl", "other")
    made = text_file("a.jsonl", {"test": "test.jsonl", "validation": "dev.jsonl"})
    data = made.load(None)
    assert {name: len(split) for name, split in data.evaluation.items()} == {"validation": 3, "test": 10}
    assert made.name == "a.jsonl(validation=dev.jsonl,test=test.jsonl)"
    alone = text_file("a.jsonl", {"test": "test.jsonl"}).load(None)
    assert list(alone.evaluation) == ["validation", "test"]
    assert alone.train.fingerprint() == text_file("a.jsonl", {}).load(None).train.fingerprint()
    assert "10 texts of the test file are in the training file too." in noted(
        "a.jsonl", {"test": write(["bad"] * 10, "t.jsonl")}
    )


@pytest.mark.parametrize("metric", ["f1(good)", "precision(bad)", "recall(good)"])
def test_a_named_class_is_the_positive_one(metric: str) -> None:
    made = text_file(write(list(GOOD_BAD)), {"metric": metric})
    assert made.metrics == (metric,)
    assert made.name == f"a.jsonl(metric={metric})"
    predictions, labels = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), np.array([1, 1, 0])
    expected = {"f1(good)": 0.5, "precision(bad)": 0.0, "recall(good)": 0.5}[metric]
    assert made.score(predictions, labels) == {metric: pytest.approx(expected)}


def test_metrics_that_do_not_fit_are_refused() -> None:
    write([f"c{i % 3}" for i in range(90)])
    assert "or name a class: f1(CLASS)" in refusal("a.jsonl", {"metric": "f1"})
    assert "Did you mean 'c1'?" in refusal("a.jsonl", {"metric": "f1(c11)"})
    assert "the metric 'accuracy' takes no class" in refusal("a.jsonl", {"metric": "accuracy(c1)"})
    assert "Did you mean 'neg_rmse'?" in refusal(write(list(range(60))), {"kind": "regression", "metric": "rmse"})
    assert text_file(write([f"c{i % 3}" for i in range(90)]), {"metric": "auc"}).metrics == ("auc",)


def test_spellings_of_one_class_are_told() -> None:
    assert "differ only in how they are spelt: '1', '1.0'." in noted(write(["1", "1.0", "2"] * 20))
    assert "differ only in how they are spelt: 'True', 'true'." in noted(write(["True", "true", "no"] * 20))
    assert "spelt" not in noted(write(["true", "no", "1", "2"] * 20))


def test_a_long_label_does_not_fill_the_page() -> None:
    assert len(noted(write([f"{'x' * 5000} {i % 2}" for i in range(60)]))) < 1000
    assert len(refusal(write(["x" * 5000] * 60))) < 1000


def test_a_target_beyond_single_precision_is_refused() -> None:
    message = refusal(write([1.0, 1e39, *range(40)]), {"kind": "regression"})
    assert "line 2: the label of a regression must be a number such as 3.5; got '999" in message
    assert "beyond single precision" in message
