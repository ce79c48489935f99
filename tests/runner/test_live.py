"""What is shown of a run while it lasts: on any terminal, with any labels, from the first frame on."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from finetune_bench.runner.executors.messages import EventStatus, Progress
from finetune_bench.runner.live import Differences, View
from finetune_bench.runner.progress import Counts, Ended, Reporter
from finetune_bench.spec import short_names

HOSTILE = "hype(\x1b[2J\u202e\tname=日本語" + "🙂" * 40 + ") · [bold]rte[/bold]\nx · seed 7"


def drawn(view: View, width: int, height: int) -> list[str]:
    return view.draw(3, 1003, "1:02:03, about 5 min left", "3 done, 1000 left", width=width, height=height).plain.split(
        "\n"
    )


@pytest.mark.parametrize("height", [1, 2, 3, 9, 23])
@pytest.mark.parametrize("width", [1, 12, 40, 80, 300])
def test_the_view_fits_any_terminal(width: int, height: int) -> None:
    view = View()
    view.differences = Differences("vanilla")
    for number in range(1000):
        view.start(str(number), HOSTILE)
        view.advance(str(number), Progress(number, 1000, 0.5))
    for number in range(10):
        view.end(HOSTILE, "failed: " + HOSTILE * 3)
        view.score("vanilla", number, 50.0)
        view.score(f"{HOSTILE} {number}", number, 51.0)
    lines = drawn(view, width, height)
    assert len(lines) <= height
    assert all(cell_len(line) < max(2, width) for line in lines)
    assert not re.search("[\x00-\x1f\x7f\u202e]", "".join(lines))
    if width >= 40 and height >= 9:
        text = "\n".join(lines)
        assert "of 1000)" in text and "ended last" in text and "so far, unfinished" in text


def test_a_worker_keeps_its_line_while_others_end() -> None:
    view = View()
    for name in ("a", "b", "c"):
        view.start(name, name)
    view.advance("b", Progress(120, 300, 0.4117))
    view.stop("a")
    assert drawn(view, 80, 20)[2:] == ["running", "  b  120/300, loss 0.412", "  c  starting"]
    view.start("d", "d")
    view.advance("c", Progress(300, 300, 0.1))
    assert [line.split()[0] for line in drawn(view, 80, 20)[3:]] == ["d", "b", "c"]
    assert drawn(view, 80, 20)[-1] == "  c  scoring"
    view.stop("never started")
    view.start("b", "b")  # it was lost with its worker, and starts again
    assert drawn(view, 80, 20)[4] == "  b  starting"


def test_differences_are_of_pairs_in_whatever_order_they_come() -> None:
    scores = [("vanilla", 1, 50.0), ("vanilla", 2, 60.0), ("hype", 1, 51.0), ("hype", 2, 64.0), ("hype", 3, 99.0)]
    scores += [("rdrop", 2, 58.0)]
    for order in itertools.permutations(scores):
        differences = Differences("vanilla")
        for score in order:
            differences.add(*score)
        assert differences.means() == [("hype", 2.5, 2), ("rdrop", -2.0, 1)]


def test_counts_are_right_before_the_first_cell_starts() -> None:
    counts = Counts(20)
    plan: Any = SimpleNamespace(cached=["x"] * 9, failed=["x"] * 2, skipped=["x"], todo=["x"] * 5)
    counts.begin(plan)
    assert str(counts) == "0 done, 9 cached, 2 failed before, 1 skipped, 3 waiting, 5 left"
    counts.add(EventStatus.DONE)
    assert (counts.ended, counts.left) == (13, 4)


def test_what_failed_names_its_log() -> None:
    stream = io.StringIO()
    reporter = Reporter(Counts(2, failed=1), Console(file=stream))
    reporter.ended(Ended("a", "hype · rte · seed 1", EventStatus.FAILED, 3.0, "no luck", Path("run/cells/a/log.txt")))
    assert stream.getvalue() == (
        "[1/2] failed: hype · rte · seed 1 (no luck; log: run/cells/a/log.txt); 0 done, 1 failed, 1 left, "
        "about 1 min left\n"
    )


def test_long_tasks_have_short_names() -> None:
    long = "/data/of/somebody/reviews.csv(text=body,label=stars,validation=/data/of/somebody/dev.csv)"
    other = long.replace("/data", "/other")
    names = short_names(["rte", long, other, "hub:SetFit/trec(text=text,label=label_coarse)", "x" * 500])
    assert list(names.values())[:4] == ["rte", "reviews", "reviews (2)", "hub:SetFit/trec"]
    assert len(list(names.values())[4]) == 24


class Screen:
    """The other end of a pseudo-terminal, drawn by pyte."""

    def __init__(self, columns: int, lines: int) -> None:
        pyte = pytest.importorskip("pyte")
        self.master, worker = pty.openpty()
        self.screen: Any = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.file = os.fdopen(worker, "w", encoding="utf-8")
        self.raw = b""
        self.resize(columns, lines)
        os.set_blocking(self.master, False)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def text(self) -> str:
        self.file.flush()
        try:
            while data := os.read(self.master, 65536):
                self.raw += data
                self.stream.feed(data)
        except BlockingIOError:
            pass
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[tuple[Reporter, Screen]]:
    """A reporter on a terminal of the size asked for, without colours; a frame is drawn when a test asks for it."""
    for name in ("COLUMNS", "LINES", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = Screen(*request.param)
    # The terminal's size is that of the standard streams, which under a test are none.
    size = os.terminal_size
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: size((screen.screen.columns, screen.screen.lines)))
    yield Reporter(Counts(42, cached=16), Console(file=screen.file)), screen
    screen.file.close()
    os.close(screen.master)


def refresh(reporter: Reporter) -> None:
    assert reporter._live is not None
    reporter._live.refresh()


@pytest.mark.parametrize("reporter", [(80, 24), (40, 10)], indirect=True)
def test_a_terminal_shows_a_run_and_is_left_clean(
    reporter: tuple[Reporter, Screen], monkeypatch: pytest.MonkeyPatch
) -> None:
    told, screen = reporter
    told.view.differences = Differences("vanilla")
    told.say("before")
    try:
        with told.live():
            refresh(told)
            first = screen.text()
            assert "16/42" in first and "0 done, 16 cached, 26 left" in first
            assert first.splitlines()[1].startswith("█") and "░" in first  # seen without colours
            assert screen.screen.cursor.hidden
            told.started("a", "hype · rte · seed 1")
            told.trains("a", Progress(120, 300, 0.4117))
            refresh(told)
            assert re.search(r"hype.*eed 1  120/300, loss 0.412", screen.text())
            told.counts.add(EventStatus.FAILED)
            told.ended(Ended("a", "hype · rte · seed 1", EventStatus.FAILED, 3.0, "no luck", Path("run/log.txt")))
            told.view.score("vanilla", 1, 50.0)
            told.view.score("hype", 1, 51.25)
            refresh(told)
            assert re.search(r"so far, unfinished.*\n  hype  \+1.2 n=1", screen.text())
            screen.resize(screen.screen.columns + 20, screen.screen.lines)
            refresh(told)
            assert "17/42" in screen.text()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        told.say("after")
    lines = screen.text().replace("\n ", "").splitlines()
    assert lines[0] == "before" and lines[-1] == "after"
    assert "".join(lines[1:-1]).replace(" ", "") == "[17/42]failed:hype·rte·seed1(noluck;log:run/log.txt)"
    assert not screen.screen.cursor.hidden
    assert b"\x1b[3" not in screen.raw and b"?1049" not in screen.raw  # no colours, no other screen


@pytest.mark.parametrize("reporter", [(80, 24)], indirect=True)
def test_a_dumb_terminal_gets_lines(reporter: tuple[Reporter, Screen], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    _, screen = reporter
    told = Reporter(Counts(2, done=1), Console(file=screen.file))
    with told.live():
        told.ended(Ended("a", "hype · rte · seed 1", EventStatus.DONE, 3.0))
    assert screen.text().startswith("[1/2] done: hype · rte · seed 1 in 3.0 s; 1 done, 1 left")
    assert b"\x1b" not in screen.raw


def test_the_report_is_imported_once_when_a_worker_has_no_cell_left() -> None:
    """Before that no core is free, and after the last cell there is nothing left to wait for."""
    counts, called = Counts(4), []
    idle = threading.Event()
    reporter = Reporter(counts, Console(file=io.StringIO()), 2, lambda: (called.append(counts.left), idle.set()))
    for _ in range(2):
        counts.add(EventStatus.DONE)
        reporter.ended(Ended("", "a", EventStatus.DONE))
    assert not called
    for _ in range(2):
        counts.add(EventStatus.DONE)
        reporter.ended(Ended("", "a", EventStatus.DONE))
        assert idle.wait(10)
    assert called == [1]
