"""Cells that are trained alike share one training, and their rows are those that each would have alone."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.observing import Observed, check_observer
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run
from finetune_bench.methods.ema import EMA
from finetune_bench.methods.swa import SWA
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.methods.wise_ft import WiseFT
from finetune_bench.model import pretrained
from finetune_bench.recipe import Recipe
from finetune_bench.runner import execution
from finetune_bench.runner.cell import WorkerContext, run_cell, run_cells
from finetune_bench.runner.execution import execute
from finetune_bench.runner.executors.base import Event
from finetune_bench.runner.executors.messages import EventStatus
from finetune_bench.runner.executors.worker import Worker
from finetune_bench.runner.plan import Plan, make_plan
from finetune_bench.runner.row import row_of
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.study.grid import Cell, sharing
from finetune_bench.study.study import Study
from finetune_bench.testing import toys
from finetune_bench.training import loop, measure
from finetune_bench.training.loop import train

METHODS = ("vanilla", "ema(beta=0.9)", "swa", "wise_ft", "wise_ft(alpha=0.1,head=all)")
CPU = torch.device("cpu")


@pytest.fixture
def plan(tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path) -> Plan:
    return make_plan(study_of(METHODS, tiny_checkpoint, tiny_data, tmp_path))


def study_of(methods: Sequence[str], checkpoint: Path, data: Path, folder: Path, **more: Any) -> Study:
    return Study(
        methods=tuple(methods),
        tasks=(str(data),),
        models=(str(checkpoint),),
        seeds=(1,),
        recipe=Recipe(steps=4, batch_size=8, lr=1e-3),
        baseline=False,
        out=folder / "run",
        device="cpu",
        workers=1,
        **more,
    )


def alone(cells: Sequence[Cell], folder: Path) -> dict[str, dict[str, Any]]:
    """What the cells' rows are when each is trained for itself."""
    store = Store(folder)
    for cell in cells:
        run_cell(cell, WorkerContext(store, CPU))
    assert all(row["status"] == Status.DONE and "shared_training" not in row for row in store.rows())
    return store.without_measurements()


