"""The LaTeX tables: numbers as in the other formats, text as text, and all of it compiles where there is a LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.reports.document import table
from finetune_bench.reports.latex import Latex, tabular
from finetune_bench.reports.markdown import render
from finetune_bench.reports.rows.sections import read_data
from finetune_bench.store.store import Store
from tests.synthetic_store import TASKS, THIRTEEN, fail, make_store

HOSTILE = r"\input{/etc/passwd} & % $x_1^2$ {a} #1 ~ <b> |c| `d' “e” — ü ŝ 中 ²₀"


def write(store: Store, folder: Path) -> list[Path]:
    folder.mkdir()
    return Latex().write(store, folder)


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setitem(TASKS, HOSTILE, TASKS["rte"])

    def change(row: dict[str, Any]) -> None:
        if row["method"] == "rdrop":
            row["method"] = f"rdrop(alpha={HOSTILE})"
        if (row["method"], row["seed"]) == ("r3f", 3):
            fail(row, HOSTILE)

    return make_store(tmp_path / "run", methods=THIRTEEN, tasks=("rte", "cola", HOSTILE), change=change)


@pytest.mark.slow
def test_tables_are_booktabs_with_the_same_numbers(tmp_path: Path) -> None:
    store = make_store(tmp_path / "run", seeds=5)
    files = write(store, tmp_path / "out")
    assert files[0].name == "tables.tex"
    tables = [path.read_text("utf-8") for path in files[1:] if path.suffix == ".tex"]
    assert len(tables) >= 5
    (main,) = [path.read_text("utf-8") for path in files if path.name.startswith("main-")]
    tables.remove(main)
    assert main.startswith(r"\resizebox{\ifdim\width>\columnwidth")
    assert r"\begin{tabular}{lrr}" in main
    assert main.count(r"\texttt{hype") == 2
    for text in tables:
        assert text.startswith(r"\begin{tabular}{l")
        assert [text.count(rule) for rule in (r"\toprule", r"\bottomrule")] == [1, 1]
        assert text.count(r"\midrule") in (1, 2)  # a second one stands above what is said of all rows
        assert "|" not in text.splitlines()[0]
        columns = len(re.sub(r"[^lr]", "", text.splitlines()[0].partition("{tabular}")[2]))
        assert all(
            len(re.findall(r"(?<!\\)&", line)) == columns - 1 for line in text.splitlines() if line[-2:] == r"\\"
        )
    page = render(read_data(store))
    (scores,) = [path.read_text("utf-8") for path in files if path.name.startswith("scores-")]
    for line in scores.splitlines():
        for number in re.findall(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", line):
            assert number in page
    assert files[0].read_text("utf-8").count(r"\input{") == len(tables)
    assert files[0].read_text("utf-8").count(r"\includegraphics") == sum(path.suffix == ".pdf" for path in files)


@pytest.mark.slow
def test_text_is_text(hostile: Store, tmp_path: Path) -> None:
    for path in write(hostile, tmp_path / "out"):
        if path.suffix == ".tex":
            text = path.read_text("utf-8")
            assert "etc/passwd}" not in text.replace(r"etc/passwd\}", "")
            assert r"\input{/" not in text
    text = tabular(table("scores", ["a_b", "50 % & more"], [[r"\textbf{x}", "$1^2$"]]))
    assert r"a\_b & 50 \% \& more \\" in text
    assert r"\textbackslash{}textbf\{x\} & \$1\textasciicircum{}2\$ \\" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["usual", "hostile", "empty"])
def test_it_compiles(kind: str, hostile: Store, tmp_path: Path) -> None:
    pdflatex = shutil.which("pdflatex")
    if pdflatex is None:
        pytest.skip("no pdflatex (on Debian: apt-get install texlive-latex-recommended)")
    store = {"usual": lambda: make_store(tmp_path / "usual", methods=THIRTEEN, seeds=6), "hostile": lambda: hostile}
    made = store.get(kind, lambda: Store(tmp_path / "nothing"))()
    folder = tmp_path / "out"
    main = write(made, folder)[0]
    done = subprocess.run(
        [pdflatex, "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", main.name],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "tables.pdf").stat().st_size > 3_000
    assert "undefined" not in done.stdout.lower()
