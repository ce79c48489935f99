"""The statistics of the reports on data whose truth is known: a small simulation, and the table of the large one."""

from __future__ import annotations

import re

import pytest

from tests import ROOT

simulations = pytest.importorskip("benchmarks.simulations", reason="the benchmarks are in a checkout only")

PAGE = ROOT / "docs" / "statistics.md"
RUNS = 600  # of the small run: a share of 5 % has a standard error of 0.9 points


def percentages(line: str) -> list[float]:
    return [float(found) / 100 for found in re.findall(r"(\d+\.\d) %", line.split("|", 3)[3])]


def line_of(name: str) -> str:
    (found,) = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| {name} |")]
    return found


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(
    "covers", ["mean_covers", "difference_covers", "contrast_covers", "synergy_covers", "suite_covers", "pairs_cover"]
)
def test_intervals_cover(covers: str, seeds: int) -> None:
    share = simulations.share(getattr(simulations, covers), RUNS, (seeds,))[seeds]
    assert 0.92 <= share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("rejects", ["suite_rejects", "pairs_reject", "tasks_reject", "friedman_rejects", "holm_errs"])
def test_nothing_is_found_where_nothing_is(rejects: str) -> None:
    for share in simulations.share(getattr(simulations, rejects), RUNS).values():
        assert share <= 0.075


def test_pooling_finds_what_is_not_there() -> None:
    found = simulations.share(simulations.pooled_rejects, RUNS)
    assert found[5] > 0.2
    assert found[3] < found[5] < found[10]


def test_the_simulations_see_a_wrong_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_bench.stats import estimates

    monkeypatch.setattr(estimates, "_quantile", lambda df: 1.96)  # as if the standard deviation were known
    assert simulations.share(simulations.mean_covers, RUNS, (3,))[3] < 0.87


@pytest.mark.slow
def test_the_page_holds_every_line_within_its_band() -> None:
    lines = simulations.simulate(1)
    assert len(lines) >= 20
    for line in lines:
        row = line_of(line.name)
        assert f"| {line.band} |" in row
        shares = percentages(row)
        assert len(shares) == len(line.shares)
        numbers = [float(number) / 100 for number in re.findall(r"\d+", line.band)]
        if line.name.startswith("avoided"):
            assert all(abs(share - numbers[0]) > 0.04 for share in shares), "not the mistake it is shown as"
        elif "–" in line.band:
            assert all(numbers[0] <= share <= numbers[1] for share in shares), row
        elif "≥" in line.band:
            assert all(share >= numbers[0] for share in shares), row
        else:
            assert all(share <= numbers[0] for share in shares), row
