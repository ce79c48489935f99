"""This file realises what a method asks of a model's dropout, and finds which of it acts on hidden states."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from finetune_bench.errors import ModelError, ParameterError
from finetune_bench.printable import brief


class Dropout(StrEnum):
    """A method asks one of these of the model's dropout. In a stack the strongest *off* wins."""

    KEEP = "keep"
    # All but what acts on attention probabilities alone, the head's included; see HyPe's card.
    HIDDEN_OFF = "hidden_off"
    ALL_OFF = "all_off"


@dataclass(frozen=True)
class Rates:
    """Rates are dropout as numbers; None leaves a place as the checkpoint has it.

    Attributes:
        hidden: of the embeddings, and of what attention and feed-forward blocks add to the hidden states.
        attention: of attention probabilities.
        head: of the head, before its last layer at least.
    """

    hidden: float | None = None
    attention: float | None = None
    head: float | None = None

    def __post_init__(self) -> None:
        for place, rate in vars(self).items():
            if rate is not None and not (isinstance(rate, float | int) and 0 <= rate < 1):
                raise ParameterError(f"A dropout rate must be a number in [0, 1) or None; got {place}={brief(rate)}.")


# What HyPe's script sets to zero, wherever a configuration has it. Heads whose own rate is None fall back to it.
HIDDEN_DROPOUT_FIELDS = ("hidden_dropout_prob", "dropout")


def with_dropout(config: Any, policy: Dropout) -> Any:
    """Copy a configuration under a dropout policy, before the modules exist: later edits change nothing.

    Configurations have many names for the rest of a model's dropout: `switch_off` finds it in the modules.
    """
    config = copy.deepcopy(config)
    for field, value in config.to_dict().items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool)
        hidden = policy is Dropout.HIDDEN_OFF and field in HIDDEN_DROPOUT_FIELDS
        everything = policy is Dropout.ALL_OFF and "drop" in field
        if is_rate and (hidden or everything):
            setattr(config, field, 0.0)
    return config


def switch_off(model: nn.Module, policy: Dropout) -> list[str]:
    """Switch off, in a model made under `with_dropout`, what its policy means and its configuration did not reach.

    Args:
        model: on any device; its weights and random streams are left as they are.
        policy: what is asked for.

    Returns:
        Where dropout was switched off: module and attribute, layer numbers written as `*`.
    """
    if policy is Dropout.KEEP:
        return []
    spared = attention_dropout(model) if policy is Dropout.HIDDEN_OFF else frozenset()
    changed: dict[str, None] = {}
    for name, module in model.named_modules():
        for key, rate in dropout_rates(module).items():
            if rate > 0 and (name, key) not in spared:
                setattr(module, key, 0.0)
                changed[shown(name, key)] = None
    return list(changed)


def active_dropout(model: nn.Module) -> dict[str, float]:
    """Return the dropout rates above zero, by module and attribute; layer numbers are written as `*`."""
    active: dict[str, float] = {}
    for name, module in model.named_modules():
        for key, rate in dropout_rates(module).items():
            if rate > 0:
                active[shown(name, key)] = float(rate)
    return active


def shown(name: str, key: str) -> str:
    """Return how a rate is called: its module's name and its attribute, with layer numbers written as `*`."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", ".".join(filter(None, (name, "" if key == "p" else key))))


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Return a module's dropout rates, by attribute, without those of the modules in it."""
    is_dropout = "dropout" in type(module).__name__.lower()
    rates = {key: rate for key, rate in vars(module).items() if "drop" in key or (is_dropout and key == "p")}
    return {key: rate for key, rate in rates.items() if isinstance(rate, float | int) and not isinstance(rate, bool)}


def attention_dropout(model: nn.Module) -> frozenset[tuple[str, str]]:
    """Return module and attribute of the rates that act on attention probabilities, and on nothing else."""
    rates = {(name, key) for name, module in model.named_modules() for key in dropout_rates(module)}
    found = traced(model)
    return frozenset(rates & found.on_attention.keys() - found.on_hidden.keys())


def stays_on(skeleton: nn.Module, policy: Dropout) -> bool:
    """Say whether a training pass drops what its policy wants kept, whatever the modules' attributes say.

    Args:
        skeleton: the model on the meta device, after `switch_off`.
        policy: what was asked for.
    """
    if policy is Dropout.KEEP:
        return False
    hidden_only = policy is Dropout.HIDDEN_OFF
    seen = _observe(skeleton.train()).seen
    return any(drop.rate > 0 and not (drop.is_attention and hidden_only) for drop in seen)


class _Key:
    """A model's architecture and configuration, as a key under which what was traced is remembered."""

    def __init__(self, model: nn.Module) -> None:
        self.make: Callable[[Any], nn.Module] = type(model)
        self.config = model.config
        self.text = f"{type(model).__qualname__} {model.config.to_json_string(use_diff=False)}"  # type: ignore[union-attr, operator]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


