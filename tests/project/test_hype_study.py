"""The study of HyPe: what the repository says of it is what its store says."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_bench import cli
from finetune_bench.reports.answer import headline, learned_nothing
from finetune_bench.reports.rows.load import load
from finetune_bench.store.store import Store
from scripts import gallery, hype_study
from tests import ROOT

PAGE = ROOT / "docs" / "hype-study.md"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return gallery.unpack(hype_study.STORE, tmp_path_factory.mktemp("study") / "store")


@pytest.mark.slow
def test_the_report_is_that_of_the_store(store: Store) -> None:
    assert cli.main(["report", str(store.root), "--check", "--out", str(hype_study.REPORT)]) == 0


@pytest.mark.slow
def test_the_verdicts_are_those_of_the_store(store: Store, tmp_path: Path) -> None:
    assert hype_study.write_verdicts(store.root, tmp_path) == 0  # no claim is contradicted
    assert (tmp_path / "verify.md").read_text("utf-8") == (hype_study.VERDICTS / "verify.md").read_text("utf-8")


def test_the_page_has_the_reports_first_sentence(store: Store) -> None:
    (section,) = load(store).sections
    quoted = " ".join(line.removeprefix("> ") for line in PAGE.read_text("utf-8").splitlines() if line.startswith(">"))
    assert quoted == headline(section, lambda label: f"`{label}`")[0]


def test_hype_scores_as_its_control_does_where_the_page_says_so(store: Store) -> None:
    rows = {(row["method"], row["task"], row["seed"]): row for row in store.rows()}
    uniform = "hype(noise=uniform_symmetric)"
    for noise, task in (("hype", "cola"), ("hype", "rte"), ("hype", "sst2"), (uniform, "cola"), (uniform, "rte")):
        for seed in range(1, 6):
            pair = [rows[method, task, seed]["metrics"] for method in (noise, "vanilla(dropout=hidden_off)")]
            assert pair[0] == pair[1]


def test_the_rates_are_those_that_the_page_names(store: Store) -> None:
    rates = {row["task"]: row["recipe"]["lr"] for row in store.rows()}
    assert rates == {"cola": 1e-4, "rte": 1e-4, "stsb": 1e-4, "sst2": 2e-4, "mrpc": 4e-4}
    assert len(store.rows()) == 375
    idle = sum(learned_nothing(row) for row in store.rows() if row["task"] == "mrpc")
    assert f"{idle} of 75 runs learned nothing" in " ".join(PAGE.read_text("utf-8").split())
