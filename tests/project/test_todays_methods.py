"""The page on the methods that people switch on today says what its runs say."""

from __future__ import annotations

import pandas as pd
import pytest

from scripts.todays_methods import DIFFERENCES, PAGE, RUNS, table, with_table


def test_the_table_is_made_of_its_runs() -> None:
    page = PAGE.read_text("utf-8")
    assert with_table(page, table(pd.read_csv(RUNS), pd.read_csv(DIFFERENCES))) == page, (
        "run: python -m scripts.todays_methods"
    )


def test_the_differences_are_those_of_its_runs() -> None:
    runs, differences = pd.read_csv(RUNS), pd.read_csv(DIFFERENCES).set_index("method")
    means = runs[runs["chosen"]].groupby("method")["accuracy"].mean()
    for method, value in differences["value"].items():
        assert value == pytest.approx(100 * (means[method] - means["vanilla"]), abs=1e-3), method
    assert {*differences.index, "vanilla"} == {*means.index}


def test_the_answer_that_it_quotes_is_that_of_the_differences() -> None:
    differences = pd.read_csv(DIFFERENCES).set_index("method")
    assert set(differences.index[differences["low"] > 0]) == {"lisa", "vanilla(dropout=hidden_off)"}
    lost = int((differences["high"] < 0).sum())
    lisa = differences.loc["lisa"]
    told = " ".join(PAGE.read_text("utf-8").replace("\n>", "").split())
    assert f"`lisa` gained {lisa['value']:.1f} points [{lisa['low']:.1f}, {lisa['high']:.1f}] over `vanilla`" in told
    assert f"gained too; {lost} of {len(differences)} lost." in told


def test_each_method_counts_with_one_rate_and_every_seed() -> None:
    runs = pd.read_csv(RUNS)
    for method, group in runs.groupby("method"):
        chosen = group[group["chosen"]]
        assert chosen["learning_rate"].nunique() == 1, method
        assert sorted(chosen["seed"]) == sorted(runs["seed"].unique()), method
        means = group.groupby("learning_rate")["held_out_accuracy"].mean()
        assert means[chosen["learning_rate"].iloc[0]] == means.max(), method


def test_a_line_has_the_mean_the_paired_difference_and_the_ratio_of_times() -> None:
    lines = [
        {"method": method, "learning_rate": rate, "seed": seed, "chosen": rate == 1e-3}
        | {"accuracy": accuracy / 100, "nll": 1.5, "ece": 0.1, "training_cpu_seconds": seconds}
        for method, rate, accuracies, seconds in (
            ("vanilla", 1e-3, (50, 52, 54), 10),
            ("better", 1e-3, (53, 55, 57), 15),
            ("better", 1e-4, (90, 90, 90), 15),
        )
        for seed, accuracy in enumerate(accuracies, 1)
    ]
    difference = {"method": "better", "value": 3.0, "low": 1.0, "high": 5.0, "n": 3, "df": 2, "standard_error": 0.5}
    text = table(pd.DataFrame(lines), pd.DataFrame([difference])).splitlines()
    assert text[2:] == [
        "| `better` | +3.0 [+1.0, +5.0] | 55.0 | 0.001 | 1.50 | 10.0 | 1.50× |",
        "| `vanilla` | — | 52.0 | 0.001 | 1.50 | 10.0 | 1.00× |",
    ]
