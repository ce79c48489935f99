"""What to compare, and how to train: the Study, from flags, from a TOML file, or from Python.

One table, `OPTIONS`, names every option once; the command line and the TOML file both read it, so a key of the file is
a flag without its dashes (`batch_size = 16`). Flags win over the file, the file over the defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.recipe import ARRANGEMENTS, AUTO, Recipe
from finetune_bench.spec import parse_call
from finetune_bench.study.options import (
    DEFAULT_EXECUTOR,
    EXECUTORS,
    _at_least_one,
    _at_least_two,
    _duration,
    _folder,
    _names,
    _numbers,
    _one_of,
    _pairs,
    _paths,
    _seeds,
    _share,
    read_options,
    read_toml,
)

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
CHECKPOINT_EVERY = 1000  # steps


@dataclass(frozen=True)
class Study:
    """A comparison: methods × tasks × models × learning rates × seeds, and one recipe.

    Attributes:
        methods: stacks as typed, e.g. "hype(eps=1e-4)+rdrop".
        tasks: task names, or files with options; empty for those of the embedded study.
        models: hub names or folders; empty for the default model.
        lrs: learning rates, an axis of the grid; empty for the recipe's.
        seeds: one run each.
        recipe: how every cell is trained.
        limit_train: train on that many examples, the same for every method and seed.
        arrangement: of every cell; "auto" for the furthest that every method and model of the study can do.
        data_root: read data sets from this folder, laid out like the hub.
        out: the run folder; None for one below `runs/`, named by the study.
        device: "cpu", "cuda" or "cuda:1"; None for CUDA where there is one.
        workers: processes; None for one per device, or one per core of a CPU.
        threads: torch threads of a CPU cell; part of the cell, since sums differ in the last bits.
        executor: "local", "ray" or "slurm".
        gpus_per_worker: share of a GPU that a worker takes; below 1 several share one. Not under slurm.
        slurm: pairs of sbatch parameters.
        budget: seconds that a run may take; cells that don't fit wait for the next one.
        timeout: seconds that a cell may take, from loading its data to its scores; None for no limit.
        checkpoint_every: steps from one checkpoint to the next; a killed cell goes on from the last one.
        save_model: keep the trained model of every cell.
        baseline: add vanilla and its dropout-off control where they are missing.
        retry_failed: run failed cells again, also those that would fail the same way.
        attribution: add the twins of single methods that turn their effects on one after the other.
        search: settings to try of every method, the first its default; None for the default alone.
        fair_cost: add vanilla with as many more steps as each dearer method's step costs more passes.
        plugins: Python files with more methods, tasks or reports.
    """

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    lrs: tuple[float, ...] = ()
    seeds: tuple[int, ...] = DEFAULT_SEEDS
    recipe: Recipe = field(default_factory=Recipe)
    limit_train: int | None = None
    arrangement: str = AUTO
    data_root: Path | None = None
    out: Path | None = None
    device: str | None = None
    workers: int | None = None
    threads: int = 1
    executor: str = DEFAULT_EXECUTOR
    gpus_per_worker: float = 1.0
    slurm: tuple[tuple[str, str], ...] = ()
    budget: float | None = None
    timeout: float | None = None
    checkpoint_every: int = CHECKPOINT_EVERY
    save_model: bool = False
    baseline: bool = True
    retry_failed: bool = False
    attribution: bool = False
    search: int | None = None
    fair_cost: bool = False
    plugins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Read every value as the command line would.

        Raises:
            UsageError: names the field, what was expected and what came.
        """
        readers: dict[str, Callable[[Any], Any]] = {
            **dict.fromkeys(("methods", "tasks", "models"), _names),
            **dict.fromkeys(("limit_train", "workers", "threads", "checkpoint_every"), _at_least_one),
            "search": _at_least_two,
            **dict.fromkeys(("timeout", "budget"), _duration),
            "arrangement": _one_of((AUTO, *ARRANGEMENTS)),
            "executor": _one_of(EXECUTORS),
            "gpus_per_worker": _share,
            "slurm": _pairs,
            **dict.fromkeys(("data_root", "out"), _folder),
            "lrs": _numbers,
            "seeds": _seeds,
            "plugins": _paths,
        }
        if self.slurm and self.executor != "slurm":
            raise UsageError("--slurm: these parameters are for jobs; give --executor slurm with them.")
        if self.executor == "slurm" and self.gpus_per_worker != 1:
            raise UsageError("--gpus-per-worker: a SLURM job has a GPU of its own; leave it out.")
        if self.executor != DEFAULT_EXECUTOR and self.budget is not None:
            raise UsageError("--budget: it is calibrated on this machine; leave it out with cells that run elsewhere.")
        if self.executor == "slurm" and self.timeout is not None:
            raise UsageError("--timeout: under SLURM a job's time is the limit; give --slurm time=MINUTES.")
        for name, read in readers.items():
            value = getattr(self, name)
            if value is None or value == ():
                continue
            try:
                object.__setattr__(self, name, read(value))
            except ValueError as error:
                raise UsageError(f"Study: '{name}' must be {error}; got {value!r}.") from None
        if self.search is not None:
            axes = {"several learning rates": len(self.lrs) > 1, "--attribution": self.attribution}
            if clash := [name for name, asked in {**axes, "--fair-cost": self.fair_cost}.items() if asked]:
                raise UsageError(f"--search draws learning rates and settings itself; leave out {clash[0]}.")


