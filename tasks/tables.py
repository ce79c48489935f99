"""CSV, TSV, JSON, JSONL and parquet files become rows of values, each with its position in the file.

What a file does not say of itself is told from its content, in this order, and a note says what it was taken for:
- Encoding: a byte order mark; UTF-16 without one; UTF-8; else Western European (cp1252), where only single letters
  within words are not ASCII. Anything else is refused, since a wrong guess reads like a text.
- Delimiter of CSV and TSV: the usual one if the first line then names the columns that are asked for; else whichever of
  comma, semicolon, tab and bar does; else whichever cuts every line into equally many values. A line `sep=;` is obeyed.
- Header: the first line is one, unless it names no column that is asked for and holds a number, or a value that comes
  again below it. Columns without names are called 1, 2, 3 and so on.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from finetune_bench.errors import DataError
from finetune_bench.printable import brief, listed

ENDINGS = ("csv", "tsv", "json", "jsonl", "parquet")
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}
_SNIFFED = (",", ";", "\t", "|")
_LOOKED_AT = 100  # lines from which the delimiter is told
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32"}
_MARKS |= {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}  # behind those of UTF-32, of which one begins in the same way
_SIGNS = "‘’“”„–—…•·€£§°©®™«»¡¿\xa0"  # that Western European texts hold
_SIGN_IN_WORD = r"(?<=[A-Za-z])[¢-©«-´¶¸¹»-¿×÷](?=[A-Za-z])"


@dataclass(frozen=True)
class Table:
    """A Table holds the content of a file.

    Attributes:
        columns: the names of the columns, in order.
        records: for each row its position ("line 3" or "row 3"), and its values by column.
        named: whether the file names its columns; otherwise they are called "1", "2" and so on.
        classes: the names of the class ids that a column holds, by column (parquet with a ClassLabel).
        notes: sentences about what was told from the content.
    """

    columns: list[str]
    records: list[tuple[str, Mapping[str, object]]]
    named: bool = True
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """A Reading says how files are to be read; what is None is told from the content.

    Attributes:
        delimiter: the character between the values of a line.
        encoding: the name of a codec.
        header: whether the first line names the columns.
    """

    delimiter: str | None = None
    encoding: str | None = None
    header: bool | None = None

    @classmethod
    def of(cls, path: str, options: Mapping[str, str]) -> Reading:
        """Read the options `delimiter`, `encoding` and `header`.

        Raises:
            DataError: a value that is none, or an option that does not fit the file's format.
        """
        files = [path, *(options[name] for name in ("validation", "test") if name in options)]
        endings = {ending_of(file) for file in files}
        for option, fitting in (
            ("delimiter", {"csv", "tsv"}),
            ("header", {"csv", "tsv"}),
            ("encoding", {*ENDINGS[:4]}),
        ):
            if option in options and not endings & fitting:
                raise DataError(
                    f"'{path}': '{option}' is for files ending in {', '.join(sorted(fitting))}; leave it out."
                )
        delimiter = options.get("delimiter")
        delimiter = DELIMITERS.get(delimiter, delimiter) if delimiter else None
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise DataError(
                f"'{path}': delimiter must be one character, or {', '.join(DELIMITERS)}; got '{brief(delimiter)}'."
            )
        header = options.get("header")
        if header not in (None, "yes", "no"):
            raise DataError(f"'{path}': header must be yes or no; got '{brief(header)}'.")
        return cls(delimiter, options.get("encoding"), None if header is None else header == "yes")


def ending_of(path: str) -> str:
    """Return a file's ending in lower case, without its dot."""
    return Path(path).suffix.lstrip(".").lower()


def read_table(path: str, wanted: Sequence[str], reading: Reading) -> Table:
    """Read a file.

    Args:
        path: a file that ends in one of `ENDINGS`, from the current folder.
        wanted: the columns that it should have; where it has them, its first line is a header.
        reading: how to read it.

    Raises:
        DataError: no such file, or it can't be read; says which line and why.
    """
    file, ending = Path(path), ending_of(path)
    if ending not in ENDINGS:
        raise DataError(f"'{path}' can't be read as a table; expected a file ending in {', '.join(ENDINGS)}.")
    if not file.is_file():
        raise DataError(f"There is no file '{path}' (looked for it in '{Path.cwd()}').")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error.strerror}.") from error
    if not content.strip():
        raise DataError(f"'{path}' is empty; expected a table with the columns {listed(wanted)}.")
    if content.startswith(b"version https://git-lfs."):
        raise DataError(f"'{path}' is a pointer of Git LFS, not the file itself; fetch that: git lfs pull.")
    if ending == "parquet":
        return _read_parquet(path, content)
    text, note = _decode(path, content, reading.encoding)
    notes = (note,) if note else ()
    if ending == "json":
        return _objects(path, _json_items(path, text), notes)
    if ending == "jsonl":
        return _objects(path, _jsonl_items(path, text), notes)
    return _read_separated(path, text, wanted, reading, notes)


