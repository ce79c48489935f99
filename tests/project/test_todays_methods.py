"""The page on the methods that people switch on today says what its runs say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from finetune_bench.reports.rows.load import load
from finetune_bench.reports.topics.search import searches
from scripts.todays_methods import (
    OVERVIEW,
    PAGE,
    chosen_of,
    differences,
    differences_of,
    names,
    overview,
    runs,
    table,
    with_table,
)
from tests.study.held_out_store import held_out_rows, write


@pytest.mark.parametrize("name", names())
def test_a_table_is_made_of_its_runs(name: str) -> None:
    page = PAGE.read_text("utf-8")
    assert with_table(page, name, table(runs(name), differences(name))) == page, "run: python -m scripts.todays_methods"


def test_the_first_table_is_made_of_all_differences() -> None:
    page = PAGE.read_text("utf-8")
    table_of_all = overview({name: differences(name) for name in names()})
    assert with_table(page, OVERVIEW, table_of_all) == page, "run: python -m scripts.todays_methods"


@pytest.mark.parametrize("name", names())
def test_the_differences_are_those_of_the_runs(name: str) -> None:
    lines, found = runs(name), differences(name).set_index("method")
    means = lines[lines["chosen"]].groupby("method")["score"].mean()
    for method, value in found["value"].items():
        assert value == pytest.approx(100 * (means[method] - means["vanilla"]), abs=1e-3), method
    assert {*found.index, "vanilla"} == {*means.index}


@pytest.mark.parametrize(
    ("name", "best", "others"),
    [
        ("minilm-wordnet_topic", "lisa", {"vanilla(dropout=hidden_off)", "peft", "peft(kind=lora)"}),
        ("minilm-stsb", "gradual_unfreezing", {"vanilla(dropout=hidden_off)", "schedule_free"}),
    ],
)
def test_the_answers_that_it_quotes_are_those_of_the_differences(name: str, best: str, others: set[str]) -> None:
    found = differences(name).set_index("method")
    assert set(found.index[found["low"] > 0]) == {best, *others}
    lost = int((found["high"] < 0).sum())
    gain = found.loc[best]
    told = " ".join(PAGE.read_text("utf-8").replace("\n>", "").split())
    assert f"`{best}` gained {gain['value']:.1f} points [{gain['low']:.1f}, {gain['high']:.1f}] over `vanilla`" in told
    assert f"gained too; {lost} of {len(found)} lost." in told


def test_where_nothing_gained_it_says_so() -> None:
    found = differences("smollm2-wordnet_topic")
    lost = int((found["high"] < 0).sum())
    assert not (found["low"] > 0).any()
    told = f"> None of {len(found)} gained over `vanilla` on wordnet_topic; {lost} of {len(found)} lost."
    assert told in PAGE.read_text("utf-8")


def test_what_it_says_of_loras_learning_rate_is_that_of_the_runs() -> None:
    lines = runs("minilm-wordnet_topic")
    of_lora = lines[lines["method"] == "peft(kind=lora)"].groupby("learning_rate")["score"].mean()
    rates = (0.0016, 0.0064, 0.0128, 0.0256, 0.0512)
    scores = [f"{100 * of_lora[rate]:.0f}" for rate in rates]
    told = " ".join(PAGE.read_text("utf-8").split())
    first = ", ".join(f"{score}{' % right' if i == 0 else ''} at {rates[i]}" for i, score in enumerate(scores[:3]))
    assert f"LoRA has {first}, and {scores[3]} and {scores[4]} at {rates[3]} and {rates[4]}." in told


@pytest.mark.parametrize("name", names())
def test_each_method_counts_with_one_rate_and_every_seed(name: str) -> None:
    lines = runs(name)
    for method, group in lines.groupby("method"):
        chosen = group[group["chosen"]]
        assert chosen["learning_rate"].nunique() == 1, method
        assert sorted(chosen["seed"]) == sorted(lines["seed"].unique()), method
        # The seeds that ran with every rate choose: all, or those of the one machine that tried every rate.
        tried = group.groupby("seed")["learning_rate"].nunique()
        searched = group[group["seed"].isin(tried.index[tried == tried.max()])]
        of_rate = searched.groupby("learning_rate")[["held_out_score", "learned_nothing"]].mean()
        # Rates at which half of the runs or more learned nothing are passed over, unless there are no others.
        able = of_rate[of_rate["learned_nothing"] < 0.5]
        means = (of_rate if able.empty else able)["held_out_score"]
        assert means.idxmax() == chosen["learning_rate"].iloc[0], method


def test_a_line_has_the_mean_the_paired_difference_and_the_ratio_of_times() -> None:
    lines = [
        {"method": method, "learning_rate": rate, "seed": seed, "chosen": rate == 1e-3, "device": "cpu"}
        | {"score": accuracy / 100, "nll": 1.5, "ece": 0.1, "training_cpu_seconds": seconds}
        for method, rate, accuracies, seconds in (
            ("vanilla", 1e-3, (50, 52, 54), 10),
            ("better", 1e-3, (53, 55, 57), 15),
            ("better", 1e-4, (90, 90, 90), 15),
        )
        for seed, accuracy in enumerate(accuracies, 1)
    ]
    difference = {"method": "better", "value": 3.0, "low": 1.0, "high": 5.0, "n": 3, "df": 2, "standard_error": 0.5}
    frame = pd.DataFrame(lines)
    assert table(frame, pd.DataFrame([difference])).splitlines()[2:] == [
        "| `better` | +3.0 [+1.0, +5.0] | 55.0 | 0.001 | 1.50 | 10.0 | 1.50× |",
        "| `vanilla` | — | 52.0 | 0.001 | 1.50 | 10.0 | 1.00× |",
    ]
    # A regression has neither probabilities nor the columns on them.
    without = table(frame.assign(nll=float("nan"), ece=float("nan")), pd.DataFrame([difference])).splitlines()
    assert without[2] == "| `better` | +3.0 [+1.0, +5.0] | 55.0 | 0.001 | 1.50× |"
    assert without[0] == "| method | difference to vanilla | score | learning rate | time |"
    # Seconds on another machine are another measure: the ratio is that of the machine with most runs.
    elsewhere = frame.assign(device=["cuda" if seed == 1 else "cpu" for seed in frame["seed"]])
    elsewhere.loc[elsewhere["device"] == "cuda", "training_cpu_seconds"] = 1.0
    assert table(elsewhere, pd.DataFrame([difference])) == table(frame, pd.DataFrame([difference]))


def test_the_first_table_goes_by_the_place_within_a_study() -> None:
    def study(**values: tuple[float, float, float]) -> pd.DataFrame:
        frame = pd.DataFrame(values, index=["value", "low", "high"]).T
        return frame.rename_axis("method").reset_index()

    first = study(good=(1.0, -1.0, 3.0), bad=(-9.0, -12.0, -6.0))
    second = study(good=(20.0, 5.0, 35.0), bad=(-0.5, -9.0, 8.0), new=(30.0, 10.0, 50.0))
    assert overview({"small-cola": first, "large-rte": second}).splitlines() == [
        "| method | cola on small | rte on large |",
        "|---|---:|---:|",
        "| `new` | — | **+30.0** |",
        "| `good` | +1.0 | **+20.0** |",
        "| `vanilla` | 0 | 0 |",
        "| `bad` | **−9.0** | −0.5 |",
    ]


def test_a_rate_is_chosen_by_the_seeds_that_ran_with_every_rate(tmp_path: Path) -> None:
    """And the difference is that of pairs, each from one machine."""
    scores = {("rte", "vanilla"): {1e-5: 0.70, 2e-5: 0.60}, ("rte", "hype"): {1e-5: 0.60, 2e-5: 0.80}}
    searched = held_out_rows(scores, seeds=(1,), device="cuda")
    best = {("rte", "vanilla"): {1e-5: 0.50}, ("rte", "hype"): {2e-5: 0.50}}
    data = load(write(tmp_path / "run", [*searched, *held_out_rows(best, seeds=(2, 3), device="cpu")]))
    assert len(searches(data)) == 2
    section, chosen = chosen_of(data)
    assert {(row["method"], row["recipe"]["lr"], row["seed"]) for row in data.rows if row["id"] in chosen} == {
        (method, rate, seed) for method, rate in (("vanilla", 1e-5), ("hype", 2e-5)) for seed in (1, 2, 3)
    }
    (line,) = differences_of(section).to_dict("records")
    assert (line["method"], line["n"]) == ("hype", 3)
    assert line["value"] == pytest.approx(100 * (0.10 + 0 + 0) / 3)
