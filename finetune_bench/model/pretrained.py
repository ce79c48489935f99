"""This file loads pre-trained checkpoints from the hub or a folder: configuration, tokenizer, weights."""

from __future__ import annotations

import copy
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.files import file_hash
from finetune_bench.model import hub, packaged
from finetune_bench.model.files import check_folder
from finetune_bench.model.gguf import converted, is_gguf
from finetune_bench.model.library import library
from finetune_bench.model.structure import is_decoder, positions, vocabulary
from finetune_bench.printable import brief

# Endings of a checkpoint's files that can change what is computed.
CONTENT = (".json", ".model", ".safetensors", ".txt")


def fingerprint(name: str) -> str:
    """Return the hub's commit of a checkpoint, or a hash of a folder's files: either identifies its content.

    Raises:
        ModelError: no such folder, and no such checkpoint on the hub or in its cache.
    """
    if looks_like_folder(name):
        folder = local_folder(name)
        check_folder(name, folder)
        # What another version of transformers makes of a GGUF file differs in its configuration's text.
        if file := gguf_file(name):
            return hash_files((file,))
        return hash_files(tuple(sorted(path for path in folder.iterdir() if path.suffix in CONTENT)))
    # The hub's cache keeps a folder per commit.
    return folder_of(name).name


def folder_of(name: str) -> Path:
    """Return the folder of a checkpoint's files: a folder that was named, or that of the commit in the hub's cache.

    Raises:
        ModelError: there is no such checkpoint on the hub or in its cache.
    """
    if looks_like_folder(name):
        return local_folder(name)
    reachable = hub.is_reachable()
    try:
        path = library().utils.cached_file(name, "config.json")
    except (OSError, ValueError) as error:
        reason = type(error).__name__ if reachable else hub.why_not()
        raise ModelError(
            f"--model: '{name}' is neither a folder here nor a checkpoint on the hub or in its cache "
            f"({reason}). Give a folder, or connect once to download it."
        ) from None
    return Path(str(path)).parent


def expanded(name: str) -> Path:
    """Return a path with the user's home for its `~`; one of nobody's home stays as it is, and isn't there."""
    return Path(os.path.expanduser(name))  # noqa: PTH111 — that of pathlib fails


def is_packaged(name: str) -> bool:
    """Return whether a model's name is that of a checkpoint from packages; a folder of that name comes first."""
    return name in packaged.MODELS and not expanded(name).exists()


def gguf_file(name: str) -> Path | None:
    """Return the GGUF file that a model's name stands for; None for any other checkpoint."""
    if is_packaged(name):
        return packaged.gguf_of(name)
    return expanded(name) if is_gguf(expanded(name)) else None


def local_folder(name: str) -> Path:
    """Return the folder that a model's name stands for: a path, a checkpoint from packages, or what a GGUF file holds.

    Raises:
        MachineError: a checkpoint from packages isn't here yet, or the package gguf is missing.
        ModelError: a GGUF file can't be read.
    """
    if is_packaged(name):
        return packaged.folder_of(name)
    return converted(expanded(name)) if is_gguf(expanded(name)) else expanded(name)


def looks_like_folder(name: str) -> bool:
    """Return whether a model's name is meant as a path: it exists, or it is written like one, or it has a folder."""
    if is_packaged(name):
        return True
    return expanded(name).exists() or name.startswith((".", "/", "~")) or name.count("/") > 1


def label(name: str) -> str:
    """Name a checkpoint as reports do: by its name, or by the last two parts of its path."""
    is_path = looks_like_folder(name) and not is_packaged(name)
    return "/".join(expanded(name).resolve().parts[-2:]) if is_path else name


