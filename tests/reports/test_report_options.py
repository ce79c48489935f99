"""What a reader may ask of a report, what it finds by itself, and what a crowd does to plots."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from finetune_bench import cli, stats
from finetune_bench.report import Options
from finetune_bench.reports.draw import draw
from finetune_bench.reports.markdown import render
from finetune_bench.reports.plots.style import MAX_METHODS, caption, left_out_text, short, shown_columns, shown_methods
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import Data, Section
from finetune_bench.reports.topics.contrasts import PAIRED, TWO_WAY, complete_block, suite_column
from finetune_bench.reports.topics.cost import footprints, pareto_front
from finetune_bench.reports.topics.differences import differences, noise_floors
from finetune_bench.reports.topics.scores import scores
from finetune_bench.reports.topics.tests import bootstraps, suite_tests
from finetune_bench.store.store import Store
from tests.synthetic_store import CONTROL, FIVE, TASKS, THIRTEEN, fail, make_row, make_store, make_trace, put


def only(data: Data) -> Section:
    (section,) = data.sections
    return section


# --- another baseline, a margin, the bootstrap ------------------------------------------------------------------------


@pytest.mark.slow
def test_another_baseline(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run")
    data = load(store, Options(baseline="rdrop"))
    section = only(data)
    assert section.methods[0] == section.reference == "rdrop"
    assert section.baseline == "vanilla"
    records = [
        record for record in differences(section, "rdrop") if record.column.task == "rte" and record.method == "hype"
    ]
    plain = [
        record
        for record in differences(only(load(store)), "vanilla")
        if record.column.task == "rte" and record.method in ("hype", "rdrop")
    ]
    values = {record.method: record.estimate.value for record in plain}
    assert records[0].estimate.value == pytest.approx(values["hype"] - values["rdrop"])
    assert "| `rdrop` − itself, other seeds |" in render(data)
    assert cli.main(["report", str(store.root), "--baseline", "rdrop", "--format", "markdown"]) == 0
    assert cli.main(["report", str(store.root), "--baseline", "rdop"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "baseline of this report" in said
    assert "rdrop" in said


@pytest.mark.slow
def test_equality_within_a_margin(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", seeds=5, noise=0.0005)
    section = only(load(store))
    records = {record.method: record for record in suite_tests(section, 3.0)}
    for method, record in records.items():
        assert record.equivalence == pytest.approx(stats.equivalence(record.estimate, 3.0)), method
    assert records[CONTROL].equivalence < 0.05
    assert "equal within 3, p" in render(load(store, Options(margin=3.0)))
    for wrong in ("0", "-1"):
        assert cli.main(["report", str(store.root), "--margin", wrong]) == 2
    assert "--margin: expected a number of points above 0" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_the_bootstrap_reads_predictions_of_pairs(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 277)
    for method, right in (("vanilla", 0.6), ("rdrop", 0.9)):
        for seed in range(1, 7):
            row = make_row(method, "rte", seed)
            logits = rng.normal(size=(277, 2)) * 0.01
            chosen = np.where(rng.random(277) < right, labels, 1 - labels)
            logits[np.arange(277), chosen] += 1
            row["metrics"]["validation"]["accuracy"] = float((chosen == labels).mean())
            arrays = {"validation.predictions": logits, "validation.labels": labels}
            store.write({}, row, arrays={"trace": make_trace(row), "predictions": arrays})
    data = load(store, Options(bootstrap=True))
    section = only(data)
    (estimate,) = bootstraps(data, section).values()
    (difference,) = differences(section, "vanilla")
    assert estimate.value == pytest.approx(difference.estimate.value)
    assert estimate.n == 6
    assert 20 < estimate.low < estimate.value < estimate.high < 40
    assert "Multi-bootstrap" in render(data)
    assert "Multi-bootstrap" not in render(load(store))


def test_the_bootstrap_says_which_scores_it_leaves_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for method in ("vanilla", "rdrop"):
        row = make_row(method, "rte", 1)
        row["metric"], row["metrics"] = "auc", {"validation": {"auc": 0.7}}
        store.write({}, row, arrays={"trace": make_trace(row)})
    assert "rte auc: no multi-bootstrap" in render(load(store, Options(bootstrap=True)))


def test_a_caption_is_no_wider_than_its_figure() -> None:
    figure = Figure(figsize=(3.1, 2))
    caption(figure, "score (× 100) · dots: seeds (× collapsed), diamond: mean, bar: 95 % t interval", "short")
    lines = figure.get_supxlabel().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 3.1 / 0.062


def test_the_bootstrap_of_few_seeds_is_refused_before_anything_is_written(tmp_path: Path, capsys: Any) -> None:
    store = make_store(tmp_path / "run", methods=("vanilla", "hype"), tasks=("rte",), seeds=4)
    assert cli.main(["report", str(store.root), "--bootstrap"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--bootstrap: expected a method with 5 seeds or more that are paired" in said
    assert "the most here is 4" in said
    assert not (store.root / "report").exists()
    assert cli.main(["report", str(store.root), "--format", "markdown"]) == 0


def test_the_bootstrap_says_which_tasks_have_too_few_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def change(row: dict[str, Any]) -> bool:
        return row["task"] == "rte" or row["seed"] < 4

    store = make_store(tmp_path, methods=("vanilla", "hype"), seeds=5, change=change)
    data = load(store, Options(bootstrap=True))
    module = "finetune_bench.reports.topics.tests"
    monkeypatch.setattr(f"{module}._predictions", lambda *_: (np.zeros((5, 9), dtype=int), np.zeros(9, dtype=int)))
    text = render(data)
    assert "cola: no multi-bootstrap; no method has 5 seeds paired with the reference's there." in text
    assert "rte: no multi-bootstrap" not in text


# --- what reports find by themselves ----------------------------------------------------------------------------------


def test_orders_that_did_the_same_share_a_line(tmp_path: Path) -> None:
    store = make_store(tmp_path, methods=("vanilla", "hype", "rdrop", "hype+rdrop"), tasks=("rte",))
    for seed in (1, 2, 3):
        row = make_row("rdrop+hype", "rte", seed)
        twin = make_row("hype+rdrop", "rte", seed)
        row["metrics"] = twin["metrics"]
        put(store, row, make_trace(twin))
    section = only(load(store))
    assert section.methods == ("vanilla", "hype", "rdrop", "hype+rdrop (any order)")
    assert len(section.rows("hype+rdrop (any order)")) == 3
    assert render(load(store)).count("rdrop+hype") == 0


def test_orders_that_differ_anywhere_keep_their_lines(tmp_path: Path) -> None:
    store = make_store(tmp_path, methods=("vanilla", "hype+rdrop"), tasks=("rte",))
    for seed in (1, 2, 3):
        row = make_row("rdrop+hype", "rte", seed)
        trace = make_trace(make_row("hype+rdrop", "rte", seed))
        if seed == 2:
            trace["loss"] = trace["loss"] + np.float32(1e-6)
        put(store, row, trace)
    assert only(load(store)).methods == ("vanilla", "hype+rdrop", "rdrop+hype")


def test_a_near_twin_stays_outside_the_block(tmp_path: Path) -> None:
    """Runs that hardly differ would make everybody's residual variance too small."""

    def change(row: dict[str, Any]) -> None:
        if row["method"] == "hype":  # its control's scores, but for a hair
            twin = make_row(CONTROL, row["task"], row["seed"])
            score = twin["metrics"]["validation"]["accuracy"] + 1e-5 * row["seed"]
            row["metrics"]["validation"]["accuracy"] = score

    section = only(load(make_store(tmp_path, methods=FIVE[:4], tasks=("rte",), seeds=5, change=change)))
    residuals = complete_block(section, section.columns[0], "vanilla")
    assert residuals is not None
    assert residuals.methods == ("vanilla", CONTROL, "rdrop")
    records = {record.method: record for record in differences(section, "vanilla")}
    assert records["rdrop"].interval == TWO_WAY
    # Against vanilla it stands in its twin's place, so that two runs that hardly differ get the same interval.
    assert records["hype"].interval == TWO_WAY
    twin, hype = records[CONTROL].estimate, records["hype"].estimate
    assert (hype.low, hype.high, hype.df) == (pytest.approx(twin.low, abs=0.02), pytest.approx(twin.high, abs=0.02), 8)
    # Against the twin itself only their own pairs count.
    (against,) = [record for record in differences(section, CONTROL) if record.method == "hype"]
    assert against.interval == PAIRED
    assert against.estimate.high - against.estimate.low < 0.01


