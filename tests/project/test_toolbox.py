"""docs/toolbox.md is that of the code, and names all that the built-in methods import from the model."""

from __future__ import annotations

import re

import pytest

from scripts import toolbox
from scripts.architecture import ROOT


def test_the_page_is_up_to_date() -> None:
    page = toolbox.PAGE.read_text("utf-8")
    assert toolbox.render(page) == page, "run: python -m scripts.toolbox"


def test_a_stale_page_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = toolbox.PAGE.read_text("utf-8")
    assert "| `replay(mark)` |" in page
    stale = ROOT / "docs" / "first-method.md"
    monkeypatch.setattr("sys.argv", ["toolbox", "--check"])
    monkeypatch.setattr(toolbox, "PAGE", stale)
    assert toolbox.main() == 1
    assert "run: python -m scripts.toolbox" in capsys.readouterr().err


def test_every_entry_says_what_it_is() -> None:
    rows = re.findall(r"^\| `(.+?)` \| (.*) \|$", toolbox.tables(), flags=re.MULTILINE)
    assert len(rows) > 50
    assert [name for name, text in rows if not text.endswith((".", ";"))] == []


def test_the_built_in_methods_use_nothing_else_of_the_model() -> None:
    """What a built-in method needs, a stranger's may use, too."""
    told = set(re.findall(r"^\| `(\w+)", toolbox.tables(), flags=re.MULTILINE))
    imported: set[str] = set()
    for path in (ROOT / "methods").glob("*.py"):
        for names in re.findall(
            r"from finetune_bench\.(?:model\.structure|functional|optimizers) import (.+)", path.read_text("utf-8")
        ):
            imported |= {name.partition(" as ")[0].strip() for name in names.strip("()").split(",")}
    assert "layers" in imported
    assert imported - told == {"weigh"} & imported
