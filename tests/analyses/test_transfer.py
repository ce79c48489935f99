"""Transfer: mappings by name, both readings, and sets that are read from a folder."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from finetune_bench import registry
from finetune_bench.analyses.transfer import SETS, Transfer, mapped, readings, scores_of, sets_for
from finetune_bench.analysis import Network, Trained
from finetune_bench.errors import DataError, UnknownName, UsageError
from finetune_bench.task import Split, TaskData
from finetune_bench.tasks import nli
from tests.tiny_run import tiny_model

THREE_WAY = ("entailment", "neutral", "contradiction")
LOGITS = np.array([[1.0, 0.8, 0.7]])
TWO_WAY = {task.name: task for task in (nli.mnli2, nli.snli2)}
(HANS,) = SETS["hans"]
(ADV_SST2,) = SETS["adv_sst2"]


def test_the_two_readings_of_the_worked_example() -> None:
    shares = np.exp(LOGITS) / np.exp(LOGITS).sum()
    assert shares[0] == pytest.approx([0.391, 0.320, 0.289], abs=5e-4)
    counts_as = mapped(THREE_WAY, HANS.model, "the model")
    merge, added = readings(LOGITS, counts_as, ["entailment", "non-entailment"])
    assert (merge.tolist(), added.tolist()) == ([0], [1])


def test_permuted_class_names_give_the_same_result() -> None:
    random = np.random.default_rng(0)
    logits, gold = random.normal(size=(50, 3)), random.integers(0, 2, 50)
    expected = scores_of(logits, THREE_WAY, gold, HANS.data.labels, HANS)
    for order in itertools.permutations(range(3)):
        names = [THREE_WAY[index].upper() for index in order]
        assert scores_of(logits[:, order], names, gold, HANS.data.labels, HANS) == pytest.approx(expected)
    swapped = scores_of(logits, THREE_WAY, 1 - gold, HANS.data.labels[::-1], HANS)
    assert swapped == pytest.approx(expected)


def test_entailment_is_never_likelier_by_sum() -> None:
    logits = np.random.default_rng(1).normal(size=(500, 3))
    merge, added = readings(logits, mapped(THREE_WAY, HANS.model, "the model"), ["entailment", "non-entailment"])
    assert set(np.flatnonzero(added == 0)) < set(np.flatnonzero(merge == 0))


def test_a_model_of_two_classes_has_one_reading_on_the_same_sets() -> None:
    """Where entailment and the rest are trained as two classes there is nothing left to merge."""
    of = sets_for(nli.mnli2)
    assert of.keys() == sets_for(registry.task("mnli")).keys() - {"adv_mnli", "adv_mnli_mismatched"}
    assert sets_for(nli.snli2).keys() == sets_for(registry.task("snli")).keys()
    logits, gold = np.array([[0.2, 0.1], [0.0, 0.3], [0.5, 0.0]]), np.array([0, 1, 2])
    scores = scores_of(logits, nli.mnli2.labels, gold, of["snli"].data.labels, of["snli"])
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert "accuracy (sum)" not in scores


def test_an_unmapped_class_is_refused() -> None:
    with pytest.raises(UsageError, match="no mapping is defined for the class 'maybe' of the model"):
        scores_of(LOGITS, ("entailment", "neutral", "maybe"), np.array([0]), HANS.data.labels, HANS)
    with pytest.raises(UsageError, match="no mapping is defined for the class 'maybe' of the set"):
        scores_of(LOGITS, THREE_WAY, np.array([0]), ("entailment", "maybe"), HANS)
    with pytest.raises(UsageError, match="no mapping is defined for 'bad'"):
        scores_of(LOGITS[:, :2], ("good", "bad"), np.array([0]), ADV_SST2.data.labels, ADV_SST2)


def test_equal_classes_have_one_reading_and_beside_it_majority_and_interval() -> None:
    logits = np.array([[2.0, 0], [0, 2], [0, 2], [0, 2]])
    scores = scores_of(logits, ("negative", "positive"), np.array([0, 0, 0, 1]), ADV_SST2.data.labels, ADV_SST2)
    assert scores.keys() == {"accuracy", "low", "high", "majority", "examples"}
    assert (scores["accuracy"], scores["majority"], scores["examples"]) == (0.5, 0.75, 4)
    assert scores["low"] < 0.5 < scores["high"]


def test_paraphrases_have_f1_and_the_area_under_precision_and_recall() -> None:
    of = sets_for(registry.task("qqp"))["paws"]
    logits = np.array([[0.0, 3], [0, 2], [0, 1], [1, 0]])
    scores = scores_of(logits, ("not_duplicate", "duplicate"), np.array([1, 0, 1, 0]), of.data.labels, of)
    assert scores["F1"] == pytest.approx(0.8)
    assert scores["average precision"] == pytest.approx((1 + 2 / 3) / 2)
    none = scores_of(logits, ("not_duplicate", "duplicate"), np.zeros(4, int), of.data.labels, of)
    assert math.isnan(none["average precision"])


def test_every_mapping_fits_its_set_and_its_source() -> None:
    for several in SETS.values():
        for of in several:
            for source in of.sources:
                model = (TWO_WAY.get(source) or registry.task(source)).labels
                scores = scores_of(np.eye(len(model)), model, np.zeros(len(model), int), of.data.labels, of)
                assert 0 <= scores["accuracy"] <= 1


@pytest.mark.parametrize(
    ("task", "to", "said"),
    [
        ("stsb", "all", "a number has no classes"),
        ("cola", "all", "no mapping of the classes of 'cola'"),
        ("rte", "hans", "no mapping from 'rte' to hans is defined; defined: adv_rte"),
        ("rte", "adv_rte", None),
        ("mnli", "hans+paws", None),
    ],
)
def test_what_has_no_mapping_is_told_before_any_compute(task: str, to: str, said: str | None) -> None:
    reason = Transfer(to=to).unsupported(registry.task(task))
    assert reason is None if said is None else said in str(reason)


def test_an_unknown_set_is_told() -> None:
    with pytest.raises(UnknownName, match="Did you mean 'hans'"):
        Transfer(to="hanz")


def test_missing_data_are_told_with_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="jhu-cogsci/hans") as error:
        Transfer(to="hans").check(registry.task("mnli"), tmp_path, "tiny")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(DataError, match="none of adv_rte is at hand"):
        Transfer().check(registry.task("rte"), tmp_path, "tiny")


def write(root: Path, path: str, split: str, **columns: Any) -> None:
    folder = root / path
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / f"{split}-00000-of-00001.parquet")


class Words:
    """A tokenizer of numbers, for a tiny model: two texts become ids."""

    pad_token_id, unk_token_id, padding_side, all_special_ids, name_or_path = 0, None, "right", [0], "words"

    def num_special_tokens_to_add(self, pair: bool) -> int:
        return 0

    def __call__(self, texts: list[str], pairs: list[str] | None, **_: Any) -> dict[str, list[list[int]]]:
        ids = [[5 + len(a) % 50, 5 + len(b) % 50] for a, b in zip(texts, pairs or texts, strict=True)]
        return {"input_ids": ids, "attention_mask": [[1, 1] for _ in ids]}


def test_a_model_is_scored_on_sets_of_a_folder(tmp_path: Path) -> None:
    """HANS by heuristic and gold label, both adversarial sets pooled; what isn't there is named."""
    heuristics = [name for name in ("lexical_overlap", "subsequence", "constituent") for _ in range(4)]
    texts = ["x" * (3 * index + 1) for index in range(12)]
    write(
        tmp_path, "jhu-cogsci/hans/plain_text", "validation",
        premise=texts, hypothesis=texts[::-1], label=[0, 1] * 6, heuristic=heuristics,
    )  # fmt: skip
    for config, rows in (("adv_mnli", 4), ("adv_mnli_mismatched", 6)):
        write(
            tmp_path, f"AI-Secure/adv_glue/{config}", "validation",
            premise=texts[:rows], hypothesis=texts[:rows], label=[0, 1, 2, 0, 1, 2][:rows],
        )  # fmt: skip
    model = tiny_model()
    network = Network(model, {}, torch.device("cpu"), lambda: torch.autocast("cpu", enabled=False))
    empty = Split([], None, [])
    trained = Trained(
        task=registry.task("mnli"), data=TaskData(empty, {}), splits={}, predictions={}, checkpoint="tiny",
        checkpoint_name="tiny", tokenizer=Words(), max_length=8, data_root=tmp_path, network=network,
        untouched=lambda: network,
    )  # fmt: skip
    findings = Transfer().measure(trained)
    logits = findings.arrays["hans.logits"]
    classes = logits.argmax(axis=1)
    gold = np.array([0, 1] * 6)
    hits = (classes > 0).astype(int) == gold
    numbers = findings.numbers
    assert numbers["hans: accuracy"] == pytest.approx(hits.mean())
    parts = [key for key in numbers if key.startswith("hans, ") and key.endswith(": accuracy")]
    assert len(parts) == 6
    assert np.mean([numbers[key] for key in parts]) == pytest.approx(hits.mean())
    first = np.array(heuristics) == "lexical_overlap"
    assert numbers["hans, lexical_overlap, non-entailment: accuracy"] == pytest.approx(hits[first & (gold == 1)].mean())
    both = sum(numbers[f"{name}: accuracy"] * rows for name, rows in (("adv_mnli", 4), ("adv_mnli_mismatched", 6)))
    assert numbers["AdvGLUE, pooled: accuracy"] == pytest.approx(both / 10)
    assert numbers["AdvGLUE, pooled: examples"] == 10
    assert findings.better["hans: accuracy"] == "higher"
    assert "hans: majority" not in findings.better
    (missing,) = [note for note in findings.notes if "not at hand" in note]
    assert "paws" in missing
    assert "adv_mnli" not in missing
    assert any("hans holds 12 rows; 30000 were published" in note for note in findings.notes)


