"""The tasks of the hub's layout: their contract, the local data sets, and the sentence for what is missing."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from finetune_bench.errors import DataError
from finetune_bench.metrics import METRICS
from finetune_bench.model import hub as client
from finetune_bench.task import Split, TaskData
from finetune_bench.tasks import glue, hub, nli
from finetune_bench.tasks.hub import HubTask
from tests import ROOT

SHARED = ROOT.parent / "shared" / "datasets"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets beside the project are not here")
GLUE = [glue.cola, glue.sst2, glue.mrpc, glue.stsb, glue.qqp, glue.mnli, glue.qnli, glue.rte, glue.wnli]
TASKS = [*GLUE, nli.snli, nli.sick, nli.scitail]


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def features_of(task: HubTask) -> Features:
    label = Value("float32") if task.kind == "regression" else ClassLabel(names=list(task.labels))
    return Features({**{column: Value("string") for column in task.columns}, "label": label})


def rows_for(task: HubTask, labels: list[Any], word: str = "row") -> dict[str, list[Any]]:
    texts = {column: [f"{word} {i} {column}" for i in range(len(labels))] for column in task.columns}
    return {**texts, "label": labels}


def write_split(
    root: Path, task: HubTask, split: str, labels: list[Any], features: Features | None = None, *, word: str = "row"
) -> Path:
    folder = root / task.path / task.config
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}-00000-of-00001.parquet"
    Dataset.from_dict(rows_for(task, labels, word), features or features_of(task)).to_parquet(file)
    return file


def write_card(root: Path, task: HubTask, splits: list[str]) -> None:
    files = "".join(f"  - split: {split}\n    path: {task.config}/{split}-*\n" for split in splits)
    card = f"---\nconfigs:\n- config_name: {task.config}\n  data_files:\n{files}---\n"
    (root / task.path / "README.md").write_text(card)


def test_a_copy_of_one_configuration_is_read_whatever_else_its_card_names(tmp_path: Path) -> None:
    """From where the card says, also where a folder of the configuration's name holds something else."""
    task, folder = glue.rte, tmp_path / glue.rte.path
    for split in task.rows:
        write_split(tmp_path, task, split, [0, 1])
    shutil.copytree(folder / task.config, folder / "new")
    write_split(tmp_path, task, "train", [0, 1, 1])

    def write(place: str) -> None:
        files = "".join(f"  - split: {split}\n    path: {place}/{split}-*\n" for split in task.rows)
        absent = "- config_name: cola\n  data_files:\n  - split: train\n    path: cola/train-*\n"
        card = f"---\nconfigs:\n{absent}- config_name: {task.config}\n  data_files:\n{files}---\n"
        (folder / "README.md").write_text(card)

    for place, count in (("new", 2), (task.config, 3)):
        write(place)
        assert len(task.load(tmp_path).train) == count, place
    shutil.rmtree(folder / task.config)
    laid_out = f"lay them out as its README.md says, or as '{folder / task.config}/train-*.parquet'"
    assert f"which holds none of its files; {laid_out}" in refusal(task, tmp_path)
    # The configuration that the card names first is there; the library finds that the other one is not when it reads.
    shutil.copytree(folder / "new", folder / "cola")
    assert f"which holds none of its files; {laid_out}" in refusal(task, tmp_path)