# --- reading values: each takes what a flag (text) or a TOML file (text, number, list, boolean) holds -----------------


def make_study(flags: Mapping[str, Any], defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """The study that flags describe, with the file of --config and the defaults below them.

    Args:
        flags: by option name, texts or values; None where not given.
        defaults: yields the options of the embedded study; its recipe counts only where no task is named, its model
            wherever none is.

    Raises:
        UsageError: the first thing that is wrong.
    """
    given = read_options(flags)
    if "config" in given:
        given = read_toml(given.pop("config")) | given
    embedded = read_options(defaults(), source="the embedded study")
    options = {"model": embedded["model"], **given} if "tasks" in given else embedded | given
    if "methods" not in options:
        options["methods"] = ("vanilla",)
    if "steps" in given:
        options = {name: value for name, value in options.items() if name != "epochs" or name in given}
    beta1, beta2 = options.pop("betas", (Recipe.beta1, Recipe.beta2))
    lrs = options.pop("lr", (Recipe.lr,))
    of_recipe = {field.name for field in dataclasses.fields(Recipe)} & set(options) - {"arrangement"}  # a study's
    recipes = {name: options.pop(name) for name in of_recipe}
    options["baseline"] = not options.pop("no_baseline", False)
    for plural, option in (("models", "model"), ("plugins", "plugin")):
        options[plural] = options.pop(option, ())
    for lr in lrs:  # every learning rate is checked before any cell runs
        recipe = Recipe(lr=lr, beta1=beta1, beta2=beta2, **recipes)
    return Study(lrs=lrs, recipe=dataclasses.replace(recipe, lr=lrs[0]), **options)


def as_dict(study: Study) -> dict[str, Any]:
    """A study as JSON can hold it."""
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in dataclasses.asdict(study).items()
    }


def with_defaults(study: Study, defaults: Callable[[], Mapping[str, Any]]) -> Study:
    """Fill in what the study leaves open: the embedded study's tasks, or its model alone where tasks are named."""
    if study.tasks and study.models:
        return study
    options = read_options(defaults(), source="the embedded study")
    models = study.models or options["model"]
    return dataclasses.replace(study, tasks=study.tasks or options["tasks"], models=models)


def run_name(study: Study) -> str:
    """The folder that a study gets by default; other methods or seeds of the same comparison share it."""
    apart = {
        "methods",
        "seeds",
        "out",
        "device",
        "workers",
        "executor",
        "slurm",
        "gpus_per_worker",
        "timeout",
        "budget",
        "checkpoint_every",
        "save_model",
        "baseline",
        "retry_failed",
        "plugins",
        "attribution",
        "fair_cost",
    }
    rest = {key: value for key, value in as_dict(study).items() if key not in apart}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:6]
    stems = [Path(parse_call(text).name.removeprefix("hub:")).stem for text in study.tasks[:4]]  # no colon in a path
    return "-".join([*stems, digest])
