"""This file loads pre-trained checkpoints from the hub or a folder: configuration, tokenizer, weights."""

from __future__ import annotations

import copy
import hashlib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.model.structure import positions

# Endings of a checkpoint's files that can change what is computed.
CONTENT = (".json", ".model", ".safetensors", ".txt")


@cache
def _transformers() -> ModuleType:
    """Import the library when it is first needed, for it takes seconds, and silence its reports of loading."""
    import transformers

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers


def fingerprint(name: str) -> str:
    """Return the hub's commit of a checkpoint, or a hash of a folder's files: either identifies its content.

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
    # The hub's cache keeps a folder per commit.
    return Path(str(path)).parent.name


def looks_like_folder(name: str) -> bool:
    """Return whether a model's name is meant as a path: it exists, or it is written like one."""
    return Path(name).expanduser().exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def label(name: str) -> str:
    """Name a checkpoint as reports do: by its hub name, or by the last two parts of its folder's path."""
    return "/".join(Path(name).expanduser().resolve().parts[-2:]) if looks_like_folder(name) else name


@cache
def hash_files(paths: tuple[Path, ...]) -> str:
    """Hash the names and contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@cache
def config(name: str, outputs: int) -> Any:
    """Read the checkpoint's configuration, with a head of that width; code from the hub is never run.

    Raises:
        ModelError: it can't be read.
    """
    try:
        loaded = _transformers().AutoConfig.from_pretrained(_source(name), num_labels=outputs, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"--model: the configuration of '{name}' can't be read: {_first_line(error)}") from None
    # The task computes the loss; a value that was left there would not be ours.
    loaded.problem_type = None
    return loaded


@cache
def tokenizer(name: str) -> Any:
    """Read the checkpoint's tokenizer.

    Raises:
        ModelError: it can't be read.
    """
    try:
        loaded = _transformers().AutoTokenizer.from_pretrained(_source(name), trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"--model: the tokenizer of '{name}' can't be read: {_first_line(error)}") from None
    # Where its files are missing, transformers makes up an empty one.
    if len(loaded) <= len(loaded.all_special_ids):
        raise ModelError(
            f"--model: '{name}' has no vocabulary, only {len(loaded)} special tokens: the tokenizer's files are "
            "missing. Save them beside the weights: tokenizer.save_pretrained(folder)."
        )
    if loaded.pad_token_id is None:
        raise ModelError(f"--model: the tokenizer of '{name}' has no padding token, which batches need; add one.")
    return loaded


def check_fit(name: str, max_length: int) -> None:
    """Check a checkpoint's parts against each other and against the longest example.

    Raises:
        ModelError: more tokens in the vocabulary, or in an example, than the model has embeddings or positions for.
    """
    tokens, longest = len(tokenizer(name)), positions(skeleton(config(name, 2)))
    if tokens > config(name, 2).vocab_size:
        raise ModelError(
            f"--model: the tokenizer of '{name}' knows {tokens} tokens, its model only {config(name, 2).vocab_size}; "
            "they don't belong together."
        )
    if longest is not None and max_length > longest:
        raise ModelError(
            f"--max-length {max_length}: '{name}' has positions for {longest} tokens; give {longest} or less."
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _source(name: str) -> str:
    """Return where to load a model from: a folder's path, or the hub name as it is."""
    return str(Path(name).expanduser()) if looks_like_folder(name) else name


def build(config: Any) -> nn.Module:
    """Build a randomly initialised classifier, fp32, drawn from the global random stream.

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
    """Build the model without weights, on the meta device: its structure can be read at once."""
    with torch.device("meta"):
        return build(config)


def load(name: str, config: Any, init_seed: int) -> nn.Module:
    """Load a checkpoint's weights with a fresh head, fp32, on the CPU; the global random state is left as it was.

    Args:
        name: hub name or folder.
        config: what `config` gave, perhaps with another dropout.
        init_seed: the seed of the head's weights.

    Raises:
        ModelError: the weights can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(init_seed)
        try:
            model: nn.Module = _transformers().AutoModelForSequenceClassification.from_pretrained(
                _source(name),
                config=config,
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                # A head of another width is replaced, as the DeBERTa runs of HyPe do.
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"--model: the weights of '{name}' can't be read: {_first_line(error)}") from None
    return model


def save(model: nn.Module, tokenizer: Any, config: Any, folder: Path) -> None:
    """Write a plain Hugging Face folder, with the checkpoint's own dropout in its configuration.

    Args:
        model: the model after teardown.
        tokenizer: its tokenizer, saved beside it.
        config: the configuration as loaded, before a dropout policy.
        folder: the folder to write.
    """
    trained = model.config
    model.config = copy.deepcopy(config)
    try:
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
    finally:
        model.config = trained


def digest(model: nn.Module) -> str:
    """Hash every weight's bytes, wherever the model is."""
    sha = hashlib.sha256()
    for parameter in model.parameters():
        sha.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