def killed_at(monkeypatch: pytest.MonkeyPatch, count: int) -> list[int]:
    """Kill the process at that call of a step; return what counts the calls."""
    step, calls = loop._train_step, [0]

    def killed(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == count:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(loop, "_train_step", killed)
    return calls


@pytest.mark.slow
def test_one_training_gives_the_rows_of_all(plan: Plan, tmp_path: Path) -> None:
    (training,) = plan.trainings
    assert [training.label, *(cell.label for cell in training.companions)] == list(METHODS)
    rows = run_cells(plan.todo, WorkerContext(plan.store, CPU))
    assert [row["shared_training"] for row in rows] == [5] * 5
    assert plan.store.without_measurements() == alone(plan.cells, tmp_path / "alone")
    assert len({row["files"]["predictions.npz"]["sha256"] for row in plan.store.rows()}) > 1
    assert not list(plan.store.checkpoints.iterdir()) if plan.store.checkpoints.exists() else True


def test_costs_are_without_what_the_averages_of_others_took(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's seconds hold its own averages, and so does its peak; those of the others are taken off."""

    def slow(hook: Any) -> Any:
        def slowed(method: SWA, run: Run) -> None:
            time.sleep(0.1)
            hook(method, run)

        return slowed

    monkeypatch.setattr(SWA, "setup", slow(SWA.setup))
    monkeypatch.setattr(SWA, "after_step", slow(SWA.after_step))
    study = study_of(("vanilla", "ema", "swa(share=1.0)"), tiny_checkpoint, tiny_data, tmp_path)
    plan = make_plan(dataclasses.replace(study, recipe=dataclasses.replace(study.recipe, steps=8)))
    vanilla, ema, swa = (row["cost"] for row in run_cells(plan.todo, WorkerContext(plan.store, CPU)))
    timed_steps = 8 - measure.WARMUP_STEPS
    assert vanilla["train_seconds"] < ema["train_seconds"] < 0.1 * timed_steps < swa["train_seconds"]
    assert vanilla["setup_seconds"] < 0.1 < swa["setup_seconds"]
    assert vanilla["others_seconds"] == pytest.approx(0.1 * timed_steps, rel=0.5)
    assert swa["train_cpu_seconds"] < 0.1 * timed_steps  # who sleeps takes none
    examples = [cost["examples_per_second"] * cost["train_seconds"] for cost in (vanilla, ema, swa)]
    assert examples == pytest.approx([examples[0]] * 3)
    assert 0 < examples[0] <= 8 * timed_steps
    copy = 4 * vanilla["parameters"]
    assert [cost["others_bytes"] for cost in (vanilla, ema, swa)] == [2 * copy, copy, copy]
    assert swa["peak_memory_bytes"] - vanilla["peak_memory_bytes"] == copy
    assert {cost["energy_joules"] for cost in (vanilla, ema, swa)} == {None}


def test_what_was_killed_goes_on_for_whichever_rows_are_missing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = WorkerContext(plan.store, CPU, checkpoint_every=1)
    calls = killed_at(monkeypatch, 4)
    vanilla, ema, swa, *_ = plan.todo
    with pytest.raises(KeyboardInterrupt):
        run_cells([vanilla, ema, swa], context)
    assert plan.store.rows() == []
    (checkpoint,) = plan.store.checkpoints.iterdir()
    assert checkpoint.name == f"{vanilla.id}-1.safetensors"
    # As if the rows of vanilla had been written when the process was killed.
    rows = run_cells([ema, swa], context)
    assert [row["cost"]["resumed_at"] for row in rows] == [3, 3]
    assert not any("others_seconds" in row["cost"] for row in rows)
    assert calls == [5]
    expected = alone(plan.cells, tmp_path / "alone")
    assert plan.store.without_measurements() == {key: expected[key] for key in sorted([ema.id, swa.id])}
    assert "not used" not in capsys.readouterr().err


def test_a_checkpoint_without_a_member_is_not_gone_on_from(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = WorkerContext(plan.store, CPU, checkpoint_every=1)
    killed_at(monkeypatch, 3)
    vanilla, ema, *_ = plan.todo
    with pytest.raises(KeyboardInterrupt):
        run_cells([vanilla], context)
    rows = run_cells([vanilla, ema], context)
    assert [row["status"] for row in rows] == [Status.DONE] * 2
    assert f"it was written without '{ema.id}', which shares the training now" in capsys.readouterr().err
    assert [row["cost"]["resumed_at"] for row in rows] == [None, None]


def test_an_error_of_one_score_is_that_cells_alone(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no average")

    monkeypatch.setattr(SWA, "evaluating", broken)
    rows = {row["method"]: row for row in run_cells(plan.todo[:3], WorkerContext(plan.store, CPU))}
    assert rows["swa"]["reason"] == "ValueError: no average"
    assert [rows[name]["status"] for name in METHODS[:3]] == [Status.DONE, Status.DONE, Status.FAILED]


def test_weights_that_are_not_put_back_fail_what_is_scored_later(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def left(self: EMA, run: Run) -> Iterator[None]:
        with torch.no_grad():
            run.params["classifier.bias"].add_(1.0)
        yield

    monkeypatch.setattr(EMA, "evaluating", left)
    rows = {row["method"]: row for row in run_cells(plan.todo[:3], WorkerContext(plan.store, CPU))}
    assert rows["vanilla"]["status"] == Status.DONE
    assert "did not put them back after `evaluating`" in str(rows["swa"]["reason"])


def test_a_training_that_fails_fails_all(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(loop, "train", train)
    rows = run_cells(plan.todo, WorkerContext(plan.store, CPU))
    assert {row["reason"] for row in rows} == {"out of memory, also with accumulation 2"}


def test_trainings_are_shared_where_nothing_but_observers_differs(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    methods = (
        "vanilla",
        "vanilla(dropout=all_off)",
        "ema",
        "ema(dropout=all_off)",
        "rdrop",
        "rdrop+swa",
        "lora+wise_ft",
    )
    study = study_of(methods, tiny_checkpoint, tiny_data, tmp_path, lrs=(1e-3, 1e-4))
    plan = make_plan(study)
    found = {tuple(sorted({cell.label, *(c.label for c in cell.companions)})) for cell in plan.trainings}
    assert found == {
        ("ema", "vanilla"),
        ("vanilla(dropout=all_off)",),
        ("ema(dropout=all_off)",),
        ("rdrop", "rdrop+swa"),
        ("lora+wise_ft",),
    }
    assert len(plan.todo) == 14
    assert len(plan.trainings) == 10
    for other in ({"sharing": False}, {"save_model": True}):
        assert len(dataclasses.replace(plan, study=dataclasses.replace(study, **other)).trainings) == 14  # type: ignore[arg-type]


def test_without_dropout_a_wish_for_less_of_it_makes_no_other_training(
    tiny_checkpoint: Path, tiny_data: Path, tmp_path: Path
) -> None:
    """A tiny Llama drops nothing, so that vanilla and its control are one training; `dropout` puts some in."""
    methods = ("vanilla", "vanilla(dropout=hidden_off)", "ema(dropout=all_off)", "hype", "hype(dropout=keep)")
    llama = shutil.copytree(tiny_checkpoint, tmp_path / "llama")  # for its tokenizer
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = AutoConfig.for_model("llama", vocab_size=46, max_position_embeddings=128, pad_token_id=0, **sizes)
    pretrained.build(config).save_pretrained(llama)  # type: ignore[operator]
    plan = make_plan(study_of((*methods, "dropout(hidden=0.1)"), llama, tiny_data, tmp_path))
    found = [[cell.label, *(companion.label for companion in cell.companions)] for cell in plan.trainings]
    assert found == [list(methods[:3]), ["hype", "hype(dropout=keep)"], ["dropout(hidden=0.1)"]]
    first = Cell.from_dict(plan.trainings[0].to_message())
    run_cells([first, *first.companions], WorkerContext(plan.store, CPU))
    rows = plan.store.rows()
    assert [row["status"] for row in rows] == [Status.DONE] * 3
    assert {row["method"] for row in rows} == set(methods[:3])
    copy = 4 * rows[0]["cost"]["parameters"]
    others = {row["method"]: row["cost"]["others_bytes"] for row in rows}
    assert [others[method] for method in methods[:3]] == [copy, copy, 0]
    assert plan.store.without_measurements() == alone(plan.cells[:3], tmp_path / "alone")


def test_a_cell_with_companions_is_the_same_cell(plan: Plan) -> None:
    (training,) = sharing(plan.todo)
    assert training == plan.todo[0]
    assert training.id == plan.todo[0].id
    assert training.to_dict() == plan.todo[0].to_dict()
    read = Cell.from_dict(training.to_message())
    assert (read, read.companions) == (training, training.companions)
    assert {cell.training_id for cell in plan.todo} == {plan.todo[0].id}


class InProcess:
    """An executor whose one worker is this process."""

    def __init__(self, plan: Plan) -> None:
        self.worker = Worker(execution._worker_settings(plan))
        self.running: dict[int, Cell] = {}

    def run(self, cells: Sequence[Cell]) -> Iterator[Event]:
        for cell in cells:
            yield Event.from_answer(cell, self.worker.work(cell))


def test_a_study_counts_every_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first of the cells was done before, by another process."""
    trained = []
    monkeypatch.setattr(execution, "make_executor", lambda *_: InProcess(plan))
    monkeypatch.setattr(loop, "train", lambda *given: (trained.append(1), train(*given))[1])
    run_cell(plan.todo[0], WorkerContext(plan.store, CPU))
    counts = execute(plan)
    assert (counts.done, counts.cached, counts.failed) == (4, 1, 0)
    assert len(trained) == 2
    assert make_plan(plan.study).todo == []


def test_a_worker_leaves_a_training_of_which_another_process_has_a_part(plan: Plan) -> None:
    (training,) = plan.trainings
    worker = Worker(execution._worker_settings(plan))
    for held in (training.companions[-1].id, training.id):
        with Store(plan.store.root).claim(held):
            assert worker.work(training).status == EventStatus.BUSY
    with Store(plan.store.root).claim(training.training_id):
        assert worker.work(training.companions[0]).status == EventStatus.BUSY


def test_a_training_that_dies_gives_every_cell_its_row(plan: Plan) -> None:
    (training,) = plan.trainings
    plan.store.cells.mkdir(parents=True)
    died = Event(training, EventStatus.DIED, "it was killed")
    events = list(execution._of_each(died, plan))
    assert [event.cell.id for event in events] == [cell.id for cell in plan.todo]
    assert {(event.status, event.reason) for event in events} == {(EventStatus.DIED, "it was killed")}


class Writing(Method):
    """Writes a weight after every step."""

    name = "writing"
    observer = True

    def after_step(self, run: Run) -> None:
        with torch.no_grad():
            run.params["classifier.bias"].mul_(1.0)


class Hiding(Method):
    """Writes a weight where torch doesn't count it."""

    name = "hiding"
    observer = True

    def after_step(self, run: Run) -> None:
        run.params["classifier.bias"].data.add_(1.0)


class Drawing(Method):
    """Draws from the global stream."""

    name = "drawing"
    observer = True

    def setup(self, run: Run) -> None:
        torch.rand(1)


@pytest.mark.parametrize(
    ("method", "said"), [(Writing, "changed a weight"), (Hiding, "changed a weight"), (Drawing, "drew from the global")]
)
def test_an_observer_that_acts_is_caught(method: type[Method], said: str) -> None:
    observed = Observed({"0" * 16: Stack([Vanilla()]), "1" * 16: Stack([method()])})
    run, _ = toys.toy_run(list(observed.methods), recipe=Recipe(batch_size=8, steps=2))
    run.method = observed
    with pytest.raises(FinetuneBenchError, match=said):
        train(run)
        observed.check()


@pytest.mark.parametrize(
    "text", [*registry.names("methods"), "dropout(hidden=0.5,attention=0.5)", "hype+dropout(head=0.9)"]
)
@pytest.mark.slow
def test_a_stack_trains_in_a_grid_as_it_does_elsewhere(text: str) -> None:
    for architecture in ("bert", "llama"):
        if toys.unsupported(list(registry.make_stack(text).methods), architecture):
            continue
        stack = registry.make_stack(text)
        run, watched = toys.toy_run(list(stack.methods), architecture)
        assert isinstance(watched, Observed)
        plain, _ = toys.toy_run(list(stack.methods), architecture)
        plain.method = registry.make_stack(text)
        for each in (run, plain):
            train(each)
            each.method.teardown(each)
        assert toys.same(run, plain)


def test_observers_keep_their_place_among_the_others() -> None:
    rdrop = registry.method_class("rdrop")
    stacks = {"a": Stack([EMA(), rdrop()]), "b": Stack([rdrop(), WiseFT()]), "c": Stack([rdrop()])}
    observed = Observed(stacks)
    assert [method.name for method in observed.methods] == ["ema", "rdrop", "wise_ft"]
    assert [method.name for method in observed.members["b"].methods] == ["rdrop", "wise_ft"]
    assert len({id(observed.members[name].methods[index]) for name, index in (("a", 1), ("b", 0), ("c", 0))}) == 1


def test_an_observer_with_a_hook_of_training_is_refused() -> None:
    class Both(Method):
        """Changes gradients."""

        name = "both"
        observer = True

        def gradients(self, run: Run) -> None:
            pass

    with pytest.raises(UsageError, match="its hook `gradients` takes part in the training"):
        check_observer(Both)
    for name in registry.names("methods"):
        check_observer(registry.method_class(name))


def test_a_checkpoint_stays_as_long_as_a_row_of_its_training_is_missing(plan: Plan) -> None:
    first, *others = plan.cells
    plan.store.checkpoints.mkdir(parents=True)
    checkpoint = plan.store.checkpoints / f"{first.training_id}-1.safetensors"
    checkpoint.touch()
    plan.todo = []
    plan.store.write(first.to_dict(), row_of(first, Status.DONE))
    execute(plan)
    assert checkpoint.exists()
    for cell in others:
        plan.store.write(cell.to_dict(), row_of(cell, Status.DONE))
    execute(plan)
    assert not checkpoint.exists()
