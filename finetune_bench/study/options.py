"""The options of a study: how each is read, from a flag or from a TOML file."""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_bench.errors import UnknownName, UsageError
from finetune_bench.recipe import ARRANGEMENTS, AUTO
from finetune_bench.spec import split

EXECUTORS = ("local", "ray", "slurm")
DEFAULT_EXECUTOR = EXECUTORS[0]


def _names(value: Any) -> tuple[str, ...]:
    parts = value if isinstance(value, list | tuple) else split(value, ",") if isinstance(value, str) else None
    if not parts or not all(isinstance(part, str) and part.strip() for part in parts):
        raise ValueError("one name or more, separated by commas")
    if doubled := sorted(part for part, count in Counter(parts).items() if count > 1):
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
    Option("executor", _one_of(EXECUTORS), "NAME", "local (default), ray or slurm: see docs/scaling.md", "where"),
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
