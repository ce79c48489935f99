"""What data bring along can neither steer a terminal nor fill it."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from finetune_bench.cli import console
from finetune_bench.errors import UnknownName
from finetune_bench.printable import brief, listed, printable
from finetune_bench.runner.progress import Counts, Reporter


def test_what_a_terminal_would_obey_is_written_as_an_escape() -> None:
    assert printable("\x1b[2J\a\b\r\x7f\x9b31m") == r"\x1b[2J\x07\x08\r\x7f\x9b31m"
    assert printable("a\u202eb\u2066c\u200fd\u2028e") == r"a\u202eb\u2066c\u200fd\u2028e"
    assert printable("\udcff") == r"\udcff"
    for text in ("naïve 日本語 🙂 −1.5 × 2\n\ttab", "שלום"):
        assert printable(text) == text


def test_long_texts_keep_both_ends_on_one_line() -> None:
    text = brief("begin" + "x" * 5_000_000 + "end", 50)
    assert text.startswith("begin") and text.endswith("end") and "…" in text and len(text) == 50
    assert brief("one\n  two\n\nthree") == "one two  three"
    assert brief("a  b") == "a  b"
    assert "int" in brief(int("9" * 4000) ** 9)
    assert listed(f"c{i}" for i in range(1000)).endswith("c18, c19 and 980 more")


def test_a_long_name_or_many_names_are_compared_in_no_time() -> None:
    assert "Did you mean" not in str(UnknownName("column", "x" * 1_000_000, ["y" * 1_000_000, "x" * 999_999]))
    message = str(UnknownName("column", "c1x", [f"c{i}" for i in range(100_000)]))
    assert "and 99980 more" in message and len(message) < 300


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed_in_any_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding, errors="strict"))
    console.show("71.3 − 69.9 × ☃ \udcff \x1b[2J")
    text = shown.getvalue().decode(encoding)
    assert text.endswith("\\udcff \\x1b[2J\n")
    assert ("☃" in text) == (encoding == "utf-8")


def test_progress_shows_names_and_reasons_as_they_are_but_obeys_none() -> None:
    stream = io.StringIO()
    Reporter(Counts(1), Console(file=stream)).say("failed: [bold]rte\x1b[2J\u202e (no [luck])")
    assert stream.getvalue() == "failed: [bold]rte\\x1b[2J\\u202e (no [luck])\n"
