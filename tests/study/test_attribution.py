"""Instruments of the report: a gain split into effects, and whether a method does anything at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetune_bench import cli, registry
from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.load import load
from finetune_bench.reports.rows.sections import NO_EFFECT
from finetune_bench.reports.terminal import summary
from finetune_bench.reports.topics import attribution
from finetune_bench.reports.topics.divergence import divergences
from finetune_bench.store.store import Store
from finetune_bench.study.attribution import effect_chain, label_of
from tests.synthetic_store import CONTROL, make_row, make_store, make_trace, put

CHAIN = [["dropout removal", CONTROL], ["noise", "hype"]]


def chain(text: str) -> list[tuple[str, str]]:
    return [(effect, label_of(run)) for effect, run in effect_chain(registry.make_stack(text))]


def test_chains_of_effects() -> None:
    assert chain("hype") == [("dropout removal", CONTROL), ("noise", "hype")]
    assert chain("hype(noise=uniform_onesided,eps=0.02)") == [
        ("dropout removal", CONTROL),
        ("noise", "hype(eps=0.01,noise=uniform_symmetric)"),
        ("mean shift", "hype(eps=0.02,noise=uniform_onesided)"),
    ]
    assert chain("hype(dropout=keep)") == [("noise", "hype(dropout=keep)")]
    assert chain("mixout") == [("dropout removal", "vanilla(dropout=all_off)"), ("mixout", "mixout")]
    assert chain("r3f") == [("two passes", "r3f(noise=none)"), ("noise", "r3f")]
    assert chain("vanilla(dropout=all_off)") == chain("hype+rdrop") == []


def with_effects(folder: Path, **options: Any) -> Store:
    store = make_store(folder, methods=("vanilla", CONTROL, "hype"), **options)
    store.write_study({"effects": {"hype": CHAIN}})
    return store


def test_effects_are_paired_differences_and_add_up(tmp_path: Path) -> None:
    data = load(with_effects(tmp_path))
    (section,) = data.sections
    found = attribution.attributions(data, section)
    for column in {one.column for one in found}:
        value = {one.effect: one.estimate.value for one in found if one.column == column}
        assert value["dropout removal"] + value["noise"] == pytest.approx(value["total"])
    column = section.columns[0]
    noise = next(one for one in found if (one.effect, one.column) == ("noise", column))
    expected = section.scores("hype", column) - section.scores(CONTROL, column)
    assert noise.estimate.value == pytest.approx(expected.mean())
    half = 4.302653 * expected.std(ddof=1) / 3**0.5  # t with two degrees of freedom
    assert noise.estimate.low == pytest.approx(expected.mean() - half, rel=1e-5)
    page = render(data)
    assert "Where the gain comes from" in page
    assert f"| `hype` | noise | `hype` − `{CONTROL}` |" in page


def test_a_chain_with_a_hole_is_left_out(tmp_path: Path) -> None:
    store = make_store(tmp_path, methods=("vanilla", "hype"))
    store.write_study({"effects": {"hype": CHAIN}})
    data = load(store)
    assert attribution.attributions(data, data.sections[0]) == []


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_the_flag_adds_the_twins(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path, capsys: Any) -> None:
    method = "hype(eps=0.1,noise=uniform_onesided)"
    words = ["run", "--methods", method, "--tasks", str(tiny_data), "--model", str(tiny_checkpoint), "--seeds", "2"]
    words += [
        "--steps",
        "3",
        "--warmup",
        "0",
        "--lr",
        "1e-3",
        "--attribution",
        "--workers",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert cli.main(words) == 0
    assert "hype(eps=0.05,noise=uniform_symmetric)" in capsys.readouterr().err
    study = json.loads((tmp_path / "study.json").read_text("utf-8"))
    assert [effect for effect, _ in study["effects"][method]] == ["dropout removal", "noise", "mean shift"]
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "mean shift" in page
    split = pd.read_csv(tmp_path / "report" / "attribution.csv")
    assert set(split["effect"]) == {"dropout removal", "noise", "mean shift", "total"}
    rows = pd.read_csv(tmp_path / "report" / "rows.csv")
    own = rows[rows["method"] == method]
    # A tiny model's first loss can round to its twin's, so that the second step is the first to differ.
    assert own["departure.loss_step"].isin([1, 2]).all()
    assert (own["departure.weights"] > 0).all()
    # Another command in the same folder keeps what the first one left.
    assert cli.main([word.replace(method, "mixout") for word in words]) == 0
    assert method in json.loads((tmp_path / "study.json").read_text("utf-8"))["effects"]


def test_departures_by_hand(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.cells.mkdir(parents=True)
    plain = make_row("vanilla", "rte", 1)
    trace = make_trace(plain)
    put(store, plain, trace)
    moved = {name: values.copy() for name, values in trace.items()}
    moved["loss"][4:] += 0.5
    moved["sketch"][3:, 2] += 4.0
    moved["sketch"][3:, 7] -= 3.0
    put(store, make_row("rdrop", "rte", 1), moved)
    data = load(store)
    (one,) = divergences(data, data.sections[0])
    assert (one.method, one.twin, one.loss_step) == ("rdrop", "vanilla", 5)
    assert one.loss == pytest.approx(0.5 * (120 - 4) / 120, rel=1e-5)
    assert one.weights_step == trace["sketch_steps"][3]
    assert one.weights == pytest.approx(5.0, rel=1e-5)
    assert "## Does each method act?" in render(data)


@pytest.mark.parametrize("scored", [False, True])
def test_no_effect_stands_in_every_table(tmp_path: Path, scored: bool) -> None:
    """Equal traces; but where other weights were scored than those of the last step, the method had an effect."""
    store = make_store(tmp_path, methods=("vanilla", "rdrop"))
    for seed in (1, 2, 3):
        for task in ("rte", "cola"):
            row, twin = make_row("ema", task, seed), make_row("vanilla", task, seed)
            trace = make_trace(twin)
            put(store, row, trace | ({"scored_sketch": np.ones(16, dtype=np.float32)} if scored else {}))
    data = load(store)
    (section,) = data.sections
    assert section.methods[0] == "vanilla"
    assert ("ema" + NO_EFFECT in section.methods) is not scored
    page = render(data)
    assert (f"`ema{NO_EFFECT}`" in page) is not scored
    if not scored:
        assert page.count(f"| `ema{NO_EFFECT}` |") >= 4  # scores, differences, cost, alive
        assert f"ema{NO_EFFECT}" in summary(store)
        assert "No effect: ema equals vanilla" in page


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_a_real_average_has_an_effect(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> None:
    words = ["run", "--methods", "ema,swa(share=0)", "--tasks", str(tiny_data), "--model", str(tiny_checkpoint)]
    words += ["--seeds", "1", "--steps", "4", "--warmup", "0", "--lr", "1e-3", "--workers", "1", "--out", str(tmp_path)]
    assert cli.main([*words, "--no-baseline"]) == 0
    assert cli.main(words) == 0
    (section,) = load(Store.open(tmp_path)).sections
    assert "ema" in section.methods
    assert f"swa(share=0){NO_EFFECT}" in section.methods