def test_the_noise_floor_stands_beside_every_gain(tmp_path: Path) -> None:
    store = make_store(tmp_path, tasks=("rte",))
    section = only(load(store))
    floors = noise_floors(section, "vanilla")
    scores = section.scores("vanilla", section.columns[0])
    assert floors[section.columns[0]] == stats.noise_floor(scores)
    text = render(load(store))
    (line,) = [line for line in text.splitlines() if "`vanilla` − itself, other seeds" in line]
    floor = stats.noise_floor(scores)
    assert f"[−{floor.high:.1f}, +{floor.high:.1f}]" in line


# --- odd stores, whole reports ----------------------------------------------------------------------------------------

ODD: dict[str, tuple[dict[str, Any], Any]] = {
    "one cell": ({"methods": ("hype",), "tasks": ("rte",), "seeds": 1}, None),
    "one method": ({"methods": ("hype",), "seeds": 3}, None),
    "one task": ({"tasks": ("stsb",), "seeds": 3}, None),
    "one seed": ({"seeds": 1}, None),
    "two seeds": ({"seeds": 2}, None),
    "no baseline": ({"methods": ("hype", "rdrop", "hype+rdrop")}, None),
    "nothing done": ({}, lambda row: fail(row, "out of memory")),
    "baseline failed": ({}, lambda row: fail(row, "x") if row["method"] == "vanilla" else None),
    "holes": ({"seeds": 6}, lambda row: (row["seed"] + len(row["method"])) % 3 != 0),
    "NaN": ({}, lambda row: row["metrics"]["validation"].update({row["metric"]: None}) if row["seed"] == 2 else None),
    "all NaN": ({}, lambda row: row["metrics"]["validation"].update({row["metric"]: None})),
    "unpaired": ({}, lambda row: row["hashes"].update(order=row["id"])),
    "no hashes": ({}, lambda row: row.update(hashes=None)),
    "all collapsed": ({}, lambda row: row.update(collapsed="predicts one class only")),
    "no cost": ({}, lambda row: row.update(cost={"forwards_per_step": 1.0})),
    "all the same": ({"noise": 0.0, "seeds": 6}, lambda row: row["metrics"]["validation"].update({row["metric"]: 0.5})),
    "zeros": ({}, lambda row: row["metrics"]["validation"].update({row["metric"]: 0.0})),
    "every seed another task": ({}, lambda row: (row["task"] == "rte") == (row["seed"] == 1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_an_odd_store_gets_a_whole_report(name: str, tmp_path: Path, capsys: Any) -> None:
    words, change = ODD[name]
    store = make_store(tmp_path / "run", change=change, **words)
    assert cli.main(["report", str(store.root), "--format", "markdown,html,csv,latex", "--margin", "1"]) == 0
    out, err = capsys.readouterr()
    folder = store.root / "report"
    page = (folder / "report.md").read_text("utf-8")
    for text in (page, out):
        assert "nan" not in text.lower(), name
        assert "inf]" not in text
    assert "Traceback" not in err
    assert cli.main(["report", str(store.root), "--format", "markdown,csv", "--margin", "1", "--check"]) == 0


def test_nothing_is_claimed_from_unpaired_rows(tmp_path: Path) -> None:
    store = make_store(tmp_path, seeds=6, change=ODD["unpaired"][1])
    section = only(load(store))
    for record in differences(section, "vanilla"):
        assert not record.estimate.separated
        assert record.estimate.n == 0
    text = render(load(store))
    assert "Clearly " not in text.partition("## ")[2].partition("## ")[0]


def test_a_hole_is_never_averaged_over(tmp_path: Path) -> None:
    store = make_store(tmp_path, change=lambda row: (row["method"], row["task"]) != ("rdrop", "cola"))
    section = only(load(store))
    (suite,) = [record for record in scores(section) if not record.column.task and record.method == "rdrop"]
    assert np.isnan(suite.estimate.value)
    assert suite.missing == ("cola",)


# --- crowds -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_crowded_plot_shows_vanilla_and_the_best_and_says_so(tmp_path: Path) -> None:
    methods = ["vanilla", CONTROL, *(f"hype(eps={i}e-3)" for i in range(1, 30))]
    store = make_store(tmp_path / "run", methods=methods, tasks=("rte",), seeds=2)
    data = load(store)
    section = only(data)
    assert len(section.methods) == 31
    kept = shown_methods(section)
    assert len(kept) == MAX_METHODS < 31
    assert {"vanilla", CONTROL} <= set(kept)
    means = {m: float(np.mean(section.scores(m, section.columns[0]))) for m in section.methods}
    left_out = set(section.methods) - set(kept)
    assert max(means[m] for m in left_out) <= min(means[m] for m in kept if m not in ("vanilla", CONTROL))
    assert left_out_text(section).startswith(f"{MAX_METHODS} of 31 methods")
    assert {plot.kind for plot in draw(data, tmp_path / "plots")} >= {"scores", "differences", "memory", "curves"}


@pytest.mark.slow
def test_many_tasks_are_drawn_as_their_mean_where_a_panel_each_is_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"task_{i}" for i in range(12)]
    for name in names:
        monkeypatch.setitem(TASKS, name, TASKS["rte"])
    section = only(load(make_store(tmp_path, methods=THIRTEEN[:4], tasks=names, seeds=2)))
    columns = [*section.columns, suite_column(section)]
    assert [column.task for column in shown_columns(columns)] == [""]
    assert shown_columns(columns[:3]) == columns[:3]


def test_a_long_name_keeps_its_ends() -> None:
    assert short("hype") == "hype"
    long = "hype(" + ",".join(f"p{i}={i}" for i in range(30)) + ")"
    assert len(short(long)) == 49
    assert short(long)[:10] == long[:10]
    assert short(long)[-10:] == long[-10:]


def test_pareto_front_by_hand() -> None:
    costs, scores = [1.0, 2.0, 2.0, 3.0, 4.0], [50.0, 60.0, 55.0, 60.0, 70.0]
    assert pareto_front(costs, scores) == [0, 1, 4]
    for i, j in itertools.permutations(pareto_front(costs, scores), 2):
        assert not (costs[i] <= costs[j] and scores[i] >= scores[j])


def test_footprints_add_up_to_what_is_known(tmp_path: Path) -> None:
    section = only(load(make_store(tmp_path)))
    for record in footprints(section):
        assert record.weights == record.gradients == 4 * 108_311_810
        assert record.optimiser == 2 * record.weights
        saved = [row["cost"]["saved_activation_bytes"] for row in section.rows(record.method, status="done")]
        assert record.activations == np.median(saved)


def test_energy_has_columns_where_it_was_measured(tmp_path: Path) -> None:
    assert "energy" not in render(load(make_store(tmp_path / "cpu")))

    def change(row: dict[str, Any]) -> None:
        row["cost"]["energy_joules"] = 9000.0 if row["method"] == "rdrop" else 6000.0

    data = load(make_store(tmp_path / "gpu", change=change))
    text = render(data)
    assert "energy × |" in text
    line = next(line for line in text.partition("## Cost")[2].splitlines() if line.startswith("| `rdrop` |"))
    assert "| 1.50 [1.50, 1.50] n=6 |" in line
    assert "| 9 |" in line
