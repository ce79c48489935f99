"""This file keeps what is made once for all runs of a user: joined or converted checkpoints, and calibrations.

The folder is $FINETUNE_BENCH_CACHE, or else finetune-bench in $XDG_CACHE_HOME, or else in ~/.cache. All of it can be
deleted at any time.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from finetune_bench.errors import MachineError

VARIABLE = "FINETUNE_BENCH_CACHE"
MARGIN = 2**28  # bytes that are left free on a disk


def cache_folder() -> Path:
    """Return the user's cache folder of this program, which may not exist yet."""
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # By the specification of XDG a relative path is to be ignored.
    usual = base if base.is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111 — it never fails
    return usual / "finetune-bench"


def made_once(name: str, bytes_needed: int, make: Callable[[Path, Path], None]) -> Path:
    """Return a folder of the cache; it is made where it isn't there yet, whole or not at all.

    A second process that wants the same folder waits for the first and takes what that has made.

    Args:
        name: of the folder; it has to identify the content.
        bytes_needed: on the disk while the folder is made.
        make: gets the empty folder to fill and a scratch folder, which is deleted afterwards.

    Raises:
        MachineError: the cache can't be written, or its disk has no room.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if folder.is_dir():
                return folder
            free = shutil.disk_usage(folder.parent).free
            if free < bytes_needed + MARGIN:
                raise MachineError(
                    f"'{folder.parent}' needs {(bytes_needed + MARGIN) / 2**20:,.0f} MiB of free disk to make {name}, "
                    f"but has {free / 2**20:,.0f}; make room, or name another folder: {VARIABLE}=FOLDER."
                )
            with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
                new, rest = Path(scratch, "new"), Path(scratch, "rest")
                new.mkdir()
                rest.mkdir()
                make(new, rest)
                new.rename(folder)
    except OSError as error:
        raise MachineError(
            f"'{error.filename or folder}' can't be written: {error.strerror or error}; name another folder for what "
            f"is kept: {VARIABLE}=FOLDER."
        ) from None
    return folder
