"""A lease is a lock for running a cell, on a folder seen by many machines, made of nothing but create-exclusive.

A lease is a file `<name>.<generation>` that its holder made, and rewrites every few seconds. It is free again when its
holder removed it, when its holder is a process of this machine that is gone, or when it was not rewritten for a long
time by the reader's own steady clock: no two machines' clocks are ever compared, and none may jump. Whoever takes over
makes the next generation, which only one can.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from finetune_bench.files import Damaged, read_plain

BEAT_SECONDS = 10.0  # between two signs of life of a holder
DEAD_SECONDS = 150.0  # without a sign of life, after which a holder is given up; network file systems take up to 60 s

_MOST_BYTES = 4096  # of a lease's file; it has some 250


@dataclass(frozen=True)
class Holder:
    """A lease's file tells this of who holds it.

    Attributes:
        name: the lease's name, a cell's id.
        host: the name of the holder's machine.
        process: the holder's process number there.
        quiet_seconds: seconds since the last sign of life, as far as this machine's clock agrees with the file's.
        is_live: whether the holder isn't known to be gone: its process is there, or lies on another machine and gave a
            sign of life before long.
    """

    name: str
    host: str
    process: int
    quiet_seconds: float
    is_live: bool


def holders(folder: Path) -> list[Holder]:
    """Return who holds the leases of a folder, by name; changes nothing, and leaves out what is no lease's file."""
    found = []
    for path in sorted(folder.glob("[!.]*")):
        try:
            content = read_plain(path, _MOST_BYTES)
            quiet = max(0.0, time.time() - path.lstat().st_mtime)
            host, _, process = [line.strip() for line in content.decode("utf-8", "replace").splitlines()][:3]
            found.append(
                Holder(path.stem, host[:60], int(process[:18]), quiet, quiet < DEAD_SECONDS and not _is_gone(content))
            )
        except (Damaged, OSError, ValueError):  # given back just now, written at this moment, or none at all
            continue
    return found


class Leases:
    """This object holds leases in one folder for one process, and sees those of the others.

    Args:
        folder: the folder of the lease files; made when it is needed.
        beat: seconds between two signs of life.
        dead: seconds without a sign of life, after which a holder is given up.
    """

    def __init__(self, folder: Path, beat: float = BEAT_SECONDS, dead: float = DEAD_SECONDS) -> None:
        self.folder, self.beat, self.dead = folder, beat, dead
        self._held: dict[str, Path] = {}
        self._lock = threading.Lock()  # of what is held, and of the thread that gives signs of life
        self._is_beating = False
        self._seen: dict[Path, tuple[bytes, float]] = {}  # the content of each file, and since when it is that

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a name inside the block; yield False, holding nothing, where another process does."""
        path = self._take(name)
        if path is None:
            yield False
            return
        with self._lock:
            self._held[name] = path
            if not self._is_beating:
                self._is_beating = True
                threading.Thread(target=self._beat, daemon=True).start()
        try:
            yield True
        finally:
            with self._lock:
                del self._held[name]
            path.unlink(missing_ok=True)

    def is_lost(self, name: str) -> bool:
        """Return whether this process held a name and another one took it over, as after a long sleep."""
        return name in self._held and not self._held[name].exists()

    def _take(self, name: str) -> Path | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        others = self._files(name)
        if not all(map(self._is_dead, others)):
            return None
        generation = 1 + max((int(path.suffix[1:]) for path in others), default=-1)
        path = self.folder / f"{name}.{generation}"
        try:
            with open(path, "xb") as file:
                file.write(_holder())
        except FileExistsError:
            return None
        except OSError:  # a full disk: others would wait for a lease without a holder
            path.unlink(missing_ok=True)
            raise
        # Another process may have seen another state of the folder and made another generation at the same time.
        others = [other for other in self._files(name) if other != path]
        if not all(map(self._is_dead, others)):
            path.unlink()
            return None
        for other in others:
            with contextlib.suppress(OSError):  # a folder in a lease's place stays, and is no lease
                other.unlink(missing_ok=True)
        return path

    def _files(self, name: str) -> list[Path]:
        return [path for path in self.folder.glob(f"{name}.*") if re.fullmatch("[0-9]{1,18}", path.suffix[1:])]

    def _is_dead(self, path: Path) -> bool:
        try:
            content = read_plain(path, _MOST_BYTES)
        except Damaged:  # a link, a pipe or a folder is no lease
            return os.path.lexists(path)  # what was given back just now isn't there: the next try sees a free name
        if _is_gone(content):
            return True
        now = time.monotonic()
        content_before, since = self._seen.get(path, (None, now))
        if content_before != content:
            since = now
            self._seen[path] = (content, since)
        return now - since > self.dead

    def _beat(self) -> None:
        """Rewrite every lease that is held every few seconds, until none is."""
        while True:
            time.sleep(self.beat)
            with self._lock:
                if not self._held:
                    self._is_beating = False
                    return
                for path in self._held.values():
                    # What fails is a network that is away for a while, or a lease that another process took over.
                    with contextlib.suppress(OSError), open(path, "r+b") as file:
                        file.write(_holder())


def _holder() -> bytes:
    """Return who holds a lease: host, machine, process, when it began, and a word that is new at each call.

    It is always of one length, so that a lease is rewritten in one piece.
    """
    process = os.getpid()
    lines = [f"{socket.gethostname()[:60]:60}", f"{_machine():120}", f"{process:20}", f"{_own_start(process):20}"]
    return "\n".join([*lines, secrets.token_hex(8), ""]).encode()


@cache
def _machine() -> str:
    """Return what tells this boot of this machine, and its process numbers, from all others; "" where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


@cache
def _own_start(process: int) -> str:
    """Return when this process began, as `_started` has it; asking takes milliseconds, and it never changes."""
    return _started(process)


def _started(process: int) -> str:
    """Return when a process of this machine began, in ticks since boot; "" where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_gone(content: bytes) -> bool:
    """Return whether a lease's holder was a process of this machine that has ended."""
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    if len(lines) < 5:  # written at this moment
        return False
    _, machine, process, started, _ = lines[:5]
    if not re.fullmatch("[0-9]{1,18}", process):  # nobody wrote that
        return False
    return machine != "" and machine == _machine() and _started(int(process)) != started
