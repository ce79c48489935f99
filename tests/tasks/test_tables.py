"""How files are read: delimiters, headers and encodings that are told from the content, and content made to hurt."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from finetune_bench.errors import DataError
from finetune_bench.task import Task
from finetune_bench.tasks.text_files import text_file

TEXTS = [f"text number {i}" for i in range(60)]
LABELS = ["good" if i % 3 else "bad" for i in range(60)]
LINES = [f"{text}{{}}{label}" for text, label in zip(TEXTS, LABELS, strict=True)]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> str:
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return name


def separated(delimiter: str, header: str = "text{}label", *, encoding: str = "utf-8") -> bytes:
    return "\n".join([*([header] if header else []), *LINES, ""]).replace("{}", delimiter).encode(encoding)


def usual() -> Task:
    return text_file(write("usual.csv", separated(",")), {})


def notes(made: Task) -> str:
    return " ".join(made.load(None).notes)


def refusal(path: str, options: dict[str, str] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        text_file(path, options or {})
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolon"), ("\t", "tab"), ("|", "bar")])
def test_another_delimiter_is_told_and_said(delimiter: str, name: str) -> None:
    made = text_file(write("a.csv", separated(delimiter)), {})
    assert made.load(None).fingerprint() == usual().load(None).fingerprint()
    assert f"'a.csv' was read as separated by a {name} (delimiter=NAME says otherwise)." in notes(made)
    for given in (delimiter, name):
        asked = text_file("a.csv", {"delimiter": given})
        assert asked.load(None).fingerprint() == made.load(None).fingerprint()
        assert "separated by" not in notes(asked)


def test_commas_in_texts_do_not_hide_a_semicolon() -> None:
    body = "text;label\n" + "".join(f'"one, two, {i}";{i % 2}\n' for i in range(40))
    made = text_file(write("a.csv", body), {})
    assert made.load(None).train.texts[0].startswith("one, two, ")
    made = text_file(write("b.tsv", body.replace(";", ",").replace("one, two, ", "one two ")), {})
    assert "separated by a comma" in notes(made)
    assert made.load(None).train.texts[0].startswith("one two ")


def test_a_line_for_excel_is_obeyed() -> None:
    made = text_file(write("a.csv", b"sep=;\r\n" + separated(";")), {})
    assert made.load(None).fingerprint() == usual().load(None).fingerprint()
    write("b.csv", b"sep=;\r\n" + separated(";") + b"only one value\n")
    assert "'b.csv', line 63: expected 2 values (text, label); got 1" in refusal("b.csv")


@pytest.mark.parametrize("first", ["text", "label"])
def test_without_a_header_two_columns_are_told_apart_and_it_is_said(first: str) -> None:
    lines = LINES if first == "text" else [f"{label}{{}}{text}" for text, label in zip(TEXTS, LABELS, strict=True)]
    made = text_file(write("a.csv", "\n".join(lines).replace("{}", ",")), {})
    assert made.load(None).fingerprint() == usual().load(None).fingerprint()
    columns = (
        "column 1 is the text, column 2 the label" if first == "text" else "column 2 is the text, column 1 the label"
    )
    assert f"'a.csv' has no header line: {columns}" in notes(made)
    text, label = ("1", "2") if first == "text" else ("2", "1")
    asked = text_file("a.csv", {"header": "no", "text": text, "label": label})
    assert asked.load(None).fingerprint() == made.load(None).fingerprint()
    assert "There is no column called 'text'" in refusal("a.csv", {"header": "yes"})


def test_without_a_header_more_columns_must_be_named() -> None:
    write("a.csv", "".join(f"{i},text {i},{i % 2}\n" for i in range(40)))
    assert "say which of its 3 columns they are, as text=1,label=2" in refusal("a.csv")
    made = text_file("a.csv", {"text": "2", "label": "3"})
    assert made.labels == ("0", "1")
    assert len(made.load(None).train) + len(made.load(None).evaluation["validation"]) == 40


def test_a_header_with_other_names_stays_a_header() -> None:
    write("a.csv", separated(",", "review{}mood"))
    assert "Its columns are review, mood" in refusal("a.csv")
    write("b.csv", pd.DataFrame({0: TEXTS, 1: [i % 2 for i in range(60)]}).to_csv(index=False))
    assert "Its columns are 0, 1" in refusal("b.csv")
    assert text_file("b.csv", {"text": "0", "label": "1"}).labels == ("0", "1")


def test_a_header_that_comes_again_is_refused() -> None:
    write("a.csv", separated(",") + separated(","))
    assert "'a.csv', line 62: the header line comes again; remove it." in refusal("a.csv")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_unicode_is_told_by_its_marks(encoding: str, name: str) -> None:
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    lines = "\n".join(json.dumps(row) for row in rows)
    content = {"a.csv": separated(",").decode(), "a.jsonl": lines, "a.json": json.dumps(rows)}[name]
    if len(content) % 2:
        content += "\n"
    write(name, content.encode(encoding))
    made = text_file(name, {})
    assert made.load(None).fingerprint() == usual().load(None).fingerprint()
    assert ("was read as utf-" in notes(made)) == (encoding != "utf-8-sig")


def test_western_european_is_told_and_said_and_nothing_else_is_guessed() -> None:
    body = "text,label\n" + "".join(f"ein schöner Tag Nr. {i} – déjà vu,{i % 2}\n" for i in range(40))
    made = text_file(write("a.csv", body.encode("cp1252")), {})
    assert made.load(None).fingerprint() == text_file(write("b.csv", body), {}).load(None).fingerprint()
    assert "it was read as cp1252 (Western European), in which it holds the word 'schöner'" in notes(made)
    for text, encoding in (("хороший день", "cp1251"), ("良い日です", "shift-jis"), ("piękny dzień, miło", "cp1250")):
        write("c.tsv", "text\tlabel\n".encode(encoding) + f"{text}\t1\n".encode(encoding))
        assert "is not UTF-8, and which encoding it is can't be told" in refusal("c.tsv")
    body = "text\tlabel\n" + "".join(f"хороший день {i}\t{i % 2}\n" for i in range(40))
    made = text_file(write("d.tsv", body.encode("cp1251")), {"encoding": "cp1251"})
    assert made.load(None).train.texts[0].startswith("хороший день")
    assert made.name == "d.tsv(encoding=cp1251)"


def test_class_names_in_parquet_are_the_classes() -> None:
    names = [f"class {letter}" for letter in "zyxwvutsrqpo"]  # twelve, not in the order of the alphabet
    features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
    rows = {"text": [f"text {i}" for i in range(240)], "label": [i % 12 for i in range(240)]}
    Dataset.from_dict(rows, features).to_parquet("a.parquet")
    made = text_file("a.parquet", {})
    assert made.labels == tuple(names)
    train = made.load(None).train
    assert all(int(text.split()[1]) % 12 == label for text, label in zip(train.texts, train.labels, strict=True))
    Dataset.from_dict(rows | {"label": [-1, *rows["label"][1:]]}, features).to_parquet("b.parquet")
    assert "row 1: 'label' is missing" in refusal("b.parquet")
    assert len(text_file("b.parquet", {"missing": "drop"}).labels) == 12


DEEP = "[" * 100_000
LONG = "1" * 5_000


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", DEEP, "line 1: not a table, but brackets within brackets"),
        ("a.jsonl", '{"text": "x", "label": 1}\n' + DEEP, "line 2: not a table, but brackets within brackets"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": ' + DEEP, "line 2: not a table"),
        ("a.json", f'[{{"text": "x", "label": {LONG}}}]', "from line 1: can't be read as JSON (Exceeds the limit"),
        ("a.jsonl", f'{{"text": "x", "label": {LONG}}}', "from line 1: can't be read as JSON (Exceeds the limit"),
        (
            "a.jsonl",
            '{"text": "x", "text": "y", "label": 1}',
            "from line 1: can't be read as JSON (a key is given twice)",
        ),
        (
            "a.jsonl",
            '{"text": "x\\ud83d", "label": 1}',
            "line 1: 'text' holds half a character (\\ud83d, a lone surrogate)",
        ),
        ("a.jsonl", '{"text": "x", "label": "\\udc00"}', "line 1: 'label' holds half a character (\\udc00"),
        ("a.jsonl", '{"text\\ud83d": "x", "label": 1}', "Its columns are text\\ud83d, label"),
        ("a.csv", b"text,label\n\0\0\0\0\n", "line 2: expected 2 values"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\xff\xd8", "is not UTF-8"),
        ("a.json", '{"text": "x"}\n{"text": "y"}', "line 2: not valid JSON (Extra data). If each line is an object"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a pointer of Git LFS"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a pointer of Git LFS"),
        ("a.parquet", b"PAR1\0\0PAR1", "can't be read as parquet"),
    ],
)
def test_content_made_to_hurt_is_one_sentence(name: str, content: str | bytes, expected: str) -> None:
    assert expected in refusal(write(name, content))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"delimiter": ";;"}, "delimiter must be one character, or comma, semicolon"),
        ({"delimiter": '"'}, "delimiter must be one character"),
        ({"header": "maybe"}, "header must be yes or no; got 'maybe'"),
        ({"encoding": "utf-9"}, "there is no encoding 'utf-9'"),
        ({"encoding": "rot13"}, "there is no encoding 'rot13'"),
        ({"encoding": "utf-16"}, "is not utf-16"),
        ({"missing": "dropp"}, "missing must be refuse, drop or keep; got 'dropp'"),
        ({"text_pair": "text"}, "text=text and text_pair=text name the same column"),
        ({"text": "label"}, "text=label and label=label name the same column"),
        ({"label": "text"}, "text=text and label=text name the same column"),
        ({"test": "no.csv"}, "There is no file 'no.csv'"),
        ({"missin": "drop"}, "Did you mean 'missing'?"),
    ],
)
def test_options_that_can_not_be_are_refused(options: dict[str, str], expected: str) -> None:
    write("a.csv", separated(",") + b"odd\n" * ("encoding" in options))
    assert expected in refusal("a.csv", options)


def test_options_of_another_format_are_refused() -> None:
    pd.DataFrame({"text": TEXTS, "label": LABELS}).to_parquet("a.parquet")
    assert "'encoding' is for files ending in csv, json, jsonl, tsv" in refusal("a.parquet", {"encoding": "cp1252"})
    assert "'header' is for files ending in csv, tsv" in refusal("a.parquet", {"header": "no"})
    write("dev.csv", separated(";"))
    assert text_file("a.parquet", {"validation": "dev.csv", "delimiter": ";"}).labels == ("bad", "good")


def test_two_columns_of_one_name_in_parquet_are_refused() -> None:
    import pyarrow as pa
    import pyarrow.parquet

    table = pa.table([pa.array(TEXTS), pa.array(LABELS), pa.array(LABELS)], names=["text", "label", "label"])
    pyarrow.parquet.write_table(table, "a.parquet")
    assert "two columns have the same name in text, label, label" in refusal("a.parquet")
