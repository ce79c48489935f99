"""This file turns a GGUF file into a plain checkpoint's folder, once; from there on it is a checkpoint like any other.

Its quantised weights are written as fp32. transformers reads them (`gguf_file=`), but can't save the model that it
makes until the marks of quantisation are gone, and reading takes many seconds, which every cell would pay.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_bench.cache import made_once
from finetune_bench.errors import FinetuneBenchError, MachineError, ModelError
from finetune_bench.files import file_hash
from finetune_bench.model.library import library
from finetune_bench.printable import brief

if TYPE_CHECKING:
    from torch import nn

MAGIC = b"GGUF"
NOTES = "notes.json"  # in the folder, beside the checkpoint's files
# Kinds of byte-level tokenizers, by their names in GGUF files, that split texts into words as GPT-2's does; and those
# that part every digit from the rest before.
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "jina-es", "jina-de", "modern-bert"}
BY_DIGIT = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}
BYTES_PER_BYTE = 9  # at most: a weight of four bits and its share of a scale become four bytes


def is_gguf(path: Path) -> bool:
    """Return whether a path is a GGUF file by its name's ending."""
    return path.suffix.lower() == ".gguf" and path.is_file()


@cache
def converted(path: Path) -> Path:
    """Return the folder of the plain checkpoint that holds a GGUF file's weights as fp32, and its tokenizer.

    Args:
        path: the file; the cache's folder is named by a hash of its content, and by the version of transformers.

    Raises:
        MachineError: the package gguf is missing, or the cache can't hold the folder.
        ModelError: the file is no GGUF, is damaged, or of an architecture that transformers can't read from GGUF.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(len(MAGIC))
        size, content = path.stat().st_size, file_hash(path)
    except OSError as error:
        raise ModelError(f"--model: '{path}' can't be read: {error.strerror}.") from None
    if magic != MAGIC:
        raise ModelError(
            f"--model: '{path}' is not a GGUF file: it begins with {magic!r}, not {MAGIC!r}. Download it again."
        )
    if importlib.util.find_spec("gguf") is None:
        raise MachineError(
            f"--model: reading '{path.name}' needs the package gguf; run: pip install 'finetune-bench[offline-decoder]'"
        )

    def convert(folder: Path, _: Path) -> None:
        try:
            # transformers shows a progress bar here that none of its settings turns off.
            with contextlib.redirect_stderr(io.StringIO()):
                _convert(path, folder)
        except BaseException as error:  # a file of junk fails in any way, and a tokenizer's panics are no Exceptions
            if isinstance(error, FinetuneBenchError | KeyboardInterrupt | SystemExit | MemoryError):
                raise
            reason = brief(str(error).strip().partition("\n")[0] or type(error).__name__)
            raise ModelError(
                f"--model: '{path.name}' can't be read as a GGUF checkpoint ({reason}). Download it again if it may be "
                "cut short; otherwise give the checkpoint that it was made from, as a folder."
            ) from None

    return made_once(
        f"gguf-{content[:16]}-whole-transformers-{version('transformers')}", BYTES_PER_BYTE * size, convert
    )


def notes(path: Path) -> list[str]:
    """Return what is to be known of the checkpoint that a GGUF file became, in sentences without their subject."""
    told: list[str] = json.loads((converted(path) / NOTES).read_text("utf-8"))
    return told


def parts_digits(tokenizer: Any) -> bool:
    """Return whether a tokenizer parts every digit before it splits a text into words."""
    splits = tokenizer.backend_tokenizer.pre_tokenizer
    kinds = json.loads(splits.__getstate__()).get("pretokenizers", []) if splits else []
    return bool(kinds) and kinds[0]["type"] == "Digits"


def _convert(path: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    reader, transformers = GGUFReader(path), library()
    parts = reader.fields.get("split.count")
    if parts is not None and int(parts.contents()) > 1:
        raise ModelError(
            f"--model: '{path.name}' is one of {int(parts.contents())} files of a checkpoint. Join them: "
            "llama-gguf-split --merge FIRST_PART WHOLE."
        )
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    config = transformers.AutoConfig.from_pretrained(**place)
    kind = transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = transformers.AutoModel
    # What has another shape would otherwise be told on stderr alone; it is refused below.
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, loading = kind.from_pretrained(**place, **options)
    _refuse_what_was_lost(path, reader, model, loading)
    # With these marks the model can't be saved; and they would be untrue of the weights that are saved.
    model.hf_quantizer = None
    for holder in (model.config, model):
        for mark in ("quantization_config", "is_quantized", "quantization_method", "_is_quantized"):
            if mark in vars(holder):
                delattr(holder, mark)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**place)
    field = reader.fields.get("tokenizer.ggml.pre")
    split = "" if field is None else str(field.contents())
    if split in BY_DIGIT and _splits_as_gpt2(tokenizer):
        backend, digits = tokenizer.backend_tokenizer, pre_tokenizers.Digits(individual_digits=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    tokenizer.save_pretrained(folder)
    (folder / NOTES).write_text(json.dumps(_notes(reader, tokenizer, split)), "utf-8")


def _splits_as_gpt2(tokenizer: Any) -> bool:
    """Return whether a tokenizer's only split into words is that of GPT-2's."""
    return type(tokenizer.backend_tokenizer.pre_tokenizer).__name__ == "ByteLevel"


def _notes(reader: Any, tokenizer: Any, split: str) -> list[str]:
    """Tell what a file's weights and its tokenizer, which is of the kind `split` there, are not any longer."""
    from gguf import GGMLQuantizationType

    told = []
    whole = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
    if not {tensor.tensor_type for tensor in reader.tensors} <= whole:
        told.append(
            "the weights are quantised and are used as fp32, which is fine for comparing methods, but no result of the "
            "checkpoint that they were made from."
        )
    if _splits_as_gpt2(tokenizer) and split not in AS_GPT2:
        theirs = f"its tokenizer's kind, '{brief(split)}', does" if split else "its file would have to say"
        told.append(
            f"transformers splits texts into words as GPT-2 does, not as {theirs}: some may become other tokens than "
            "in pre-training. The checkpoint's own folder has its tokenizer."
        )
    return told


