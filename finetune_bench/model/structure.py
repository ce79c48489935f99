"""This file finds its way in a model: layers, head, norms, and where every parameter acts.

Everything is found by structure, so that a new encoder needs no new line. Layer inputs arrive as the first positional
argument or as `hidden_states`; they are (batch, seq, dim), XLNet's (seq, batch, dim). ALBERT calls one group of weights
for every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.errors import ModelError
from finetune_bench.model.attention import running


def positions(model: nn.Module) -> int | None:
    """Return how many tokens the model has absolute positions for; None where no table of them is found."""
    counts = []
    for name, module in body(model).named_modules():
        words = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
        absolute = any(word in words for word in ("position", "wpe", "pos_emb")) and "rel" not in words
        if absolute and isinstance(module, nn.Embedding):
            # RoBERTa counts from the padding token's id on, BART and OPT from a number of their own.
            padding = 0 if module.padding_idx is None else module.padding_idx + 1
            counts.append(module.num_embeddings - getattr(module, "offset", padding))
    return min(counts, default=None)


def vocabulary(model: nn.Module) -> int | None:
    """Return how many tokens the model has embeddings for; None where there is no table of them (CANINE hashes)."""
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError):
        return None
    return getattr(table, "num_embeddings", None)


def checkpoint_activations(model: nn.Module) -> None:
    """Compute activations again in the backward pass in place of keeping them."""
    # The older name is deprecated where the newer one exists, and the only one where it doesn't.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()  # type: ignore[operator]
    model.config.use_cache = False  # type: ignore[union-attr]


def body(model: nn.Module) -> nn.Module:
    """Return the pre-trained part; what lies outside is the head."""
    pretrained: nn.Module = model.base_model  # type: ignore[assignment]
    return pretrained


def layers(model: nn.Module) -> list[nn.Module]:
    """Return the encoder's layers in the order in which they run; a shared one (ALBERT) is there once for every run.

    Raises:
        ModelError: no list of layers was found, or there are two stacks of them.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    if config.is_encoder_decoder:
        raise ModelError(f"{type(model).__name__} has an encoder and a decoder, in place of one stack of layers")
    count: int = getattr(config, "num_hidden_layers", 0)
    lists = _lists_of_layers(body(model))
    for candidate in lists:
        if len(candidate) == count:
            return list(candidate)
    groups = getattr(config, "num_hidden_groups", None)
    for candidate in lists:
        if len(candidate) == groups:
            return [candidate[index * groups // count] for index in range(count)]
    raise ModelError(f"no list of {count} layers was found in {type(model).__name__}")


def _lists_of_layers(stack: nn.Module) -> list[nn.ModuleList]:
    """Return the lists whose elements may be layers.

    XLM keeps its attention blocks, feed-forward blocks and norms in lists of their own, and Funnel lists of layers in a
    list: no element of those is a layer.
    """
    lists = []
    for module in stack.modules():
        children = [child for child in module.children() if isinstance(child, nn.ModuleList) and _is_filled(child)]
        for child in children:
            beside = [other for other in children if other is not child and len(other) == len(child)]
            if not beside and not isinstance(child[0], nn.ModuleList):
                lists.append(child)
    return lists


def _is_filled(modules: nn.ModuleList) -> bool:
    return len(modules) > 0 and all(next(module.parameters(), None) is not None for module in modules)


def parameter_depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """Return the depth at which every parameter acts, from the bottom up.

    Returns:
        −1 for embeddings and whatever the body has outside its layers (projections, tables of relative positions,
        DeBERTa-v2's convolution), the layer's index from 0 for a layer's own, and the number of layers for what comes
        after them: a pooler, a last norm, the head. A shared layer counts where it runs last.

    Raises:
        ModelError: see `layers`.
    """
    stack, encoder = layers(model), body(model)
    last = set(stack[-1].parameters())
    depth = dict.fromkeys(model.parameters(), len(stack))
    # Children come in the order in which they run; what follows the one with the layers is not below them.
    for child in encoder.children():
        depth |= dict.fromkeys(child.parameters(), -1)
        if last & set(child.parameters()):
            break
    depth |= dict.fromkeys(encoder.parameters(recurse=False), -1)
    for index, layer in enumerate(stack):
        depth |= dict.fromkeys(layer.parameters(), index)
    return depth


@contextmanager
def weights_replaced(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the named parameters hold other values inside, in the same storage; after it their own, to the bit."""
    with torch.no_grad():
        before = {name: params[name].detach().clone() for name in values}
        for name, value in values.items():
            params[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                params[name].copy_(value)


def is_sequence_first(model: nn.Module) -> bool:
    """Return whether hidden states inside the encoder are (seq, batch, dim), as XLNet's are."""
    # Told by its name: importing the class takes seconds.
    return type(layers(model)[0]).__name__ == "XLNetLayer"


def _batch_first(model: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Callable[[int, Tensor], Tensor]:
    """Return `change` for hidden states in the model's own layout."""
    if not is_sequence_first(model):
        return change
    return lambda index, hidden: change(index, hidden.transpose(0, 1)).transpose(0, 1)


@contextmanager
def layer_inputs_changed(model: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Replace the hidden states that enter each layer, in all passes inside, by `change(index, hidden)`.

    Args:
        model: the classifier.
        change: gets the layer's index from 0 and its input, (batch, seq, dim), and returns what the layer gets.
    """
    runs, change = layers(model), _batch_first(model, change)
    index_of = {module: index for index, module in enumerate(runs)}
    shared, count = len(index_of) < len(runs), len(runs)
    calls = 0

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal calls
        index = calls % count if shared else index_of[module]
        calls += 1
        if args:
            return (change(index, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(index, kwargs["hidden_states"])}

    with _hooked(module.register_forward_pre_hook(before, with_kwargs=True) for module in index_of):
        yield


@contextmanager
def layer_outputs_changed(model: nn.Module, change: Callable[[int, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Replace the hidden states that leave each layer, in all passes inside, by `change(index, entered, left)`.

    Args:
        model: the classifier.
        change: gets the layer's index from 0, the hidden states that entered it, with the noise that others put on
            them, and those that leave it, both (batch, seq, dim), and returns what leaves it instead.
    """
    runs, sequence_first = layers(model), is_sequence_first(model)
    index_of = {module: index for index, module in enumerate(runs)}
    shared, count = len(index_of) < len(runs), len(runs)
    calls = 0

    def changed(index: int, entered: Tensor, left: Tensor) -> Tensor:
        if sequence_first:
            return change(index, entered.transpose(0, 1), left.transpose(0, 1)).transpose(0, 1)
        return change(index, entered, left)

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal calls
        index = calls % count if shared else index_of[module]
        calls += 1
        entered = args[0] if args else kwargs["hidden_states"]
        if isinstance(output, tuple):
            return changed(index, entered, output[0]), *output[1:]
        return changed(index, entered, output)

    # First of all hooks: without padding, one on the last layer puts the padding back.
    with _hooked(module.register_forward_hook(after, prepend=True, with_kwargs=True) for module in index_of):
        yield


@contextmanager
def attention_outputs_changed(model: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Replace what attention blocks hand to feed-forward blocks, in all passes inside, by `change(index, hidden)`.

    Args:
        model: the classifier.
        change: gets the layer's index from 0 and what it hands on, (batch, seq, dim), and returns what is handed on.

    Raises:
        ModelError: see `attention_blocks`.
    """
    blocks, change = attention_blocks(model), _batch_first(model, change)
    index_of = {module: index for index, module in enumerate(blocks)}
    shared, count = len(index_of) < len(blocks), len(blocks)
    calls = 0

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal calls
        index = calls % count if shared else index_of[module]
        calls += 1
        if isinstance(output, tuple):
            return change(index, output[0]), *output[1:]
        return change(index, output)

    with _hooked(module.register_forward_hook(after) for module in index_of):
        yield


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """Return, per layer, the module whose (first) output is the feed-forward block's input and residual.

    Raises:
        ModelError: no module's output is that (ModernBERT normalises first and adds the residual outside).
    """
    blocks = []
    for layer in layers(model):
        candidates = [
            module
            for name, module in layer.named_modules()
            if name.rpartition(".")[2] in ("attention", "rel_attn")
            and any(isinstance(part, nn.LayerNorm) or "LayerNorm" in type(part).__name__ for part in module.modules())
        ] or [module for name, module in layer.named_modules() if name == "sa_layer_norm"]
        if not candidates:
            raise ModelError(
                f"no module's output in {type(model).__name__} is what the attention block hands to the feed-forward "
                "block"
            )
        blocks.append(candidates[0])
    return blocks


def attention_output_layers(model: nn.Module) -> list[nn.Module]:
    """Return the linear layers that mix what attention heads give, (batch, seq, heads · their width): one per layer.

    Raises:
        ModelError: a layer's attention has none that is a module, as XLNet's, or its input can't be cut into the heads.
    """
    heads: int = getattr(model.config.get_text_config(), "num_attention_heads", 0)  # type: ignore[union-attr, operator]
    mixing: list[nn.Module] = []
    for layer in layers(model):
        # The last one within each attention; a layer of ALBERT's may have several.
        last: dict[str, nn.Module] = {}
        adapter = ""
        for name, module in layer.named_modules():
            attention, inside, _ = name.partition("att")
            # What heads give goes into the layer that an adapter is put around, not into the adapter's own matrices.
            if adapter and name.startswith(adapter):
                continue
            if inside and is_linear(getattr(module, "base_layer", module)):
                last[attention] = module
                adapter = f"{name}."
        if not last or not heads or any(_inputs(module) % heads for module in last.values()):
            raise ModelError(f"no linear layer in {type(model).__name__} takes what its attention heads give")
        mixing += last.values()
    return mixing


def _inputs(module: nn.Module) -> int:
    """Return how many numbers a linear layer takes, one in an adapter too."""
    module = getattr(module, "base_layer", module)
    # Of GPT-2's, whose weight is (in, out).
    return module.in_features if isinstance(module, nn.Linear) else len(module.weight)  # type: ignore[arg-type]


@contextmanager
def attention_heads_scaled(model: nn.Module, draw: Callable[[int], Tensor]) -> Iterator[None]:
    """Multiply what the heads of each layer's attention give, in one forward pass, by `draw(batch)`.

    Args:
        model: the classifier.
        draw: gets the number of examples and returns (batch, heads), on their device; it is asked for each layer anew.

    Raises:
        ModelError: see `attention_output_layers`.
    """

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        mixed = args[0]  # (batch, seq, dim), or (1, tokens, dim) without padding
        scales = draw(len(running[-1].lengths) if running else len(mixed)).to(mixed.dtype)
        by_token = running[-1].for_tokens(scales) if running else scales[:, None]
        scaled = mixed.unflatten(-1, (scales.shape[1], -1)) * by_token[..., None]
        return scaled.flatten(-2), *args[1:]

    mixing = dict.fromkeys(attention_output_layers(model))
    with _hooked(module.register_forward_pre_hook(before) for module in mixing):
        yield


@contextmanager
def hidden_states_captured(model: nn.Module) -> Iterator[list[Tensor]]:
    """Append what enters the first layer and what leaves every layer to a list, in one forward pass inside.

    Each is (batch, seq, dim), with the noise that others put on it. The library's own `output_hidden_states` leaves
    hooks behind, and what it shows depends on the order of hooks.
    """
    states: list[Tensor] = []
    runs, sequence_first = layers(model), is_sequence_first(model)

    def keep(hidden: Tensor) -> None:
        states.append(hidden.transpose(0, 1) if sequence_first else hidden)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not states:
            keep(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(output[0] if isinstance(output, tuple) else output)

    handles = [runs[0].register_forward_pre_hook(before, with_kwargs=True)]
    with _hooked(iter([*handles, *(module.register_forward_hook(after) for module in dict.fromkeys(runs))])):
        yield states


def is_linear(module: nn.Module) -> bool:
    """Return whether the module is a linear layer: torch's, or GPT-2's, whose weight is (in, out)."""
    # Told by its name: importing the class takes seconds.
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def is_norm(module: nn.Module) -> bool:
    """Return whether the module is a norm with a scale of its own, told by its type."""
    is_one = isinstance(module, nn.LayerNorm) or "norm" in type(module).__name__.lower()
    return is_one and next(module.parameters(recurse=False), None) is not None


def output_layer(model: nn.Module) -> nn.Linear:
    """Return the linear layer that yields the logits: the head's last.

    Raises:
        ModelError: the head ends in no linear layer.
    """
    candidates = _output_layers(model)
    if not candidates:
        outputs = model.config.num_labels  # type: ignore[union-attr]
        raise ModelError(f"The head of {type(model).__name__} ends in no linear layer with {outputs} outputs.")
    return candidates[-1]


def _output_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers outside the body that are as wide as the logits."""
    inside = set(body(model).modules())
    linear = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside]
    return [module for module in linear if module.out_features == model.config.num_labels]  # type: ignore[union-attr]


def is_decoder(model: nn.Module) -> bool:
    """Return whether the model is one stack of layers in which a token sees those before it only."""
    if not hasattr(model, "config"):  # a user's own module
        return False
    try:
        first = layers(model)[0]
    except ModelError:
        return False
    return any(getattr(module, "is_causal", False) is True for module in first.modules())


@contextmanager
def last_tokens_read(model: nn.Module, mask: Tensor) -> Iterator[None]:
    """Let a decoder's head read every text's last real token in one forward pass inside.

    The library looks for the last token that has not the padding's id. That is another one where a text ends in that
    token, as padding often is the end token; and where a pass starts from embeddings there are no ids.

    Args:
        model: the classifier.
        mask: (batch, seq), 1 for real tokens.
    """
    reduced: list[bool] = []

    def enter(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        reduced.append(hidden.shape[:-1] == mask.shape)
        if not reduced[-1]:
            return args
        last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(-1)
        return hidden[torch.arange(len(mask), device=mask.device), last], *args[1:]

    def leave(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # In every position, so that it is the one that the library takes.
        return output[:, None].expand(-1, mask.shape[1], -1) if reduced.pop() else output

    hooks = [(module.register_forward_pre_hook, module.register_forward_hook) for module in _output_layers(model)]
    with _hooked(handle for before, after in hooks for handle in (before(enter), after(leave))):
        yield


@contextmanager
def _hooked(handles: Iterator[Any]) -> Iterator[None]:
    """Keep hooks inside; they are registered one by one, and all of them removed, also after an error."""
    registered: list[Any] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()


def undecayed(model: nn.Module) -> set[str]:
    """Return the names of parameters without weight decay: biases, and all of a norm, told by the module's type."""
    names = set()
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            if is_norm(module) or name.endswith("bias"):
                names.add(f"{prefix}.{name}".lstrip("."))
    return names
