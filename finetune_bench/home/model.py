"""A user's model is checked before methods are put in: what it is, and what dropout they want off in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from finetune_bench.errors import UsageError
from finetune_bench.metrics import Kind
from finetune_bench.model.dropout import Dropout, dropout_rates, switch_off, with_dropout
from finetune_bench.printable import brief
from finetune_bench.task import Task, TaskData

# Dropout rates by module and attribute.
Rates = dict[nn.Module, dict[str, float]]


def task_of(model: nn.Module, kind: Kind | None) -> HomeTask:
    """Make the task that a model is for, and check that the model can be trained here."""
    if hasattr(model, "_orig_mod"):
        raise UsageError("expected the model itself; a model of torch.compile doesn't see what methods put into it.")
    if getattr(model, "peft_config", None):
        raise UsageError(
            "expected a plain model; this one has adapters of peft. Attach the plain one, with adapters as a method of "
            "the stack: 'hype+peft(kind=lora)'."
        )
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "num_labels"):
        inside = "; attach what it wraps, on one device" if hasattr(model, "module") else ""
        raise UsageError(
            f"expected a text classifier of transformers; {type(model).__name__} has no config.num_labels{inside}."
        )
    if config.problem_type == "multi_label_classification":
        raise UsageError("several labels per example are not supported; expected one class or one number.")
    other = [name for name, weight in model.named_parameters() if weight.dtype != torch.float32]
    if other:
        raise UsageError(
            f"expected fp32 weights, but '{other[0]}' is of {model.get_parameter(other[0]).dtype}: small noise and "
            "small updates vanish there. Load the model with dtype=torch.float32 and give precision= in its place."
        )
    if kind not in (None, *get_args(Kind)):
        raise UsageError(f"kind= must be {' or '.join(get_args(Kind))}; got {kind!r}.")
    if kind is not None and (kind == "regression") != (config.num_labels == 1):
        needed = "one output" if kind == "regression" else "several classes"
        raise UsageError(
            f"kind='{kind}' needs a model of {needed}; this one has num_labels={config.num_labels}. Load it with "
            "another num_labels."
        )
    task_kind: Kind = kind or ("regression" if config.num_labels == 1 else "classification")
    labels = tuple(map(str, range(config.num_labels))) if task_kind == "classification" else ()
    return HomeTask(kind=task_kind, labels=labels)


@dataclass(frozen=True)
class HomeTask(Task):
    """A HomeTask has the loss and the divergence of a task whose examples are the user's."""

    name: str = "home"

    def load(self, data_root: Path | None) -> TaskData:
        """Raise: the examples are the user's, and never loaded."""
        raise NotImplementedError


def skeleton_of(model: nn.Module, policy: Dropout) -> nn.Module:
    """Build the model under a dropout policy, without weights: which dropout a policy means shows in a built model."""
    try:
        with torch.device("meta"):
            skeleton: nn.Module = type(model)(with_dropout(model.config, policy))
    except Exception as error:  # a user's class may raise anything
        raise UsageError(
            f"expected a model that its configuration makes; {type(model).__name__}(config) failed with "
            f"{type(error).__name__}: {brief(error)}"
        ) from error
    switch_off(skeleton, policy)
    return skeleton


def refuse_other_heads(model: nn.Module, outputs: int) -> None:
    """Refuse a model, without weights, that has no head for texts.

    Raises:
        UsageError: a pass gives no logits, or other than (batch, outputs).
    """
    try:
        with torch.no_grad():
            given = model(input_ids=torch.ones((2, 3), dtype=torch.int64, device="meta"))
    except Exception:  # what reads values can't run without them
        return
    shape = tuple(logits.shape) if isinstance(logits := getattr(given, "logits", None), Tensor) else None
    if shape != (2, outputs):
        what = "no logits" if shape is None else f"logits of shape {shape} for two texts of three tokens"
        raise UsageError(
            f"expected a text classifier, whose logits are (batch, {outputs}); {type(model).__name__} gives {what}. "
            "Load it with AutoModelForSequenceClassification."
        )


def switch_off_as(model: nn.Module, skeleton: nn.Module) -> Rates:
    """Switch the dropout off that the skeleton doesn't have; return what the rates were."""
    before: Rates = {}
    built = dict(skeleton.named_modules())
    for name, module in model.named_modules():
        # Where the skeleton's rate is 0, it may have no dropout module at all.
        wanted = dropout_rates(built[name]) if name in built else {}  # what the user put in is of the head
        off = {key: rate for key, rate in dropout_rates(module).items() if rate > 0 and not wanted.get(key, 0.0)}
        for key in off:
            setattr(module, key, 0.0)
        if off:
            before[module] = off
    return before


def restore(rates: Rates) -> None:
    """Give every module its dropout rates back."""
    for module, module_rates in rates.items():
        for key, rate in module_rates.items():
            setattr(module, key, rate)
