"""Check which room imports which: no circles, and nothing on a lower floor knows what is above it.

    python scripts/import_graph.py            prints what is wrong, and a last line with the counts
    python scripts/import_graph.py --edges    prints every import between rooms

Every import counts, wherever it stands: at the top of a file, within a function, or for type checkers only. Importing
`finetune_bench.model.dropout` also runs `finetune_bench/model/__init__.py`, so that counts too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "finetune_bench"
BESIDE = ("methods", "tasks", "reports")  # rooms of the package whose folders lie beside it

# From the top floor to the ground. A file imports from its own floor and those below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("reports", "runner", "testing"),
    ("study", "home", "home_trainer", "methods", "tasks", "analyses"),
    ("registry", "training", "analysis"),
    ("method", "optimizers"),
    ("model",),
    ("task", "recipe", "report"),
    ("store", "metrics", "parameters", "spec", "device", "papers"),
    (
        *("stats", "functional", "seeds", "errors", "files", "cache", "packages", "printable", "source_files"),
        *("launch", "_version"),
    ),
)
FLOOR = {room: len(FLOORS) - number for number, rooms in enumerate(FLOORS) for room in rooms}


def files() -> dict[str, Path]:
    """Return every module's file, by the module's dotted name."""
    modules = {}
    for folder in (PACKAGE, *BESIDE):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if any(parent.is_symlink() for parent in path.parents):
                continue
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = (PACKAGE, *parts) if folder in BESIDE else parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of this package that a file imports, and the packages that are run on the way."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise SystemExit(f"{path}:{node.lineno}: write the whole name of the module that is imported")
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else str(node.module) for name in inside]
        for name in names:
            if name.split(".")[0] == PACKAGE:
                parts = name.split(".")
                yield from (".".join(parts[:end]) for end in range(2, len(parts) + 1))
                if len(parts) == 1:
                    yield PACKAGE


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    """Return what each module imports; a package that the module itself lies in is left out."""
    return {
        module: {name for name in imported(path, known) if name in known and not f"{module}.".startswith(f"{name}.")}
        for module, path in known.items()
    }


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected groups of two modules or more (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in edges[module]:
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return groups


def room(module: str) -> str:
    """Return the room that a module lies in: the first name below the package."""
    return module.split(".")[1] if "." in module else ""


def upward(edges: dict[str, set[str]]) -> list[str]:
    """Return the imports from a lower floor to a higher one."""
    return [
        f"{module} imports {other}, which is above it"
        for module, others in edges.items()
        for other in sorted(others)
        if room(module) and room(other) and FLOOR[room(module)] < FLOOR[room(other)]
    ]


def hidden(known: dict[str, Path]) -> list[str]:
    """Return the files that a room's door hides, because it exports something under the file's name."""
    lines = []
    for module, path in known.items():
        if path.name == "__init__.py":
            exported = {
                alias.asname or alias.name
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            lines += [f"{module} hides its file {name}.py" for name in sorted(exported) if f"{module}.{name}" in known]
    return lines


def main() -> int:
    """Print what is wrong, and return 1 if anything is."""
    known = files()
    if lost := sorted({room(module) for module in known} - {""} - set(FLOOR)):
        print(f"On no floor: {', '.join(lost)}")
        return 1
    edges = graph(known)
    if "--edges" in sys.argv:
        for pair in sorted({(room(a), room(b)) for a, others in edges.items() for b in others if room(a) != room(b)}):
            print(" → ".join(pair))
    groups, against, covered = circles(edges), upward(edges), hidden(known)
    for group in groups:
        print(f"circle: {', '.join(group)}")
    for line in [*against, *covered]:
        print(line)
    print(f"{len(known)} modules, {len(groups)} circles, {len(against)} imports against the direction")
    return 1 if groups or against or covered else 0


if __name__ == "__main__":
    sys.exit(main())
