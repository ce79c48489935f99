"""With `--json` a command prints one of these documents on stdout; everything else that it says goes to stderr.

A document has the keys that its type declares, all of them unless they are `NotRequired`, and no others. A number is
null where it isn't one (NaN) or has no bound. `SCHEMA` rises when a key goes away or changes its meaning, not when one
is added. docs/command-line.md lists every key; a test holds real output and that page against these types.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from finetune_bench._version import __version__
from finetune_bench.cli.console import show

SCHEMA = 1


class Document(TypedDict):
    """Every document has these keys."""

    schema: int
    version: str  # of finetune-bench
    command: str


class ListedMethod(TypedDict):
    """`list methods` has one of these for each method."""

    name: str
    summary: str
    acts_on: str  # inputs, hidden states, weights, loss, gradients, which weights train, or averages; "" for others
    forwards: float  # passes per step, at the defaults
    backwards: float
    saved: str  # memory that autograd keeps, in the sizes that `show` explains
    kept: str  # memory that is kept all along


class ListedTask(TypedDict):
    """`list tasks` has one of these for each task."""

    name: str
    kind: str
    metrics: list[str]  # the first is compared
    labels: list[str]  # names of the classes; empty for regression


class ListedAnalysis(TypedDict):
    """`list analyses` has one of these for each analysis."""

    name: str
    summary: str
    needs_model: bool  # whether it runs the trained model, and not only on the predictions


class ListedModel(TypedDict):
    """`list models` has one of these for each checkpoint that comes in Python packages."""

    name: str
    summary: str
    licence: str
    here: bool  # whether it can be used without a download
    how: str  # what to run to get it


class ListedReport(TypedDict):
    """`list reports` has one of these for each report format."""

    name: str
    summary: str


class ListDocument(Document):
    """`list` prints this; it has the key of the group that was asked for."""

    methods: NotRequired[list[ListedMethod]]
    tasks: NotRequired[list[ListedTask]]
    models: NotRequired[list[ListedModel]]
    analyses: NotRequired[list[ListedAnalysis]]
    reports: NotRequired[list[ListedReport]]


class ShownParameter(TypedDict):
    """A method's hyper-parameter has these facts."""

    name: str
    value: str  # its default, or what the stack sets it to
    default: str
    expected: str
    help: str


class ShownMethod(TypedDict):
    """A method of a stack has these facts."""

    name: str
    version: int
    card: str
    own_learning_rate: str  # why it needs another rate than vanilla, and which; empty where one rate suits both
    parameters: list[ShownParameter]


class ShownStack(TypedDict):
    """A stack, or a single method, has these facts."""

    label: str
    full: str  # with every parameter spelt out
    forwards: float  # passes per step
    backwards: float
    saved: str  # formulas of the cost model
    kept: str
    methods: list[ShownMethod]  # outermost first


class ShownTask(TypedDict):
    """A task has these facts; what only its data tell is null where that isn't at hand without a network."""

    name: str
    kind: str
    metrics: list[str]
    labels: list[str]
    examples: dict[str, int]  # by split: read, or else as published
    is_read: bool  # whether the data were read
    texts: list[list[str]]  # the first training examples: one text, or two of a pair
    source: str  # where the data come from
    licence: str
    notes: list[str]


class ShownFormat(TypedDict):
    """A report format has these facts."""

    name: str
    help: str


class ShownRun(TypedDict):
    """A run folder has these facts."""

    folder: str
    methods: list[str]
    tasks: list[str]
    models: list[str]
    seeds: list[int]
    statuses: dict[str, int]  # number of runs by status
    other_shards: int  # runs of the study that other shards have
    started: str | None  # ISO 8601, in UTC
    finished: str | None
    seconds: float  # of all runs together
    damaged: list[str]
    reports: list[str]  # files of the written report


class ShownCell(TypedDict):
    """A run of a method on a task with a seed is shown as its row."""

    folder: str
    row: dict[str, Any]  # see finetune_bench/store/row.py


class ShowDocument(Document):
    """`show` prints this; it has the key of what the name stands for."""

    stack: NotRequired[ShownStack]
    task: NotRequired[ShownTask]
    report: NotRequired[ShownFormat]
    run: NotRequired[ShownRun]
    cell: NotRequired[ShownCell]


class PlannedMethod(TypedDict):
    """A method of a plan takes this."""

    method: str
    runs: int
    seconds_each: float
    seconds: float
    timed_with: str | None  # the checkpoint that its steps were timed with; null where its passes foretell it


class PlanDocument(Document):
    """`plan` prints this. The last six keys are null, and `methods` is empty, where nothing is left to run."""

    folder: str
    runs: int
    to_run: int
    trainings: int  # that they take: runs that are trained alike, as averages of weights, share one
    cached: int
    skipped: int
    failed_before: int
    notes: list[str]
    methods: list[PlannedMethod]
    device: str | None
    workers: int | None
    cpu_seconds: float | None
    wall_seconds: float | None
    memory_bytes: int | None  # of a worker at its peak; null also where it can't be measured
    disk_bytes: int | None


