"""This file judges what a model takes of a checkpoint's weights, from the file's header, before any weight is loaded.

transformers draws anew whatever it does not find, and goes on. That is right for a classification head and for a pooler
that a checkpoint was saved without; for anything else the run would train random matrices under a pre-trained name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.model import pretrained
from finetune_bench.model.dropout import Dropout, switch_off, with_dropout
from finetune_bench.model.files import check_weights, weight_files
from finetune_bench.model.gguf import parts_digits
from finetune_bench.model.library import library
from finetune_bench.model.structure import body, is_decoder, output_layer, parameter_depths, undecayed
from finetune_bench.printable import brief

KEPT_HEAD = "kept-head"  # a mark of a checkpoint's identity
SAVED_WITH = {
    "module.": "as DistributedDataParallel saves them",
    "_orig_mod.": "as torch.compile saves them",
    "model.": "as Lightning saves them",
}


@dataclass(frozen=True)
class Taken:
    """This is what a model takes of a checkpoint.

    Attributes:
        fresh: names of the parameters that are drawn anew: the head's, and a pooler's where the checkpoint has none.
        redraw: whether the checkpoint has the classification head of another task, which has to be drawn anew too.
        lacked: those of `fresh` that the checkpoint doesn't have.
    """

    fresh: tuple[str, ...]
    redraw: bool
    lacked: tuple[str, ...]


@cache
def taken(name: str) -> Taken:
    """Find out what a classifier takes of a checkpoint, from the headers of its files.

    Raises:
        ModelError: see `judge`; or a file is damaged, or a weight is not finite.
    """
    config = pretrained.config(name, 2)
    with torch.device("meta"):
        base = library().AutoModel.from_config(config)
    model, info = _read(name, config, output_loading_info=True, device_map={"": "meta"})
    parts = judge(name, model, base, info)
    folder = pretrained.folder_of(name)
    check_weights(name, tuple(weight_files(name, folder)), frozenset(info["unexpected_keys"]))
    return parts


def identity(name: str, *, keep_head: bool = False) -> str:
    """Return what identifies a checkpoint and how it is taken, in a cell: the fingerprint of its content, and marks.

    A mark stands where an earlier version of this package computed something else of the same files, so that its rows
    are none of this one's: `fresh-head` where it kept the head of another task, `dropout` where it left dropout on that
    a method wanted off, `padding` where it took the configuration's padding token, which is not the tokenizer's,
    `last-token` where it left it to the library which token a decoder's head reads, `newline` where it put nothing
    between two texts, `digits` where it split texts as GPT-2 does, and not as the GGUF file's tokenizer. Another,
    `kept-head`, says that training goes on from the checkpoint's head. The random start of a head depends on the
    fingerprint alone.
    """
    marks = {
        KEPT_HEAD: keep_head,
        "fresh-head": taken(name).redraw and not keep_head,
        "dropout": _was_left_on(name),
        "padding": pretrained.padding_differs(name),
        "last-token": is_decoder(pretrained.skeleton(pretrained.config(name, 2))),
        "newline": pretrained.joins_pairs(pretrained.tokenizer(name)),
        "digits": pretrained.gguf_file(name) is not None and parts_digits(pretrained.tokenizer(name)),
    }
    return "-".join([pretrained.fingerprint(name), *(mark for mark, holds in marks.items() if holds)])


def _was_left_on(name: str) -> bool:
    config = pretrained.config(name, 2)
    policies = (Dropout.HIDDEN_OFF, Dropout.ALL_OFF)
    return any(switch_off(pretrained.skeleton(with_dropout(config, policy)), policy) for policy in policies)


def load(name: str, config: Any, init_seed: int, *, keep_head: bool = False) -> nn.Module:
    """Load a checkpoint's weights with a fresh head, fp32, on the CPU.

    Args:
        name: hub name or folder.
        config: from `pretrained.config`, perhaps with another dropout.
        init_seed: of the head; the global random state is left as it was.
        keep_head: take the checkpoint's head; see `check_head`.

    Raises:
        ModelError: the weights can't be read, or are not those of the configuration.
    """
    redraw = taken(name).redraw and not keep_head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        model: nn.Module = _read(name, config)
        if redraw:
            torch.manual_seed(init_seed)
            redraw_head(model)
    return model


def check_head(name: str, labels: tuple[str, ...]) -> None:
    """Check that a checkpoint's head predicts a task's classes, so that training may go on from it.

    Args:
        name: of the checkpoint.
        labels: names of the classes in the order of their ids; none for regression.

    Raises:
        ModelError: it has no head, not all of one, or one that predicts something else.
    """
    if not taken(name).redraw:
        raise ModelError(f"--keep-head: '{name}' has no classification head; leave the option out.")
    if lacked := taken(name).lacked:
        raise ModelError(
            f"--keep-head: '{name}' lacks {_listed(list(lacked))} of what its head rests on; leave the option out."
        )
    id2label = pretrained.raw_config(name).id2label
    names = [id2label[index] for index in sorted(id2label)]  # a file has 10 before 2
    if [label.lower() for label in names] != [label.lower() for label in labels or ("LABEL_0",)]:
        raise ModelError(
            f"--keep-head: the head of '{name}' predicts {', '.join(names)}; the task's classes are "
            f"{', '.join(labels) or 'none, but a number'}. Leave the option out, which draws a fresh head."
        )


def _read(name: str, config: Any, **options: Any) -> Any:
    """Return what transformers reads of a checkpoint's weights, what it lacks drawn from the global stream."""
    try:
        return library().AutoModelForSequenceClassification.from_pretrained(
            pretrained.source(name),
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # of a head of another width; anything else is refused
            **options,
        )
    except SafetensorError as error:
        raise ModelError(
            f"--model: the weights of '{name}' are damaged or cut short ({error}). Download or copy them again."
        ) from None
    except Exception as error:  # transformers raises errors of many types here
        line = brief(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise ModelError(f"--model: the weights of '{name}' can't be read: {line}") from None


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
    mismatched = {key: (stored, wanted) for key, stored, wanted in info["mismatched_keys"]}
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
    try:
        last = set(output_layer(model).parameters())
    except ModelError:  # Perceiver's head is a decoder
        last = set(model.parameters()) - set(body(model).parameters())
    outputs = {key for key, parameter in model.named_parameters() if parameter in last}
    redraw = not outputs & missing
    fresh = missing | set(mismatched) | (head if redraw else set())
    return Taken(tuple(sorted(fresh)), redraw, tuple(sorted(missing)))


def redraw_head(model: nn.Module) -> None:
    """Draw every weight outside the body anew, as the library draws a head that a checkpoint lacks."""
    inside = set(body(model).modules())
    for module in model.modules():
        if module is not model and module not in inside:
            for marked in (module, *module.parameters(recurse=False)):
                setattr(marked, "_is_hf_initialized", False)  # noqa: B010 — the library's own mark, that no type knows
            model._init_weights(module)  # type: ignore[operator]


def _names(part: nn.Module, model: nn.Module) -> set[str]:
    """Return the canonical names of a part's parameters."""
    inside = set(part.parameters())
    return {name for name, parameter in model.named_parameters() if parameter in inside}


def _pooler(model: nn.Module) -> set[str]:
    """Return the names of what the body computes after its layers and that is no norm: a pooler."""
    try:
        depth = parameter_depths(model)
    except ModelError:
        return set()
    last = max(depth.values())
    inside, norms = _names(body(model), model), undecayed(model)
    poolers = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if depth[parameter] == last}
    biases = {name for name in inside if name.endswith("bias")}
    return {name for name in inside if name.rpartition(".")[0] in poolers and (name not in norms or name in biases)}