# --- encodings --------------------------------------------------------------------------------------------------------


def _decode(path: str, content: bytes, encoding: str | None) -> tuple[str, str | None]:
    """Return a file's text, and a note where its encoding was told from its content and is not UTF-8."""
    if encoding is not None:
        return _decode_as(path, content, encoding), None
    told = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None) or _without_mark(content)
    if told is not None and told != "utf-8-sig":
        return _decode_as(path, content, told), f"'{path}' was read as {told} (encoding=NAME says otherwise)."
    try:
        return content.decode("utf-8-sig"), None  # Excel writes a mark before the first column's name
    except UnicodeDecodeError as error:
        word = _western_word(content)
        if word is not None:
            note = (
                f"'{path}' is not UTF-8; it was read as cp1252 (Western European), in which it holds the word '{word}' "
                "(encoding=NAME says otherwise)."
            )
            return content.decode("cp1252"), note
        raise DataError(
            f"'{path}', {_where(error)} is not UTF-8, and which encoding it is can't be told; save the file as UTF-8, "
            "or name the encoding, as encoding=cp1251."
        ) from error


def _decode_as(path: str, content: bytes, encoding: str) -> str:
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"'{path}', {_where(error)} is not {encoding}; name another encoding.") from error
    except (LookupError, ValueError) as error:
        name = brief(encoding)
        raise DataError(f"'{path}': there is no encoding '{name}'; name one such as cp1252 or utf-16.") from error


def _where(error: UnicodeDecodeError) -> str:
    line = error.object.count(b"\n", 0, error.start) + 1
    return f"line {line}: byte {error.start + 1} (0x{error.object[error.start]:02x})"


def _without_mark(content: bytes) -> str | None:
    """Return the name of UTF-16, if it is that: of the two halves of a character, the higher is nearly always 0."""
    start = content[:10_000]
    for name, high in (("utf-16-le", start[1::2]), ("utf-16-be", start[::2])):
        if len(content) % 2 == 0 and high.count(0) > len(high) / 2:
            return name
    return None


def _western_word(content: bytes) -> str | None:
    """Return a word with a letter beyond ASCII, if a file reads like Western European text in cp1252; else None.

    There, most letters beyond ASCII stand singly in words with ASCII letters, and no signs stand within words. In other
    alphabets they make whole words, or the bytes of one character become a letter and a sign.
    """
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        return None
    foreign = r"[^\W\d_A-Za-z]"  # a letter beyond ASCII
    if any(re.search(sign, text) for sign in (r"[\x00-\x08\x0e-\x1f\x7f]", foreign + "{3}", _SIGN_IN_WORD)):
        return None
    words = [word for word in re.findall(r"[^\W\d_]+", text) if not word.isascii()]
    mixed = [word for word in words if re.search("[A-Za-z]", word)]
    if words:
        return mixed[0] if len(mixed) > len(words) / 2 else None
    signs = "".join(set(re.findall(r"[^\x00-\x7f]", text)))
    return re.findall(r"\S*[^\x00-\x7f]\S*", text)[0] if set(signs) <= set(_SIGNS) else None


# --- CSV and TSV ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lines:
    """This is the text of a CSV or TSV file, which knows how its lines are cut."""

    path: str
    text: str

    def cut(self, delimiter: str) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows that are not blank, each with the number of the line where it starts.

        Raises:
            DataError: a quotation mark is open.
        """
        raw = delimiter == "\t" and ending_of(self.path) == "tsv"  # as in GLUE, a quotation mark is one like any other
        quoting: Literal[0, 3] = csv.QUOTE_NONE if raw else csv.QUOTE_MINIMAL
        lines = csv.reader(io.StringIO(self.text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
        while True:
            start = lines.line_num + 1
            try:
                values = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(
                    f"'{self.path}', from line {start}: can't be read ({error}); is a quotation mark open?"
                ) from error
            if values:
                yield start, values

    def first(self, delimiter: str, count: int) -> list[list[str]]:
        """Return the first rows; none where they can't be cut in this way."""
        try:
            return [values for _, values in islice(self.cut(delimiter), count)]
        except DataError:
            return []


