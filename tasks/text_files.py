"""A user's own file becomes a task: `reviews.csv(text=body,text_pair=title,label=stars,validation=dev.csv)`.

Options: `text`, `text_pair` and `label` name columns (`text` and `label` by default, no pair); `validation` is a second
file with the same columns; `kind` is classification or regression; `metric` is the score to compare by.

The formats, all of them in UTF-8:
- CSV with a header line and double quotes around values that hold commas, quotes or line ends.
- TSV with a header line and without any quoting, as in GLUE: a quotation mark is a character like any other.
- JSON, a list of objects; JSONL, one object per line; parquet.

Values are taken as text first: a label 1 of a JSON file and a label "1" of a CSV file are the same class, and the texts
"NA" and "None" are texts. Empty values are missing. The class ids follow the sorted names of the labels.

Without `validation` about 20 % of the rows are held out: those where a hash of the text is small. The side of a row
hence depends on its text only, not on its place in the file, and repeats of a text are on the same side.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finetune_bench.errors import DataError, UnknownName
from finetune_bench.metrics import METRICS, Kind
from finetune_bench.task import Split, Task, TaskData

OPTIONS = ("text", "text_pair", "label", "validation", "kind", "metric")
DEFAULT_METRICS: dict[Kind, str] = {"classification": "accuracy", "regression": "pearson_spearman"}
HELD_OUT = 0.2


@dataclass(frozen=True)
class TextFileTask(Task):
    """A TextFileTask is a task that was read from a user's own file; `text_file` makes it."""

    data: TaskData = field(default=TaskData(Split([], None, []), {}), repr=False, compare=False)

    def load(self, data_root: Path | None) -> TaskData:
        """Return the examples, as they were when the task was made.

        Args:
            data_root: not used; the file's path stands for itself.
        """
        return self.data


@dataclass(frozen=True)
class _Row:
    """A row of a file, and where it is: "line 3" or "row 3"."""

    position: str
    text: str
    pair: str | None
    label: str

    def key(self) -> str:
        """Return the texts without case and white space, by which repeats are found."""
        return "\n".join(" ".join(text.casefold().split()) for text in (self.text, self.pair or ""))


def text_file(path: str, options: Mapping[str, str]) -> Task:
    """Make a task from a file; it is read and checked here, before anything is computed.

    Args:
        path: a file that ends in csv, tsv, json, jsonl or parquet, from the current folder.
        options: see the module's docstring.

    Raises:
        DataError: the file or an option is wrong; one sentence says what, where, and what to do.
    """
    for option in options:
        if option not in OPTIONS:
            raise DataError(f"'{path}': {UnknownName('option', option, OPTIONS)} The options are {', '.join(OPTIONS)}.")
    kind = _choose_kind(path, options.get("kind", "classification"))
    metric = options.get("metric", DEFAULT_METRICS[kind])
    columns = (options.get("text", "text"), options.get("text_pair"), options.get("label", "label"))

    notes: list[str] = []
    rows = _read_rows(path, columns)
    if "validation" in options:
        train, validation = rows, _read_validation(path, options["validation"], columns)
        repeated = {row.key() for row in train} & {row.key() for row in validation}
        if repeated:
            notes.append(f"{len(repeated)} texts of the validation file are in the training file too.")
    else:
        held_out = [_is_held_out(row) for row in rows]
        train = [row for row, out in zip(rows, held_out, strict=True) if not out]
        validation = [row for row, out in zip(rows, held_out, strict=True) if out]
        if not train or not validation:
            raise DataError(
                f"'{path}' has {len(rows)} rows, too few to hold out some of them for validation; "
                "add rows, or name a second file: validation=FILE."
            )
        notes.append(
            f"No validation file was given; {len(validation)} of {len(rows)} rows were held out, by a hash of their "
            "texts."
        )

    if kind == "classification":
        labels = _classes(path, rows, train, validation, options.get("validation", path))
        _check_metric(path, metric, kind, len(labels))
        ids = {label: i for i, label in enumerate(labels)}
        if METRICS[metric].binary:
            notes.append(f"{METRICS[metric].heading} counts '{labels[1]}' as the positive class.")
        splits = [_split(part, [ids[row.label] for row in part]) for part in (train, validation)]
    else:
        labels = ()
        _check_metric(path, metric, kind, 0)
        files = (path, options.get("validation", path))
        splits = [
            _split(part, [_number(file, row) for row in part])
            for file, part in zip(files, (train, validation), strict=True)
        ]
        if len(set(splits[0].labels)) == 1:
            raise DataError(
                f"'{path}': every training row has the label {splits[0].labels[0]}, so there is nothing to learn. "
                "Is it the right column? Name another with label=COLUMN."
            )
    data = TaskData(splits[0], {"validation": splits[1]}, tuple(notes))
    return TextFileTask(_name(path, options), kind, labels, (metric,), data)