def test_the_adversarial_sets_beside_the_project(shared: Path) -> None:
    """All 738 examples are there, with the classes of their tasks."""
    root = shared / "datasets"
    names = [name for name in SETS if name.startswith("adv_")]
    sizes = []
    for name in names:
        (of,) = SETS[name]
        Transfer(to=name).check(registry.task(of.sources[0]), root, "tiny")
        sizes.append(len(of.data.load(root).train))
    assert sizes == [148, 78, 121, 162, 148, 81]


@pytest.mark.parametrize(("task", "name"), [("snli", "snli"), ("mnli", "mnli_matched"), ("mnli", "mnli_mismatched")])
def test_a_model_of_entailment_is_scored_on_its_own_split_in_two_classes(task: str, name: str) -> None:
    """Table 7 has MNLI after MNLI and SNLI after SNLI: a neutral text that is called a contradiction is right."""
    of = sets_for(registry.task(task))[name]
    assert name in sets_for(registry.task(task + "2"))
    classes = registry.task(task).labels
    assert tuple(classes) == THREE_WAY
    logits = np.array([[2.0, 0, 0], [0, 1, 2], [0, 2, 1], [2, 0, 1]])
    scores = scores_of(logits, classes, np.array([0, 1, 1, 2]), of.data.labels, of)
    assert (scores["accuracy"], scores["majority"]) == (0.75, 0.75)
    assert (logits.argmax(axis=1) == [0, 1, 1, 2]).mean() == 0.5
