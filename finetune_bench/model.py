"""Checkpoints: loading them, and finding one's way in them: layers, head, dropout, norms.

Everything is found by structure, so that a new encoder needs no new line. Layer inputs arrive as the first positional
argument or as `hidden_states`; they are (batch, seq, dim), XLNet's (seq, batch, dim). ALBERT calls one group of weights
for every layer.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.errors import ModelError
from finetune_bench.method import Dropout

# What HyPe's script sets to zero, wherever a configuration has it. Heads whose own rate is None fall back to it.
HIDDEN_DROPOUT_FIELDS = ("hidden_dropout_prob", "dropout")

CONTENT = (".json", ".model", ".safetensors", ".txt")  # files of a checkpoint that can change what is computed


@cache
def _transformers() -> ModuleType:
    """The library, imported when first needed (it takes seconds), and told to keep its loading reports to itself."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def fingerprint(name: str) -> str:
    """What identifies a checkpoint's content: the hub's commit, or a hash of a folder's files.

    Raises:
        ModelError: no such folder, and no such checkpoint on the hub or in its cache.
    """
    if looks_like_folder(name):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"--model: expected a checkpoint's folder with a config.json at '{name}', but "
                f"{'it has none' if folder.is_dir() else 'there is no such folder'}."
            )
        if not list(folder.glob("*.safetensors")):
            raise ModelError(
                f"--model: the folder '{name}' has no .safetensors file; other weight files can run code when loaded. "
                "Convert them with transformers: model.save_pretrained(folder)."
            )
        return hash_files(tuple(sorted(path for path in folder.iterdir() if path.suffix in CONTENT)))
    try:
        path = _transformers().utils.cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"--model: '{name}' is neither a folder here nor a checkpoint on the hub or in its cache "
            f"({type(error).__name__}). Give a folder, or connect once to download it."
        ) from None
    return Path(str(path)).parent.name  # the hub's cache keeps a folder per commit


def looks_like_folder(name: str) -> bool:
    """Whether a model's name is meant as a path: it exists, or it is written like one."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def label(name: str) -> str:
    """How reports call a checkpoint: its hub name, or the last two parts of its folder's path."""
    return "/".join(Path(name).expanduser().resolve().parts[-2:]) if looks_like_folder(name) else name