def _name(path: str, options: Mapping[str, str]) -> str:
    """What the user typed, in one spelling: the options in a fixed order, without spaces."""
    given = [f"{option}={options[option]}" for option in OPTIONS if option in options]
    return path + (f"({','.join(given)})" if given else "")


def _choose_kind(path: str, kind: str) -> Kind:
    known: dict[str, Literal["classification", "regression"]] = {
        "classification": "classification",
        "regression": "regression",
    }
    if kind not in known:
        raise DataError(f"'{path}': {UnknownName('kind of task', kind, known)} It is classification or regression.")
    return known[kind]


def _check_metric(path: str, metric: str, kind: Kind, classes: int) -> None:
    usable = [
        name for name, known in METRICS.items() if known.kind == kind and (classes == 2 or not known.binary)
    ]  # fmt: skip
    if metric not in METRICS:
        raise DataError(f"'{path}': {UnknownName('metric', metric, usable)}")
    if metric not in usable:
        what = f"classification into {classes} classes" if kind == "classification" else "regression"
        raise DataError(f"'{path}': the metric '{metric}' can't score {what}; choose one of {', '.join(usable)}.")


def _split(rows: Sequence[_Row], labels: Sequence[int] | Sequence[float]) -> Split:
    pairs = [row.pair for row in rows if row.pair is not None]
    return Split([row.text for row in rows], pairs or None, labels)


def _is_held_out(row: _Row) -> bool:
    return int.from_bytes(hashlib.sha256(row.key().encode()).digest()[:8], "big") < HELD_OUT * 2**64


def _classes(
    path: str, rows: Sequence[_Row], train: Sequence[_Row], validation: Sequence[_Row], validation_path: str
) -> tuple[str, ...]:
    counts = Counter(row.label for row in rows)
    if len(counts) == 1:
        raise DataError(
            f"'{path}': every row has the label '{rows[0].label}'; expected at least two classes. "
            "Is it the right column? Name another with label=COLUMN."
        )
    lonely = next((row for row in rows if counts[row.label] == 1), None)
    if lonely is not None:
        raise DataError(
            f"'{path}', {lonely.position}: the class '{lonely.label}' occurs only once, which is too little to learn; "
            "drop the row or merge the class, or, if the labels are numbers to predict, give kind=regression."
        )
    seen = {row.label for row in train}
    unseen = next((row for row in validation if row.label not in seen), None)
    if unseen is not None:
        advice = (
            "is not in the training file; correct the label or drop the row."
            if validation_path != path
            else "occurs in held-out rows only; add rows of it, or name a second file: validation=FILE."
        )
        raise DataError(f"'{validation_path}', {unseen.position}: the class '{unseen.label}' {advice}")
    return tuple(sorted(seen))


def _number(path: str, row: _Row) -> float:
    try:
        number = float(row.label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"'{path}', {row.position}: the label of a regression must be a number such as 3.5; got '{row.label}'."
        )
    return number


def _read_validation(path: str, validation: str, columns: tuple[str, str | None, str]) -> list[_Row]:
    beside = Path(path).parent / validation
    if not Path(validation).exists() and beside.exists():
        raise DataError(
            f"'{path}': there is no validation file '{validation}' in the current folder; did you mean '{beside}'?"
        )
    return _read_rows(validation, columns)


def _read_rows(path: str, columns: tuple[str, str | None, str]) -> list[_Row]:
    """Read a file's rows and check that nothing is missing in them."""
    file = Path(path)
    ending = file.suffix.lstrip(".").lower()
    if ending not in _READERS:
        raise DataError(f"'{path}' can't be read as a table; expected a file ending in {', '.join(_READERS)}.")
    if not file.is_file():
        raise DataError(f"There is no file '{path}' (looked for it in '{Path.cwd()}').")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"'{path}' can't be read: {error.strerror}.") from error
    if not content.strip():
        raise DataError(f"'{path}' is empty; expected a table with the columns {', '.join(filter(None, columns))}.")
    known, records = _READERS[ending](path, content)
    if not records:
        raise DataError(f"'{path}' has no rows, only the columns {', '.join(known) or '(none)'}.")
    for option, column in zip(("text", "text_pair", "label"), columns, strict=True):
        if column is not None and column not in known:
            raise DataError(
                f"'{path}': {UnknownName('column', column, known)} Its columns are {', '.join(known)}; "
                f"choose one with {option}=COLUMN."
            )
    rows = []
    for position, record in records:
        values = [None if column is None else _text(path, position, column, record.get(column)) for column in columns]
        rows.append(_Row(position, str(values[0]), values[1], str(values[2]).strip()))
    return rows


