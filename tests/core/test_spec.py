"""The little language: lists, calls, quotes, names of files with brackets; and texts that are made to hurt it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetune_bench.errors import UsageError
from finetune_bench.registry import task
from finetune_bench.spec import Call, parse_call, parse_stack, quote, split
from finetune_bench.study.sources import read_options

ODD = ["train (1).csv", "a,b.csv", "data(2)/dev, new.jsonl", "x(1.csv", "plain.csv"]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data(2)").mkdir()
    for name in ODD:
        Path(name).write_text("text,label\n" + "".join(f"text {i},{i % 2}\n" for i in range(40)))


@pytest.mark.parametrize("name", ODD)
def test_an_existing_path_is_tried_first(name: str) -> None:
    assert split(f"{name}(text=body), rte ,{name}", ",") == [f"{name}(text=body)", "rte", name]
    assert parse_call(name) == Call(name)
    assert parse_call(f"{name} (text = body)") == Call(name, {"text": "body"})
    assert parse_call(f"my.csv(validation={name},label=y)") == Call("my.csv", {"validation": name, "label": "y"})


@pytest.mark.parametrize("name", [name for name in ODD if name.endswith(".csv")])
def test_a_file_with_brackets_or_commas_is_a_task_that_is_found_again(name: str) -> None:
    made = task(f"{name}(validation={name})")
    assert task(made.name) == made
    assert read_options({"tasks": f"{name},rte"})["tasks"] == (name, "rte")


def test_quotes_hold_what_brackets_and_commas_would_cut() -> None:
    assert split('"no (such), file.csv"(text="a, b"),rte', ",") == ['"no (such), file.csv"(text="a, b")', "rte"]
    call = parse_call('"no (such), file.csv"(text="title, body",label=mood (1-5),text_pair="a ""b""",metric=f1(good))')
    values = {"text": "title, body", "label": "mood (1-5)", "text_pair": 'a "b"', "metric": "f1(good)"}
    assert call == Call("no (such), file.csv", values)
    for text in ('a "b"', "a,b", "a(b", ' "', "a (b)", "plain", "x=y", " spaced"):
        assert parse_call(f"name(key={quote(text)})").arguments == {"key": text}
    assert [quote(text) for text in ("plain", "mood (1-5)", "f(a,b)", "a,b")] == [
        "plain",
        "mood (1-5)",
        "f(a,b)",
        '"a,b"',
    ]


def test_stacks_are_read_as_ever() -> None:
    assert parse_stack("hype(eps=1e-4)+rdrop") == [Call("hype", {"eps": "1e-4"}), Call("rdrop")]


@pytest.mark.parametrize(
    "text", ["a(b", "a)b", "a b(c=1) d", "", "()", "(x=1)", "a(x=1)(y=2)", 'a(x="y', '"a', "a(x)", "a(x=1,x=2)"]
)
@pytest.mark.parametrize("read", [parse_call, parse_stack, task])
def test_what_can_not_be_read_is_refused(text: str, read: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError):
        read(text)


@pytest.mark.parametrize("text", ["caf\udce9.csv", "a\0b.csv", "reviews.csv(text=\ud800)"])
def test_paths_that_no_row_can_name_are_refused(text: str) -> None:
    for read in (parse_call, parse_stack, task, lambda text: read_options({"tasks": text})):
        with pytest.raises(UsageError, match="NUL, or bytes that are not UTF-8") as caught:
            read(text)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "a," * 50_000,
        "(" * 100_000,
        "a" + " " * 100_000 + "b",
        ".a," * 30_000,
        "=" * 100_000,
        '"' * 100_001,
        "a(" + "x=.a," * 20_000 + ")",
        "a(" + 'x="' * 30_000,
        "a" * 100_000 + "+",
    ],
    ids=lambda text: text[:6],
)
def test_long_texts_take_no_long_time_and_give_short_messages(text: str) -> None:
    begin = time.process_time()
    for read in (lambda text: split(text, ","), parse_call, parse_stack):
        said = ""
        try:
            read(text)
        except UsageError as error:
            said = str(error)
        assert len(said) < 1000
    assert time.process_time() - begin < 5
