"""Files of a run folder that somebody else may have made or changed: read with care, replaced whole, never followed.

A file is read only where it is a plain file of a size that it may have: no link is followed, and nothing waits for a
pipe or reads a device. A file is written under another name and renamed, so a link in its place is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from finetune_bench.errors import UsageError

MOST_JSON_BYTES = 8 * 2**20  # the row of a stack of twenty methods has some 10 kB, the study of 10,000 cells 300 kB
DEEPEST = 30  # levels of nesting in JSON; a row has six
CHECKSUM = "sha256"  # the key of a JSON file that holds the hash of all its others

_CHUNK_BYTES = 2**16  # `hashlib.file_digest` takes four times that for every file, however small
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)

# What opening a file says of the file itself. Whatever else goes wrong is the machine's, and passed on.
_OF_THE_FILE = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.ELOOP: "is a link",
    errno.EISDIR: "is a folder",
    errno.ENXIO: "is no plain file",
    errno.EACCES: "may not be read",
    errno.EIO: "can't be read from its disk",
}


class Damaged(UsageError):
    """A file isn't what was written: it was cut, changed, or never was what its name says.

    Args:
        path: the file.
        reason: the end of a sentence that begins with the file's name.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"'{path}' {reason}.")
        self.reason = f"{Path(path).name} {reason}"


@contextmanager
def open_plain(path: Path | str, most: int) -> Iterator[BufferedReader]:
    """Open a plain file for reading.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        Damaged: there is none, or it is a link, a pipe or a device, or larger.
    """
    with os.fdopen(_opened(path, most), "rb") as file:
        yield file


def read_plain(path: Path | str, most: int) -> bytes:
    """Return the content of a plain file; see `open_plain`."""
    handle = _opened(path, most)
    try:
        # Memory is taken for as many bytes as are asked for, so for no more than the file has.
        left = min(most, os.fstat(handle).st_size)
        parts = []
        while left > 0 and (part := os.read(handle, left)):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(handle)
    return b"".join(parts)


def hash_plain(path: Path | str, most: int) -> tuple[int, str]:
    """Return how many bytes a plain file has, and their sha256 in hexadecimal digits; see `open_plain`."""
    handle = _opened(path, most)
    hashed = hashlib.sha256()
    size = 0
    try:
        while part := os.read(handle, _CHUNK_BYTES):
            hashed.update(part)
            size += len(part)
    finally:
        os.close(handle)
    return size, hashed.hexdigest()


def _opened(path: Path | str, most: int) -> int:
    """Return a handle of a plain file that has at most so many bytes."""
    try:
        handle = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno in _OF_THE_FILE:
            raise Damaged(path, _OF_THE_FILE[error.errno]) from None
        raise
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > most:
        os.close(handle)
        if stat.S_ISREG(facts.st_mode):
            raise Damaged(path, f"has {facts.st_size:,} bytes, of at most {most:,}")
        raise Damaged(path, "is a folder" if stat.S_ISDIR(facts.st_mode) else "is no plain file")
    return handle


def read_json(path: Path) -> dict[str, Any]:
    """Return the table that a JSON file holds, without its checksum, which has to fit where there is one.

    Raises:
        Damaged: it can't be read, holds no table, or something else than was written.
    """
    return unsealed(read_plain(path, MOST_JSON_BYTES), path)[0]


def unsealed(content: bytes, path: Path | str, *, is_checked: bool = False) -> tuple[dict[str, Any], str, bool]:
    """Return the table of a JSON file without its checksum, the table's hash, and whether the file had a checksum.

    Args:
        content: what the file holds.
        path: the file.
        is_checked: whether equal bytes were held against their checksum before, which takes most of the time.

    Raises:
        Damaged: it holds no table, or something else than was written.
    """
    try:
        values = _DECODER.decode(content.decode("utf-8"))
        if not isinstance(values, dict):
            raise Damaged(path, "holds no table")
        # With so few brackets it can't be, and most files have few.
        if content.count(b"{") + content.count(b"[") > DEEPEST and _is_deeper(values, DEEPEST):
            raise Damaged(path, f"is nested more than {DEEPEST} levels deep")
        stored = values.pop(CHECKSUM, None)
        computed = stored if is_checked and isinstance(stored, str) else checksum(values)
    except RecursionError:
        raise Damaged(path, f"is nested more than {DEEPEST} levels deep") from None
    except ValueError:  # no JSON, no UTF-8, half a character, or a number of thousands of digits
        raise Damaged(path, "is no JSON that was written here") from None
    if stored is not None and stored != computed:
        raise Damaged(path, "was changed after it was written: its checksum is another")
    return values, computed, stored is not None


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table for a JSON file with its checksum, which `read_json` holds it against."""
    rest = {key: value for key, value in values.items() if key != CHECKSUM}
    return rest | {CHECKSUM: checksum(rest)}


def checksum(values: Mapping[str, Any]) -> str:
    """Return a hash of what a table holds, whatever the order of its keys and the spaces in its file.

    Raises:
        ValueError: it holds what no JSON file does: NaN, an infinity, or half of a character.
    """
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_hash(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Make a folder to write files into, where it isn't there.

    Raises:
        UsageError: it is a link, which could lead anywhere.
    """
    refuse_link(path)
    path.mkdir(parents=True, exist_ok=True)


def refuse_link(path: Path) -> None:
    """Check that nothing would be written through a link.

    Raises:
        UsageError: the path is a link.
    """
    if path.is_symlink():
        raise UsageError(
            f"Expected a folder, but '{path}' is a link, and what is written there would land elsewhere; put a folder "
            "in its place, or name the folder that it leads to with --out."
        )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a fresh name beside a file; what was written there takes the file's place when the block ends well."""
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, replacing whatever has its name."""
    with replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def _is_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)  # made once: `json.loads` would make another for each of many files
