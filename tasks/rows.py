"""Rows of files or of a data set become a task's splits: missing labels, classes, and what is held out.

Labels are taken as texts first: a label 1 of a JSON file and a label "1" of a CSV file are the same class. A label that
stands for a missing one (`MISSING`; -1 too, where it is the only number below 0 and there are two other classes, or
where the labels are numbers to predict) is never silently a class: `missing` says what becomes of its row.

Without a validation split about 20 % of the rows are held out: those where a hash of the text is small. The side of a
row hence depends on its text, not on its position in the file, and repeats of a text are on the same side. Only where a
class would have no row on one side, one of its texts changes sides: that with the largest hash of those held out, or
with the smallest of those trained on. A class with one text is trained on and never scored, and a note says so.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetune_bench.errors import DataError, UnknownName
from finetune_bench.metrics import METRICS, Kind, named_class
from finetune_bench.printable import brief
from finetune_bench.task import Split, TaskData, on_both_sides

DEFAULT_METRICS: dict[Kind, str] = {"classification": "accuracy", "regression": "pearson_spearman"}
HELD_OUT = 0.2
MISSING = (
    *("na", "n/a", "#n/a", "#na", "<na>", "nan", "-nan", "+nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan", "nat"),
    *("none", "null", "nil", "missing", "?", "-", "--"),
)  # in lower case: what spreadsheets, pandas, R, SQL and people write
_SHOWN = 20  # classes that a note counts one by one
_LONG = 60  # characters of a label that a message shows
_LARGEST = 3.4e38  # that single precision, in which losses are computed, can hold
_NOTHING = ""
_PARTS = ("train", "validation", "test")

Missing = Literal["refuse", "drop", "keep"]


@dataclass(frozen=True, slots=True)
class Row:
    """A Row is one example, as it stands in a file or a data set.

    Attributes:
        position: where the row is: "line 3" or "row 3".
        text: the text; empty where there is none.
        pair: the second text; None where the task has one text only.
        label: the label as text, without white space around it; empty where there is none.
    """

    position: str
    text: str
    pair: str | None
    label: str

    def key(self) -> str:
        """Return the texts without case and white space, by which repeats are found."""
        return "\n".join(" ".join(text.casefold().split()) for text in (self.text, self.pair or ""))


@dataclass(frozen=True)
class Part:
    """A Part holds the rows of one file, or of one split of a data set.

    Attributes:
        source: the name that messages give it.
        rows: the rows in their order.
        columns: the columns of text, pair and label.
        notes: sentences about how it was read.
    """

    source: str
    rows: list[Row]
    columns: tuple[str, str | None, str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choices:
    """Choices are what the user asks of a task of their own.

    Attributes:
        kind: "classification" or "regression".
        metric: the score to compare by; None for the usual one.
        missing: what becomes of rows without a label or a text: refused, dropped, or, for labels that only look like a
            missing one, kept.
        order: the names of the classes in the order of their ids, where the data names them; the others are sorted.
    """

    kind: Kind = "classification"
    metric: str | None = None
    missing: Missing = "refuse"
    order: Sequence[str] = field(default=())

    @classmethod
    def of(cls, source: str, options: Mapping[str, str]) -> Choices:
        """Read the options `kind`, `metric` and `missing`.

        Raises:
            DataError: a value that is none.
        """
        kind, missing = options.get("kind", "classification"), options.get("missing", "refuse")
        kinds: dict[str, Kind] = {"classification": "classification", "regression": "regression"}
        rules: dict[str, Missing] = {"refuse": "refuse", "drop": "drop", "keep": "keep"}
        if kind not in kinds:
            raise DataError(
                f"'{source}': {UnknownName('kind of task', kind, kinds)} It is classification or regression."
            )
        if missing not in rules:
            raise DataError(f"'{source}': missing must be refuse, drop or keep; got '{brief(missing)}'.")
        return cls(kinds[kind], options.get("metric"), rules[missing])


def check_options(source: str, options: Mapping[str, str], known: Sequence[str]) -> None:
    """Check that every option is a known one, and that no column is named twice.

    Raises:
        DataError: names the option.
    """
    for option in options:
        if option not in known:
            raise DataError(f"'{source}': {UnknownName('option', option, known)} The options are {', '.join(known)}.")


def check_columns(source: str, columns: tuple[str, str | None, str]) -> None:
    """Check that texts and labels come from different columns.

    Raises:
        DataError: names the column.
    """
    options = [(f"{o}={c}", c) for o, c in zip(("text", "text_pair", "label"), columns, strict=True) if c is not None]
    for i, (first, column) in enumerate(options):
        for second, other in options[i + 1 :]:
            if column == other:
                raise DataError(
                    f"'{source}': {first} and {second} name the same column; the texts and the label are columns of "
                    "their own."
                )


def row_of(source: str, position: str, values: Sequence[object], columns: tuple[str, str | None, str]) -> Row:
    """Take one record's text, pair and label as texts.

    Args:
        source: the name of the file or the data set, for messages.
        position: where the record is, for messages.
        values: the values of the three columns.
        columns: the names of the columns; None where there is no pair.

    Raises:
        DataError: a value that is neither text nor number, or a text that is broken.
    """
    text, pair, label = (
        _NOTHING if column is None else _text(source, position, column, value)
        for value, column in zip(values, columns, strict=True)
    )
    return Row(position, text, pair if columns[1] is not None else None, label.strip())


def _text(source: str, position: str, column: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers with a gap is read as floats
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return _NOTHING
    if not isinstance(value, str | int | float):
        raise DataError(f"'{source}', {position}: '{column}' must be a text or a number; got {type(value).__name__}.")
    try:
        text = str(value)
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"'{source}', {position}: '{column}' holds half a character ({ascii(text[error.start])[1:-1]}, a lone "
            "surrogate); repair the text or drop the row."
        ) from None
    except ValueError:  # Python writes numbers up to a limit only
        raise DataError(f"'{source}', {position}: '{column}' is a number of thousands of digits.") from None
    return text


def make_data(source: str, parts: Mapping[str, Part], choices: Choices) -> tuple[tuple[str, ...], str, TaskData]:
    """Turn rows into a task's classes, metric and examples.

    Args:
        source: the name that messages give the task.
        parts: `train`, and perhaps `validation` and `test`.
        choices: the choices of the user.

    Raises:
        DataError: what can't be learnt, or what is missing; says where and what to do.
    """
    notes = list(dict.fromkeys(note for part in parts.values() for note in part.notes))
    missing = _labels_that_are_missing([row.label for part in parts.values() for row in part.rows], choices)
    rows = {name: _present(parts[name], missing, choices, notes) for name in _PARTS if name in parts}
    sources = {name: part.source for name, part in parts.items()}
    for name in _PARTS[1:]:
        if name in rows and (repeated := {row.key() for row in rows["train"]} & {row.key() for row in rows[name]}):
            notes.append(f"{len(repeated)} texts of the {name} file are in the training file too.")
    if choices.kind == "classification":
        _check_labels(sources["train"], rows["train"])
    held_out = "validation" not in rows
    if held_out:
        rows = _hold_out(sources["train"], rows, choices, notes)
        sources["validation"] = sources["train"]
    labels = _classes(rows, sources, choices, held_out=held_out) if choices.kind == "classification" else ()
    metric = _check_metric(source, choices, labels)
    if labels:
        ids = {label: i for i, label in enumerate(labels)}
        splits = {name: _split(part, [ids[row.label] for row in part]) for name, part in rows.items()}
        notes += _class_notes(rows, labels)
        if METRICS[named_class(metric)[0]].binary and named_class(metric)[1] is None:
            notes.append(f"{METRICS[metric].heading} counts '{labels[1]}' as the positive class.")
    else:
        splits = {name: _split(part, [_number(sources[name], row) for row in part]) for name, part in rows.items()}
        values = splits["train"].labels
        if len(set(values)) == 1:
            raise DataError(
                f"'{sources['train']}': every training row has the label {values[0]}, so there is nothing to learn. "
                "Is it the right column? Name another with label=COLUMN."
            )
        notes.append(f"The training labels are numbers from {min(values):g} to {max(values):g}.")
    train = splits.pop("train")
    return labels, metric, TaskData(train, splits, tuple(notes))


# --- missing labels and texts -----------------------------------------------------------------------------------------


def _labels_that_are_missing(labels: Iterable[str], choices: Choices) -> set[str]:
    """Return which labels stand for a missing one, by their spelling and by the other labels."""
    if choices.missing == "keep":
        return set()
    known = set(labels) - {_NOTHING}
    spelt = {label for label in known if label.casefold() in MISSING}
    minus_one = {label for label in known if _float(label.replace("−", "-")) == -1}  # a typographer's minus as well
    others = known - spelt - minus_one
    below = any((_float(label) or 0.0) < 0 for label in others)
    # -1 and 1 are two classes, -2 to 2 are five, and so are the targets of a regression that lie around 0.
    minus_is_a_label = below or (choices.kind == "classification" and len(others) < 2)
    return spelt if minus_is_a_label else spelt | minus_one


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _present(part: Part, missing: set[str], choices: Choices, notes: list[str]) -> list[Row]:
    """Return the rows that have their texts and a label.

    Raises:
        DataError: one has not, and rows are not to be dropped; or none has.
    """
    text, pair, label = part.columns
    without: Counter[str] = Counter()
    kept: list[Row] = []
    for row in part.rows:
        absent = [
            name for name, value in ((text, row.text), (pair, row.pair)) if value is not None and not value.strip()
        ]
        if row.label and not absent and row.label not in missing:
            kept.append(row)
            continue
        if choices.missing != "drop" and (absent or not row.label):
            raise DataError(
                f"'{part.source}', {row.position}: '{absent[0] if absent else label}' is missing; fill it in or drop "
                "the row (missing=drop leaves all such rows out)."
            )
        without[f"no {absent[0]}" if absent else f"the label '{row.label}'" if row.label else "no label"] += 1
    told = ", ".join(f"{count} with {what}" for what, count in without.most_common())
    if without and choices.missing != "drop":
        first = next(row for row in part.rows if row.label in missing)
        raise DataError(
            f"'{part.source}', {first.position}: the label '{first.label}' usually stands for a missing one (rows of "
            f"that kind: {told}); leave them out with missing=drop, or take such labels at their word with "
            "missing=keep."
        )
    if not kept:
        raise DataError(f"'{part.source}' has no row with a text and a label among its {len(part.rows)} rows.")
    if without:
        notes.append(f"{sum(without.values())} of {len(part.rows)} rows of '{part.source}' were left out: {told}.")
    return kept


# --- what is held out -------------------------------------------------------------------------------------------------


def _hash(row: Row) -> int:
    return int.from_bytes(hashlib.sha256(row.key().encode()).digest()[:8], "big")


def _hold_out(source: str, rows: dict[str, list[Row]], choices: Choices, notes: list[str]) -> dict[str, list[Row]]:
    """Return the rows, with the training rows cut in two.

    Raises:
        DataError: too few of them.
    """
    whole = rows["train"]
    hashes = [_hash(row) for row in whole]
    by_hash = [value < HELD_OUT * 2**64 for value in hashes]
    out = by_hash
    if choices.kind == "classification":
        out = on_both_sides(by_hash, [row.label for row in whole], hashes)
    cut = {
        "train": [row for row, held in zip(whole, out, strict=True) if not held],
        "validation": [row for row, held in zip(whole, out, strict=True) if held],
    }
    if not cut["train"] or not cut["validation"]:
        raise DataError(
            f"'{source}' has {len(whole)} rows, too few to hold out some of them for validation; "
            "add rows, or name a second file: validation=FILE."
        )
    notes.append(
        f"No validation file was given; {len(cut['validation'])} of {len(whole)} rows were held out, by a hash of "
        "their texts."
    )
    if moved := [row.label for row, before, now in zip(whole, by_hash, out, strict=True) if before != now]:
        notes.append(f"So that classes have rows on both sides, rows of these changed sides: {_listed(moved)}.")
    return cut | {name: part for name, part in rows.items() if name != "train"}


def _listed(labels: Iterable[str]) -> str:
    names = [f"'{brief(label, _LONG)}'" for label in dict.fromkeys(labels)]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


# --- classes, numbers and metrics -------------------------------------------------------------------------------------


def _check_labels(source: str, rows: Sequence[Row]) -> None:
    """Check that there are classes to learn.

    Raises:
        DataError: one class only, or labels that hardly ever come again.
    """
    counts = Counter(row.label for row in rows)
    if len(counts) == 1:
        raise DataError(
            f"'{source}': every row has the label '{brief(rows[0].label, _LONG)}'; expected at least two classes. "
            "Is it the right column? Name another with label=COLUMN."
        )
    once = [row for row in rows if counts[row.label] == 1]
    if len(once) > len(rows) / 2 and len(rows) > 2:
        raise DataError(
            f"'{source}', {once[0].position}: the class '{brief(once[0].label, _LONG)}' occurs only once, as "
            f"{len(once)} of {len(counts)} do, which is too little to learn; name another column with label=COLUMN, "
            "or, if the labels are numbers to predict, give kind=regression."
        )


def _classes(
    rows: Mapping[str, Sequence[Row]], sources: Mapping[str, str], choices: Choices, *, held_out: bool
) -> tuple[str, ...]:
    """Return the classes in the order of their ids: those of the training rows.

    Raises:
        DataError: a class that is only scored.
    """
    seen = {row.label for row in rows["train"]}
    for name, scored in rows.items():
        unseen = next((row for row in scored if row.label not in seen), None)
        if unseen is not None:
            advice = (
                "occurs in held-out rows only; add rows of it, or name a second file: validation=FILE."
                if held_out and name == "validation"
                else "is not in the training file; correct the label or drop the row."
            )
            raise DataError(f"'{sources[name]}', {unseen.position}: the class '{brief(unseen.label, _LONG)}' {advice}")
    rank = {label: i for i, label in enumerate(choices.order)}
    return tuple(sorted(seen, key=lambda label: (rank.get(label, len(rank)), label)))


def _class_notes(rows: Mapping[str, Sequence[Row]], labels: Sequence[str]) -> list[str]:
    """Return how many rows each class has, and which are never scored."""
    counts = {name: Counter(row.label for row in part) for name, part in rows.items()}
    shown = sorted(labels, key=lambda label: -counts["train"][label])[:_SHOWN] if len(labels) > _SHOWN else labels
    told = ", ".join(
        f"'{brief(label, _LONG)}' {' + '.join(str(count[label]) for count in counts.values())}" for label in shown
    )
    more = (
        f", and {len(labels) - _SHOWN} more, with {counts['train'][shown[-1]]} or fewer" if len(labels) > _SHOWN else ""
    )
    notes = [f"{len(labels)} classes, rows in {' + '.join(counts)}: {told}{more}."]
    spellings: dict[str, list[str]] = {}
    for label in labels:
        number = _float(label)
        spellings.setdefault(label.casefold() if number is None else repr(number), []).append(label)
    if respelt := [label for alike in spellings.values() if len(alike) > 1 for label in alike]:
        notes.append(f"Classes of their own, though they differ only in how they are spelt: {_listed(respelt)}.")
    if rare := [label for label in labels if not counts["validation"][label]]:
        notes.append(f"Trained on but not in the validation rows, so never scored: {_listed(rare)}.")
    return notes


def _number(source: str, row: Row) -> float:
    number = _float(row.label)
    if number is None or not abs(number) <= _LARGEST:
        beyond = ", which is beyond single precision" if number is not None and math.isfinite(number) else ""
        raise DataError(
            f"'{source}', {row.position}: the label of a regression must be a number such as 3.5; got "
            f"'{brief(row.label, _LONG)}'{beyond}."
        )
    return number


def _check_metric(source: str, choices: Choices, labels: Sequence[str]) -> str:
    """Return the metric's name.

    Raises:
        DataError: there is no such metric, it can't score the task, or it names no class.
    """
    full = choices.metric or DEFAULT_METRICS[choices.kind]
    metric, of_class = named_class(full)
    usable = [
        name for name, known in METRICS.items() if known.kind == choices.kind and (len(labels) == 2 or not known.binary)
    ]
    if metric not in METRICS:
        raise DataError(f"'{source}': {UnknownName('metric', metric, usable)}")
    if of_class is not None:
        if not METRICS[metric].binary or choices.kind == "regression":
            raise DataError(f"'{source}': the metric '{metric}' takes no class; leave out '({of_class})'.")
        if of_class not in labels:
            raise DataError(f"'{source}': {UnknownName('class', of_class, labels)}")
        return full
    if metric not in usable:
        what = f"classification into {len(labels)} classes" if choices.kind == "classification" else "regression"
        hint = f", or name a class: {metric}(CLASS)" if METRICS[metric].binary and labels else ""
        raise DataError(
            f"'{source}': the metric '{metric}' can't score {what}; choose one of {', '.join(usable)}{hint}."
        )
    return full


def _split(rows: Sequence[Row], labels: Sequence[int] | Sequence[float]) -> Split:
    pairs = [row.pair for row in rows if row.pair is not None]
    return Split([row.text for row in rows], pairs or None, labels)