@cache
def hash_files(paths: tuple[Path, ...]) -> str:
    """A hash of files' names and contents."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@cache
def config(name: str, outputs: int) -> Any:
    """The checkpoint's configuration, with a head of that width. Never run code from the hub.

    Raises:
        ModelError: it can't be read.
    """
    try:
        found = _transformers().AutoConfig.from_pretrained(_place(name), num_labels=outputs, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"--model: the configuration of '{name}' can't be read: {_first_line(error)}") from None
    found.problem_type = None  # the task computes the loss; a stale value would not be ours
    return found


@cache
def tokenizer(name: str) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        ModelError: it can't be read.
    """
    try:
        found = _transformers().AutoTokenizer.from_pretrained(_place(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"--model: the tokenizer of '{name}' can't be read: {_first_line(error)}") from None
    if len(found) <= len(found.all_special_ids):  # transformers makes up an empty one where its files are missing
        raise ModelError(
            f"--model: '{name}' has no vocabulary, only {len(found)} special tokens: the tokenizer's files are missing."
            " Save them beside the weights: tokenizer.save_pretrained(folder)."
        )
    if found.pad_token_id is None:
        raise ModelError(f"--model: the tokenizer of '{name}' has no padding token, which batches need; add one.")
    return found


def check_fit(name: str, max_length: int) -> None:
    """Check a checkpoint's parts against each other and against the longest example.

    Raises:
        ModelError: more tokens in the vocabulary, or in an example, than the model has embeddings or positions for.
    """
    words, places = len(tokenizer(name)), positions(skeleton(config(name, 2)))
    if words > config(name, 2).vocab_size:
        raise ModelError(
            f"--model: the tokenizer of '{name}' knows {words} tokens, its model only {config(name, 2).vocab_size}; "
            "they don't belong together."
        )
    if places is not None and max_length > places:
        raise ModelError(
            f"--max-length {max_length}: '{name}' has positions for {places} tokens; give {places} or less."
        )


def positions(model: nn.Module) -> int | None:
    """Tokens that the model has absolute positions for; None where positions are relative."""
    for name, module in body(model).named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa counts from the padding token's id on.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _place(name: str) -> str:
    return str(Path(name).expanduser()) if looks_like_folder(name) else name


def with_dropout(config: Any, policy: Dropout) -> Any:
    """A copy of a configuration under a dropout policy. Set before the modules exist: later edits change nothing."""
    config = copy.deepcopy(config)
    for field, value in config.to_dict().items():
        is_rate = isinstance(value, float | int) and not isinstance(value, bool)
        hidden = policy is Dropout.HIDDEN_OFF and field in HIDDEN_DROPOUT_FIELDS
        everything = policy is Dropout.ALL_OFF and "drop" in field
        if is_rate and (hidden or everything):
            setattr(config, field, 0.0)
    return config


def build(config: Any) -> nn.Module:
    """A randomly initialised classifier, fp32, drawn from the global random stream.

    Raises:
        ModelError: the architecture has no classification head.
    """
    try:
        model: nn.Module = _transformers().AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ModelError(
            f"--model: no text classifier can be made of '{config.model_type}': {_first_line(error)}"
        ) from None
    return model


def skeleton(config: Any) -> nn.Module:
    """The model without weights, on the meta device: its structure can be read at once."""
    with torch.device("meta"):
        return build(config)


def checkpoint_activations(model: nn.Module) -> None:
    """Compute activations again in the backward pass in place of keeping them."""
    # The older name is deprecated where the newer one exists, and the only one where it doesn't.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()  # type: ignore[operator]
    model.config.use_cache = False  # type: ignore[union-attr]


def load(name: str, config: Any, init_seed: int) -> nn.Module:
    """A checkpoint's weights with a fresh head, fp32, on the CPU.

    Args:
        name: hub name or folder.
        config: from `config`, perhaps with another dropout.
        init_seed: of the head; the global random state is left as it was.

    Raises:
        ModelError: the weights can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        try:
            model: nn.Module = _transformers().AutoModelForSequenceClassification.from_pretrained(
                _place(name),
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # a head of another width is replaced, as the DeBERTa runs of HyPe do
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"--model: the weights of '{name}' can't be read: {_first_line(error)}") from None
    return model


def save(model: nn.Module, tokenizer: Any, config: Any, folder: Path) -> None:
    """Write a plain Hugging Face folder, with the checkpoint's own dropout in its configuration.

    Args:
        model: after teardown.
        tokenizer: saved beside it.
        config: the configuration as loaded, before a dropout policy.
        folder: where to.
    """
    trained = model.config
    model.config = copy.deepcopy(config)
    try:
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
    finally:
        model.config = trained


def digest(model: nn.Module) -> str:
    """A hash of every weight's bytes, wherever the model is."""
    sha = hashlib.sha256()
    for parameter in model.parameters():
        sha.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]


def body(model: nn.Module) -> nn.Module:
    """The pre-trained part; what lies outside is the head."""
    found: nn.Module = model.base_model  # type: ignore[assignment]
    return found