def hash_files(paths: tuple[Path, ...]) -> str:
    """Hash the names and contents of files; one that looks untouched since it was read is not read again."""
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        digest.update(path.name.encode())
        digest.update(content_hash(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return digest.hexdigest()[:16]


@cache
def content_hash(path: Path, *_status: int) -> bytes:
    """Hash a file's content, once for each status: its size, and when its content and its inode changed."""
    return bytes.fromhex(file_hash(path))


@cache
def raw_config(name: str) -> Any:
    """Read the checkpoint's configuration as it stands.

    Raises:
        ModelError: it can't be read.
    """
    return _read_config(name)


def padding_differs(name: str) -> bool:
    """Return whether the configuration names another padding token than the tokenizer, whose batches hold."""
    stale = getattr(raw_config(name).get_text_config(), "pad_token_id", None)
    return stale is not None and stale != tokenizer(name).pad_token_id


def _read_config(name: str, **options: Any) -> Any:
    try:
        return library().AutoConfig.from_pretrained(source(name), trust_remote_code=False, **options)
    except Exception as error:  # a file of junk fails in any way
        raise ModelError(f"--model: the configuration of '{name}' can't be read: {_first_line(error)}") from None


@cache
def config(name: str, outputs: int) -> Any:
    """Read the checkpoint's configuration, with a head of that width; code from the hub is never run.

    Raises:
        ModelError: it can't be read.
    """
    loaded = _read_config(name, num_labels=outputs)
    text = loaded.get_text_config()
    # The task computes the loss; a value that was left there would not be ours.
    loaded.problem_type = None
    if method := (getattr(loaded, "quantization_config", None) or getattr(text, "quantization_config", None)):
        kind = method.get("quant_method", "") if isinstance(method, dict) else getattr(method, "quant_method", "")
        raise ModelError(
            f"--model: the weights of '{name}' are quantised ({kind}), and can't be fine-tuned as they are; give the "
            "checkpoint that they were made from."
        )
    # A decoder finds the last token of a text by it, and refuses batches without it.
    for part in (loaded, text):
        part.pad_token_id = tokenizer(name).pad_token_id
    return loaded


@cache
def tokenizer(name: str) -> Any:
    """Read the checkpoint's tokenizer.

    Raises:
        ModelError: it can't be read.
    """
    try:
        loaded = library().AutoTokenizer.from_pretrained(source(name), trust_remote_code=False)
    except BaseException as error:  # a file of junk fails in any way, and the library's panics are no Exceptions
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit | MemoryError):
            raise
        raise ModelError(f"--model: the tokenizer of '{name}' can't be read: {_first_line(error)}") from None
    # Where its files are missing, transformers makes up an empty one.
    if len(loaded) <= len(loaded.all_special_ids):
        raise ModelError(
            f"--model: '{name}' has no vocabulary, only {len(loaded)} special tokens: the tokenizer's files are "
            "missing. Save them beside the weights: tokenizer.save_pretrained(folder)."
        )
    # Decoders are trained without padding; the plan's notes say so.
    if loaded.pad_token_id is None and loaded.eos_token_id is not None:
        loaded.pad_token = loaded.eos_token
    if loaded.pad_token_id is None:
        raise ModelError(
            f"--model: the tokenizer of '{name}' has neither a padding token, which batches need, nor an end "
            "token to take in its place; name one: tokenizer.pad_token = … and save it."
        )
    # Some decoders pad at the start, to generate. Positions would then count from the padding.
    if loaded.padding_side == "left" and is_decoder(skeleton(raw_config(name))):
        loaded.padding_side = "right"
    return loaded


def joins_pairs(tokenizer: Any) -> bool:
    """Return whether a tokenizer adds no token to a pair of texts that a single text has not."""
    pair, single = (tokenizer.num_special_tokens_to_add(pair=pair) for pair in (True, False))
    return bool(pair == single)


def check_fit(name: str, max_length: int) -> None:
    """Check a checkpoint's parts against each other and against the longest example.

    Raises:
        ModelError: more tokens in the vocabulary, or in an example, than the model has embeddings or positions for.
    """
    model = skeleton(config(name, 2))
    tokens, longest, embeddings = len(tokenizer(name)), positions(model), vocabulary(model)
    if embeddings is not None and tokens > embeddings:
        raise ModelError(
            f"--model: the tokenizer of '{name}' knows {tokens} tokens, its model only {embeddings}; they don't belong "
            "together."
        )
    if longest is not None and max_length > longest:
        raise ModelError(
            f"--max-length {max_length}: '{name}' has positions for {longest} tokens; give {longest} or less."
        )


def _first_line(error: BaseException) -> str:
    line = brief(str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {line}" if isinstance(error, KeyError) else line or type(error).__name__


def source(name: str) -> str:
    """Return where to load a model from: a folder's path, or the hub name as it is."""
    return str(local_folder(name)) if looks_like_folder(name) else name


def build(config: Any) -> nn.Module:
    """Build a randomly initialised classifier, fp32, drawn from the global random stream.

    Raises:
        ModelError: the architecture has no classification head.
    """
    try:
        model: nn.Module = library().AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    except Exception as error:  # an architecture may refuse a configuration in any way
        name = getattr(config, "name_or_path", "") or config.model_type
        raise ModelError(f"--model: no text classifier can be made of '{name}': {_first_line(error)}") from None
    return model


def skeleton(config: Any) -> nn.Module:
    """Build the model without weights, on the meta device: its structure can be read at once."""
    with torch.device("meta"):
        return build(config)


def save(model: nn.Module, tokenizer: Any, config: Any, folder: Path, labels: tuple[str, ...] = ()) -> None:
    """Write a plain Hugging Face folder, with the checkpoint's own dropout in its configuration.

    Args:
        model: the model after teardown.
        tokenizer: its tokenizer, saved beside it.
        config: the configuration as loaded, before a dropout policy.
        folder: the folder to write.
        labels: names of the classes in the order of their ids, as the configuration shall name them; none for
            regression.
    """
    trained = model.config
    model.config = named(config, labels)
    try:
        model.save_pretrained(folder)  # type: ignore[operator]
        tokenizer.save_pretrained(folder)
    finally:
        model.config = trained


def named(config: Any, labels: tuple[str, ...]) -> Any:
    """Copy a configuration, and say in the copy what its outputs are: the classes' names, or a number."""
    config = copy.deepcopy(config)
    # The library's word for an output without a name; the count of names is the head's width.
    names = labels or ("LABEL_0",)
    config.id2label = dict(enumerate(names))
    config.label2id = {label: number for number, label in config.id2label.items()}
    config.problem_type = "single_label_classification" if labels else "regression"
    return config


def digest(model: nn.Module) -> str:
    """Hash every weight's bytes, wherever the model is."""
    sha = hashlib.sha256()
    for parameter in model.parameters():
        sha.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()[:16]
