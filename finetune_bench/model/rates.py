"""This file gives a built model other dropout rates, and puts dropout where its architecture has none."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from finetune_bench.errors import ModelError
from finetune_bench.model.dropout import Rates, Traced, active_dropout, shown, traced
from finetune_bench.model.structure import body, is_linear, layers, output_layer

# What transformers calls the module of a layer's attention.
_ATTENTION = ("attention", "self_attn", "attn", "rel_attn", "self_attention")


@dataclass(frozen=True)
class RateChanges:
    """These changes give the dropout of a model other rates.

    Attributes:
        rates: rates by module and attribute.
        outputs: rates of the dropout to put on the output of modules, by name.
        inputs: rates of the dropout to put on the input of modules, by name.
    """

    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)


def plan_rates(model: nn.Module, rates: Rates) -> RateChanges:
    """Find what gives a model these rates; the model is left as it is.

    Args:
        model: as it was built, or a skeleton of it.
        rates: what is asked for.

    Raises:
        ModelError: the architecture has no place for a rate, or one rate for two places.
    """
    changes = RateChanges()
    if rates == Rates():
        return changes
    found = traced(model, whole=True)
    on_attention, on_hidden = found.on_attention, found.on_hidden
    if on_attention.keys() & on_hidden.keys() and rates.attention != rates.hidden:
        raise ModelError(
            f"{type(model).__name__} has one rate for attention probabilities and hidden states; give hidden and "
            "attention the same"
        )
    if rates.attention is not None:
        if rates.attention > 0 and not on_attention:
            raise ModelError(f"{type(model).__name__} has no rate for the dropout of attention probabilities")
        changes.rates.update(dict.fromkeys(on_attention, rates.attention))
    if rates.hidden is not None:
        _plan_hidden(model, rates.hidden, found, changes)
    if rates.head is not None:
        inside = set(body(model).modules())
        places = [place for place in on_hidden if model.get_submodule(place[0]) not in inside]
        changes.rates.update(dict.fromkeys(places, rates.head))
        if not places and rates.head > 0:
            changes.inputs[_name_of(output_layer(model), model)] = rates.head
    return changes


def _plan_hidden(model: nn.Module, rate: float, found: Traced, changes: RateChanges) -> None:
    """Add what gives the embeddings, and the output of attention and feed-forward blocks, that rate."""
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    inside, stack = set(body(model).modules()), list(dict.fromkeys(layers(model)))
    of_layers = {module for layer in stack for module in layer.modules()}
    places: dict[nn.Module, list[tuple[str, str]]] = {}
    for place, widths in found.on_hidden.items():
        module = model.get_submodule(place[0])
        # ModernBERT's feed-forward block has a rate between its two matrices, which is none of its output.
        if module in inside and (module not in of_layers or width in widths):
            places.setdefault(module, []).append(place)
    changes.rates.update({place: rate for there in places.values() for place in there})
    if rate == 0:
        return
    if places.keys() <= of_layers:
        changes.inputs[_name_of(stack[0], model)] = rate
    for layer in stack:
        attention = _attention_of(layer, model)
        of_attention = dict.fromkeys(attention.modules())
        rest = [module for module in layer.modules() if module not in of_attention]
        for block in (list(of_attention), rest):
            last = _last_linear(block, width)
            # Phi's and GPT-NeoX's layers have the dropout of the attention block's output outside of that block.
            has_own = bool(places.keys() & set(block)) and (last is None or block is not rest)
            if has_own or (last is not None and _name_of(last, model) in found.dropped):
                continue
            if last is None:
                raise ModelError(
                    f"a block of {type(model).__name__} has no hidden dropout, and ends in no linear layer behind "
                    "which it could be put"
                )
            changes.outputs[_name_of(last, model)] = rate


def _attention_of(layer: nn.Module, model: nn.Module) -> nn.Module:
    blocks: list[nn.Module] = [m for name, m in layer.named_modules() if name.rpartition(".")[2] in _ATTENTION]
    if blocks:
        return blocks[0]
    raise ModelError(f"no attention block was found in the layers of {type(model).__name__}, so none for dropout")


def _last_linear(block: Iterable[nn.Module], width: int) -> nn.Module | None:
    """Return the linear layer that a block ends in, if what it puts out can be added to the hidden states."""
    linear = [module for module in block if is_linear(module)]
    # GPT-2's says `nf`.
    fits = linear and getattr(linear[-1], "out_features", getattr(linear[-1], "nf", 0)) == width
    return linear[-1] if fits else None


def _name_of(wanted: nn.Module, model: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if module is wanted]
    return names[0]


def active_dropout_under(model: nn.Module, rates: Rates) -> dict[str, float]:
    """Return the dropout rates above zero, as `active_dropout` does, as they are under these rates.

    What is put where the architecture has none is called by its module, with `(inserted)` behind it. Rates that the
    architecture has no place for change nothing: a stack that asks for them is refused.
    """
    active = active_dropout(model)
    try:
        changes = plan_rates(model, rates)
    except ModelError:
        return active
    active |= {shown(*place): rate for place, rate in changes.rates.items()}
    active |= {_inserted(name): rate for name, rate in (changes.outputs | changes.inputs).items()}
    return {name: rate for name, rate in active.items() if rate > 0}


def set_rates(model: nn.Module, changes: RateChanges) -> ExitStack:
    """Give a model other rates; what is put in acts as built-in dropout does, and draws from the same stream.

    Returns:
        What takes all of it back when it is closed.
    """
    undo = ExitStack()
    for (name, attribute), rate in changes.rates.items():
        module = model.get_submodule(name)
        undo.callback(setattr, module, attribute, getattr(module, attribute))
        setattr(module, attribute, rate)
    for name, rate in changes.outputs.items():
        undo.callback(model.get_submodule(name).register_forward_hook(_DropOutput(rate)).remove)
    for name, rate in changes.inputs.items():
        hook = _DropInput(rate)
        undo.callback(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True).remove)
    return undo


def dropout_in_use(model: nn.Module) -> dict[str, float]:
    """Return the dropout rates above zero that a model has now, built in or put in, as `active_dropout_under` does."""
    active = active_dropout(model)
    for name, module in model.named_modules():
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
            if isinstance(hook, _DropOutput | _DropInput):
                active[_inserted(name)] = hook.rate
    return active


def _inserted(name: str) -> str:
    return f"{shown(name, 'p')} (inserted)"


@dataclass(frozen=True)
class _DropOutput:
    """This hook drops a share of what a module puts out, in training."""

    rate: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return F.dropout(output, self.rate, module.training)


@dataclass(frozen=True)
class _DropInput:
    """This hook drops a share of the hidden states that a module gets, in training."""

    rate: float

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (F.dropout(args[0], self.rate, module.training), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": F.dropout(kwargs["hidden_states"], self.rate, module.training)}