def _text(path: str, position: str, column: str, value: object) -> str:
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        # A column of whole numbers with a gap is read as floats.
        text = str(int(value))
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        text = ""
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise DataError(f"'{path}', {position}: '{column}' must be a text or a number; got {type(value).__name__}.")
    if not text.strip():
        raise DataError(f"'{path}', {position}: '{column}' is missing; fill it in or drop the row.")
    return text


# The columns; and for each row its position ("line 3") and its values.
Table = tuple[list[str], list[tuple[str, Mapping[str, object]]]]


def _decode(path: str, content: bytes) -> str:
    try:
        # Excel writes a mark before the first column's name.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"'{path}', line {line}: byte {error.start + 1} (0x{error.object[error.start]:02x}) is not UTF-8; "
            "save the file as UTF-8."
        ) from error


def _read_separated(path: str, content: bytes, separator: str, quoting: Literal[0, 3]) -> Table:
    # A text may be a whole book.
    csv.field_size_limit(2**31 - 1)
    lines = csv.reader(
        io.StringIO(_decode(path, content), newline=""), delimiter=separator, quoting=quoting, strict=True
    )
    records: list[tuple[str, Mapping[str, object]]] = []
    columns: list[str] = []
    for line, values in _numbered(path, lines):
        if not columns:
            columns = [value.strip() for value in values]
            if len(set(columns)) < len(columns):
                raise DataError(f"'{path}', line {line}: two columns have the same name in {', '.join(columns)}.")
        elif len(values) != len(columns):
            raise DataError(
                f"'{path}', line {line}: expected {len(columns)} values ({', '.join(columns)}); got {len(values)}. "
                "Put values that hold the separator or a line end in double quotes (CSV only)."
            )
        else:
            records.append((f"line {line}", dict(zip(columns, values, strict=True))))
    return columns, records


def _numbered(path: str, lines: Any) -> Iterator[tuple[int, list[str]]]:
    """The rows of a csv.reader that are not blank, each with the number of the line where it starts."""
    while True:
        start = lines.line_num + 1
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"'{path}', from line {start}: can't be read ({error}); is a quotation mark open?"
            ) from error
        if values:
            yield start, values


def _read_csv(path: str, content: bytes) -> Table:
    return _read_separated(path, content, ",", csv.QUOTE_MINIMAL)


def _read_tsv(path: str, content: bytes) -> Table:
    return _read_separated(path, content, "\t", csv.QUOTE_NONE)


def _read_json(path: str, content: bytes) -> Table:
    try:
        items = json.loads(_decode(path, content))
    except json.JSONDecodeError as error:
        raise DataError(f"'{path}', line {error.lineno}: not valid JSON ({error.msg}).") from error
    if not isinstance(items, list):
        raise DataError(f"'{path}': expected a list of objects, [{{...}}, ...]; got {type(items).__name__}.")
    return _objects(path, [(f"row {row}", item) for row, item in enumerate(items, start=1)])


def _read_jsonl(path: str, content: bytes) -> Table:
    items = []
    for number, line in enumerate(_decode(path, content).split("\n"), start=1):
        if line.strip():
            try:
                items.append((f"line {number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise DataError(f"'{path}', line {number}: not valid JSON ({error.msg}).") from error
    return _objects(path, items)


def _objects(path: str, items: list[tuple[str, Any]]) -> Table:
    columns: dict[str, None] = {}
    for position, item in items:
        if not isinstance(item, dict):
            raise DataError(f"'{path}', {position}: expected an object, {{...}}; got {type(item).__name__}.")
        columns.update(dict.fromkeys(item))
    return list(columns), items


def _read_parquet(path: str, content: bytes) -> Table:
    # Importing pandas takes a second, and only this format needs it.
    import pandas as pd

    try:
        # As objects, so that integers beside a gap stay integers.
        table = pd.read_parquet(io.BytesIO(content), dtype_backend="pyarrow").astype(object)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"'{path}' can't be read as parquet: {reason}.") from error
    table = table.where(table.notna(), None)
    return [str(column) for column in table.columns], [
        (f"row {row}", {str(key): value for key, value in record.items()})
        for row, record in enumerate(table.to_dict("records"), start=1)
    ]


_READERS = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "json": _read_json,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
}