def _left_out(unexpected: Iterable[str], model: nn.Module, base: nn.Module) -> list[str]:
    """Return the keys within the body that are neither a part which the architecture can have nor a buffer."""
    prefix = f"{model.base_model_prefix}."
    known = {name for name, _ in base.named_parameters()} | {name for name, _ in body(model).named_buffers()}
    parts = {name for name, _ in body(model).named_children()}
    left_out = []
    for key in unexpected:
        inner = key.removeprefix(prefix)
        if inner not in known and (key != inner or inner.partition(".")[0] in parts):
            left_out.append(key)
    return sorted(left_out)


def _refusal(name: str, lost: Collection[str], unexpected: Iterable[str], model: nn.Module) -> str:
    """Return the sentence about weights of the body that a checkpoint does not have under their names."""
    text = (
        f"--model: {len(lost)} weights of {type(model).__name__} are not in '{name}' and would be random: "
        f"{_listed(sorted(lost))}."
    )
    expected = {key for key, _ in model.named_parameters()} | {key for key, _ in body(model).named_parameters()}
    prefixes = Counter(
        prefix for key in unexpected for prefix in _prefixes(key) if key.removeprefix(prefix) in expected
    )
    if not prefixes:
        return f"{text} Is its config.json that of these weights?"
    prefix = prefixes.most_common(1)[0][0]
    origin = f", {SAVED_WITH[prefix]}" if prefix in SAVED_WITH else ""
    return (
        f"{text} The file has them with '{prefix}' before their names{origin}. Take it away: "
        f"save_file({{key.removeprefix('{prefix}'): value for key, value in load_file(path).items()}}, path), both "
        "from safetensors.torch."
    )


def _prefixes(key: str) -> list[str]:
    """Return the beginnings of a key that end at a dot."""
    return [key[: end + 1] for end, character in enumerate(key) if character == "."]


def _listed(keys: list[str]) -> str:
    return ", ".join(f"'{brief(key)}'" for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _more(keys: list[str]) -> str:
    return f" (and so {len(keys) - 1} more)" if len(keys) > 1 else ""


def _shape(size: Iterable[int]) -> str:
    return " × ".join(map(str, size))