# By module and attribute of a rate, how wide the tensors are that it drops from.
Widths = dict[tuple[str, str], set[int]]


class Traced(NamedTuple):
    """A Traced is what a pass without weights shows: rates that act on attention, others, and what is dropped as it is.

    `dropped` names the modules of which the output goes into a dropout as it is.
    """

    on_attention: Widths
    on_hidden: Widths
    dropped: frozenset[str]


def traced(model: nn.Module, *, whole: bool = False) -> Traced:
    """Return where dropout acts in a pass without weights.

    Args:
        model: the model; its architecture and configuration alone are read.
        whole: whether rates count that are 0, too, and a pass that stops on its way is refused.

    Raises:
        ModelError: the whole pass was asked for, and it can't be made without weights.
    """
    return _traced(_Key(model), whole)


@lru_cache(maxsize=64)
def _traced(key: _Key, whole: bool) -> Traced:
    """Trace a model of that key; every rate is replaced by another number, by which it is known again where it acts."""
    with torch.device("meta"):
        model = key.make(copy.deepcopy(key.config)).train()
    if whole:
        model.to("meta")  # where XLNet's attention is not by itself
    by_tag: dict[float, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for attribute, rate in dropout_rates(module).items():
            if (rate > 0 or whole) and "layerdrop" not in attribute:
                by_tag[tag := 1e-6 * (len(by_tag) + 1)] = (name, attribute)
                setattr(module, attribute, tag)
    outputs: dict[str, Any] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, args, output, name=name: outputs.update({name: output}))
    watch = _observe(model)
    if whole and not watch.is_finished:
        raise ModelError(f"where dropout acts in {type(model).__name__} can't be found out without its weights")
    on_attention: Widths = {}
    on_hidden: Widths = {}
    for drop in watch.seen:
        if drop.rate in by_tag:
            (on_attention if drop.is_attention else on_hidden).setdefault(by_tag[drop.rate], set()).add(drop.width)
    dropped = frozenset(name for name, output in outputs.items() if id(output) in watch.dropped)
    return Traced(on_attention, on_hidden, dropped)


TRACED = (2, 13)  # sentences and tokens of the batch that is traced


class _Drop(NamedTuple):
    """A dropout in a pass: its rate, whether attention probabilities are its input, and the input's last dimension."""

    rate: float
    is_attention: bool
    width: int


def _observe(model: nn.Module) -> _Watch:
    """Return what saw every dropout in one training pass on the meta device."""
    watch = _Watch()
    try:
        with watch, torch.no_grad():
            model(input_ids=torch.ones(TRACED, dtype=torch.int64, device="meta"))
            watch.is_finished = True
    except Exception:  # noqa: S110 — what reads values can't run without them; what ran before it has been seen
        pass
    return watch


# What makes probabilities of scores; Reformer's attention does it by hand.
_SOFTMAX = ("softmax", "_softmax", "exp")
_READS = ("item", "__bool__", "__contains__", "__int__", "__index__", "__float__")
_MIXES = ("matmul", "bmm", "einsum", "linear", "baddbmm", "__matmul__", "dropout", "dropout_")


class _Watch(TorchFunctionMode):
    """Sees every dropout, and whether its input comes from a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[_Drop] = []
        self.is_finished = False
        self.dropped: dict[int, Tensor | None] = {}  # held for the same reason
        self.probabilities: dict[int, Tensor] = {}  # held, so that no other tensor gets the same id

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        operand = next(_tensors(args, kwargs), None)
        # Models look whether there is padding, or a sentence is too long: there is none, and it isn't.
        if name in _READS:
            return name != "__contains__" if name in ("__bool__", "__contains__") else 1
        if "dropout" in name:
            rate = kwargs["p"] if "p" in kwargs else args[1] if len(args) > 1 else 0.5
            training = kwargs["training"] if "training" in kwargs else args[2] if len(args) > 2 else True
            if training:
                self.dropped[id(operand)] = operand
                self.seen.append(_Drop(float(rate), id(operand) in self.probabilities, _width(operand)))
            return operand
        if name == F.scaled_dot_product_attention.__name__:
            rate = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
            self.seen.append(_Drop(float(rate), True, _width(operand)))
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and operand is not None:
            is_reshaped = id(operand) in self.probabilities and output.numel() == operand.numel()
            if name in _SOFTMAX or (is_reshaped and name not in _MIXES):
                self.probabilities[id(output)] = output
        return output


def _width(tensor: Tensor | None) -> int:
    return 0 if tensor is None or not tensor.ndim else tensor.shape[-1]


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model and all of its modules in evaluation mode inside; after it each is in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
