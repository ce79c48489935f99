"""Who runs a cell: a lock on a folder that many machines see, made of nothing but create-exclusive.

A lease is a file `<name>.<generation>` that its holder made, and rewrites every few seconds. It is free again when its
holder removed it, when its holder is a process of this machine that is gone, or when it was not rewritten for a long
time by the reader's own steady clock: no two machines' clocks are ever compared, and none may jump. Whoever takes over
makes the next generation, which only one can.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

BEAT_SECONDS = 10.0  # between two signs of life
DEAD_SECONDS = 150.0  # without one; network file systems show a change within a minute


class Leases:
    """The leases of one folder, as one process sees them.

    Args:
        folder: made when it is needed.
        beat, dead: seconds, for tests.
    """

    def __init__(self, folder: Path, beat: float = BEAT_SECONDS, dead: float = DEAD_SECONDS) -> None:
        self.folder, self.beat, self.dead = folder, beat, dead
        self._seen: dict[Path, tuple[bytes, float]] = {}  # what a file said, and since when

    @contextmanager
    def hold(self, name: str) -> Iterator[bool]:
        """Hold a name inside the block; yields False, holding nothing, where somebody else does."""
        path = self._take(name)
        if path is None:
            yield False
            return
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(path, over), daemon=True)
        beating.start()
        try:
            yield True
        finally:
            over.set()
            beating.join()
            path.unlink(missing_ok=True)

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
        except OSError:  # a full disk: a lease that says nothing would be waited for
            path.unlink(missing_ok=True)
            raise
        # Somebody may have seen another state of the folder and made another generation at the same time.
        others = [other for other in self._files(name) if other != path]
        if not all(map(self._is_dead, others)):
            path.unlink()
            return None
        for other in others:
            other.unlink(missing_ok=True)
        return path

    def _files(self, name: str) -> list[Path]:
        return list(self.folder.glob(f"{name}.*"))

    def _is_dead(self, path: Path) -> bool:
        try:
            said = path.read_bytes()
        except FileNotFoundError:  # given back just now: the next try will see a free name
            return False
        if _is_gone(said):
            return True
        now = time.monotonic()
        before, since = self._seen.get(path, (None, now))
        if before != said:
            since = now
            self._seen[path] = (said, since)
        return now - since > self.dead

    def _beat(self, path: Path, over: threading.Event) -> None:
        while not over.wait(self.beat):
            try:
                with open(path, "r+b") as file:  # never makes a file anew that somebody took away
                    file.write(_holder())
            except OSError:  # a network that is away for a while
                continue


def _holder() -> bytes:
    """Who holds a lease: host, machine and process, and a word that is new at each call; always of one length."""
    process = os.getpid()
    words = [f"{socket.gethostname()[:60]:60}", f"{_machine():120}", f"{process:20}", f"{_started(process):20}"]
    return "\n".join([*words, secrets.token_hex(8), ""]).encode()


@cache
def _machine() -> str:
    """What tells this boot of this machine, and its numbers of processes, from all others; "" where that can't be."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process of this machine began, in ticks since boot; "" where there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _is_gone(said: bytes) -> bool:
    """Whether a lease's holder was a process of this machine that has ended."""
    words = [word.strip() for word in said.decode("utf-8", "replace").splitlines()]
    if len(words) < 5 or not words[1] or words[1] != _machine():
        return False
    return _started(int(words[2])) != words[3]