class Interval(TypedDict):
    """An estimate has these numbers, in points (score × 100); the interval is a 95 % one."""

    value: float
    low: float
    high: float
    n: int  # seeds, pairs or tasks behind it
    df: float


class ReportedScore(Interval):
    """A method's mean on one score, or over all tasks, is told with these keys."""

    method: str
    task: str  # "" for the mean over all tasks
    split: str
    metric: str
    done: int
    failed: int
    skipped: int
    interrupted: int
    collapsed: int


class ReportedDifference(Interval):
    """A method's difference to the reference is told with these keys."""

    method: str
    reference: str
    task: str  # "" for the mean over all tasks
    split: str
    metric: str
    question: str  # "a": new seeds; "b": new tasks
    detectable: float
    p: float
    is_clear: bool  # whether the interval excludes 0


class ReportedSection(TypedDict):
    """The runs of one setting are told with these keys."""

    title: str
    setting: dict[str, Any]
    answer: list[str]
    warnings: list[str]
    methods: list[str]
    tasks: list[str]
    seeds: list[int]
    scores: list[ReportedScore]
    differences: list[ReportedDifference]


class ReportDocument(Document):
    """`report` prints this."""

    folder: str  # of the run
    files: dict[str, list[str]]  # by format, the one to open first
    notes: list[str]
    damaged: dict[str, str]  # what can't be read, with the reason
    sections: list[ReportedSection]


class DifferingFile(TypedDict):
    """A file of a report that isn't what the rows give now has these keys."""

    file: str
    reason: str


class CheckDocument(Document):
    """`report --check` prints this."""

    folder: str
    checked: int
    differing: list[DifferingFile]
    damaged: dict[str, str]


class PoweredDifference(TypedDict):
    """A method's difference takes so many seeds to find."""

    section: str
    method: str
    task: str  # "" for the mean over all tasks
    split: str
    metric: str
    sd: float  # of the paired differences, in points
    pairs: int
    detectable: dict[str, float]  # by number of seeds, the difference that is found
    seeds: int  # for the difference asked for


class PowerDocument(Document):
    """`power` prints this."""

    folder: str
    difference: float
    power: float
    notes: list[str]
    damaged: dict[str, str]
    differences: list[PoweredDifference]


class ComparedRuns(TypedDict):
    """A method on a task compares so in two run folders."""

    method: str
    task: str
    both: int
    equal: int
    unpaired: int
    difference: Interval  # second minus first


class CompareDocument(Document):
    """`compare` prints this."""

    folders: list[str]
    notes: list[str]
    damaged: list[dict[str, str]]
    compared: list[ComparedRuns]


class RunningNow(TypedDict):
    """A run that a process holds at this moment has these keys."""

    id: str
    host: str
    process: int
    seconds: float  # since it began; null where the folder doesn't tell
    quiet_seconds: float  # since the process gave its last sign of life
    is_live: bool  # False: this machine's process is gone, or it was quiet for minutes


class FailedRun(TypedDict):
    """A failed run has these keys."""

    id: str
    run: str
    reason: str


class AnalysisCount(TypedDict):
    """`status` has one of these for each analysis that a run has a result of."""

    name: str
    results: int
    failed: int


class StatusDocument(Document):
    """`status` prints this."""

    folder: str
    runs: int  # that the last command asked for
    done: int
    failed: int
    skipped: int
    interrupted: int
    damaged: int
    left: int  # to do: neither done, failed nor skipped
    other_shards: int
    other_commands: int  # runs of earlier commands in the same folder
    running: list[RunningNow]
    failures: list[FailedRun]
    analyses: list[AnalysisCount]
    started: str | None  # ISO 8601, in UTC
    last_finished: str | None
    seconds_left: float  # null where nothing tells, or nothing runs


class Finding(TypedDict):
    """A finding of `doctor` has these keys."""

    name: str
    state: str  # "ok", "missing" (the default study can't run), or "note"
    detail: str


class DoctorDocument(Document):
    """`doctor` prints this."""

    findings: list[Finding]


DOCUMENTS: dict[str, type] = {
    "list": ListDocument,
    "show": ShowDocument,
    "plan": PlanDocument,
    "report": ReportDocument,
    "report --check": CheckDocument,
    "power": PowerDocument,
    "compare": CompareDocument,
    "status": StatusDocument,
    "doctor": DoctorDocument,
}


def show_document(command: str, values: Mapping[str, Any]) -> None:
    """Print a document on stdout, in ASCII, so that every terminal and every reader gets the same.

    Args:
        command: the command's name.
        values: the document's own keys.
    """
    document = {"schema": SCHEMA, "version": __version__, "command": command, **values}
    # The DEL is the one character that a terminal may obey and JSON leaves as it is.
    text = json.dumps(_plain(document), indent=1, ensure_ascii=True, allow_nan=False)
    show(text.replace("\x7f", "\\u007f"))


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: null for NaN and infinities, lists for tuples, plain numbers for NumPy's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not isinstance(value, bool | int | str | None) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
