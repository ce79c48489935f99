"""Write the parts of docs/architecture.md that are read off the code: the picture, the hooks, and what every file is.

    python -m scripts.architecture            write them anew
    python -m scripts.architecture --check    write nothing; say whether the page is up to date

Each part stands between `<!-- NAME: … -->` and `<!-- end of NAME -->`; everything else on the page is written by hand.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from finetune_bench import registry
from finetune_bench.method.base import Method
from scripts.import_graph import BESIDE, FLOORS, PACKAGE, ROOT

PAGE = ROOT / "docs" / "architecture.md"
WIDTH = 120

# Hooks that several methods of a stack run together: in which order.
IN_A_STACK = {
    "unsupported": "left to right, until one gives a reason",
    "setup": "by phase, then left to right",
    "optimizer": "left to right",
    "schedule": "that of the only one that has one",
    "perturbing": "nested",
    "objective": "nested, the leftmost outermost",
    "losses": "right to left, the leftmost outermost",
    "gradients": "left to right",
    "after_step": "left to right",
    "evaluating": "nested",
    "state": "each method's own",
    "load_state": "each method's own",
    "teardown": "right to left, all of them even if one fails",
}


def picture() -> str:
    """Return the floors of the package as a mermaid flow chart, the top one first."""
    lines = ["```mermaid", "flowchart TB"]
    for number, rooms in enumerate(FLOORS, start=1):
        lines.append(f'    floor{number}["{" · ".join(room for room in rooms if room != "_version")}"]')
    lines += [f"    floor{number} --> floor{number + 1}" for number in range(1, len(FLOORS))]
    return "\n".join([*lines, "```"])


def hooks() -> str:
    """Return the table of the hooks of the Method contract: when each runs, in which order, and who overrides it."""
    lines = ["| hook | what it is for | in a stack | overridden by |", "|---|---|---|---|"]
    owners = {name: registry.method_class(name) for name in registry.names("methods")}
    for hook, order in IN_A_STACK.items():
        function = getattr(Method, hook)
        arguments = ", ".join(list(inspect.signature(function).parameters)[1:])
        users = [name for name, owner in owners.items() if getattr(owner, hook) is not function]
        purpose = first_sentence(inspect.getdoc(function) or "")
        lines.append(f"| `{hook}({arguments})` | {purpose} | {order} | {', '.join(users)} |")
    return "\n".join(lines)


def files() -> str:
    """Return a list of every file by room, with the first sentence of its docstring."""
    folder = ROOT / PACKAGE
    rooms = [path for path in folder.iterdir() if (path / "__init__.py").is_file() and not path.is_symlink()]
    rooms = sorted(rooms) + [ROOT / name for name in BESIDE]
    lines = [*room_entry(folder, sorted(folder.glob("*.py")))]
    for room in rooms:
        lines += ["", *room_entry(room, sorted(room.rglob("*.py")))]
    return "\n".join(lines)


def room_entry(room: Path, paths: list[Path]) -> Iterator[str]:
    """Yield a room's heading, what its door says of it, and an entry per file."""
    yield f"### `{room.relative_to(ROOT).as_posix()}/`"
    yield ""
    if sentence := first_sentence(docstring(room / "__init__.py")):
        yield from textwrap.wrap(sentence, WIDTH)
        yield ""
    for path in paths:
        if path.name == "__init__.py":
            continue
        entry = f"- `{path.relative_to(room).as_posix()}`: {first_sentence(docstring(path))}"
        yield from textwrap.wrap(entry, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def docstring(path: Path) -> str:
    """Return a file's docstring; "" where it has none."""
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""


def first_sentence(text: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?]) (?=[A-Z`])", paragraph, maxsplit=1)[0]


def render(page: str) -> str:
    """Return the page with every part written anew.

    Raises:
        SystemExit: a part has no place on the page.
    """
    for name, write in {"picture": picture, "hooks": hooks, "files": files}.items():
        start, end = f"<!-- {name}: written by python -m scripts.architecture -->", f"<!-- end of {name} -->"
        if start not in page or end not in page:
            raise SystemExit(f"docs/architecture.md lacks '{start}' or '{end}'")
        before, _, rest = page.partition(start)
        page = f"{before}{start}\n\n{write()}\n\n{end}{rest.partition(end)[2]}"
    return page


def main() -> int:
    """Write the page, or check it; return 1 if it was checked and is out of date."""
    old = PAGE.read_text("utf-8")
    new = render(old)
    if "--check" in sys.argv:
        if new == old:
            return 0
        print("docs/architecture.md is out of date; run: python -m scripts.architecture")
        return 1
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
