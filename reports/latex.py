"""The LaTeX report is for a paper: booktabs, one file per table, plots as PDF, and a document to hold them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from finetune_bench.files import make_folder, write_text
from finetune_bench.report import DEFAULT, Options, Report
from finetune_bench.reports.content import document
from finetune_bench.reports.document import Block, Heading, Picture, Table, spans
from finetune_bench.reports.draw import draw
from finetune_bench.reports.rows.load import load
from finetune_bench.store.store import Store

# Characters that LaTeX reads as commands, and those of a report that a plain font lacks.
_ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "%": r"\%", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}", "-": "{-}",
    "−": "$-$", "×": r"$\times$", "—": "---", "–": "--", "₀": "$_0$", "Δ": r"$\Delta$", "±": r"$\pm$", "≥": r"$\geq$",
    "·": r"$\cdot$", "“": "``", "”": "''", "…": r"\ldots{}", "²": "$^2$",
}  # fmt: skip


class Latex(Report):
    """The document tables.tex, and the folder latex/ of tables to input and of plots to include."""

    name = "latex"

    def write(self, store: Store, folder: Path, options: Options = DEFAULT) -> list[Path]:
        """Write the tables, the plots and the document that holds them."""
        data = load(store, options)
        return write_blocks(document(data, draw(data, folder / "latex", "pdf")), folder, "tables.tex")


def write_blocks(blocks: Sequence[Block], folder: Path, name: str) -> list[Path]:
    """Write the tables and plots of a document into latex/, and what holds them, the first of the returned files."""
    inside = folder / "latex"
    make_folder(inside)
    parts: list[str] = []
    paths: list[Path] = []
    heading = ""
    for block in blocks:
        if isinstance(block, Heading):
            heading = block.text
        if isinstance(block, Picture):
            paths.append(block.plot.file)
            size = r"width=\linewidth,height=0.85\textheight,keepaspectratio"
            parts.append(rf"\noindent\includegraphics[{size}]{{{block.plot.link}}}" + "\n")
        if isinstance(block, Table) and block.in_paper:
            file = f"{block.name.replace(' ', '-')}-{len(paths) + 1}.tex"
            paths.append(inside / file)
            write_text(paths[-1], tabular(block))
            parts.append(_shown(heading, file))
            if block.name == "answer":
                paths.append(inside / f"main-{len(paths) + 1}.tex")
                write_text(paths[-1], _in_one_column(block))
    document_path = folder / name
    write_text(document_path, _document(parts))
    return [document_path, *paths]


def tabular(block: Table) -> str:
    """Return a table as a tabular of booktabs; texts are escaped."""
    columns = "l" + ("l" if block.align == "left" else "r") * (len(block.header) - 1)
    lines = [" & ".join(map(_text, row)) + r" \\" for row in [block.header]]
    rows, footer = (
        [" & ".join(_text(entry.text) for entry in row) + r" \\" for row in part] for part in (block.rows, block.footer)
    )
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            *lines,
            r"\midrule",
            *rows,
            *([r"\midrule", *footer] if footer else []),
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _in_one_column(block: Table) -> str:
    """Return the answer as a paper's main table: difference and time of each method, no wider than a column of text."""
    kept = (0, 1, 3)
    rows, footer = (tuple(tuple(row[i] for i in kept) for row in part) for part in (block.rows, block.footer))
    narrow = replace(block, header=tuple(block.header[i] for i in kept), rows=rows, footer=footer)
    fitted = r"\resizebox{\ifdim\width>\columnwidth\columnwidth\else\width\fi}{!}{%"
    return f"{fitted}\n{tabular(narrow)}}}\n"


def _shown(heading: str, name: str) -> str:
    fitted = r"\noindent\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    return "\n".join([rf"\section*{{{_text(heading)}}}", fitted, rf"\input{{latex/{name}}}}}", ""])


def _document(parts: list[str]) -> str:
    packages = ["[T1]{fontenc}", "[utf8]{inputenc}", "{textcomp}", "{booktabs}", "{graphicx}"]
    head = [r"\documentclass[10pt]{article}", *(rf"\usepackage{package}" for package in packages)]
    head += [r"\usepackage[a4paper,landscape,margin=15mm]{geometry}", r"\begin{document}"]
    return "\n".join([*head, *(parts or ["No table."]), r"\end{document}", ""])


def _text(text: str) -> str:
    styles = {"code": r"\texttt{%s}", "bold": r"\textbf{%s}", "": "%s"}
    return "".join(styles[style] % _escaped(piece) for piece, style in spans(text))


def _escaped(text: str) -> str:
    """Return any text so that it is shown as it is."""
    return "".join(_ESCAPES.get(character) or _plain(character) for character in text)


def _plain(character: str) -> str:
    """Return a character; one outside Latin by its number, since no font here may have it."""
    return character if ord(character) < 256 and character.isprintable() else f"[U+{ord(character):04X}]"
