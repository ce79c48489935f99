"""This file realises what a method asks of a model's dropout, and finds which of it acts on hidden states."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Dropout(StrEnum):
    """A method asks one of these of the model's dropout. In a stack the strongest *off* wins."""

    KEEP = "keep"
    # All but what acts on attention probabilities alone, the head's included; see HyPe's card.
    HIDDEN_OFF = "hidden_off"
    ALL_OFF = "all_off"


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
    on_attention, on_hidden = _traced(_Key(model))
    return frozenset(rates & on_attention - on_hidden)


def stays_on(skeleton: nn.Module, policy: Dropout) -> bool:
    """Say whether a training pass drops what its policy wants kept, whatever the modules' attributes say.

    Args:
        skeleton: the model on the meta device, after `switch_off`.
        policy: what was asked for.
    """
    if policy is Dropout.KEEP:
        return False
    hidden_only = policy is Dropout.HIDDEN_OFF
    return any(rate > 0 and not (on_attention and hidden_only) for rate, on_attention in _observe(skeleton.train()))


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


Rates = set[tuple[str, str]]  # module and attribute


@lru_cache(maxsize=64)
def _traced(key: _Key) -> tuple[Rates, Rates]:
    """Return which rates act on attention probabilities, and which on something else, in a pass without weights.

    Every rate is replaced by another number, by which it is known again where dropout happens.
    """
    with torch.device("meta"):
        model = key.make(copy.deepcopy(key.config)).train()
    by_tag: dict[float, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for attribute, rate in dropout_rates(module).items():
            if rate > 0 and "layerdrop" not in attribute:
                by_tag[tag := 1e-6 * (len(by_tag) + 1)] = (name, attribute)
                setattr(module, attribute, tag)
    seen = _observe(model)
    on_attention = {by_tag[rate] for rate, is_attention in seen if is_attention and rate in by_tag}
    on_hidden = {by_tag[rate] for rate, is_attention in seen if not is_attention and rate in by_tag}
    return on_attention, on_hidden


TRACED = (2, 13)  # sentences and tokens of the batch that is traced


def _observe(model: nn.Module) -> Sequence[tuple[float, bool]]:
    """Return the rate of every dropout in one training pass on the meta device, and whether attention is its input."""
    watch = _Watch()
    try:
        with watch, torch.no_grad():
            model(input_ids=torch.ones(TRACED, dtype=torch.int64, device="meta"))
    except Exception:  # noqa: S110 — what reads values can't run without them; what ran before it has been seen
        pass
    return watch.seen


# What makes probabilities of scores; Reformer's attention does it by hand.
_SOFTMAX = ("softmax", "_softmax", "exp")
_READS = ("item", "__bool__", "__contains__", "__int__", "__index__", "__float__")
_MIXES = ("matmul", "bmm", "einsum", "linear", "baddbmm", "__matmul__", "dropout", "dropout_")


class _Watch(TorchFunctionMode):
    """Sees every dropout, and whether its input comes from a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[float, bool]] = []
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
                self.seen.append((float(rate), id(operand) in self.probabilities))
            return operand
        if name == F.scaled_dot_product_attention.__name__:
            self.seen.append((float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)), True))
        output = func(*args, **kwargs)
        if isinstance(output, Tensor) and operand is not None:
            is_reshaped = id(operand) in self.probabilities and output.numel() == operand.numel()
            if name in _SOFTMAX or (is_reshaped and name not in _MIXES):
                self.probabilities[id(output)] = output
        return output


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            yield value
