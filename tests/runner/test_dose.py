"""The dose command, on a tiny model and for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from finetune_bench import cli, registry
from finetune_bench.errors import UsageError
from finetune_bench.runner.dose import default_dose, read_doses


@pytest.fixture
def words(tmp_path: Path, tiny_checkpoint: Path, tiny_data: Path) -> list[str]:
    common = ["--tasks", str(tiny_data), "--model", str(tiny_checkpoint), "--seeds", "2", "--steps", "3"]
    return [*common, "--warmup", "0", "--lr", "1e-3", "--workers", "1", "--out", str(tmp_path)]


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_a_dose_response(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["dose", "hype", "--eps", "0,1e-5,1e-4,1e-3,0.5", *words]) == 0
    out = capsys.readouterr().out
    folder = tmp_path / "dose" / "hype-eps"
    assert all(str(folder / name) in out for name in ("dose.md", "dose.csv", "dose.png"))
    frame = pd.read_csv(folder / "dose.csv").set_index("dose")
    assert list(frame.index) == [0, 1e-5, 1e-4, 1e-3, 0.5]
    assert frame.loc[0, "logits"] == frame.loc[0, "gradients"] == 0
    for column in ("logits", "gradients"):  # linear while it is small
        assert frame.loc[1e-4, column] == pytest.approx(10 * frame.loc[1e-5, column], rel=0.05)
        assert frame.loc[1e-3, column] == pytest.approx(100 * frame.loc[1e-5, column], rel=0.05)
    assert (frame["n"] == 2).all()
    (line,) = [line for line in out.splitlines() if line.startswith("1e-05")]
    assert line.rstrip().endswith("*")  # the default
    assert "no effect" in next(line for line in out.splitlines() if line.startswith("0 "))
    assert next(line for line in out.splitlines() if line.startswith("dropout")).endswith("for comparison")
    assert (folder / "dose.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_noise_on_weights_and_in_a_second_pass_is_seen(words: list[str], tmp_path: Path) -> None:
    assert cli.main(["dose", "noisytune", "--intensity=0.01,0.1", *words]) == 0
    assert cli.main(["dose", "r3f+hype", "--r3f.eps", "0.001,0.01", *words]) == 0
    for name in ("noisytune-intensity", "r3f-hype-r3f.eps"):  # ten times the noise, while it is small
        frame = pd.read_csv(tmp_path / "dose" / name / "dose.csv")
        assert (frame["logits"] > 0).all(), name
        assert frame["logits"][1] > 5 * frame["logits"][0]


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_what_cannot_run_without_dropout_has_scores_only(words: list[str], tmp_path: Path) -> None:
    assert cli.main(["dose", "rdrop", "--alpha", "0.5,2", *words]) == 0
    frame = pd.read_csv(tmp_path / "dose" / "rdrop-alpha" / "dose.csv")
    assert frame["logits"].isna().all()
    assert frame["mean"].notna().all()


def test_doses_are_read_from_the_parameter_that_is_meant() -> None:
    doses = read_doses("freelb+smart", "freelb.steps", "2,4")
    assert [registry.make_stack(full).methods[0].steps for full in doses.values()] == [2, 4]  # type: ignore[attr-defined]
    assert default_dose("hype", "eps") == 1e-5
    assert [default_dose("freelb+smart", f"{name}.steps") for name in ("freelb", "smart")] == [4, 1]
    with pytest.raises(UsageError, match="got none"):
        read_doses("hype", "eps", "")


@pytest.mark.slow
@pytest.mark.usefixtures("cells_in_this_process")
def test_a_dose_is_part_of_the_runs_report(words: list[str], tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["dose", "hype", "--eps", "1e-5,0.5", *words]) == 0
    assert cli.main(["dose", "rdrop", "--alpha", "0.5,2", *words]) == 0
    assert cli.main(["report", str(tmp_path), "--all"]) == 0
    capsys.readouterr()
    page = (tmp_path / "report" / "report.md").read_text("utf-8")
    part = page.partition("## Strength")[2].partition("\n## ")[0]
    frame = pd.read_csv(tmp_path / "dose" / "hype-eps" / "dose.csv")
    assert f"| {frame['logits'][1]:.1e} |" in part
    assert part.count("| dropout |") == 2
    assert "the method can't run with dropout off" in part.partition("rdrop: score")[2]
    assert "the method can't run with dropout off" not in part.partition("rdrop: score")[0]
    for number in (1, 2):
        assert f"](plots/dose{number}.svg)" in part
        assert (tmp_path / "report" / "plots" / f"dose{number}.svg").stat().st_size > 5_000
    assert (tmp_path / "report" / "report.html").read_text("utf-8").count("Score and disturbance of") == 2
