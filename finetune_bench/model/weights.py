"""What a model takes of a checkpoint's weights: read from the file's header, before any weight is loaded.

transformers draws anew whatever it does not find, and goes on. That is right for a classification head and for a pooler
that a checkpoint was saved without; for anything else the run would train random matrices under a pre-trained name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.model.structure import body, output_layer, places, undecayed

SAVED_WITH = {
    "module.": "as DistributedDataParallel saves them",
    "_orig_mod.": "as torch.compile saves them",
    "model.": "as Lightning saves them",
}


@dataclass(frozen=True)
class Taken:
    """What a model takes of a checkpoint.

    Attributes:
        fresh: names of the parameters that are drawn anew: the head's, and a pooler's where the checkpoint has none.
        redraw: whether the checkpoint has the classification head of another task, which has to be drawn anew too.
    """

    fresh: tuple[str, ...]
    redraw: bool


def judge(name: str, model: nn.Module, base: nn.Module, info: dict[str, Any]) -> Taken:
    """Say what a model takes of a checkpoint, or refuse a checkpoint of which it doesn't take everything.

    Args:
        name: of the checkpoint, for messages.
        model: the classifier, without weights.
        base: the architecture's body alone, without weights and with every part that it may have (a pooler).
        info: transformers' loading info: missing, unexpected and mismatched keys.

    Raises:
        ModelError: a weight of the body is missing, has another shape, or would be left out; names the keys, and the
            prefix that explains it where one does.
    """
    missing: set[str] = set(info["missing_keys"])
    mismatched = {key: (found, wanted) for key, found, wanted in info["mismatched_keys"]}
    in_body = _names(body(model), model)
    head = {key for key, _ in model.named_parameters()} - in_body
    lost = (missing & in_body) - _pooler(model)
    if lost:
        raise ModelError(_refusal(name, lost, info["unexpected_keys"], model))
    if wrong := sorted(set(mismatched) & in_body):
        key = wrong[0]
        raise ModelError(
            f"--model: the weights of '{name}' don't fit its config.json: '{key}' is {_shape(mismatched[key][0])} in "
            f"the file and {_shape(mismatched[key][1])} by the configuration{_more(wrong)}. Give the config.json that "
            "the weights were saved with."
        )
    if extra := _left_out(info["unexpected_keys"], model, base):
        raise ModelError(
            f"--model: '{name}' has weights that its architecture, {type(model).__name__}, has no place for, so that "
            f"it would compute something else: {_listed(extra)}. Is the configuration that of these weights?"
        )
    outputs = {key for key, parameter in model.named_parameters() if parameter in set(output_layer(model).parameters())}
    redraw = not outputs & missing
    fresh = missing | set(mismatched) | (head if redraw else set())
    return Taken(tuple(sorted(fresh)), redraw)


def redraw_head(model: nn.Module) -> None:
    """Draw every weight outside the body anew, as the library draws a head that a checkpoint lacks."""
    inside = set(body(model).modules())
    for module in model.modules():
        if module is not model and module not in inside:
            for marked in (module, *module.parameters(recurse=False)):
                marked._is_hf_initialized = False  # type: ignore[assignment]
            model._init_weights(module)  # type: ignore[operator]


def _names(part: nn.Module, model: nn.Module) -> set[str]:
    """Return the canonical names of a part's parameters."""
    inside = set(part.parameters())
    return {name for name, parameter in model.named_parameters() if parameter in inside}


def _pooler(model: nn.Module) -> set[str]:
    """Return the names of what the body computes after its layers and that is no norm: a pooler."""
    try:
        depth = places(model)
    except ModelError:
        return set()
    last = max(depth.values())
    inside, norms = _names(body(model), model), undecayed(model)
    poolers = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if depth[parameter] == last}
    biases = {name for name in inside if name.endswith("bias")}
    return {name for name in inside if name.rpartition(".")[0] in poolers and (name not in norms or name in biases)}


def _left_out(unexpected: Iterable[str], model: nn.Module, base: nn.Module) -> list[str]:
    """Return the keys within the body that are neither a part which the architecture can have nor a buffer."""
    prefix = f"{model.base_model_prefix}."  # type: ignore[union-attr]
    known = {name for name, _ in base.named_parameters()} | {name for name, _ in body(model).named_buffers()}
    parts = {name for name, _ in body(model).named_children()}
    found = []
    for key in unexpected:
        inner = key.removeprefix(prefix)
        if inner not in known and (key != inner or inner.partition(".")[0] in parts):
            found.append(key)
    return sorted(found)


def _refusal(name: str, lost: Collection[str], unexpected: Iterable[str], model: nn.Module) -> str:
    """Return the sentence about weights of the body that a checkpoint does not have under their names."""
    text = (
        f"--model: {len(lost)} weights of {type(model).__name__} are not in '{name}' and would be random: "
        f"{_listed(sorted(lost))}."
    )
    expected = {key for key, _ in model.named_parameters()} | {key for key, _ in body(model).named_parameters()}
    prefixes = Counter(prefix for key in unexpected for prefix in _prefixes(key) if key.removeprefix(prefix) in expected)
    if not prefixes:
        return f"{text} Is its config.json that of these weights?"
    prefix = prefixes.most_common(1)[0][0]
    origin = f", {SAVED_WITH[prefix]}" if prefix in SAVED_WITH else ""
    return (
        f"{text} The file has them with '{prefix}' before their names{origin}. Take it away: "
        f"save_file({{key.removeprefix('{prefix}'): value for key, value in load_file(path).items()}}, path), both from "
        "safetensors.torch."
    )


def _prefixes(key: str) -> list[str]:
    """Return the beginnings of a key that end at a dot."""
    return [key[: end + 1] for end, character in enumerate(key) if character == "."]


def _listed(keys: list[str]) -> str:
    return ", ".join(f"'{key}'" for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _more(keys: list[str]) -> str:
    return f" (and so {len(keys) - 1} more)" if len(keys) > 1 else ""


def _shape(size: Iterable[int]) -> str:
    return " × ".join(map(str, size))


