"""Write what the documentation says of methods from their cards: the README's list, and a page for each method.

    python -m scripts.method_pages    writes the README's list anew

A test tells when the list is out of date. The pages are made while the site is built (`scripts/site_hooks.py`), and
are not committed.
"""

from __future__ import annotations

import dataclasses
import re
import sys

from finetune_bench import registry
from finetune_bench.method.asking import ask
from finetune_bench.method.base import PLACES, Method
from finetune_bench.method.cost import SIZES, Memory, Passes
from finetune_bench.parameters import as_text, expectation
from scripts.import_graph import ROOT

README = ROOT / "README.md"
START = "<!-- methods: written by python -m scripts.method_pages -->"
END = "<!-- end of methods -->"


def methods() -> list[str]:
    """Return the methods of this package, whatever else is installed; vanilla first."""
    modules = {name: registry.method_class(name).__module__ for name in registry.names("methods")}
    ours = [name for name, module in modules.items() if module.startswith("finetune_bench.")]
    return sorted(ours, key=lambda name: (name != registry.BASELINE, name))


def table(link: str = "") -> str:
    """Return a table of all methods.

    Args:
        link: Where a method's page lies, with `NAME` for its name; "" for names without links.
    """
    lines = ["| method | what it is | passes |", "|---|---|---|"]
    for name in methods():
        method = registry.method_class(name)()
        passes = ask(method, "passes", Passes())
        summary = (type(method).__doc__ or "").strip().partition("\n")[0].removesuffix(".")
        shown = f"[`{name}`]({link.replace('NAME', name)})" if link else f"`{name}`"
        lines.append(f"| {shown} | {summary} | {passes.forwards:g}+{passes.backwards:g} |")
    return "\n".join(lines)


def by_place(link: str = "") -> str:
    """Return a table of what methods act on, with their names.

    Args:
        link: as of `table`.
    """
    names: dict[str, list[str]] = {place: [] for place in PLACES}
    for name in methods():
        if name != registry.BASELINE:
            shown = f"[`{name}`]({link.replace('NAME', name)})" if link else f"`{name}`"
            names[registry.method_class(name).acts_on].append(shown)
    lines = ["| acts on | methods |", "|---|---|"]
    return "\n".join([*lines, *(f"| {place} | {', '.join(listed)} |" for place, listed in names.items())])


def page(name: str) -> str:
    """Return a method's page: its card, its cost model and its parameters."""
    owner = registry.method_class(name)
    card = (sys.modules[owner.__module__].__doc__ or "").strip()
    title, _, text = card.partition("\n")
    shared = [other for other in methods() if registry.method_class(other).__module__ == owner.__module__]
    head = [f"# {name}", f"**{title}**"]
    if len(shared) > 1:
        others = ", ".join(f"[`{other}`]({other}.md)" for other in shared if other != name)
        head.append(f"This card also describes {others}.")
    if owner.own_learning_rate:
        head.append(f"It is to be compared at its own learning rate: {owner.own_learning_rate}.")
    if owner.needs_adamw:
        head.append(f"It needs `--optimizer adamw`: {owner.needs_adamw}.")
    return "\n\n".join([*head, as_markdown(text.strip()), *costs(owner()), *parameters(owner)]) + "\n"


def as_markdown(card: str) -> str:
    """Return a card's text as Markdown: what is a formula stays one, and each list begins after an empty line."""
    # Every second part is code or the mark of bold text.
    parts = re.split(r"(`[^`]*`|\*\*)", card)
    parts[::2] = [re.sub(r"([_*<])", r"\\\1", part) for part in parts[::2]]
    text = "".join(parts)
    return re.sub(r"(?<!\n)\n(1\. |- )", r"\n\n\1", text)


def costs(method: Method) -> list[str]:
    """Return the cost model of a method at its defaults, as blocks of Markdown."""
    passes, memory = ask(method, "passes", Passes()), ask(method, "memory", Memory())
    used = [name for name in SIZES if memory.saved.get(name) or memory.kept.get(name)]
    lines = [
        "| at the defaults | |",
        "|---|---|",
        f"| passes per step | {passes.forwards:g} forward + {passes.backwards:g} backward |",
        f"| saved for the backward pass | {memory.saved_formula} |",
        f"| kept beside weights, gradients and two moments | {memory.kept_formula} |",
        *(f"| `{name}` | {SIZES[name]} |" for name in used),
    ]
    return ["## Cost model", "\n".join(lines)]


def parameters(owner: type[Method]) -> list[str]:
    """Return the table of a method's parameters, as blocks of Markdown."""
    lines = ["| parameter | default | must be | what it is |", "|---|---|---|---|"]
    for field in dataclasses.fields(owner):
        told = (expectation(owner, field), field.metadata.get("help", ""))
        lines.append(f"| `{field.name}` | `{as_text(field.default)}` | {' | '.join(told)} |")
    typed = f"`finetune-bench show {owner.name}` prints this page."
    return ["## Parameters", "\n".join(lines), typed]


def render(readme: str) -> str:
    """Return the README with its list of methods written anew.

    Raises:
        SystemExit: The README has no place for it.
    """
    if START not in readme or END not in readme:
        raise SystemExit(f"README.md lacks '{START}' or '{END}'")
    before, _, rest = readme.partition(START)
    return f"{before}{START}\n\n{by_place()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write the README's list anew; return 0."""
    README.write_text(render(README.read_text("utf-8")), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
