"""Analyses at a run's end and afterwards: the same numbers, no row changed, nothing trained twice."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from finetune_bench import cli, registry
from finetune_bench.analyses.calibration import measured
from finetune_bench.analysis import Analysis, Findings, Network, Trained, measured_before
from finetune_bench.errors import UsageError
from finetune_bench.parameters import parameter
from finetune_bench.recipe import Recipe
from finetune_bench.reports.markdown import Markdown
from finetune_bench.runner.afterwards import prepare
from finetune_bench.runner.cell import WorkerContext, run_cell
from finetune_bench.runner.executors.messages import EventStatus, WorkerSettings
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.runner.leftovers import foreign_names
from finetune_bench.runner.plan import Plan, make_plan
from finetune_bench.store import analyses as results
from finetune_bench.store.store import Store
from finetune_bench.study.study import Study
from finetune_bench.training import loop

CPU = torch.device("cpu")


class Counting(Analysis):
    """How often the model was asked, and a draw from every global stream."""

    name = "counting"
    title = "Counting"
    about = "A number that says nothing."
    asked: ClassVar[list[str]] = []

    factor: float = parameter(2.0, interval="[0, inf)")

    def measure(self, trained: Trained) -> Findings:
        torch.rand(3), np.random.rand(3), random.random()
        trained.model.model.train()
        self.asked.append(trained.task.name)
        logits = trained.model.logits(next(iter(trained.splits.values())))
        arrays = {"logits": logits}
        return Findings(
            numbers={"mean": self.factor * float(logits.mean()), "huge": float("inf")},
            layers={"depth": [1.0, 2.0, float("nan")]},
            better={"mean": "higher"},
            arrays=arrays,
        )


class Failing(Analysis):
    """An analysis that can't be made."""

    name = "failing"

    def measure(self, trained: Trained) -> Findings:
        raise ZeroDivisionError("no such luck")


class Breaking(Analysis):
    """An analysis that changes what it is given."""

    name = "breaking"

    def measure(self, trained: Trained) -> Findings:
        with torch.no_grad():
            for weight in trained.model.params.values():
                weight.add_(1)
        return Findings()


class Lying(Analysis):
    """An analysis that reads the model though it says that it needs none."""

    name = "lying"
    needs_model = False

    def measure(self, trained: Trained) -> Findings:
        return Findings(numbers={"outputs": trained.model.model.config.num_labels})  # type: ignore[union-attr, dict-item]


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        registry._added, "analyses", {owner.name: owner for owner in (Counting, Failing, Breaking, Lying)}
    )
    for owner in (Counting, Failing, Breaking, Lying):
        monkeypatch.setitem(registry._added_from, ("analyses", owner.name), Path(__file__))
    Counting.asked.clear()


