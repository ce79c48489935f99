"""What CONTRIBUTING.md asks for, held against the source: short files and functions, docstrings that say something."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests import ROOT

FOLDERS = ("finetune_bench", "methods", "tasks", "reports", "benchmarks", "scripts")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
LONGEST_FILE, LONGEST_FUNCTION = 450, 60

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

# The first sentence of a docstring begins with one of these, as an order ...
IMPERATIVES = """
    accept add analyse append apply ask average begin bind build call cast change check choose claim clear clip close
    collect compare compute convert copy count cover create cut declare decode delete derive describe detach disturb
    divide draw drop encode end enter estimate evaluate expand export extract fill find fit flatten fold forget format
    freeze gather generate get give go group guess handle hash hold import increase initialise install iterate join keep
    leave let limit list load lock log look lower make map mark mask match measure merge mix move multiply name
    normalise open order pack pad parse pass penalise perturb pick place plan plot predict prepare print pull put raise
    rank rate re-draw read rebuild recompute record reduce refuse register regroup release remember remove rename render
    repeat replace replay report represent resample reset resolve restore resume return reverse rewrite round run sample
    save say scale score search select send serve set shift show shuffle sketch skip slow smooth sort split start step
    stop store submit subtract sum swap switch take tell test time tokenise train transform transpose trim try tune turn
    undo unpack unwrap update use validate verify wait walk warn weigh work wrap write yield
"""
# ... or it has more of these than relative clauses. Words that are nouns as often, such as "runs", are not among them.
FINITE = """
    is are was were has have had does do can may must should will
    accepts acts adds allows appears applies asks becomes begins belongs brings builds carries checks chooses closes
    collapses collects comes compares computes consists contains converts covers creates decides declares defines
    depends derives describes determines differs disturbs divides ends enters equals evaluates exists expects explains
    exports extends fails fills finds fits follows freezes gathers gets gives goes happens hides holds ignores imports
    includes joins keeps knows lacks lays leads leaves lets lies listens lives loads loses makes matches measures merges
    moves obeys occurs opens owns parses penalises perturbs picks predicts prepares prints proves provides pulls pushes
    puts raises ranks reads receives recalls records refers refuses registers relates removes renders repeats replaces
    represents resamples resolves restores resumes returns saves says selects sends separates serves sets shows sits
    solves sorts speaks stands starts stays stores swaps takes teaches tells tokenises trains tries turns uses varies
    waits wants warns weighs works wraps writes yields
    become begin belong come consist contain depend differ exist fail follow give go hold keep know leave lie make say
    stand stay take tell vary
"""
RELATIVE = "that what whatever when where whether which who whose how why"


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def public(node: ast.Module | ast.ClassDef, prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Yield what others may use of a file: its functions and classes, and the methods of those classes."""
    for inner in node.body:
        if isinstance(inner, Definition) and not inner.name.startswith("_"):
            yield prefix + inner.name, inner
            if isinstance(inner, ast.ClassDef):
                yield from public(inner, f"{prefix}{inner.name}.")


def says_something(docstring: str) -> bool:
    """Whether the first sentence is one: an order, or with more finite verbs than relative clauses."""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph, maxsplit=1)[0]
    words = re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"`[^`]*`", " ", sentence.replace("n't", "")).lower())
    verbs, clauses = set(FINITE.split()), set(RELATIVE.split())
    beyond = sum(word in verbs for word in words) - sum(word in clauses for word in words)
    return bool(words) and (words[0] in IMPERATIVES.split() or beyond > 0)


def is_report_format(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Report" for base in node.bases)


def test_no_file_is_long() -> None:
    lengths = {name_of(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_long() -> None:
    """The docstring counts. That no function has more than 15 branches is ruff's to say (PLR0912)."""
    lengths = {
        f"{name_of(path)}:{node.lineno} {node.name}": int(node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_the_first_sentence_of_a_public_docstring_has_a_verb() -> None:
    """Docstrings that the commands print are exempt: files and classes in methods/, and classes of report formats."""
    silent = []
    for path in FILES:
        module = ast.parse(path.read_text("utf-8"))
        described: list[tuple[str, ast.Module | Definition]] = [("the file", module), *public(module)]
        if path.parent == ROOT / "methods":
            described = [(name, node) for name, node in described if isinstance(node, ast.FunctionDef)]
        if path.parent == ROOT / "reports":
            described = [(name, node) for name, node in described if not is_report_format(node)]
        for name, node in described:
            text = ast.get_docstring(node)
            if text and not says_something(text):
                silent.append(f"{name_of(path)}:{getattr(node, 'lineno', 1)} {name}: {text.splitlines()[0]}")
    assert not silent, f"{len(silent)} first sentences without a verb:\n" + "\n".join(silent)


def test_a_verb_is_found_where_there_is_one() -> None:
    assert says_something("Return the rows.")
    assert says_something("A cell is one training run. Its id is a hash.")
    assert says_something("A worker is a process that reads cells.")
    assert not says_something("This and more.")
    assert not says_something("Where progress goes. It returns nothing.")
    assert not says_something("Everything that differs between two runs.")
    assert not says_something("`is` a name in code only.")


def test_no_private_name_is_imported_from_another_file() -> None:
    imports = [
        f"{name_of(path)}:{node.lineno} imports {alias.name} of {node.module}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("finetune_bench.")
        for alias in node.names
        if re.match("_(?!_)", alias.name)
    ]
    assert imports == []


def test_the_checkout_is_laid_out_as_the_wheel_is() -> None:
    """What lies beside the package is linked into it, so that type checkers and editors resolve every module."""
    for room in ("methods", "tasks", "reports"):
        assert (ROOT / "finetune_bench" / room).is_symlink()
        assert (ROOT / "finetune_bench" / room).resolve() == (ROOT / room).resolve()