def refusal(task: HubTask, data_root: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        task.load(data_root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_task_names_metrics_that_exist_for_its_kind(task: HubTask) -> None:
    assert all(METRICS[name].kind == task.kind for name in task.metrics)
    assert all(not METRICS[name].binary or len(task.labels) == 2 for name in task.metrics)
    assert (task.kind == "regression") == (task.labels == ())
    assert hash(task) is not None


def test_the_first_metric_is_the_one_that_the_field_shows() -> None:
    shown = {task.name: task.metrics[0] for task in TASKS}
    assert [name for name, metric in shown.items() if metric == "f1"] == ["mrpc", "qqp"]
    assert (shown["cola"], shown["stsb"]) == ("matthews", "pearson_spearman")
    assert sum(metric == "accuracy" for metric in shown.values()) == 8


# Training rows, evaluation rows, and the splits that are not as published: from the README beside the data.
LOCAL: dict[str, tuple[int, dict[str, int], set[str]]] = {
    "cola": (8551, {"validation": 1043}, set()),
    "sst2": (67349, {"validation": 872}, set()),
    "mrpc": (3668, {"validation": 408}, set()),
    "stsb": (5749, {"validation": 1500}, set()),
    "qqp": (8999, {"validation": 1000}, {"train", "validation"}),
    "mnli": (9999, {"validation_matched": 9815, "validation_mismatched": 9832}, {"train"}),
    "qnli": (9999, {"validation": 5463}, {"train"}),
    "rte": (2490, {"validation": 277}, set()),
    "snli": (9999, {"validation": 9842}, {"train"}),
    "sick": (4500, {"validation": 500}, set()),
}


@pytest.mark.shared
@needs_shared
@pytest.mark.parametrize("task", [task for task in TASKS if task.name in LOCAL], ids=lambda task: task.name)
def test_the_local_copy_has_the_rows_that_its_readme_names(task: HubTask) -> None:
    train, evaluation, subsets = LOCAL[task.name]
    data = task.load(SHARED)
    assert len(data.train) == train
    assert {name: len(split) for name, split in data.evaluation.items()} == evaluation
    splits = {"train": data.train, **data.evaluation}
    assert {name for name, split in splits.items() if split.is_subset} == subsets
    assert len(data.notes) == len(subsets)
    for split in splits.values():
        assert len(split.texts) == len(split.labels)
        assert (split.pairs is not None) == (len(task.columns) == 2)
        if task.kind == "classification":
            assert set(split.labels) == set(range(len(task.labels)))
        else:
            assert min(split.labels) >= 0
            assert max(split.labels) <= 5


def share(data: TaskData, task: HubTask, label: str, split: str = "train") -> float:
    labels = list(data.train.labels if split == "train" else data.evaluation[split].labels)
    return round(100 * labels.count(task.labels.index(label)) / len(labels), 1)


@pytest.mark.shared
@needs_shared
def test_the_shares_of_the_labels_are_those_of_the_readme() -> None:
    assert share(glue.cola.load(SHARED), glue.cola, "acceptable") == 70.4
    assert share(glue.rte.load(SHARED), glue.rte, "entailment") == 50.2
    assert share(glue.mrpc.load(SHARED), glue.mrpc, "equivalent") == 67.4
    assert share(glue.sst2.load(SHARED), glue.sst2, "positive") == 55.8
    assert share(glue.qnli.load(SHARED), glue.qnli, "entailment", "validation") == 49.5
    mnli = glue.mnli.load(SHARED)
    assert list(mnli.evaluation) == ["validation_matched", "validation_mismatched"]
    assert Counter(mnli.evaluation["validation_matched"].labels) == {0: 3479, 1: 3123, 2: 3213}
    assert Counter(mnli.evaluation["validation_mismatched"].labels) == {0: 3463, 1: 3129, 2: 3240}
    assert Counter(nli.sick.load(SHARED).train.labels) == {0: 1299, 1: 2536, 2: 665}


@pytest.mark.shared
@needs_shared
def test_what_the_local_copy_lacks_is_one_sentence() -> None:
    message = refusal(nli.scitail, SHARED)
    assert "allenai/scitail, config tsv_format, split train, was not found" in message
    assert str(SHARED / "allenai" / "scitail") in message
    assert "its splits there are validation, test" in message
    message = refusal(glue.wnli, SHARED)
    assert "nyu-mll/glue, config wnli" in message
    assert f"'{SHARED}/nyu-mll/glue/wnli/train-*.parquet'" in message


@pytest.mark.parametrize("card", [True, False], ids=["with a data card", "without"])
def test_a_folder_in_the_hubs_layout(tmp_path: Path, card: bool) -> None:
    write_split(tmp_path, glue.wnli, "train", [0, 1, -1, 1])
    write_split(tmp_path, glue.wnli, "validation", [1, 0])
    write_split(tmp_path, glue.wnli, "test", [-1, -1])
    write_split(tmp_path, glue.rte, "train", [0, 1])  # a neighbour, not to be mixed in
    if card:
        write_card(tmp_path, glue.wnli, ["train", "validation", "test"])
    data = glue.wnli.load(tmp_path)
    assert data.train.texts == ["row 0 sentence1", "row 1 sentence1", "row 3 sentence1"]
    assert data.train.pairs == ["row 0 sentence2", "row 1 sentence2", "row 3 sentence2"]
    assert data.train.labels == [0, 1, 1]
    assert list(data.evaluation) == ["validation"]
    assert data.evaluation["validation"].labels == [1, 0]
    assert data.train.published == 635
    assert data.notes == (
        "1 rows of the train split carry no label and were left out.",
        "The train split holds 3 rows; 635 were published.",
        "The validation split holds 2 rows; 71 were published, so scores on it can't be compared with published ones.",
    )
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("card", [True, False], ids=["with a data card", "without"])
def test_the_two_validation_sets_of_mnli_are_kept_apart(tmp_path: Path, card: bool) -> None:
    for i, split in enumerate(glue.mnli.rows):
        write_split(tmp_path, glue.mnli, split, [i] * (i + 1), word=split)
    if card:
        write_card(tmp_path, glue.mnli, list(glue.mnli.rows))
    data = glue.mnli.load(tmp_path)
    assert {name: list(split.labels) for name, split in data.evaluation.items()} == {
        "validation_matched": [1, 1],
        "validation_mismatched": [2, 2, 2],
    }
    assert all(text.startswith(name) for name, split in data.evaluation.items() for text in split.texts)


def test_labels_may_be_texts(tmp_path: Path) -> None:
    features = Features({"premise": Value("string"), "hypothesis": Value("string"), "label": Value("string")})
    write_split(tmp_path, nli.scitail, "train", ["entails", "neutral", "entails"], features)
    write_split(tmp_path, nli.scitail, "validation", ["neutral", "entails"], features)
    data = nli.scitail.load(tmp_path)
    assert data.train.labels == [0, 1, 0]
    assert data.evaluation["validation"].labels == [1, 0]
    write_split(tmp_path, nli.scitail, "validation", ["neutral", "contradicts"], features)
    assert "row 2: the label must be one of entails, neutral; got 'contradicts'" in refusal(nli.scitail, tmp_path)


def test_numbers_are_labels_of_a_regression(tmp_path: Path) -> None:
    write_split(tmp_path, glue.stsb, "train", [0.0, 2.5, -1.0, 5.0])
    write_split(tmp_path, glue.stsb, "validation", [1.25])
    data = glue.stsb.load(tmp_path)
    assert data.train.labels == [0.0, 2.5, 5.0]
    assert data.evaluation["validation"].labels == [1.25]
    write_split(tmp_path, glue.stsb, "validation", [float("nan")])
    assert "row 1: the label must be a number; got nan" in refusal(glue.stsb, tmp_path)


@pytest.mark.parametrize("card", [True, False], ids=["with a data card", "without"])
def test_a_changed_file_is_read_again_whatever_its_time_stamp(tmp_path: Path, card: bool) -> None:
    import os

    file = write_split(tmp_path, glue.wnli, "train", [0, 1])
    write_split(tmp_path, glue.wnli, "validation", [1, 0])
    if card:
        write_card(tmp_path, glue.wnli, ["train", "validation"])
    before, stamp = glue.wnli.load(tmp_path), file.stat()
    write_split(tmp_path, glue.wnli, "train", [1, 0])
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    after = glue.wnli.load(tmp_path)
    assert (before.train.labels, after.train.labels) == ([0, 1], [1, 0])


def test_another_order_of_the_labels_is_refused(tmp_path: Path) -> None:
    features = features_of(glue.wnli)
    features["label"] = ClassLabel(names=["entailment", "not_entailment"])
    write_split(tmp_path, glue.wnli, "train", [0, 1], features)
    write_split(tmp_path, glue.wnli, "validation", [0, 1], features)
    message = refusal(glue.wnli, tmp_path)
    assert "names its labels entailment, not_entailment, in this order" in message
    assert "expected not_entailment, entailment" in message


def test_other_columns_are_refused(tmp_path: Path) -> None:
    features = Features({"sentence": Value("string"), "sentence2": Value("string"), "label": Value("int64")})
    folder = tmp_path / glue.wnli.path / "wnli"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = {"sentence": ["a"], "sentence2": ["b"], "label": [0]}
        Dataset.from_dict(rows, features).to_parquet(folder / f"{split}.parquet")
    message = refusal(glue.wnli, tmp_path)
    assert "has no column sentence1: expected sentence1, sentence2, label; found sentence, sentence2, label" in message


def test_a_split_without_labels_texts_or_valid_ids_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, glue.wnli, "train", [0, 1])
    write_split(tmp_path, glue.wnli, "validation", [-1, -1])
    assert "split validation, has no row with a label among its 2 rows" in refusal(glue.wnli, tmp_path)
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("int64")})
    write_split(tmp_path, glue.wnli, "validation", [0, 2], features)
    assert "row 2: the label must be one of not_entailment, entailment; got 2" in refusal(glue.wnli, tmp_path)
    file = write_split(tmp_path, glue.wnli, "validation", [0, 1])
    Dataset.from_dict(rows_for(glue.wnli, [0, 1]) | {"sentence2": ["b", None]}, features).to_parquet(file)
    assert "row 2: 'sentence2' is not a text" in refusal(glue.wnli, tmp_path)
    file.write_bytes(b"not parquet")
    assert "could not be loaded from there" in refusal(glue.wnli, tmp_path)


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    assert f"expected a folder, but there is none at '{tmp_path / 'nowhere'}'" in refusal(
        glue.cola, tmp_path / "nowhere"
    )
    message = refusal(glue.cola, tmp_path)
    assert "nyu-mll/glue, config cola" in message
    assert f"'{tmp_path}/nyu-mll/glue' of --data-root, which does not exist" in message
    assert f"'{tmp_path}/nyu-mll/glue/cola/train-*.parquet'" in message