@pytest.fixture
def study(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Study:
    return Study(
        methods=("vanilla",),
        tasks=(str(tiny_data),),
        models=(str(tiny_checkpoint),),
        seeds=(1, 2),
        recipe=Recipe(steps=3, batch_size=8),
        baseline=False,
        out=tmp_path / "run",
        device="cpu",
    )


def trained(study: Study, *analyses: str, seeds: int = 1, **more: Any) -> Plan:
    plan = make_plan(dataclasses.replace(study, analyses=analyses, **more))
    context = WorkerContext(plan.store, CPU, save_model=plan.study.save_model)
    for cell in plan.todo[:seeds]:
        run_cell(cell, context)
    return plan


def result(plan: Plan, name: str) -> results.Result:
    found = results.read(plan.store.folder(plan.cells[0].id), name)
    assert found is not None
    return found


def worker(plan: Plan) -> Worker:
    return Worker(
        WorkerSettings(
            out=str(plan.store.root),
            data_root=None,
            save_model=False,
            checkpoint_every=5,
            retry_failed=False,
            plugins=(),
            foreign={group: [] for group in foreign_names()},
        )
    )


@pytest.mark.slow
def test_a_row_is_equal_to_the_bit_with_and_without_analyses(study: Study, tmp_path: Path) -> None:
    without = trained(study)
    with_them = trained(study, "counting", "failing", "similarity", out=tmp_path / "other")
    assert with_them.store.without_measurements() == without.store.without_measurements()
    assert result(with_them, "failing")["reason"] == "ZeroDivisionError: no such luck"
    counting = result(with_them, "counting")
    assert counting["reason"] is None
    assert counting["numbers"]["huge"] is None
    assert counting["notes"] == ["huge is infinite."]
    assert counting["layers"] == {"depth": [1.0, 2.0, None]}
    assert counting["parameters"] == {"factor": 2.0}
    assert len(counting["source"]) == 16


@pytest.mark.slow
def test_the_next_run_of_a_process_is_not_shifted(study: Study, tmp_path: Path) -> None:
    without = trained(study, seeds=2)
    with_them = trained(study, "counting", seeds=2, out=tmp_path / "other")
    assert with_them.store.without_measurements() == without.store.without_measurements()
    assert len(Counting.asked) == 2


@pytest.mark.slow
def test_every_global_stream_stands_where_it_would_without_analyses(study: Study, tmp_path: Path) -> None:
    ends = []
    for number, analyses in enumerate(((), ("counting",))):
        np.random.seed(1)
        random.seed(1)
        trained(study, *analyses, out=tmp_path / f"run{number}")
        ends.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert len(Counting.asked) == 1
    assert ends[0] == ends[1]


def test_calibration_is_measured_of_every_run_from_its_predictions(study: Study) -> None:
    plan = trained(study)
    arrays = plan.store.arrays(plan.cells[0].id, "predictions")
    expected = measured(arrays["validation.predictions"], arrays["validation.labels"])
    assert result(plan, "calibration")["numbers"] == {f"validation: {key}": v for key, v in expected.items()}
    assert result(plan, "calibration")["version"] == 1


def test_an_analysis_that_changes_the_model_fails_the_run(study: Study) -> None:
    plan = trained(study, "breaking")
    (row,) = plan.store.rows()
    assert row["status"] == "failed"
    assert "changed the weights" in str(row["reason"])
    assert results.names(plan.store.folder(row["id"])) == []


def test_an_analysis_gets_the_model_only_if_it_says_so(study: Study) -> None:
    assert "needs_model = True" in str(result(trained(study, "lying"), "lying")["reason"])


def test_a_kept_model_gives_the_numbers_that_were_measured_while_training(
    study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = trained(study, "counting", "similarity", save_model=True)
    folder = plan.store.folder(plan.cells[0].id)
    at_the_end = {name: result(plan, name) for name in ("calibration", "counting", "similarity")}
    row = (folder / "row.json").read_bytes()
    for path in folder.glob("analysis-*"):
        path.unlink()
    monkeypatch.setattr(loop, "train", None)  # nothing trains
    assert cli.main(["analyse", str(study.out), "--with", "calibration,counting,similarity"]) == 0
    assert "3 results measured, 0 there already, 0 failed." in capsys.readouterr().out
    for name, expected in at_the_end.items():
        later = result(plan, name)
        for key in ("numbers", "layers", "facts", "version", "parameters"):
            assert later[key] == expected[key], name  # type: ignore[literal-required]
    assert (folder / "row.json").read_bytes() == row
    assert cli.main(["analyse", str(study.out), "--with", "counting,similarity(texts=7)"]) == 0
    assert "1 results measured, 1 there already" in capsys.readouterr().out
    assert result(plan, "similarity")["parameters"] == {"texts": 7}


def test_a_model_that_was_changed_is_not_analysed(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    plan = trained(study, save_model=True)
    path = plan.store.folder(plan.cells[0].id) / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor + 0.1 for name, tensor in tensors.items()}, path, {"format": "pt"})
    assert cli.main(["analyse", str(study.out), "--with", "counting"]) == 1
    assert "is not the model that was scored" in capsys.readouterr().err
    assert Counting.asked == []


def test_runs_without_a_model_are_refused_before_any_compute(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    trained(study)
    assert cli.main(["analyse", str(study.out), "--with", "counting"]) == 2
    said = capsys.readouterr().err
    assert "none of the 1 finished runs kept its model" in said
    assert "--save-model" in said
    assert "run --analyses" in said
    assert cli.main(["analyse", str(study.out), "--with", "calibration"]) == 0  # which needs none


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("similarty", "There is no analysis called 'similarty'. Did you mean 'similarity'?"),
        ("similarity(texts=1)", "'texts' parameter of Similarity must be an int in [2, inf); got 1"),
        ("similarity(text=5)", "Did you mean 'texts'?"),
        ("similarity,similarity(texts=5)", "called 'similarity'"),
    ],
)
def test_a_wrong_analysis_is_told_before_any_compute(study: Study, text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        trained(study, *text.split(","))
    assert said in str(error.value)


@pytest.mark.slow
def test_what_is_there_is_not_measured_again_and_what_lacks_needs_no_training(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = trained(study, save_model=True)
    again = make_plan(dataclasses.replace(study, analyses=("counting",)))
    assert len(again.todo) == 2  # one was never trained
    assert "trained again" not in " ".join(again.notes)
    monkeypatch.setattr(loop, "train", None)
    assert worker(again).work(again.cells[0]).status == EventStatus.DONE
    assert Counting.asked == [plan.cells[0].task]
    assert worker(again).work(again.cells[0]).status == EventStatus.CACHED
    assert len(Counting.asked) == 1
    other = make_plan(dataclasses.replace(study, analyses=("counting(factor=3)",)))
    assert plan.cells[0] in other.todo


@pytest.mark.slow
def test_a_finished_run_without_its_model_is_trained_again_and_keeps_its_other_results(study: Study) -> None:
    first = trained(study, "counting")
    before = (first.store.folder(first.cells[0].id) / "analysis-counting.json").read_bytes()
    again = make_plan(dataclasses.replace(study, analyses=("similarity",)))
    assert "1 finished run is trained again" in " ".join(again.notes)
    run_cell(again.cells[0], WorkerContext(again.store, CPU))
    folder = again.store.folder(again.cells[0].id)
    assert results.names(folder) == ["calibration", "counting", "similarity"]
    assert (folder / "analysis-counting.json").read_bytes() == before
    assert results.read_arrays(folder, "counting")["logits"].shape[1] == 2


def test_a_failed_analysis_is_tried_again_only_when_that_is_asked_for(study: Study) -> None:
    trained(study, "failing")
    assert len(make_plan(dataclasses.replace(study, analyses=("failing",))).todo) == 1
    assert len(make_plan(dataclasses.replace(study, analyses=("failing",), retry_failed=True)).todo) == 2


def test_merge_verify_and_status_know_the_results(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = trained(study, "counting", "failing")
    root, cell = str(study.out), plan.cells[0].id
    assert cli.main(["verify", root]) == 0
    assert cli.main(["status", root, "--json"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert json.loads(told[-1] if told[-1].startswith("{") else "\n".join(told[1:]))["analyses"] == [
        {"name": "calibration", "results": 1, "failed": 0},
        {"name": "counting", "results": 1, "failed": 0},
        {"name": "failing", "results": 0, "failed": 1},
    ]
    bare = tmp_path / "bare"
    assert cli.main(["merge", str(bare), root]) == 0
    assert results.names(Store(bare).folder(cell)) == ["calibration", "counting", "failing"]
    (Store(bare).folder(cell) / "analysis-counting.json").unlink()
    assert cli.main(["verify", str(bare)]) == 1
    assert "analysis-counting.npz belongs to no result" in capsys.readouterr().out
    assert cli.main(["merge", str(bare), root]) == 0  # what lacks is added to a run that is there
    assert results.names(Store(bare).folder(cell)) == ["calibration", "counting", "failing"]
    assert cli.main(["verify", str(bare)]) == 0


@pytest.mark.parametrize("file", ["analysis-counting.json", "analysis-counting.npz"])
@pytest.mark.slow
def test_a_changed_result_is_damaged_and_the_row_is_not(
    study: Study, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = trained(study, "counting")
    folder = plan.store.folder(plan.cells[0].id)
    content = bytearray((folder / file).read_bytes())
    place = content.index(b"2.0") if file.endswith("json") else len(content) - 200
    content[place] ^= 1
    (folder / file).write_bytes(content)
    assert plan.store.row(plan.cells[0].id) is not None
    assert cli.main(["verify", str(study.out)]) == 1
    assert file in capsys.readouterr().out
    assert prepare_fails(plan.store)
    target = tmp_path / "merged"
    assert cli.main(["merge", str(target), str(study.out)]) in (0, 1)
    assert results.names(Store(target).folder(plan.cells[0].id)) == ["calibration"]
    (markdown, *_) = Markdown().write(plan.store, tmp_path)
    assert file in markdown.read_text("utf-8")


def prepare_fails(store: Store) -> bool:
    """Whether the damaged result counts as missing, for which there is no model."""
    with pytest.raises(UsageError, match="kept its model"):
        prepare(store, ["counting"], None)
    return True


@pytest.mark.slow
def test_a_report_tells_every_analysis(study: Study, tmp_path: Path) -> None:
    plan = trained(study, "counting", "similarity", seeds=2, methods=("vanilla", "hype"))
    (markdown, *files) = Markdown().write(plan.store, tmp_path)
    text = markdown.read_text("utf-8")
    assert "## Calibration" in text
    assert "## Similarity of tokens" in text
    assert "## Other analyses" in text
    assert "NLL ↓" in text
    assert "Δ NLL ↓" in text
    assert "mean ↑" in text
    assert "similarity-layers" in text
    assert "counting-layers" in text
    assert {path.suffix for path in files} == {".svg"}


@pytest.mark.slow
def test_runs_that_begin_with_the_same_checkpoint_measure_it_once(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seeds: what is measured before training costs one run's passes, and every number is the same."""
    networks: list[Any] = []
    states = Network.states

    def counted(network: Network, examples: Any) -> Any:
        networks.append(network.model)
        return states(network, examples)

    monkeypatch.setattr(Network, "states", counted)
    study = dataclasses.replace(study, seeds=(1, 2, 3))
    together = trained(study, "similarity", seeds=3)
    assert len(networks) == 2 * (3 + 1)  # similarity reads its texts twice
    (kept,) = measured_before
    shorter = dataclasses.replace(study.recipe, max_length=8)
    trained(dataclasses.replace(study, recipe=shorter, out=tmp_path / "shorter"), "similarity")
    (other,) = measured_before  # a plan drops what was kept
    assert other != kept
    apart = make_plan(dataclasses.replace(study, out=tmp_path / "apart", analyses=("similarity",)))
    for cell, same in zip(apart.todo, together.cells, strict=True):
        measured_before.clear()
        run_cell(cell, WorkerContext(apart.store, CPU))
        alone = results.read(apart.store.folder(cell.id), "similarity")
        shared = results.read(together.store.folder(same.id), "similarity")
        assert alone is not None and shared is not None
        assert (alone["numbers"], alone["layers"]) == (shared["numbers"], shared["layers"])