def _read_separated(path: str, text: str, wanted: Sequence[str], reading: Reading, notes: tuple[str, ...]) -> Table:
    csv.field_size_limit(2**31 - 1)  # a text may be a whole book
    usual = "\t" if ending_of(path) == "tsv" else ","
    told = re.match(r"sep=(.)\r?\n", text)
    if told:
        text = text[told.end() - 1 :]  # a blank line stands for it, so that the numbers of the lines stay
    lines = _Lines(path, text)
    delimiter = reading.delimiter or (told[1] if told else _sniff_delimiter(lines, usual, wanted))
    if delimiter != usual and reading.delimiter is None:
        name = next((name for name, character in DELIMITERS.items() if character == delimiter), delimiter)
        notes += (f"'{path}' was read as separated by a {name} (delimiter=NAME says otherwise).",)
    named = reading.header
    if named is None:
        named = _has_header(lines.first(delimiter, _LOOKED_AT), wanted)

    columns: list[str] = []
    records: list[tuple[str, Mapping[str, object]]] = []
    for line, values in lines.cut(delimiter):
        if not columns:
            columns = [value.strip() for value in values] if named else [str(i + 1) for i in range(len(values))]
            if len(set(columns)) < len(columns):
                raise DataError(f"'{path}', line {line}: two columns have the same name in {listed(columns)}.")
            if named:
                continue
        if len(values) != len(columns):
            raise DataError(
                f"'{path}', line {line}: expected {len(columns)} values ({listed(columns)}); got {len(values)}. "
                "Put values that hold the separator or a line end in double quotes (CSV only)."
            )
        if named and [value.strip() for value in values] == columns:
            raise DataError(f"'{path}', line {line}: the header line comes again; remove it.")
        records.append((f"line {line}", dict(zip(columns, values, strict=True))))
    return Table(columns, records, named, notes=notes)


def _sniff_delimiter(lines: _Lines, usual: str, wanted: Sequence[str]) -> str:
    candidates = [usual, *(other for other in _SNIFFED if other != usual)]
    samples = {delimiter: lines.first(delimiter, _LOOKED_AT) for delimiter in candidates}
    for delimiter, rows in samples.items():
        if rows and {*wanted} <= {value.strip() for value in rows[0]}:
            return delimiter
    even = [delimiter for delimiter, rows in samples.items() if len({len(row) for row in rows}) == 1]
    return next((delimiter for delimiter in even if len(samples[delimiter][0]) > 1), usual)


def _has_header(rows: Sequence[Sequence[str]], wanted: Sequence[str]) -> bool:
    """Whether the first row names columns; a row 0, 1, 2 and so on is one that pandas wrote."""
    first = [value.strip() for value in rows[0]] if rows else []
    if {*wanted} & {*first} or first == [str(i) for i in range(len(first))]:
        return True
    below = [{row[i].strip() for row in rows[1:] if i < len(row)} for i in range(len(first))]
    return not any(value and (value in column or _is_number(value)) for value, column in zip(first, below, strict=True))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


# --- JSON, JSONL and parquet ------------------------------------------------------------------------------------------


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose keys are all different; by itself json would keep the last of two."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key is given twice")
    return values


def _loads(path: str, text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        hint = " If each line is an object, name the file .jsonl." if error.msg == "Extra data" else ""
        raise DataError(f"'{path}', line {line + error.lineno - 1}: not valid JSON ({error.msg}).{hint}") from error
    except RecursionError as error:
        raise DataError(
            f"'{path}', line {line}: not a table, but brackets within brackets too deep to read."
        ) from error
    except ValueError as error:  # a number of thousands of digits, a key that is given twice
        reason = str(error).partition(";")[0]
        raise DataError(f"'{path}', from line {line}: can't be read as JSON ({reason}).") from error


def _json_items(path: str, text: str) -> list[tuple[str, Any]]:
    items = _loads(path, text, 1)
    if not isinstance(items, list):
        raise DataError(f"'{path}': expected a list of objects, [{{...}}, ...]; got {type(items).__name__}.")
    return [(f"row {row}", item) for row, item in enumerate(items, start=1)]


def _jsonl_items(path: str, text: str) -> list[tuple[str, Any]]:
    lines = enumerate(text.split("\n"), start=1)
    return [(f"line {number}", _loads(path, line, number)) for number, line in lines if line.strip()]


def _objects(path: str, items: Iterable[tuple[str, Any]], notes: tuple[str, ...]) -> Table:
    columns: dict[str, None] = {}
    records: list[tuple[str, Mapping[str, object]]] = []
    for position, item in items:
        if not isinstance(item, dict):
            raise DataError(f"'{path}', {position}: expected an object, {{...}}; got {type(item).__name__}.")
        columns.update(dict.fromkeys(item))
        records.append((position, item))
    return Table([ascii(name)[1:-1] if _is_broken(name) else name for name in columns], records, notes=notes)


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _read_parquet(path: str, content: bytes) -> Table:
    # Importing these takes a second, and only this format needs them.
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(io.BytesIO(content))
        if len(set(schema.names)) < len(schema.names):
            raise DataError(f"'{path}': two columns have the same name in {listed(schema.names)}.")
        # As objects, so that integers beside a gap stay integers.
        table = pd.read_parquet(io.BytesIO(content), dtype_backend="pyarrow").astype(object)
    except (ValueError, OSError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"'{path}' can't be read as parquet: {reason}.") from error
    table = table.where(table.notna(), None)
    records: list[tuple[str, Mapping[str, object]]] = [
        (f"row {row}", {str(key): value for key, value in record.items()})
        for row, record in enumerate(table.to_dict("records"), start=1)
    ]
    return Table([str(column) for column in table.columns], records, classes=_class_names(schema.metadata))


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of class ids by column, as the library datasets notes them in a parquet file."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: [str(name) for name in feature["names"]]
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return {}