def _refuse_what_was_lost(path: Path, reader: Any, model: nn.Module, loading: dict[str, Any]) -> None:
    """Refuse a file of which transformers passes over a part, which it does without an error.

    A weight that the file lacks is drawn at random, a tensor without a place in the model is skipped, and a scaling of
    the positions is read for few architectures.
    """
    kind, advice = type(model).__name__, "Give the checkpoint that it was made from, as a folder."
    if missing := loading["missing_keys"]:
        raise ModelError(
            f"--model: '{path.name}' lacks {len(missing)} weights of a {kind}, as '{brief(min(missing))}'; they would "
            f"be drawn at random. {advice}"
        )
    if mismatched := loading["mismatched_keys"]:
        name, found, expected = min(mismatched)
        raise ModelError(
            f"--model: '{path.name}' has '{brief(name)}' as {tuple(found)}, where a {kind} of its settings has "
            f"{tuple(expected)}. {advice}"
        )
    scaled = [tensor.name for tensor in reader.tensors if tensor.name.startswith("rope_")]
    for name, field in reader.fields.items():
        if name.endswith(".rope.scaling.type") and field.contents() != "none":
            scaled.append(f"{name} = {field.contents()}")
    positions = getattr(model.config, "rope_parameters", None) or {"rope_type": "default"}
    if scaled and positions.get("rope_type") == "default":
        raise ModelError(
            f"--model: '{path.name}' scales its positions ({brief(', '.join(scaled))}), which transformers doesn't "
            f"read from a GGUF file of this architecture; it would be another model. {advice}"
        )
    in_file = sum(int(tensor.n_elements) for tensor in reader.tensors)
    taken = sum(weight.numel() for weight in model.parameters())
    if in_file != taken:
        raise ModelError(
            f"--model: '{path.name}' holds {in_file:,} numbers, of which transformers makes a {kind} of "
            f"{taken:,}; it would be another model. {advice}"
        )
