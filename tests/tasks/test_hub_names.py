"""Data sets of the hub by their names: layouts, class names, splits, and the sentence for what can not be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from finetune_bench import registry
from finetune_bench.errors import DataError, FinetuneBenchError
from finetune_bench.task import Task
from finetune_bench.tasks.hub import HubTask
from finetune_bench.tasks.hub_names import hub_task
from tests import ROOT
from tests.tasks.test_tasks import Unreachable

SHARED = ROOT.parent / "shared" / "datasets"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets beside the project are not here")
TOPICS = ["World", "Sports", "Business"]
NEWS = Features({"text": Value("string"), "label": ClassLabel(names=TOPICS)})


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "get_session", Unreachable)


def write(folder: Path, split: str, count: int = 30, features: Features = NEWS, **columns: list[Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"text": [f"{split} {i}" for i in range(count)], "label": [i % 3 for i in range(count)], **columns}
    rows = {name: values for name, values in rows.items() if name in features}
    Dataset.from_dict(rows, features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


def refusal(task: Task, root: Path | None) -> str:
    with pytest.raises(DataError) as caught:
        task.load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("folder", ["", "data", "default", "plain_text"])
def test_every_usual_layout_is_read(tmp_path: Path, folder: str) -> None:
    for split in ("train", "test"):
        write(tmp_path / "ag_news" / folder, split)
    made = hub_task("ag_news", {})
    data = made.load(tmp_path)
    assert (made.name, made.labels, made.outputs) == ("hub:ag_news", tuple(TOPICS), 3)
    assert list(data.train.texts) == [f"train {i}" for i in range(30)]
    assert list(data.train.labels) == [i % 3 for i in range(30)]
    assert list(data.evaluation["validation"].texts) == [f"test {i}" for i in range(30)]
    assert "It has no validation split, so its test split is scored in that place." in data.notes
    assert "3 classes, rows in train + validation: 'World' 10 + 10, 'Sports' 10 + 10, 'Business' 10 + 10." in data.notes
    assert hub_task("ag_news", {}).outputs == 3  # whoever asks for it anew knows the classes


def test_any_label_column_and_split(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label_coarse": Value("int64"), "kind of": Value("string")})
    kinds = [f"k{i % 2}" for i in range(30)]
    for split in ("training", "dev", "test"):
        columns = {"label_coarse": [i % 6 for i in range(30)], "kind of": kinds}
        write(tmp_path / "SetFit" / "trec", split, features=features, **columns)
    made = hub_task("SetFit/trec", {"label": "label_coarse", "text": "text", "train": "training", "test": "test"})
    data = made.load(tmp_path)
    assert made.name == "hub:SetFit/trec(text=text,label=label_coarse,train=training,test=test)"
    assert made.labels == ("0", "1", "2", "3", "4", "5")
    assert list(data.evaluation) == ["validation", "test"]
    assert data.evaluation["validation"].texts[0] == "dev 0"
    other = hub_task("SetFit/trec", {"label": "kind of", "train": "training", "metric": "f1(k1)"})
    assert other.load(tmp_path).train.labels[:3] == [0, 1, 0]
    plugin = HubTask(
        "trec",
        labels=("k0", "k1"),
        path="SetFit/trec",
        columns=("text",),
        label="kind of",
        rows={"training": 30, "dev": 30},
    )
    (tmp_path / "SetFit" / "trec").rename(tmp_path / "SetFit" / "default")
    (tmp_path / "SetFit" / "trec").mkdir()
    (tmp_path / "SetFit" / "default").rename(tmp_path / "SetFit" / "trec" / "default")
    assert plugin.load(tmp_path).train.labels[:3] == [0, 1, 0]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "ag_news", "train", label=[-1, None, *(i % 3 for i in range(28))])
    data = hub_task("ag_news", {}).load(tmp_path)
    assert "2 rows of ag_news, split train carry no label and were left out." in data.notes
    assert len(data.train) + len(data.evaluation["validation"]) == 28
    write(tmp_path / "ag_news", "train", label=[-1] * 30)
    assert "'ag_news, split train' has no row with a label among its 30 rows." in refusal(
        hub_task("ag_news", {}), tmp_path
    )


def test_several_configurations_must_be_chosen_from(tmp_path: Path) -> None:
    for config in ("en", "de"):
        for split in ("train", "validation"):
            write(tmp_path / "owner" / "many" / config, split)
    message = refusal(hub_task("owner/many", {}), tmp_path)
    assert "The data set owner/many has the configurations de, en; choose one: hub:owner/many(config=NAME)." in message
    assert len(hub_task("owner/many", {"config": "de"}).load(tmp_path).train) == 30
    message = refusal(hub_task("owner/many", {"config": "fr"}), tmp_path)
    assert "its configurations there are de, en" in message
    files = "".join(
        f"- config_name: {config}\n  data_files:\n  - split: train\n    path: {config}/train-*\n"
        for config in ("en", "de")
    )
    (tmp_path / "owner" / "many" / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    assert "has the configurations de, en; choose one" in refusal(hub_task("owner/many", {}), tmp_path)
    assert len(hub_task("owner/many", {"config": "en"}).load(tmp_path).evaluation["validation"]) < 15
    assert "Did you mean 'en'?" in refusal(hub_task("owner/many", {"config": "eng"}), tmp_path)


def test_what_can_not_be_had_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ag_news", "train")
    assert "Did you mean 'text'?" in refusal(hub_task("ag_news", {"text": "texts"}), tmp_path)
    assert "choose one with label=COLUMN" in refusal(hub_task("ag_news", {"label": "topic"}), tmp_path)
    assert "Its splits are train; choose one with test=SPLIT" in refusal(
        hub_task("ag_news", {"test": "test"}), tmp_path
    )
    assert f"in the folder '{tmp_path}/no/where' of --data-root, which does not" in refusal(
        hub_task("no/where", {}), tmp_path
    )
    (tmp_path / "empty").mkdir()
    assert "has no data files in" in refusal(hub_task("empty", {}), tmp_path)
    (tmp_path / "ag_news" / "train-00000-of-00001.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    assert "could not be loaded from" in refusal(hub_task("ag_news", {}), tmp_path)
    message = refusal(hub_task("ag_news", {}), None)
    assert "The data set ag_news, was not found: the hub can't be reached" in message


@pytest.mark.parametrize("path", ["../x", "", "a/b/c", "a b", "/etc", "a/", "ä"])
def test_names_that_are_none_are_refused(path: str) -> None:
    with pytest.raises(DataError, match="expected the name of a data set on the hub"):
        hub_task(path, {})


def test_options_that_can_not_be_are_refused() -> None:
    for options, expected in (
        ({"txt": "x"}, "Did you mean 'text'?"),
        ({"text_pair": "text"}, "name the same column"),
        ({"kind": "x"}, "There is no kind of task"),
    ):
        with pytest.raises(DataError) as caught:
            hub_task("ag_news", options)
        assert expected in str(caught.value)


def test_the_registry_finds_it_by_its_prefix() -> None:
    if "hub" not in registry._installed("task_sources"):
        pytest.skip("finetune-bench is not installed, or was before hub: was an entry point")
    made = registry.task("hub:SetFit/trec( label = label_coarse, text=text )")
    assert made.name == "hub:SetFit/trec(text=text,label=label_coarse)"
    assert registry.task(made.name) is made
    with pytest.raises(FinetuneBenchError):
        registry.task("hubb:ag_news")


@pytest.mark.shared
@needs_shared
def test_a_data_set_beside_the_project_has_the_examples_of_the_built_in_task() -> None:
    options = {"config": "rte", "text": "sentence1", "text_pair": "sentence2"}
    made = hub_task("nyu-mll/glue", options)
    from finetune_bench.tasks import glue

    assert made.load(SHARED).fingerprint() == glue.rte.load(SHARED).fingerprint()
    assert made.labels == glue.rte.labels