class Unreachable:
    """A client of the hub without a network."""

    asked = 0

    def head(self, *_: object, **__: object) -> None:
        Unreachable.asked += 1
        raise OSError("no network")


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(huggingface_hub, "get_session", Unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    client.forget()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # whatever the environment says
    yield
    client.forget()


@pytest.mark.usefixtures("_no_network")
def test_without_a_network_the_failure_is_quick_and_one_sentence(tmp_path: Path) -> None:
    start = time.monotonic()
    asked = Unreachable.asked
    message = refusal(glue.cola, None)
    assert Unreachable.asked == asked + 1
    assert time.monotonic() - start < 10
    assert "nyu-mll/glue, config cola, was not found: the hub can't be reached" in message
    assert f"'{tmp_path / 'cache'}'" in message
    assert "--data-root FOLDER" in message
    assert "'FOLDER/nyu-mll/glue/cola/train-*.parquet', 'FOLDER/nyu-mll/glue/cola/validation-*.parquet'" in message
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.usefixtures("_no_network")
def test_without_a_network_the_hubs_cache_is_read(tmp_path: Path) -> None:
    for split, labels in (("train", [0, 1, 1]), ("validation", [1, 0])):
        write_split(tmp_path, glue.wnli, split, labels)
    write_card(tmp_path, glue.wnli, ["train", "validation"])
    cache = tmp_path / "cache"
    datasets.load_dataset(str(tmp_path / glue.wnli.path), "wnli")
    (cache / "glue").rename(cache / "nyu-mll___glue")  # as a download from the hub leaves it
    assert glue.wnli.load(None).fingerprint() == glue.wnli.load(tmp_path).fingerprint()
    assert "nyu-mll/glue, config rte, was not found" in refusal(glue.rte, None)


@pytest.mark.usefixtures("_no_network")
def test_when_told_to_be_offline_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    asked = Unreachable.asked
    assert "was not found: the hub can't be reached" in refusal(glue.cola, None)
    assert Unreachable.asked == asked
    assert datasets.config.HF_HUB_OFFLINE


def test_a_hub_that_answers_and_fails_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("the shelf is\nempty.")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", fails)
    message = refusal(glue.cola, None)
    assert "could not be loaded from the hub (RuntimeError: the shelf is); connect" in message


def test_progress_bars_are_left_as_they_were(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_split(tmp_path, glue.wnli, "train", [0, 1])
    write_split(tmp_path, glue.wnli, "validation", [1, 0])
    capfd.readouterr()
    before = datasets.are_progress_bars_disabled()
    glue.wnli.load(tmp_path)
    assert datasets.are_progress_bars_disabled() == before
    assert capfd.readouterr() == ("", "")


def test_merged_classes_go_by_name_and_texts_stay() -> None:
    """`mnli2` is MNLI with neutral and contradiction as one class, in every split."""
    three = Split(["a", "b", "c"], ["x", "y", "z"], [2, 0, 1], published=9)

    class Stub(HubTask):
        def load(self, data_root: Path | None) -> TaskData:
            return TaskData(three, {"validation": three}, ("a note",))

    reordered = ("neutral", "entailment", "contradiction")
    for of, expected in ((nli.THREE_WAY, [1, 0, 1]), (reordered, [1, 1, 0])):
        data = dataclasses.replace(nli.mnli2, of=Stub("stub", labels=of)).load(None)
        for split in (data.train, *data.evaluation.values()):
            assert list(split.labels) == expected
            assert (split.texts, split.pairs, split.published) == (three.texts, three.pairs, 9)
        assert data.notes == ("a note",)
    assert (nli.mnli2.of, nli.snli2.of) == (glue.mnli, nli.snli)
    assert nli.mnli2.labels == nli.snli2.labels == ("entailment", "non-entailment")
    assert nli.mnli2.provenance() == glue.mnli.provenance()
