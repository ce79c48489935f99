"""What to compare, and how to train: the Study, from flags, from a TOML file, or from Python.

One table, `OPTIONS`, names every option once; the command line and the TOML file both read it, so a key of the file is
a flag without its dashes (`batch_size = 16`). Flags win over the file, the file over the defaults.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_bench import executors
from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.parameters import parameter, validate
from finetune_bench.spec import parse_call, split

DEFAULT_SEEDS = (1, 2, 3, 4, 5)
DEFAULT_EPOCHS = 3
CHECKPOINT_EVERY = 1000  # steps
ARRANGEMENTS = ("padded", "packed", "trimmed")  # of a batch; each leaves more out than the one before it
AUTO = "auto"  # the furthest that all of a study can do


@dataclass(frozen=True)
class Recipe:
    """How one cell is trained; the defaults are the HyPe paper's.

    A step's batch is `batch_size` examples, whatever the accumulation: `accumulation` cuts it into that many
    micro-batches, which gives the same gradient in less memory.

    The arrangement says what is left out of the arithmetic, and never of what is trained: nothing but padding to the
    longest of the batch (padded); the padding too, between embeddings and head (packed); besides, the rows of the token
    embeddings whose tokens don't occur (trimmed).
    """

    lr: float = parameter(2e-5, interval="(0, inf)", help="peak learning rate of AdamW")
    batch_size: int = parameter(16, interval="[1, inf)", help="examples per optimiser step")
    epochs: int | None = parameter(None, interval="[1, inf)", help="passes over the training data; 3 unless steps say")
    steps: int | None = parameter(None, interval="[1, inf)", help="optimiser steps, in place of epochs")
    warmup: float = parameter(0.1, interval="[0, inf)", help="linear warm-up: below 1 a share of the steps, else steps")
    weight_decay: float = parameter(0.1, interval="[0, inf)", help="decoupled; not on biases and norms")
    beta1: float = parameter(0.9, interval="[0, 1)", help="AdamW's first beta")
    beta2: float = parameter(0.99, interval="[0, 1)", help="AdamW's second beta")
    adam_eps: float = parameter(1e-6, interval="(0, inf)", help="AdamW's epsilon")
    clip: float = parameter(1.0, interval="(0, inf]", help="largest global gradient norm; inf for none")
    accumulation: int = parameter(1, interval="[1, inf)", help="micro-batches per step")
    gradient_checkpointing: bool = parameter(False, help="recompute activations in the backward pass")
    max_length: int = parameter(128, interval="[2, inf)", help="tokens per example at most")
    precision: str = parameter("fp32", choices=("fp32", "bf16", "fp16"), help="of the arithmetic; weights stay fp32")
    deterministic: bool = parameter(False, help="only deterministic kernels; slower on CUDA")
    arrangement: str = parameter("padded", choices=ARRANGEMENTS, help="what is left out: see docs/protocol.md")

    def __post_init__(self) -> None:
        validate(self)
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs both say how long to train; give one of them.")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"--accumulation must divide --batch-size, so that micro-batches are alike; "
                f"got {self.accumulation} and {self.batch_size}."
            )

    def total_steps(self, examples: int) -> int:
        """Optimiser steps for a training set of that size."""
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * -(-examples // self.batch_size)

    def warmup_steps(self, total_steps: int) -> int:
        """Steps in which the learning rate climbs."""
        return int(self.warmup if self.warmup >= 1 else self.warmup * total_steps)


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
    executor: str = executors.DEFAULT
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
            "executor": _one_of(executors.NAMES),
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
        if self.executor != executors.DEFAULT and self.budget is not None:
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


def _names(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else split(value, ",") if isinstance(value, str) else None
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError("one name or more, separated by commas")
    if doubled := sorted({part for part in parts if list(parts).count(part) > 1}):
        raise ValueError(f"each name once ('{doubled[0]}' is given twice)")
    return tuple(parts)


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(os.path.abspath(os.path.expanduser(part)) for part in _names(value))  # noqa: PTH100, PTH111


def _seeds(value: Any) -> tuple[int, ...]:
    expected = "a number of seeds (5), or a list of them (11,12 or 11,)"
    try:
        if isinstance(value, str) and "," in value:
            value = [int(part) for part in split(value, ",")]
        many = isinstance(value, list | tuple)
        seeds = tuple(value) if many else tuple(range(1, _number(int, expected)(value) + 1))
    except (TypeError, ValueError):
        raise ValueError(expected) from None
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(expected + ", each 0 or more and given once")
    return seeds


def _number(kind: type, text: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        try:
            number = kind(value)
        except (OverflowError, TypeError, ValueError):
            raise ValueError(text) from None
        if isinstance(value, bool) or (kind is int and float(value) != number):
            raise ValueError(text)
        return number

    return read


def _numbers(value: Any) -> tuple[float, ...]:
    text = "one number or more, separated by commas"
    parts = split(value, ",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    numbers = tuple(_number(float, text)(part) for part in parts)
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(text + ", each once")
    return numbers


def _at_least_one(value: Any) -> int:
    number: int = _number(int, "a whole number of at least 1")(value)
    if number < 1:
        raise ValueError("a whole number of at least 1")
    return number


def _at_least_two(value: Any) -> int:
    number: int = _number(int, "a whole number of at least 2")(value)
    if number < 2:
        raise ValueError("a whole number of at least 2")
    return number


def _betas(value: Any) -> tuple[float, float]:
    numbers = split(value, ",") if isinstance(value, str) else value
    if not isinstance(numbers, list | tuple) or len(numbers) != 2:
        raise ValueError("two numbers, as 0.9,0.99")
    read = _number(float, "two numbers, as 0.9,0.99")
    return read(numbers[0]), read(numbers[1])


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a text")
    return value


def _duration(value: Any) -> float:
    """Seconds of `90`, `90s`, `30m` or `2h`."""
    found = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([smh]?)", str(value).strip())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not seconds > 0:
        raise ValueError("a duration above 0, as 90s, 30m or 2h")
    return seconds


def _one_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return str(value)

    return read


def _share(value: Any) -> float:
    number: float = _number(float, "a number above 0 and at most 1")(value)
    if not 0 < number <= 1:
        raise ValueError("a number above 0 and at most 1")
    return number


def _pairs(value: Any) -> tuple[tuple[str, str], ...]:
    """`key=value,key=value`, a mapping, or pairs."""
    if isinstance(value, str):
        value = [part.partition("=")[::2] for part in split(value, ",")]
    pairs = list(value.items()) if isinstance(value, Mapping) else list(value)
    if any(len(pair) != 2 or not all(str(word).strip() for word in pair) for pair in pairs):
        raise ValueError("pairs, as partition=gpu,time=240")
    return tuple((str(key).strip(), str(word).strip()) for key, word in pairs)


def _folder(value: Any) -> Path:
    return (value if isinstance(value, Path) else Path(_text(value))).expanduser()


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


@dataclass(frozen=True)
class Option:
    """One option of a study: its flag is the name with dashes, its TOML key the name itself."""

    name: str
    read: Callable[[Any], Any]
    metavar: str
    help: str
    group: str = "study"

    @property
    def flag(self) -> str:
        """How it is typed."""
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.read is _flag


OPTIONS: tuple[Option, ...] = (
    Option("methods", _names, "LIST", "methods and stacks, as hype,rdrop,hype(eps=1e-4)+rdrop"),
    Option("tasks", _names, "LIST", "tasks, as rte,mrpc or 'reviews.csv(text=body,label=stars)'"),
    Option("model", _names, "LIST", "checkpoints: hub names or folders; several are an axis of the grid"),
    Option("seeds", _seeds, "N|LIST", "5 means five seeds, 11,12 those two, 11, that one (default 5)"),
    Option("limit_train", _at_least_one, "N", "train on N examples, the same for every method and seed"),
    Option("no_baseline", _flag, "", "don't add vanilla and its dropout-off control"),
    Option("attribution", _flag, "", "add the runs that split each method's gain into its effects"),
    Option("search", _at_least_two, "N", "try N settings of every method, the first its default"),
    Option("fair_cost", _flag, "", "add vanilla with more steps, for comparisons at equal passes and seconds"),
    Option("config", _text, "FILE", "a TOML file with these options; flags win over it"),
    Option("plugin", _paths, "LIST", "Python files with more methods, tasks or reports"),
    Option("data_root", _folder, "FOLDER", "read data sets from a folder laid out like the hub", "where"),
    Option("out", _folder, "FOLDER", "the run folder (default: runs/ and a name made from the study)", "where"),
    Option("device", _text, "NAME", "cpu, cuda, cuda:1 (default: CUDA where there is one)", "where"),
    Option("workers", _at_least_one, "N", "processes (default: one per device; on a CPU one per core)", "where"),
    Option("threads", _at_least_one, "N", "torch threads of a CPU cell; part of the cell (default 1)", "where"),
    Option("executor", _one_of(executors.NAMES), "NAME", "local (default), ray or slurm: see docs/scaling.md", "where"),
    Option("gpus_per_worker", _share, "X", "share of a GPU per worker, as 0.5 (default 1)", "where"),
    Option("slurm", _pairs, "LIST", "parameters of sbatch, as partition=gpu,time=240", "where"),
    Option("budget", _duration, "TIME", "run what fits into 2h, seed by seed, and leave the rest", "where"),
    Option("timeout", _duration, "TIME", "stop a cell that takes longer, as 90s, 30m or 2h (default: none)", "where"),
    Option("checkpoint_every", _at_least_one, "N", "steps from one checkpoint to the next (default 1000)", "where"),
    Option("save_model", _flag, "", "keep every trained model, as a plain Hugging Face folder", "where"),
    Option("retry_failed", _flag, "", "run failed cells again, also those that would fail the same way", "where"),
    Option("lr", _numbers, "LIST", "peak learning rate (default 2e-5); several are an axis of the grid", "recipe"),
    Option("epochs", _at_least_one, "N", "passes over the training data (default 3)", "recipe"),
    Option("steps", _at_least_one, "N", "optimiser steps, in place of --epochs", "recipe"),
    Option("batch_size", _at_least_one, "N", "examples per optimiser step (default 16)", "recipe"),
    Option("accumulation", _at_least_one, "N", "cut each batch into N micro-batches (default 1)", "recipe"),
    Option(
        "warmup", _number(float, "a number of at least 0"), "X", "share of the steps, or steps if ≥ 1 (0.1)", "recipe"
    ),
    Option("weight_decay", _number(float, "a number of at least 0"), "X", "decoupled weight decay (0.1)", "recipe"),
    Option("betas", _betas, "A,B", "AdamW's betas (0.9,0.99)", "recipe"),
    Option("adam_eps", _number(float, "a number above 0"), "X", "AdamW's epsilon (1e-6)", "recipe"),
    Option(
        "clip",
        _number(float, "a number above 0 (inf for none)"),
        "X",
        "largest global gradient norm, inf for none (1.0)",
        "recipe",
    ),
    Option("max_length", _at_least_one, "N", "tokens per example at most (128)", "recipe"),
    Option("precision", _text, "NAME", "fp32, bf16 or fp16 arithmetic; weights stay fp32 (fp32)", "recipe"),
    Option("gradient_checkpointing", _flag, "", "recompute activations in the backward pass", "recipe"),
    Option("arrangement", _one_of((AUTO, *ARRANGEMENTS)), "NAME", "auto, padded, packed or trimmed (auto)", "recipe"),
    Option("deterministic", _flag, "", "only deterministic kernels; slower on CUDA", "recipe"),
)


def read_options(values: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """Read option values of one source.

    Args:
        values: by option name; None counts as not given.
        source: the file's name for messages; "" for flags.

    Raises:
        UnknownName: a key that is no option.
        UsageError: a value that can't be read; names the source, the key and the value.
    """
    known = {option.name: option for option in OPTIONS}
    read: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known or (source and name == "config"):
            raise UnknownName(f"option{f' in {source}' if source else ''}", key, set(known) - {"config"})
        if value is None:
            continue
        try:
            read[name] = known[name].read(value)
        except ValueError as error:
            where = f"{source}: key '{key}'" if source else known[name].flag
            raise UsageError(f"{where}: expected {error}; got '{value}'.") from None
    return read


def read_toml(path: str) -> dict[str, Any]:
    """The options of a TOML file.

    Raises:
        UsageError: no such file, broken TOML (with its line), an unknown key or a wrong value.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise UsageError(f"--config: '{path}' can't be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: '{path}' is not valid TOML: {error}.") from None
    return read_options(values, source=path)


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
    stems = [Path(parse_call(text).name).stem for text in study.tasks[:4]]
    return "-".join([*stems, digest])
