"""The soak, with a minute of random kills over methods that keep a state."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SCRIPT = ROOT / "benchmarks" / "soak.py"
METHODS = "vanilla,ema,sage,child_tuning_d"
KINDS = ("kill a worker", "kill a runner", "kill everything", "interrupt", "harm a checkpoint", "another runner")


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="leases know a process that is gone by /proc")
def test_a_grid_under_random_kills_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--minutes", "1", "--seed", "7", "--methods", METHODS, "--faults", "6"]
    words += ["--points", "after the rename,take-over", "--folder", str(tmp_path)]  # an empty lease is waited for
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = re.search(r"\d+ rounds of 10 cells, every row equal to the undisturbed run's; (\{.*\})", done.stdout)
    assert summary, done.stdout
    faults = ast.literal_eval(summary[1])
    assert set(faults) >= {*KINDS, "after the rename", "take-over"}
    assert faults["kill a worker"] > 0
