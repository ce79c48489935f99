"""The live view shows a run on a terminal: the workers' cells, the last results, and the differences so far.

It is drawn as lines of text that fit any terminal: of what has no room, the number is told. Names come from data and
plugins, so they are made fit to be printed first.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from finetune_bench.printable import printable
from finetune_bench.runner.executors.messages import Progress

LONGEST_BAR = 40  # columns
LONGEST_LINE = 100  # columns: on a wider terminal the eye would lose the line
SHORTEST_NAME = 12  # columns
MOST_ENDED = 5  # cells that ended last


class Differences:
    """Mean differences to a baseline are formed here, over pairs of cells alike but for the method.

    Args:
        baseline: the baseline's label.
    """

    def __init__(self, baseline: str) -> None:
        self.baseline = baseline
        self._scores: dict[Hashable, dict[str, float]] = {}  # by pair, and by label
        self._sums: dict[str, tuple[float, int]] = {}  # by label: the sum of its differences, and their number

    def add(self, label: str, pair: Hashable, score: float) -> None:
        """Take a score in points.

        Args:
            label: the method's.
            pair: what the cells of a pair have in common.
            score: the cell's.
        """
        scores = self._scores.setdefault(pair, {})
        new = {label: score} if label != self.baseline else dict(scores)
        scores[label] = score
        if self.baseline in scores:
            for method, value in new.items():
                total, number = self._sums.get(method, (0.0, 0))
                self._sums[method] = total + value - scores[self.baseline], number + 1

    def means(self) -> list[tuple[str, float, int]]:
        """Return label, mean difference and number of pairs of every method, the highest difference first."""
        means = [(label, total / number, number) for label, (total, number) in self._sums.items()]
        return sorted(means, key=lambda mean: -mean[1])


@dataclass
class _Running:
    """A cell that a worker has, and how far it has come; None before the first step is known."""

    name: str
    progress: Progress | None = None

    def state(self) -> str:
        if self.progress is None:
            return "starting"
        if self.progress.step == self.progress.steps:
            return "scoring"
        return f"{self.progress.step}/{self.progress.steps}, loss {self.progress.loss:.3f}"


class View:
    """The view holds what is shown of a run; one thread changes it while another one draws it.

    Args:
        encoding: the terminal's.
    """

    def __init__(self, encoding: str = "utf-8") -> None:
        self.differences: Differences | None = None
        self._encoding = encoding
        self._ended: deque[tuple[str, str]] = deque(maxlen=MOST_ENDED)  # name and result
        self._workers: list[str | None] = []  # the cell in each line; a line keeps its place while others change
        self._running: dict[str, _Running] = {}  # by the cell's id
        self._lock = threading.Lock()

    def start(self, cell_id: str, name: str) -> None:
        """Show a cell as running, in the first free line."""
        with self._lock:
            if cell_id not in self._running:
                line = self._workers.index(None) if None in self._workers else len(self._workers)
                self._workers[line : line + 1] = [cell_id]
            self._running[cell_id] = _Running(name)

    def advance(self, cell_id: str, progress: Progress) -> None:
        """Show how far a cell has come."""
        with self._lock:
            if cell_id in self._running:
                self._running[cell_id].progress = progress

    def stop(self, cell_id: str) -> None:
        """Show a cell as running no longer."""
        with self._lock:
            if self._running.pop(cell_id, None) is not None:
                self._workers[self._workers.index(cell_id)] = None

    def end(self, name: str, result: str) -> None:
        """Show the result of a cell that ended."""
        with self._lock:
            self._ended.appendleft((name, result))

    def score(self, label: str, pair: Hashable, score: float) -> None:
        """Take a score for the differences, where there is a baseline; see `Differences.add`."""
        with self._lock:
            if self.differences is not None:
                self.differences.add(label, pair, score)

    def draw(self, ended: int, total: int, times: str, numbers: str, *, width: int, height: int) -> Text:
        """Draw the view.

        Args:
            ended: the number of cells that ended.
            total: the number of cells in all.
            times: what is said of the time.
            numbers: what is said of the cells that ended.
            width: the columns that there are.
            height: the lines that there are.
        """
        with self._lock:
            # Where the terminal's last column is written, some go to the next line.
            width = max(1, min(width - 1, LONGEST_LINE))
            lines = [self._bar(ended, total, times, width), _cut(numbers, width)]
            lines += self._sections(width, height - len(lines))
        text = Text(no_wrap=True, overflow="crop", end="")
        text.append("\n".join(self._fit_for_terminal(line) for line in lines[: max(1, height)]))
        return text

    def _sections(self, width: int, height: int) -> list[str]:
        sections: list[tuple[str, list[tuple[str, str]]]] = []  # title, and lines of a name and what is said of it
        running = [(cell.name, cell.state()) for cell in (self._running[key] for key in self._workers if key)]
        sections.append(("running", running))
        sections.append(("ended last", list(self._ended)))
        if self.differences is not None:
            means = [(label, f"{mean:+.1f}  n={n}".replace("-", "−")) for label, mean, n in self.differences.means()]
            title = f"so far, unfinished: points over {self.differences.baseline}, mean of n pairs"
            sections.append((title, means))
        lines: list[str] = []
        rooms = _share([len(entries) for _, entries in sections], height)
        for (title, entries), room in zip(sections, rooms, strict=True):
            if room:
                counted = f" ({room} of {len(entries)})" if room < len(entries) else ""
                lines += [_cut(_one_line(title + counted), width), *_columns(entries[:room], width)]
        return lines

    def _fit_for_terminal(self, line: str) -> str:
        return line.encode(self._encoding, "replace").decode(self._encoding)

    def _bar(self, ended: int, total: int, times: str, width: int) -> str:
        """Return a bar that is read without colours, too, and the numbers behind it."""
        rest = f" {ended}/{total}  {times}"
        columns = max(5, min(LONGEST_BAR, width - cell_len(rest)))
        full = columns * ended // max(1, total)
        done, left = "█░" if self._fit_for_terminal("█░") == "█░" else "#-"
        return _cut(f"{done * full}{left * (columns - full)}{rest}", width)


def _share(wanted: Sequence[int], room: int) -> list[int]:
    """Share lines among sections, one by one in turn; the first line of a section comes with its title."""
    given = [0] * len(wanted)
    while True:
        before = room
        for index, want in enumerate(wanted):
            price = 1 if given[index] else 2
            if given[index] < want and room >= price:
                given[index] += 1
                room -= price
        if room == before:
            return given


def _columns(entries: Sequence[tuple[str, str]], width: int) -> list[str]:
    """Return lines of a name and what is said of it, the latter in one column where there is room."""
    # A long reason leaves the names their half.
    named = [(_one_line(name), _cut(_one_line(said), max(24, width // 2))) for name, said in entries]
    longest = max(cell_len(said) for _, said in named)
    column = min(max(cell_len(name) for name, _ in named), max(SHORTEST_NAME, width - longest - 4))
    return [_cut(f"  {set_cell_size(_cut(name, column), column)}  {said}", width) for name, said in named]


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _cut(text: str, width: int) -> str:
    """Return a text in so many columns at most; of a longer one the middle is left out, for names end in their seed."""
    if cell_len(text) <= width:
        return text
    tail = text[len(text) - max(0, width // 3) :]
    head = width - 1 - cell_len(tail)
    return set_cell_size(text, width) if head < 1 else f"{set_cell_size(text, head)}…{tail}"
