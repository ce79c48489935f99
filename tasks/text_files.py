"""A user's own file becomes a task: `reviews.csv(text=body,text_pair=title,label=stars,validation=dev.csv)`.

The file is CSV, TSV, JSON (a list of objects), JSONL (one object per line) or parquet. CSV has double quotes around
values that hold delimiters, quotes or line ends; TSV has no quoting at all, as in GLUE. Options:

- `text`, `text_pair`, `label` name the columns (`text` and `label` by default, no pair). Of a file without a header the
  columns are 1, 2 and so on; of two columns, that whose values come again is the label, and a note says so.
- `validation` and `test` are more files with the same columns; both are scored. Without `validation`, about 20 % of the
  rows are held out by a hash of their texts.
- `kind` is classification or regression; `metric` is the score to compare by, `f1(CLASS)` that of a named class.
- `missing` says what becomes of rows without a label or a text: `refuse` (the default), `drop`, or `keep`, which takes
  labels such as NA or -1 at their word.
- `delimiter` (a character, comma, semicolon, tab, bar or space), `header` (yes or no) and `encoding` overrule what is
  told from the content.

tables.py says how files are read, rows.py how their rows become examples. ClassLabel names in parquet are the classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from finetune_bench.errors import DataError, UnknownName
from finetune_bench.printable import brief, listed
from finetune_bench.spec import quote
from finetune_bench.task import Provenance, Split, Task, TaskData
from finetune_bench.tasks.rows import Choices, Part, Row, check_columns, check_options, make_data, row_of
from finetune_bench.tasks.tables import Reading, Table, read_table

OPTIONS = (
    "text",
    "text_pair",
    "label",
    "validation",
    "kind",
    "metric",
    "test",
    "missing",
    "delimiter",
    "encoding",
    "header",
)  # the order in a task's name; new ones come last
Columns = tuple[str, str | None, str]


@dataclass(frozen=True)
class TextFileTask(Task):
    """A TextFileTask is a task that was read from a user's own file; `text_file` makes it."""

    data: TaskData = field(default=TaskData(Split([], None, []), {}), repr=False, compare=False)

    def provenance(self) -> Provenance:
        """Return the file."""
        return Provenance(f"the file {self.name}")

    def load(self, data_root: Path | None) -> TaskData:
        """Return the examples, as they were when the task was made.

        Args:
            data_root: not used; the file's path stands for itself.
        """
        return self.data


def text_file(path: str, options: Mapping[str, str]) -> Task:
    """Make a task from a file; it is read and checked here, before anything is computed.

    Args:
        path: a file that ends in csv, tsv, json, jsonl or parquet, from the current folder.
        options: see the module's docstring.

    Raises:
        DataError: the file or an option is wrong; one sentence says what, where, and what to do.
    """
    check_options(path, options, OPTIONS)
    choices = Choices.of(path, options)
    reading = Reading.of(path, options)
    columns = (options.get("text", "text"), options.get("text_pair"), options.get("label", "label"))
    check_columns(path, columns)
    files = {"train": path} | {name: options[name] for name in ("validation", "test") if name in options}
    guess = not {"text", "text_pair", "label"} & set(options)
    parts: dict[str, Part] = {}
    order: dict[str, None] = {}
    for name, file in files.items():
        if name != "train":
            _check_beside(path, name, file)
        parts[name], names = _read_part(file, columns, reading, guess=guess)
        order |= dict.fromkeys(names)
    labels, metric, data = make_data(path, parts, replace(choices, order=tuple(order)))
    return TextFileTask(_name(path, options), choices.kind, labels, (metric,), data)


def _name(path: str, options: Mapping[str, str]) -> str:
    """Return what the user typed, in one spelling: the options in a fixed order, without spaces."""
    given = [f"{option}={quote(options[option])}" for option in OPTIONS if option in options]
    name = quote(path) if set(path) & set('()"') else path
    return name + (f"({','.join(given)})" if given else "")


def _check_beside(path: str, option: str, file: str) -> None:
    beside = Path(path).parent / file
    if not Path(file).exists() and beside.exists():
        raise DataError(f"'{path}': there is no {option} file '{file}' in the current folder; did you mean '{beside}'?")


def _read_part(path: str, columns: Columns, reading: Reading, *, guess: bool) -> tuple[Part, Sequence[str]]:
    """Return a file's rows, and the names of its classes where it names them.

    Args:
        path: the file.
        columns: the columns of text, pair and label.
        reading: how the file is to be read.
        guess: whether the columns of a file without a header may be chosen by their content.
    """
    table = read_table(path, [column for column in columns if column is not None], reading)
    if not table.records:
        raise DataError(f"'{path}' has no rows, only the columns {listed(table.columns) or '(none)'}.")
    notes = table.notes
    if not table.named:
        columns = _columns_without_header(path, table, columns, guess=guess)
        notes += (
            f"'{path}' has no header line: column {columns[0]} is the text, column {columns[2]} the label "
            "(header=yes, text=NUMBER and label=NUMBER say otherwise).",
        )
    for option, column in zip(("text", "text_pair", "label"), columns, strict=True):
        if column is not None and column not in table.columns:
            raise DataError(
                f"'{path}': {UnknownName('column', column, table.columns)} Its columns are {listed(table.columns)}; "
                f"choose one with {option}=COLUMN."
            )
    names = table.classes.get(columns[2], ())
    rows: list[Row] = []
    for position, record in table.records:
        values = [None if column is None else record.get(column) for column in columns]
        if names:
            values[2] = _class_name(path, position, values[2], names)
        rows.append(row_of(path, position, values, columns))
    return Part(path, rows, columns, notes), names


def _columns_without_header(path: str, table: Table, columns: Columns, *, guess: bool) -> Columns:
    if not guess:
        return columns
    distinct = [len({record[column] for _, record in table.records}) for column in table.columns]
    if len(distinct) == 2 and distinct[0] != distinct[1]:
        text, label = sorted(table.columns, key=lambda column: -distinct[table.columns.index(column)])
        return text, None, label
    raise DataError(
        f"'{path}' has no header line that names the columns text and label; say which of its {len(distinct)} columns "
        "they are, as text=1,label=2, or, if its first line does name columns, give header=yes."
    )


def _class_name(path: str, position: str, value: object, names: Sequence[str]) -> object:
    """Return a ClassLabel's name by its id; none for -1, by the convention of the library datasets."""
    if value is None or value == -1:
        return None
    if isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    got = brief(value, write=repr)
    raise DataError(f"'{path}', {position}: the class id must be from 0 to {len(names) - 1}; got {got}.")
