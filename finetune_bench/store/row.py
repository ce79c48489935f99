"""The record of one cell, as `row.json` holds it: its keys and their types.

They are checked by mypy wherever a row is used, and by `shape.py` when its file is read.

Every row says what its cell was. A row that is done also says what came of it, and a row that was run (done or failed)
says when and where; the keys for that are absent in other rows, and some are absent in rows of earlier versions, within
tables too: what isn't `total` may lack its keys. JSON knows no NaN: where a number isn't one, the file holds null.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NotRequired, TypedDict


class Status(StrEnum):
    """A status says what has become of a cell. A row from a file holds the plain text, which is equal to it."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # it can't run, and why was known before the run began
    INTERRUPTED = "interrupted"


class Retry(StrEnum):
    """A failed cell is run again in one of these cases."""

    ALWAYS = "always"  # by the next run of the study: out of memory, or its process was killed
    ASKED = "asked"  # only with --retry-failed: it would fail in the same way


class MethodEntry(TypedDict):
    """A row has one entry for each method of its stack."""

    name: str
    version: int
    parameters: dict[str, Any]
    changes_losses: NotRequired[bool]  # there, and true, where it changes the losses of single examples


class TrainingFacts(TypedDict, total=False):
    """The training loss is kept as means over the first and the last tenth of the steps, in nats or squared units."""

    steps: int
    first_loss: float
    last_loss: float
    constant_loss: float  # of predicting the distribution of the labels, whatever the text
    hardly_moved: bool
    grad_norm: float  # the median over the steps where it is finite, before clipping
    clipped_share: float  # of the steps: those whose gradient was clipped


class Cost(TypedDict, total=False):
    """A cell has these costs. Seconds of training leave the first steps out, which pay for allocation and caches."""

    train_seconds: float
    train_cpu_seconds: float
    examples_per_second: float | None
    evaluation_seconds: float
    setup_seconds: float
    forwards_per_step: float
    backwards_per_step: float
    setup_forwards: int
    setup_backwards: int
    parameters: int
    trainable_parameters: int
    muon_parameters: int  # those of them that Muon stepped, AdamW the others; absent with another optimiser
    saved_activation_bytes: int
    peak_memory_bytes: int | None  # None where the machine doesn't tell; so are the two below
    peak_reserved_bytes: int | None
    energy_joules: float | None
    others_seconds: float  # where runs shared the training: what the others' observers took, which is taken off above
    others_bytes: int  # likewise of memory; neither where the training went on from a checkpoint
    resumed_at: int | None  # the step at which a checkpoint was taken up; None for a run in one go


class Hashes(TypedDict, total=False):
    """A run begins from a head, an order and data. Rows of different methods with equal hashes of them are paired."""

    init: str
    order: str
    data: str


class FileFacts(TypedDict):
    """A row has these facts of each of its files of arrays; the hash is absent in rows of schema 1."""

    bytes: int
    sha256: NotRequired[str]


class Outcome(TypedDict, total=False):
    """An outcome tells what came of a cell: a row has, or lacks, these keys by its status."""

    # Rows that are done.
    metrics: dict[str, dict[str, float]]  # by split, then by metric
    majority: dict[str, dict[str, float]]  # the same for the constant prediction of the majority
    collapsed: str | None  # why the run counts as collapsed
    subset: list[str]  # names of the splits that are subsets
    notes: list[str]  # facts about the data
    licence: str  # of the data, where its task names one
    training: TrainingFacts
    cost: Cost
    hashes: Hashes
    dropout: dict[str, float]  # realised probability by kind of module
    fresh_weights: list[str]  # names of the parameters that were drawn anew: the head's, and a pooler's if it had none
    shared_training: int  # cells that one training served, where it served several: seconds and peaks are its own
    accumulated: int  # of a cell that ran out of memory: the accumulation it was trained with in the end
    files: dict[str, FileFacts]  # by name of each file of arrays; a row whose files hold something else is damaged

    # Rows that failed.
    retry: Retry
    broken: bool  # whether its process could use its device no more

    # Rows that are done, and those that failed while they ran.
    environment: dict[str, Any]  # versions of libraries, device, platform, commit
    started: str  # ISO 8601, in UTC
    finished: str
    seconds: float
    cpu_seconds: float


class Row(Outcome):
    """A row is the record of one cell: its specification, its status, and its outcome."""

    schema: int
    id: str
    status: Status
    reason: str | None  # why it isn't done, a sentence
    method: str  # the label that reports show
    methods: list[MethodEntry]  # outermost first
    task: str
    kind: str
    metric: str  # the score that tables compare
    model: str
    seed: int
    limit_train: int | None
    held_out: NotRequired[float]
    stretch: NotRequired[float]
    recipe: dict[str, Any]
    device: str
    threads: int
    data: NotRequired[str]  # the fingerprint of the examples; rows of earlier versions have it in `hashes` only
    weights: NotRequired[str]  # the fingerprint of the checkpoint, with marks that say how it is taken
    sources: NotRequired[list[str]]  # fingerprints of the plugins' source, where there are any


class StudyRecord(TypedDict, total=False):
    """A StudyRecord declares the keys of `study.json` for its readers: the runner and the reports."""

    models: list[str]
    methods: list[str]
    tasks: list[str]
    preset: str  # what reports say first of a study that was made from a preset
    cells: list[str]
    other_shards: list[str]  # ids of the study's cells that are left to other shards
    notes: list[str]
    told: list[str]  # notes that a run in this folder has told, whatever it was of
    effects: dict[str, list[list[str]]]  # by label, each method's effects and the labels of the runs that have them
    searched: dict[str, list[list[Any]]]  # by label of a default, labels and learning rates that a search tries
    searched_before: dict[str, list[list[Any]]]  # what earlier commands of the folder tried, in the same form
