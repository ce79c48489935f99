"""A Study describes a comparison: its methods, tasks, models and seeds, and the way to train.

Each field declares its option: `options.py` says how, and `sources.py` makes a study from flags and files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.printable import brief
from finetune_bench.recipe import AUTO, BATCH_LAYOUTS, FORMER_LAYOUTS, Recipe, in_files
from finetune_bench.spec import parse_call
from finetune_bench.study import readers
from finetune_bench.study.options import default_text, option, options_of

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
CHECKPOINT_EVERY = 1000  # steps
EXECUTORS = ("local", "ray", "slurm")
DEFAULT_EXECUTOR = EXECUTORS[0]


@dataclass(frozen=True)
class Study:
    """A study compares methods × tasks × models × learning rates × seeds, with one recipe.

    A field says what it is by its `help`. None, and an empty tuple, stand for the default that the help names; without
    `tasks` and `models` those of the embedded study run. Times are in seconds.
    """

    methods: tuple[str, ...] = option(
        (),
        read=readers.names,
        metavar="LIST",
        help="methods and stacks, as hype,rdrop,hype(eps=1e-4)+rdrop (default: vanilla)",
    )
    tasks: tuple[str, ...] = option(
        (),
        read=readers.names,
        metavar="LIST",
        help="tasks, as rte,mrpc or 'reviews.csv(text=body,label=stars)'",
        in_run_name=True,
    )
    models: tuple[str, ...] = option(
        (),
        name="model",
        read=readers.names,
        metavar="LIST",
        help="checkpoints: hub names or folders; several are an axis of the grid",
        in_run_name=True,
    )
    lrs: tuple[float, ...] = option(
        (),
        name="lr",
        read=readers.numbers,
        metavar="LIST",
        help=f"peak learning rate (default {default_text(Recipe.lr)}); several are an axis of the grid",
        group="recipe",
        in_run_name=True,
    )
    seeds: tuple[int, ...] = option(
        DEFAULT_SEEDS,
        read=readers.seeds,
        metavar="N|LIST",
        help=f"5 means five seeds, 11,12 those two, 11, that one (default {len(DEFAULT_SEEDS)})",
    )
    recipe: Recipe = field(default_factory=Recipe)
    limit_train: int | None = option(
        None,
        read=readers.whole_number(1),
        metavar="N",
        help="train on N examples, the same for every method and seed",
        in_run_name=True,
    )
    batch_layout: str = option(
        AUTO,
        read=readers.one_of((AUTO, *BATCH_LAYOUTS), former=FORMER_LAYOUTS),
        metavar="NAME",
        help="auto, padded, unpadded or unpadded_trimmed ({default})",
        former_name="arrangement",
        group="recipe",
        in_run_name=True,
    )
    keep_head: bool = option(
        False,
        read=readers.switch,
        help="go on from the checkpoint's head, which must predict the task's classes (default: a fresh head)",
    )
    data_root: Path | None = option(
        None,
        read=readers.folder,
        metavar="FOLDER",
        help="read data sets from a folder laid out like the hub",
        group="where",
        in_run_name=True,
    )
    out: Path | None = option(
        None,
        read=readers.folder,
        metavar="FOLDER",
        help="the run folder (default: runs/ and a name made from the study)",
        group="where",
    )
    device: str | None = option(
        None,
        read=readers.text,
        metavar="NAME",
        help="cpu, cuda, cuda:1 (default: CUDA where there is one)",
        group="where",
    )
    workers: int | None = option(
        None,
        read=readers.whole_number(1, 10_000),
        metavar="N",
        help="processes (default: one per device; on a CPU one per core)",
        group="where",
    )
    # It is part of a cell, since sums differ in their last bits.
    threads: int = option(
        1,
        read=readers.whole_number(1, 1024),
        metavar="N",
        help="torch threads of a CPU cell; part of the cell (default {default})",
        group="where",
        in_run_name=True,
    )
    executor: str = option(
        DEFAULT_EXECUTOR,
        read=readers.one_of(EXECUTORS),
        metavar="NAME",
        help="{default} (default), ray or slurm: see docs/scaling.md",
        group="where",
    )
    gpus_per_worker: float = option(
        1.0,
        read=readers.share,
        metavar="X",
        help="share of a GPU per worker, as 0.5 (default {default})",
        group="where",
    )
    slurm: tuple[tuple[str, str], ...] = option(
        (),
        read=readers.pairs,
        metavar="LIST",
        help="parameters of sbatch, as partition=gpu,time=04:00:00; a time is needed",
        group="where",
    )
    budget: float | None = option(
        None,
        read=readers.duration,
        metavar="TIME",
        help="run what fits into 2h, seed by seed, and leave the rest",
        group="where",
    )
    shard: tuple[int, int] | None = option(
        None,
        read=readers.shard,
        metavar="K/N",
        help="run the K-th of N parts of the grid, as 2/8; 'merge' puts the parts together",
        group="where",
    )
    timeout: float | None = option(
        None,
        read=readers.duration,
        metavar="TIME",
        help="stop a cell that takes longer, as 90s, 30m or 2h (default: none)",
        group="where",
    )
    memory: int | None = option(
        None,
        read=readers.memory,
        metavar="SIZE",
        help="end a worker that holds more, as 8GB (default: its share, where memory runs out)",
        group="where",
    )
    checkpoint_every: int = option(
        CHECKPOINT_EVERY,
        read=readers.whole_number(1),
        metavar="N",
        help="steps from one checkpoint to the next (default {default})",
        group="where",
    )
    save_model: bool = option(
        False, read=readers.switch, help="keep every trained model, as a plain Hugging Face folder", group="where"
    )
    sharing: bool = option(
        True,
        name="no_sharing",
        read=readers.switch,
        help="train every run for itself, also those that are trained alike to the last bit",
        group="where",
    )
    baseline: bool = option(
        True, name="no_baseline", read=readers.switch, help="don't add vanilla and its dropout-off control"
    )
    retry_failed: bool = option(
        False,
        read=readers.switch,
        help="run failed cells again, also those that would fail the same way",
        group="where",
    )
    attribution: bool = option(
        False, read=readers.switch, help="add the runs that split each method's gain into its effects"
    )
    search: int | None = option(
        None,
        read=readers.whole_number(2, 10_000),
        metavar="N",
        help="try N settings of every method, the first its default",
        in_run_name=True,
    )
    hold_out: bool = option(
        False,
        read=readers.switch,
        help="set a fifth of the training examples aside, to choose each method's learning rate on them, too",
    )
    fair_cost: bool = option(
        False,
        read=readers.switch,
        help="add vanilla with more steps, for comparisons at equal passes and seconds",
    )
    analyses: tuple[str, ...] = option(
        (),
        read=readers.names,
        metavar="LIST",
        help="what else is measured of every trained model, as similarity,drift (see: list analyses)",
    )
    plugins: tuple[str, ...] = option(
        (),
        name="plugin",
        read=readers.paths,
        metavar="LIST",
        help="Python files with more methods, tasks, analyses or reports",
    )
    trust_plugins: bool = option(
        False,
        read=readers.switch,
        help="keep a worker after a plugin's cell, for all that this may leave behind: faster",
    )

    # Several grids of one file; the lists above hold what any of them has. See `blocks.py`.
    blocks: tuple[Study, ...] = ()
    # What its reports say of it on their first lines; "" for nothing.
    preset: str = ""

    def __post_init__(self) -> None:
        """Read every value as the command line would.

        Raises:
            UsageError: names the field, what was expected and what came; or the options that don't go together.
        """
        self._check_executor()
        for declared in options_of(Study):
            value = getattr(self, declared.field)
            if value is None or value == ():
                continue
            try:
                object.__setattr__(self, declared.field, declared.read(value))
            except ValueError as error:
                raise UsageError(f"Study: '{declared.field}' must be {error}; got {brief(repr(value))}.") from None
        if self.executor == "slurm":
            self._check_job_time()
        if self.shard is not None and self.budget is not None:
            raise UsageError(
                "--budget: it is spent on whole comparisons, and a shard holds parts of them; leave one of --budget "
                "and --shard out."
            )
        if self.hold_out and self.fair_cost:
            raise UsageError(
                "--hold-out: vanilla with more steps is no setting to choose among; leave --fair-cost out."
            )
        if self.search is not None:
            axes = {"several learning rates": len(self.lrs) > 1, "--attribution": self.attribution}
            others = {"--fair-cost": self.fair_cost, "--hold-out, which it does by itself": self.hold_out}
            if clash := [name for name, asked in {**axes, **others}.items() if asked]:
                raise UsageError(f"--search draws learning rates and settings itself; leave out {clash[0]}.")

    def _check_executor(self) -> None:
        """Check that the options of where cells run go together."""
        if self.slurm and self.executor != "slurm":
            raise UsageError("--slurm: these parameters are for jobs; give --executor slurm with them.")
        if self.executor == "slurm" and self.gpus_per_worker != 1:
            raise UsageError("--gpus-per-worker: a SLURM job has a GPU of its own; leave it out.")
        if self.executor != DEFAULT_EXECUTOR and self.budget is not None:
            raise UsageError("--budget: it is calibrated on this machine; leave it out with cells that run elsewhere.")
        if self.executor != DEFAULT_EXECUTOR and self.memory is not None:
            raise UsageError(
                "--memory: it is watched on this machine only; leave it out. SLURM takes --slurm mem=8G, and Ray ends "
                "workers itself where memory runs out."
            )
        if self.executor == "slurm" and self.timeout is not None:
            raise UsageError("--timeout: under SLURM a job's time is the limit; give --slurm time=04:00:00.")

    @property
    def runs_elsewhere(self) -> bool:
        """Tell whether cells run on other machines than the one that starts them."""
        return self.executor != DEFAULT_EXECUTOR and dict(self.slurm).get("cluster") != "local"

    def _check_job_time(self) -> None:
        """Check that SLURM's jobs are given a time: without one they get five minutes, whatever a cell takes."""
        time = dict(self.slurm).get("time")
        if time is None and self.runs_elsewhere:
            raise UsageError(
                "--executor slurm: say how long a job may run, as --slurm time=04:00:00. Near the end of its time a "
                "job is queued again and goes on."
            )
        try:
            if time is not None:
                readers.job_minutes(time)
        except ValueError as error:
            raise UsageError(f"--slurm: expected as time {error}; got '{time}'.") from None


