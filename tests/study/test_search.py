"""Search and selection: equal budgets, held-out data, two protocols and the optimism between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from finetune_bench import cli, registry
from finetune_bench.errors import DataError, ParameterError, UnknownName
from finetune_bench.method.base import Method
from finetune_bench.parameters import Range, check_fields, parameter
from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.terminal import summary
from finetune_bench.reports.topics.search import Search, searches
from finetune_bench.spec import parse_stack
from finetune_bench.store.store import Store
from finetune_bench.study import grid, search
from finetune_bench.study.study import Study, as_dict
from finetune_bench.task import HELD_OUT, Split, TaskData, hold_out
from finetune_bench.testing.checks import Skip, can_be_searched
from tests.synthetic_store import fail, make_row, put

# --- what is tried ----------------------------------------------------------------------------------------------------


def test_the_first_setting_is_the_default_and_more_settings_begin_with_fewer() -> None:
    few, many = search.settings("hype", 3, 2e-5), search.settings("hype", 6, 2e-5)
    assert few == many[:3]
    assert few[0] == (registry.describe(registry.make_stack("hype"), full=True), 2e-5)
    assert len(set(many)) == 6


def test_every_method_tries_the_same_learning_rates() -> None:
    rates = {name: [rate for _, rate in search.settings(name, 8, 1e-4)] for name in registry.names("methods")}
    assert len({tuple(found) for found in rates.values()}) == 1
    assert all(2.5e-5 <= rate <= 4e-4 for rate in rates["vanilla"])
    assert len(set(rates["vanilla"])) == 8  # vanilla has something to tune too


def test_draws_lie_in_the_space_and_spread_over_it() -> None:
    found = [parse_stack(label)[0].arguments for label, _ in search.settings("smart", 400, 1e-4)[1:]]
    for name in ("strength", "eps"):
        space = registry.method_class("smart").search_space[name]
        assert isinstance(space, Range)
        values = np.array([float(arguments[name]) for arguments in found])
        assert (values >= 0.999 * space.low).all()
        assert (values <= 1.001 * space.high).all()
        share = np.log(values / space.low) / np.log(space.high / space.low)
        assert scipy.stats.kstest(share, "uniform").pvalue > 0.01  # log-uniform
    layers = {parse_stack(label)[0].arguments["layers"] for label, _ in search.settings("reinit_layers", 30, 1e-4)}
    assert layers == {"1", "2", "3"}


def test_a_setting_can_be_typed_again() -> None:
    for name in registry.names("methods"):
        for label, _ in search.settings(name, 4, 1e-4):
            assert registry.describe(registry.make_stack(label), full=True) == label


def test_what_is_typed_stands_in_the_first_setting_and_where_no_space_has_it() -> None:
    found = search.settings("hype(where=within,eps=1e-3)+rdrop", 4, 1e-4)
    assert "eps=0.001" in found[0][0]
    assert all("where=within" in label for label, _ in found)
    assert all("rdrop" in label for label, _ in found)


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"search": Range(0, 2)}, r"must be a float in \[0, 1\]; its search= says 2"),
        ({"search": (0.1, 7.0)}, r"its search= says 7"),
        ({"search": ("high",)}, r"its search= says high"),
        ({"neutral": -1.0}, r"its neutral= says -1"),
        ({"neutral": None}, r"its neutral= says None"),
    ],
)
def test_what_a_parameter_refuses_can_be_neither_neutral_nor_searched(declared: dict[str, Any], said: str) -> None:
    class Wrong(Method):
        name = "wrong_space"
        strength: float = parameter(0.5, interval="[0, 1]", **declared, help="of nothing")

    with pytest.raises(ParameterError, match=said):
        check_fields(Wrong)
    with pytest.raises((ParameterError, Skip)):
        can_be_searched(Wrong)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_a_range_goes_up(ends: tuple[float, float]) -> None:
    with pytest.raises(ParameterError, match="from a number up to a larger one"):
        Range(*ends)
    with pytest.raises(ParameterError, match="log=True from above 0"):
        Range(0.0, 1.0, log=True)


# --- what is chosen by ------------------------------------------------------------------------------------------------


def data_of(count: int) -> TaskData:
    split = Split([f"text {i}" for i in range(count)], None, [i % 2 for i in range(count)])
    return TaskData(split, {"validation": Split(["v"], None, [0])})


def test_held_out_examples_are_training_examples_that_no_run_trains_on() -> None:
    data = data_of(50)
    found = hold_out(data, 0.2, "toy")
    assert list(found.evaluation) == ["validation", HELD_OUT]
    held, kept = found.evaluation[HELD_OUT].texts, found.train.texts
    assert len(held) == 10
    assert sorted([*held, *kept]) == sorted(data.train.texts)
    assert found.evaluation["validation"] == data.evaluation["validation"]
    assert hold_out(data, 0.2, "toy") == found
    assert hold_out(data, 0.2, "other").evaluation[HELD_OUT] != found.evaluation[HELD_OUT]
    assert found.fingerprint() != data.fingerprint()


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (6, 2), (8, 3)])
def test_something_is_left_on_both_sides(count: int, held: int) -> None:
    """There are two classes, so two are held out where each class can spare one."""
    found = hold_out(data_of(count), 0.2, "toy")
    assert len(found.evaluation[HELD_OUT]) == held
    assert len(found.train) == count - held


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="'toy' has 1 training examples; holding some out for a search needs two"):
        hold_out(data_of(1), 0.2, "toy")


# --- what is chosen ---------------------------------------------------------------------------------------------------

SETTINGS = {"vanilla": [("vanilla", 2e-5), ("vanilla", 5e-5)], "hype": [("hype", 2e-5), ("hype(eps=0.01)", 5e-5)]}
# By setting: the mean score on held-out data and on the reported split.
LEVELS = {
    ("vanilla", 2e-5): (0.70, 0.68),
    ("vanilla", 5e-5): (0.66, 0.71),  # better only on what is reported: the optimistic choice
    ("hype", 2e-5): (0.64, 0.66),
    ("hype(eps=0.01)", 5e-5): (0.72, 0.73),
}
NOISE = {1: -0.01, 2: 0.0, 3: 0.01}


def searched_store(folder: Path, change: Any = None) -> Store:
    store = Store(folder)
    store.write_study({"methods": list(SETTINGS), "tasks": ["rte"], "searched": SETTINGS})
    for (label, rate), (held, reported) in LEVELS.items():
        for seed in (1, 2, 3):
            row = make_row(label, "rte", seed)
            row["recipe"] = row["recipe"] | {"lr": rate}
            row["held_out"] = 0.2
            row["id"] = f"{len(list(store.cells.glob('*'))) if store.cells.is_dir() else 0:016x}"
            row["metrics"] = {
                "validation": {"accuracy": reported + NOISE[seed]},
                HELD_OUT: {"accuracy": held + NOISE[seed]},
            }
            if change is None or change(row) is not False:
                put(store, row)
    return store


def only_search(store: Store) -> Search:
    (found,) = searches(load(store))
    return found


def test_both_protocols_and_the_optimism_between_them(tmp_path: Path) -> None:
    found = only_search(searched_store(tmp_path))
    vanilla, hype = found.choices
    assert (vanilla.method, hype.method) == ("vanilla", "hype")
    assert vanilla.honest == ("vanilla", 2e-5)
    assert vanilla.optimistic == ("vanilla", 5e-5)
    assert vanilla.honest_score.value == pytest.approx(68)
    assert vanilla.optimistic_score.value == pytest.approx(71)
    assert vanilla.optimism.value == pytest.approx(3)
    assert hype.honest == hype.optimistic == ("hype(eps=0.01)", 5e-5)
    assert hype.optimism.value == 0
    assert [choice.budget for choice in found.choices] == [2, 2]
    assert vanilla.best_of == pytest.approx((69.5, 71))
    assert found.refused == ()


def test_the_comparison_is_of_the_honest_choices(tmp_path: Path) -> None:
    store = searched_store(tmp_path)
    section = only_search(store).section
    assert section.methods == ("vanilla", "hype")
    gaps = section.scores("hype", section.columns[0]) - section.scores("vanilla", section.columns[0])
    assert gaps == pytest.approx([5, 5, 5])
    text = render(load(store))
    assert "## Search: settings chosen on held-out training data" in text
    assert "| `vanilla` | rte accuracy | `vanilla` at 2e-05 |" in text
    assert "+1.5 points on average here; every comparison here uses the honest one." in text


def test_unequal_budgets_are_refused(tmp_path: Path) -> None:
    def change(row: dict[str, Any]) -> None:
        if row["method"] == "hype(eps=0.01)" and row["seed"] == 2:
            fail(row, "diverged at step 3")

    store = searched_store(tmp_path, change)
    found = only_search(store)
    assert [choice.method for choice in found.choices] == ["vanilla"]
    (sentence,) = found.refused
    assert sentence == (
        "hype on rte: tuned among 1 setting, vanilla among 2, so they are not compared (not every seed ended well at "
        "5e-05)."
    )
    assert sentence in render(load(store)).replace("`", "")


def test_what_cannot_run_on_a_task_is_said_once_and_not_before_the_answer(tmp_path: Path) -> None:
    """As the losses of classes, of which a list of methods for several tasks may hold some, on a regression."""
    reason = "hype: a regression task has no distribution over classes"

    def change(row: dict[str, Any]) -> None:
        if "hype" in row["method"]:
            fail(row, reason, "skipped")

    store = searched_store(tmp_path, change)
    found = only_search(store)
    assert [choice.method for choice in found.choices] == ["vanilla"]
    assert found.refused == ()
    text = render(load(store))
    assert text.count(reason) == 1
    assert reason in text.partition("## Runs that need a look")[2]


def test_no_setting_ended_well(tmp_path: Path) -> None:
    store = searched_store(tmp_path, lambda row: fail(row, "out of memory"))
    assert only_search(store).choices == ()
    text = render(load(store)).replace("`", "")
    sentence = (
        "vanilla and hype on rte: no setting ended well on every seed, so nothing is chosen (6 of 6 runs failed: out "
        "of memory)."
    )
    assert sentence in text
    assert sentence in " ".join(summary(store).split())


# --- for real ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_a_search_runs_and_reports(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, capsys: Any) -> None:
    words = ["--methods", "hype,rdrop", "--search", "3", "--tasks", str(tiny_data), "--model", str(tiny_checkpoint)]
    words += ["--seeds", "2", "--steps", "3", "--warmup", "0", "--lr", "1e-3", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main(["run", *words]) == 0
    capsys.readouterr()
    store = Store(tmp_path)
    rows = store.rows()
    assert len(rows) == 4 * 3 * 2  # vanilla and its control get as many settings
    assert all(row["held_out"] == search.HELD_OUT_SHARE for row in rows)
    assert all(set(row["metrics"]) == {"validation", HELD_OUT} for row in rows)
    found = only_search(store)
    assert len(found.choices) == 4
    for choice in found.choices:
        assert choice.budget == 3
        held = {}
        for row in rows:
            if row["method"] in {label for label, _ in store.study()["searched"][choice.method]}:
                held.setdefault((row["method"], row["recipe"]["lr"]), []).append(row["metrics"][HELD_OUT]["accuracy"])
        assert np.mean(held[choice.honest]) == max(np.mean(scores) for scores in held.values())
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "## Search: settings chosen on held-out training data" in page
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000
    frame = pd.read_parquet(tmp_path / "report" / "rows.parquet")
    assert len(frame) == 24
    assert cli.main(["report", str(tmp_path), "--check"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_blocks_choose_their_rates_on_held_out_data_with_equal_budgets(
    tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, capsys: Any
) -> None:
    """Two grids with a learning rate more or less; both protocols are told of each method."""
    common = f'tasks = ["{tiny_data}"]\nmodel = "{tiny_checkpoint}"\nlr = [1e-4, 1e-2]\n'
    (tmp_path / "study.toml").write_text(
        f'seeds = 1\nsteps = 2\nwarmup = 0\nworkers = 1\n[[grid]]\nmethods = ["noisytune"]\n{common}'
        f'[[grid]]\nmethods = ["top_k"]\n{common}',
        "utf-8",
    )
    out = tmp_path / "run"
    assert cli.main(["run", "--config", str(tmp_path / "study.toml"), "--hold-out", "--out", str(out)]) == 0
    capsys.readouterr()
    store = Store(out)
    rows = store.rows()
    assert len(rows) == 4 * 2  # vanilla and its control, which the grids share, and one method of each
    assert all(row["held_out"] == search.HELD_OUT_SHARE for row in rows)
    found = only_search(store)
    assert {choice.method for choice in found.choices} == {row["method"] for row in rows}
    assert {choice.budget for choice in found.choices} == {2}
    assert all(choice.optimism.value >= 0 for choice in found.choices)
    assert store.study()["hold_out"] is True
    assert "## Search: settings chosen on held-out training data" in (out / "report" / "report.md").read_text("utf-8")


def test_a_study_that_holds_nothing_out_is_written_as_before() -> None:
    assert "hold_out" not in as_dict(Study())
    assert "hold_out" in as_dict(Study(hold_out=True))
    assert (grid.held_out(Study()), grid.held_out(Study(hold_out=True))) == (0.0, search.HELD_OUT_SHARE)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--hold-out", "--fair-cost"], "--hold-out: vanilla with more steps is no setting to choose among"),
        (["--search", "3", "--hold-out"], "leave out --hold-out, which it does by itself"),
        (["--search", "1"], "--search"),
        (["--search", "3", "--lr", "1e-5,2e-5"], "leave out several learning rates"),
        (["--search", "3", "--attribution"], "leave out --attribution"),
    ],
)
def test_what_a_search_refuses(words: list[str], said: str, capsys: Any, tmp_path: Path) -> None:
    assert cli.main(["run", "--methods", "hype", *words, "--out", str(tmp_path / "run")]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_an_unknown_method_is_no_search() -> None:
    with pytest.raises(UnknownName):
        search.settings("hyp", 2, 1e-4)


def test_the_terminal_shows_what_a_search_came_to(tmp_path: Path) -> None:
    """Its runs are in no section, so that without a table of their own nothing would be told."""
    text = summary(searched_store(tmp_path))
    header = next(line for line in text.splitlines() if line.startswith("method"))
    assert header.split() == ["method", "difference", "verdict", "time", "memory", "runs"]
    assert "chosen on held-out data" in text
    assert max(map(len, text.splitlines())) <= 100
