"""This file checks a checkpoint's files before anything is loaded: are they there, whole, and without NaN?"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from finetune_bench.errors import ModelError
from finetune_bench.model.packaged import MODELS

INDEX = "model.safetensors.index.json"
QUANTISED = ("I8", "U8", "F8_", "F6_", "F4")  # how names of types begin that hold no weight without its scale
POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched


def check_folder(name: str, folder: Path) -> None:
    """Check that a checkpoint's folder holds a whole model.

    Args:
        name: of the checkpoint, for messages.
        folder: where its files are.

    Raises:
        ModelError: there is no configuration, no weights, a part of them is missing or was not fetched, or they are an
            adapter, or in another format.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"--model: '{name}' is an adapter of peft, not a model. Merge it into its model: "
            "AutoPeftModelForSequenceClassification.from_pretrained(folder).merge_and_unload().save_pretrained(other)."
        )
    if not (folder / "config.json").is_file():
        hides = f" It hides the checkpoint '{name}' from packages: rename it, or work in another folder."
        raise ModelError(
            f"--model: expected a checkpoint's folder with a config.json at '{name}', but "
            f"{'it has none' if folder.is_dir() else 'there is no such folder'}.{hides if name in MODELS else ''}"
        )
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".model") and path.is_file() and _is_pointer(path):
            raise ModelError(
                f"--model: '{path.name}' in '{name}' is a pointer of Git LFS, not the file. Fetch it: git lfs pull."
            )
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"--model: the folder '{name}' has no .safetensors file; other weight files can run code when loaded. "
            "Convert them with transformers: model.save_pretrained(folder)."
        )
    weight_files(name, folder)


def weight_files(name: str, folder: Path) -> list[Path]:
    """Return the files that transformers reads the weights from.

    Raises:
        ModelError: the index can't be read, or a file that it names is missing.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("*.safetensors")))
        raise ModelError(
            f"--model: '{name}' has neither a model.safetensors nor an index of its parts, {INDEX}, but {others}. "
            "Rename the file, or save the model again: model.save_pretrained(folder)."
        )
    try:
        parts = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"--model: {INDEX} of '{name}' can't be read: {type(error).__name__}: {error}") from None
    if missing := [part for part in parts if not (folder / str(part)).is_file()]:
        raise ModelError(
            f"--model: {len(missing)} of the {len(parts)} files of weights of '{name}' are missing: {missing[0]} and "
            "what else its index names. Copy the whole folder again."
        )
    return [folder / part for part in parts]


@cache
def check_weights(name: str, paths: tuple[Path, ...], ignored: frozenset[str]) -> None:
    """Check that every weight that is taken can be read and is finite.

    Args:
        name: of the checkpoint, for messages.
        paths: its safetensors files.
        ignored: keys of the tensors that no model takes.

    Raises:
        ModelError: a file is cut short or damaged, or a weight is NaN, infinite or quantised.
    """
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 — no dictionary
                    if key in ignored:
                        continue
                    if (kind := file.get_slice(key).get_dtype()).startswith(QUANTISED):
                        raise ModelError(
                            f"--model: '{key}' in {path.name} of '{name}' is quantised ({kind}), and can't be "
                            "fine-tuned as it is. Give the checkpoint that it was made from."
                        )
                    if not _is_finite(file.get_tensor(key)):
                        raise ModelError(
                            f"--model: '{key}' in {path.name} of '{name}' has entries that are NaN or infinite; "
                            "training would start from them. Save the weights of an earlier step."
                        )
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"--model: {path.name} of '{name}' is damaged or cut short ({error}). Download or copy it again."
            ) from None


def _is_finite(tensor: Any) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # Any NaN is both the lowest and the highest; this takes a twentieth of the time of asking every weight.
    lowest, highest = tensor.aminmax()
    return bool(lowest.isfinite() and highest.isfinite())


def _is_pointer(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER
