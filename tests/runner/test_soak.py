"""The soak, for about two minutes: one round of random kills over methods that keep a state."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

SCRIPT = ROOT / "benchmarks" / "soak.py"
METHODS = "vanilla,ema,r4f,smart,sage,recadam,swa,child_tuning_d,noisytune"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="workers are found through /proc")
def test_a_grid_under_random_kills_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--minutes", "2", "--seed", "7", "--methods", METHODS, "--folder"]
    done = subprocess.run([*words, str(tmp_path)], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) rounds of 10 cells, every row equal to the undisturbed run's; (\{.*\})", done.stdout)
    assert found, done.stdout
    assert "kill" in found[2] or "interrupt" in found[2]
