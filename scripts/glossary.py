"""A page of the site has links to docs/glossary.md: each stands at the first use of a word that has an entry there.

An entry is a heading of the second level. The comment after it names the phrases that stand for it on other pages: of
words that are ordinary English as well, such as "run", those phrases in which they can only mean what the entry says.
"""

from __future__ import annotations

import re

from scripts.import_graph import ROOT

PAGE = ROOT / "docs" / "glossary.md"
# What no link is put into: blocks of code, comments, headings, tables, code, links, HTML.
_PROTECTED = re.compile(
    r"^```.*?^```$|^ {4}[^\n]*$|<!--.*?-->|^[#|][^\n]*$|`[^`]+`|!?\[[^\[\]]*\]\([^)]*\)|<[^>\n]+>",
    flags=re.DOTALL | re.MULTILINE,
)


def entries(text: str | None = None) -> dict[str, list[str]]:
    """Return the phrases of every entry of the glossary, by the entry's anchor.

    Args:
        text: The glossary; None for that of this checkout.
    """
    text = PAGE.read_text("utf-8") if text is None else text
    parts = re.findall(r"^## (.+)\n\n<!-- words: (.+?) -->$", text, flags=re.MULTILINE)
    return {anchor(title): [phrase.strip() for phrase in phrases.split(",")] for title, phrases in parts}


def anchor(title: str) -> str:
    """Return a heading's anchor, as the site and GitHub make it of plain words."""
    return re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-")


def linked(text: str, glossary: str = "glossary.md") -> str:
    """Return a page on which the first use of each of the glossary's words leads there.

    Args:
        text: The page's Markdown.
        glossary: The address of the glossary, seen from the page.
    """
    for name, phrases in entries().items():
        target = f"({glossary}#{name})"
        use = None if target in text else first_use(text, phrases)
        if use is not None:
            start, end = use
            text = f"{text[:start]}[{text[start:end]}]{target}{text[end:]}"
    return text


def first_use(text: str, phrases: list[str]) -> tuple[int, int] | None:
    """Return where running text has one of these phrases first, as its start and end; None where it has none."""
    words = "|".join(re.escape(phrase).replace(r"\ ", r"\s+") for phrase in sorted(phrases, key=len, reverse=True))
    blank = _PROTECTED.sub(lambda part: re.sub(r"\S", "\0", part[0]), text)
    use = re.search(rf"(?<![\w-])(?:{words})(?![\w-])", blank, flags=re.IGNORECASE)
    return use and use.span()
