"""One holder at a time, whatever dies, on one machine and on several."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from finetune_bench.store import lease
from finetune_bench.store.lease import Leases

HOLD = """
import sys, time
from pathlib import Path
from finetune_bench.store.lease import Leases
with Leases(Path(sys.argv[1])).hold("cell") as mine:
    print(mine, flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(folder: Path, seconds: float) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def held(folder: Path, **options: float) -> bool:
    with Leases(folder, **options).hold("cell") as mine:
        return not mine


def test_a_held_name_is_refused_and_free_again_afterwards(tmp_path: Path) -> None:
    with Leases(tmp_path).hold("cell") as mine:
        assert mine
        assert held(tmp_path)
        with Leases(tmp_path).hold("another") as other:
            assert other
    assert not held(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="processes are told apart through /proc")
def test_a_killed_holder_is_known_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path, 600)
    assert held(tmp_path)
    process.kill()
    time.sleep(0.2)  # not yet waited for: it is a zombie, and holds nothing
    assert not held(tmp_path)
    process.communicate()


def test_a_holder_of_another_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: "elsewhere")
    content = lease._holder()
    monkeypatch.undo()
    (tmp_path / "cell.3").write_bytes(content)
    leases = Leases(tmp_path, dead=0.6)
    for _ in range(2):  # alive as long as its file changes, however old the file says it is
        os.utime(tmp_path / "cell.3", (0, 0))
        with leases.hold("cell") as mine:
            assert not mine
        time.sleep(0.4)
        (tmp_path / "cell.3").write_bytes(content.replace(b"elsewhere", b"elsewher2"))
        content = (tmp_path / "cell.3").read_bytes()
    with leases.hold("cell") as mine:
        assert not mine
    time.sleep(0.7)
    with leases.hold("cell") as mine:
        assert mine
        assert [path.name for path in tmp_path.iterdir()] == ["cell.4"]


def test_a_holder_gives_signs_of_life(tmp_path: Path) -> None:
    with Leases(tmp_path, beat=0.05).hold("cell"):
        first = (tmp_path / "cell.0").read_bytes()
        time.sleep(0.5)
        second = (tmp_path / "cell.0").read_bytes()
    assert first != second
    assert len(first) == len(second)


def test_of_many_at_once_one_holds(tmp_path: Path) -> None:
    """Threads that all see a dead holder: never two of them inside."""
    (tmp_path / "cell.0").write_bytes(lease._holder().replace(str(os.getpid()).encode(), b"1" * len(str(os.getpid()))))
    inside, most, entered = 0, 0, 0
    guard = threading.Lock()

    def compete() -> None:
        nonlocal inside, most, entered
        leases = Leases(tmp_path)
        for _ in range(40):
            with leases.hold("cell") as mine:
                if mine:
                    with guard:
                        inside += 1
                        entered += 1
                        most = max(most, inside)
                    time.sleep(0.001)
                    with guard:
                        inside -= 1

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert entered > 10
