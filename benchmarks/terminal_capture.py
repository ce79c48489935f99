"""Show what a run writes on a terminal, as text: one with failures, stopped by Ctrl-C and gone on with.

    python -m benchmarks.terminal_capture [--columns 80,120] [--lines 24] [--write FOLDER]

The run is a small one on random texts, on a pseudo-terminal that pyte (extra `[test]`) draws. A screen is shown,
without colours, whenever a cell has ended.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyte

ROOT = Path(__file__).resolve().parents[1]
CTRL_C = b"\x03"
QUIET_SECONDS = 0.02  # without output, after which a frame is whole
PLUGIN = '''"""brittle: vanilla, but it fails on every second seed."""
from finetune_bench.method import Method

class Brittle(Method):
    """Vanilla, but it fails on every second seed."""
    name = "brittle"

    def setup(self, run):
        if run.seed % 2 == 0:
            raise RuntimeError("this method can't bear even seeds")
'''


class Terminal:
    """A Terminal runs a process on a pseudo-terminal and keeps its screen; as a context manager it ends the process.

    Args:
        command: the program and its arguments.
        columns: of the terminal.
        lines: of the terminal.
        environment: variables beside those of this process.
        folder: the current folder of the process.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.screen: Any = pyte.HistoryScreen(columns, lines, history=1000)
        self._stream: Any = pyte.ByteStream(self.screen)
        self.raw = b""
        self._master, worker = pty.openpty()
        self._set_size(columns, lines)
        variables = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        variables |= {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(environment or {})}
        self.process = subprocess.Popen(  # noqa: S603
            list(command),
            stdin=worker,
            stdout=worker,
            stderr=worker,
            env=variables,
            cwd=folder,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 — Ctrl-C reaches the process through its own terminal
        )
        os.close(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def press(self, keys: bytes) -> None:
        """Send keys, as if they were typed on the terminal."""
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, and tell the process."""
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)
        os.killpg(self.process.pid, signal.SIGWINCH)

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds: float) -> bool:
        """Read what comes within so many seconds, up to the end of a frame; return whether the process has ended."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            ready, _, _ = select.select([self._master], [], [], left)
            while ready:
                try:
                    data = os.read(self._master, 65536)
                except OSError:  # so ends a pseudo-terminal of which nobody holds the other end
                    data = b""
                if not data:
                    return True
                self.raw += data
                self._stream.feed(data)
                ready, _, _ = select.select([self._master], [], [], QUIET_SECONDS)
                if not ready:
                    return False
        return False

    def wait_for(self, condition: Callable[[str], bool], seconds: float = 120.0) -> str:
        """Read until the screen is as wanted, and return it.

        Raises:
            TimeoutError: it wasn't within so many seconds; with the last screen.
        """
        deadline = time.monotonic() + seconds
        while not condition(self.text()):
            if self.read(0.5) or time.monotonic() > deadline:
                if condition(self.text()):
                    break
                raise TimeoutError(f"the screen never was as wanted; the last one:\n{self.everything()}")
        return self.text()

    def finish(self, seconds: float = 120.0) -> str:
        """Read to the end of the process, and return all that was left on its screen and above it."""
        deadline = time.monotonic() + seconds
        while not self.read(0.5):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the process didn't end; the last screen:\n{self.everything()}")
        self.process.wait(10)
        return self.everything()

    def text(self) -> str:
        """Return the screen as it is, without the space behind its lines."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def everything(self) -> str:
        """Return the screen and what was scrolled away above it."""
        above = ["".join(row[column].data for column in range(self.screen.columns)) for row in self.screen.history.top]
        return "\n".join([*(line.rstrip() for line in above), self.text()])

    @property
    def shows_cursor(self) -> bool:
        """Tell whether the cursor is visible."""
        return not self.screen.cursor.hidden


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def study(folder: Path, methods: str = "hype+rdrop,brittle", seeds: str = "1,2,3,4", epochs: int = 60) -> list[str]:
    """Make a model, texts and a plugin in a folder, and return the command that runs a study with failures on them."""
    from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

    if not (folder / "brittle.py").exists():
        tiny_checkpoint(folder / "tiny-bert")
        tiny_texts(folder / "reviews.jsonl")
        (folder / "brittle.py").write_text(PLUGIN)
    program = [sys.executable, "-m", "finetune_bench.cli", "run", "--plugin", "brittle.py", "--trust-plugins"]
    data = ["--methods", methods, "--tasks", "reviews.jsonl", "--model", "./tiny-bert", "--seeds", seeds]
    recipe = f"--epochs {epochs} --lr 3e-3 --batch-size 8 --max-length 16 --workers 2 --out run"
    return [*program, *data, *recipe.split()]


def record(terminal: Terminal, until: Callable[[str], bool] | None) -> list[str]:
    """Return a screen for each cell that ended, up to the process's end or to a screen as wanted."""
    screens: list[str] = []
    kinds: set[str] = set()
    ended = False
    while not ended:
        ended = terminal.read(5.0)
        text = terminal.text()
        bars = re.findall(r"\d+/\d+  \d", text)
        kind = bars[-1] if bars else text
        if text and kind not in kinds:
            kinds.add(kind)
            screens.append(text)
        if until is not None and until(text):
            break
    return screens


def capture(columns: int, lines: int) -> str:
    """Run the study, stop it by Ctrl-C in its middle, go on, and return all screens as text."""
    parts: list[str] = []

    def show(title: str, screens: Sequence[str]) -> None:
        edge = "+" + "-" * columns + "+"
        parts.append(f"=== {title}, {columns} columns ===")
        for screen in screens:
            rows = [f"|{line}{' ' * (columns - len(line))}|" for line in screen.splitlines()]
            parts.append("\n".join([edge, *rows, edge]))

    with tempfile.TemporaryDirectory(prefix="finetune-bench-") as name:
        command = study(Path(name))
        environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        size = {"columns": columns, "lines": lines, "environment": environment, "folder": Path(name)}
        with Terminal(command, **size) as terminal:  # type: ignore[arg-type]
            show("The run, up to Ctrl-C", record(terminal, lambda text: "6/16" in text))
            terminal.press(CTRL_C)
            show("After Ctrl-C", [terminal.finish()])
        with Terminal(command, **size) as terminal:  # type: ignore[arg-type]
            show("Gone on with", record(terminal, None))
            show("At the end, with what scrolled away", [terminal.finish()])
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Print the captures, or write one file for each width; return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", default="80,120", help="widths of the terminal, separated by commas")
    parser.add_argument("--lines", type=int, default=24, help="height of the terminal")
    parser.add_argument("--write", type=Path, help="the folder to write to; by default the captures are printed")
    asked = parser.parse_args()
    for columns in map(int, asked.columns.split(",")):
        text = capture(columns, asked.lines)
        if asked.write is None:
            print(text)
        else:
            asked.write.mkdir(parents=True, exist_ok=True)
            (asked.write / f"terminal-{columns}.txt").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