def layers(model: nn.Module) -> list[nn.Module]:
    """The encoder's layers in the order in which they run; a shared one (ALBERT) stands once for every run.

    Raises:
        ModelError: no list of layers was found.
    """
    count: int = model.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    lists = [module for module in body(model).modules() if isinstance(module, nn.ModuleList) and len(module)]
    for candidate in lists:
        if len(candidate) == count:
            return list(candidate)
    groups = getattr(model.config, "num_hidden_groups", None)
    for candidate in lists:
        if len(candidate) == groups:
            return [candidate[index * groups // count] for index in range(count)]
    raise ModelError(f"No list of {count} layers was found in {type(model).__name__}.")


def places(model: nn.Module) -> dict[nn.Parameter, int]:
    """Where every parameter acts, from the bottom up.

    Returns:
        −1 for embeddings and whatever the body has outside its layers (projections, tables of relative positions,
        DeBERTa-v2's convolution), the layer's index from 0 for a layer's own, and the number of layers for what comes
        after them: a pooler, a last norm, the head. A shared layer counts where it runs last.

    Raises:
        ModelError: see `layers`.
    """
    found, stack = layers(model), body(model)
    last = set(found[-1].parameters())
    place = dict.fromkeys(model.parameters(), len(found))
    for child in stack.children():  # in the order in which they run; what follows the encoder is not below it
        place |= dict.fromkeys(child.parameters(), -1)
        if last & set(child.parameters()):
            break
    place |= dict.fromkeys(stack.parameters(recurse=False), -1)
    for index, layer in enumerate(found):
        place |= dict.fromkeys(layer.parameters(), index)
    return place


@contextmanager
def weights_replaced(params: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the named parameters hold other values, copied into the same storage; after it their own, to the bit."""
    with torch.no_grad():
        own = {name: params[name].detach().clone() for name in values}
        for name, value in values.items():
            params[name].copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                params[name].copy_(value)


def is_sequence_first(model: nn.Module) -> bool:
    """Whether hidden states inside the encoder are (seq, batch, dim), as XLNet's are."""
    return type(layers(model)[0]).__name__ == "XLNetLayer"  # told by its name: importing the class takes seconds


@contextmanager
def layer_inputs_changed(model: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, `change(index, hidden)` replaces the hidden states that enter each layer of one forward pass.

    Args:
        model: the classifier.
        change: gets the layer's index from 0 and its input, in the layer's own layout; returns what the layer gets.
    """
    runs = layers(model)
    index_of = {module: index for index, module in enumerate(runs)}
    shared = len(index_of) < len(runs)
    calls = 0

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        nonlocal calls
        index = calls if shared else index_of[module]
        calls += 1
        if args:
            return (change(index, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": change(index, kwargs["hidden_states"])}

    with _hooked(module.register_forward_pre_hook(before, with_kwargs=True) for module in index_of):
        yield


@contextmanager
def attention_outputs_changed(model: nn.Module, change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Inside, `change(index, hidden)` replaces what each layer's attention block hands to its feed-forward block.

    Raises:
        ModelError: see `attention_blocks`.
    """
    blocks = attention_blocks(model)
    index_of = {module: index for index, module in enumerate(blocks)}
    shared = len(index_of) < len(blocks)
    calls = 0

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        nonlocal calls
        index = calls if shared else index_of[module]
        calls += 1
        if isinstance(output, tuple):
            return change(index, output[0]), *output[1:]
        return change(index, output)

    with _hooked(module.register_forward_hook(after) for module in index_of):
        yield


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """Per layer, the module whose output (its first, if several) is the feed-forward block's input and residual.

    Raises:
        ModelError: no module's output is that (ModernBERT normalises first and adds the residual outside).
    """
    found = []
    for layer in layers(model):
        blocks = [
            module
            for name, module in layer.named_modules()
            if name.rpartition(".")[2] in ("attention", "rel_attn")
            and any(isinstance(part, nn.LayerNorm) or "LayerNorm" in type(part).__name__ for part in module.modules())
        ] or [module for name, module in layer.named_modules() if name == "sa_layer_norm"]
        if not blocks:
            raise ModelError(
                f"no module's output in {type(model).__name__} is what the attention block hands to the feed-forward "
                "block"
            )
        found.append(blocks[0])
    return found


@contextmanager
def hidden_states_captured(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward pass appends to the list what enters the first layer and what leaves every layer.

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


def output_layer(model: nn.Module) -> nn.Linear:
    """The linear layer that yields the logits: the head's last.

    Raises:
        ModelError: the head ends in no linear layer.
    """
    inside = set(body(model).modules())
    outputs: int = model.config.num_labels  # type: ignore[union-attr, assignment]
    found = [m for m in model.modules() if isinstance(m, nn.Linear) and m not in inside and m.out_features == outputs]
    if not found:
        raise ModelError(f"The head of {type(model).__name__} ends in no linear layer with {outputs} outputs.")
    return found[-1]


@contextmanager
def _hooked(handles: Iterator[Any]) -> Iterator[None]:
    registered: list[Any] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()


def active_dropout(model: nn.Module) -> dict[str, float]:
    """Dropout that is above zero, by module; layer numbers are written as `*`. Heads that never run are left out."""
    active: dict[str, float] = {}
    for name, module in model.named_modules():
        for key, rate in dropout_rates(module).items():
            if rate > 0:
                shown = filter(None, (name, "" if key == "p" else key))
                active[re.sub(r"\.\d+(?=\.|$)", ".*", ".".join(shown))] = float(rate)
    return active


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """A module's own dropout rates, by attribute."""
    is_dropout = "dropout" in type(module).__name__.lower()
    own = {key: rate for key, rate in vars(module).items() if "dropout" in key or (is_dropout and key == "p")}
    return {key: rate for key, rate in own.items() if isinstance(rate, float | int) and not isinstance(rate, bool)}


def undecayed(model: nn.Module) -> set[str]:
    """Names of the parameters without weight decay: biases, and all of a norm, told by the module's type."""
    names = set()
    for prefix, module in model.named_modules():
        is_norm = isinstance(module, nn.LayerNorm) or "norm" in type(module).__name__.lower()
        for name, _ in module.named_parameters(recurse=False):
            if is_norm or name.endswith("bias"):
                names.add(f"{prefix}.{name}".lstrip("."))
    return names