def as_dict(study: Study) -> dict[str, Any]:
    """Return a study as JSON can hold it."""
    values = {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in (in_files(dataclasses.asdict(study)) | {"recipe": study.recipe.to_dict()}).items()
    }
    del values["blocks"]
    for later in ("preset", "hold_out"):  # what earlier versions did not know is left out where it says nothing
        if not values[later]:
            del values[later]
    return values | ({"blocks": [as_dict(block) for block in study.blocks]} if study.blocks else {})


def _naming(study: Study) -> dict[str, Any]:
    """Return what of a study goes into the name of its folder."""
    left_out = {"blocks", "preset", *(declared.field for declared in options_of(Study) if not declared.in_run_name)}
    return {key: value for key, value in as_dict(study).items() if key not in left_out}


def run_name(study: Study) -> str:
    """Return the name of the folder that a study gets by default.

    It is made of the first tasks' names and a hash of the recipe and of every option that says `in_run_name`. Other
    methods or seeds of the same comparison share the folder. A shard's folder has its number behind the study's name.
    """
    values = _naming(study)
    if study.blocks:
        values["blocks"] = [_naming(block) for block in study.blocks]
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:6]
    # A source's prefix is left out, as there is to be no colon in a path.
    stems = [Path(parse_call(text).name.removeprefix("hub:")).stem for text in study.tasks[:4]]
    shard = [] if study.shard is None else [f"shard-{study.shard[0]}-of-{study.shard[1]}"]
    return "-".join([*stems, digest, *shard])
