"""A run with failures on a real terminal: its live view, Ctrl-C in its middle, and the same command again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import ROOT

capture = pytest.importorskip("benchmarks.terminal_capture", reason="pyte is not installed", exc_type=ImportError)


@pytest.mark.slow
def test_a_run_with_failures_is_stopped_and_gone_on_with(tmp_path: Path) -> None:
    command = capture.study(tmp_path, methods="brittle", seeds="2,3", epochs=60)
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    size = {"columns": 80, "lines": 40, "environment": environment, "folder": tmp_path}
    with capture.Terminal(command, **size) as terminal:
        first = terminal.wait_for(lambda text: "░" in text)
        assert "0/6  0:00:0" in first and "0 done, 6 left" in first
        terminal.wait_for(lambda text: ", loss 0." in text)  # of a cell that is training
        # Two runs may end between two frames, so no single count is sure to be drawn.
        terminal.wait_for(lambda text: re.search(r"[1-5]/6", text) is not None)
        terminal.press(capture.CTRL_C)
        stopped = terminal.finish()
        assert terminal.process.returncode == 130, stopped
        assert "Interrupted; every finished cell is kept. To go on:" in stopped
        assert "--seeds2,3" in "".join(stopped.split())
        assert "░" not in stopped and "running" not in stopped and terminal.shows_cursor
    with capture.Terminal(command, **size) as terminal:
        again = terminal.wait_for(lambda text: "░" in text)
        assert " cached, " in again.partition("░")[2]  # in the first frame
        ended = terminal.finish()
        assert terminal.process.returncode == 1
    assert "held out" in stopped and "held out" not in ended  # a note on the data
    assert "1 failed" in ended and "░" not in ended
    squeezed = "".join(ended.split())  # whatever the terminal's width broke
    assert "RuntimeError:thismethodcan'tbearevenseeds" in squeezed
    (log,) = (tmp_path / "run" / "cells").glob("*/log.txt")
    assert str(log.relative_to(tmp_path)) in squeezed
    assert "method" in ended and "difference" in ended and "report.html" in ended
