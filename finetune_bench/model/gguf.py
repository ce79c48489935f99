"""This file turns a GGUF file into a plain checkpoint's folder, once; from there on it is a checkpoint like any other.

Its quantised weights are written as fp32. transformers reads them (`gguf_file=`), but can't save the model that it
makes until the marks of quantisation are gone, and reading takes many seconds, which every cell would pay.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from functools import cache
from importlib.metadata import version
from pathlib import Path

from finetune_bench.cache import made_once
from finetune_bench.errors import FinetuneBenchError, MachineError, ModelError
from finetune_bench.files import file_hash
from finetune_bench.model.library import library
from finetune_bench.printable import brief

MAGIC = b"GGUF"
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

    return made_once(f"gguf-{content[:16]}-transformers-{version('transformers')}", BYTES_PER_BYTE * size, convert)


def _convert(path: Path, folder: Path) -> None:
    import torch

    transformers = library()
    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    config = transformers.AutoConfig.from_pretrained(**place)
    kind = transformers.AutoModelForCausalLM
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = transformers.AutoModel
    model = kind.from_pretrained(**place, dtype=torch.float32)
    # With these marks the model can't be saved; and they would be untrue of the weights that are saved.
    model.hf_quantizer = None
    for holder in (model.config, model):
        for mark in ("quantization_config", "is_quantized", "quantization_method", "_is_quantized"):
            if mark in vars(holder):
                delattr(holder, mark)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
