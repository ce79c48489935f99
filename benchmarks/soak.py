"""Kill a grid at random, again and again, and see whether it ends as an undisturbed one does.

    python benchmarks/soak.py --minutes 60 --folder /somewhere/outside

Every round runs the same grid of small cells, all methods, in a fresh store, with checkpoints every 20 steps. While it
runs, at random times: a worker is killed (-9), or the runner, or all of them; the runner is interrupted; all are killed
and a checkpoint is cut short; a second runner is started on the same store. The command is given again until it ends
with all cells done. Then its store has to equal, row for row and array for array, apart from measurements, that of one
undisturbed run; and no finished cell may have been run again. Exit code 1, and what differs, where one of it fails.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from finetune_bench import registry
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

FAULTS = ("kill a worker", "kill the runner", "kill everything", "interrupt", "cut a checkpoint", "a second runner")
PATIENCE = 600.0  # seconds that one command may take
WAITS = (4.0, 18.0)  # seconds between faults; a run's workers take some to begin


def command(folder: Path, store: Path, methods: list[str]) -> list[str]:
    """Return the command that runs the grid in a store."""
    options = {
        "--methods": ",".join(methods),
        "--tasks": str(folder / "toy.jsonl"),
        "--model": str(folder / "tiny-bert"),
        "--seeds": "1",
        "--lr": "1e-3",
        "--steps": "150",
        "--batch-size": "8",
        "--checkpoint-every": "20",
        "--workers": "2",
        "--device": "cpu",
        "--out": str(store),
    }
    words = [word for option in options.items() for word in option]
    return [sys.executable, "-m", "finetune_bench.cli", "run", *words]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a runner whose output goes to a file."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)  # noqa: S603


def children(process: int) -> list[int]:
    """Return the processes that a process started."""
    try:
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()]
    except OSError:
        return []


def strike(fault: str, runner: subprocess.Popen[bytes], store: Store, dice: random.Random) -> bool:
    """Do harm to a runner, its workers or its checkpoints; return whether there was anything to harm."""
    workers = children(runner.pid)
    files = sorted(store.checkpoints.glob("*.safetensors"))
    if fault == "cut a checkpoint" and not files:
        return False
    if runner.poll() is not None or (fault == "kill a worker" and not workers):
        return False
    if fault == "interrupt":
        runner.send_signal(signal.SIGINT)
    if fault in ("kill the runner", "kill everything", "cut a checkpoint"):
        runner.kill()
    victims = workers if fault in ("kill everything", "cut a checkpoint") else []
    for worker in [dice.choice(workers)] if fault == "kill a worker" else victims:
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    if fault == "cut a checkpoint":  # as a file system might that lost its end
        with suppress(FileNotFoundError):  # its cell may have ended at the last moment
            os.truncate(dice.choice(files), dice.randrange(200))
    return True


def play(folder: Path, store: Store, methods: list[str], dice: random.Random) -> collections.Counter[str]:
    """Run the grid under faults until all is done; return how many faults of which kind there were.

    Raises:
        SystemExit: a run doesn't end, or a finished cell was run again.
    """
    faults: collections.Counter[str] = collections.Counter()
    grid, log = command(folder, store.root, methods), folder / "talk.log"
    finished: dict[str, str] = {}
    for _ in range(200):
        runners = [start(grid, log)]
        begin = time.monotonic()
        is_quiet = faults.total() > 40  # a round has to end some day
        while any(runner.poll() is None for runner in runners):
            time.sleep(dice.uniform(*WAITS))
            if is_quiet:
                continue
            if time.monotonic() - begin > PATIENCE:
                raise SystemExit(f"a run of the grid did not end within {PATIENCE:g} s; see {log}")
            fault = dice.choice(FAULTS)
            if fault == "a second runner":
                if len(runners) == 1:
                    runners.append(start(grid, log))
                    faults[fault] += 1
            elif strike(fault, dice.choice(runners), store, dice):
                faults[fault] += 1
        for row in store.rows():
            if row["status"] == Status.DONE:
                faults["resumed in the middle"] += row["id"] not in finished and bool(row["cost"]["resumed_at"])
                times = row["started"] + row["finished"]
                if finished.setdefault(row["id"], times) != times:
                    raise SystemExit(f"cell {row['id']} was finished, and run again")
        if runners[0].returncode == 0:
            return faults
    raise SystemExit("the grid did not end after 200 commands")


def main() -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(description="Kill a grid at random; compare its store with an undisturbed one's.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, required=True, help="for stores and logs; outside the work tree")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--methods", default=None, help="fewer of them, for a short run (default: all)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tiny_checkpoint(folder / "tiny-bert")
    tiny_texts(folder / "toy.jsonl", 120)
    methods = arguments.methods.split(",") if arguments.methods else registry.names("methods")
    end = time.monotonic() + 60 * arguments.minutes

    undisturbed = Store(folder / "undisturbed")
    if start(command(folder, undisturbed.root, methods), folder / "talk.log").wait() != 0:
        raise SystemExit(f"the undisturbed run failed; see {folder / 'talk.log'}")
    expected = undisturbed.without_measurements()
    total: collections.Counter[str] = collections.Counter()
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        rounds += 1
        store = Store(folder / f"round-{arguments.seed}-{rounds}")
        total += play(folder, store, methods, random.Random(f"{arguments.seed} {rounds}"))
        results = store.without_measurements()
        cells = expected.keys() | results.keys()
        different = sorted(cell for cell in cells if expected.get(cell) != results.get(cell))
        if different:
            raise SystemExit(f"round {rounds}: cells {different} differ from the undisturbed run; see {store.root}")
        left = [*store.checkpoints.iterdir(), *store.cells.glob(".*"), *(store.root / "locks").iterdir()]
        if left:
            raise SystemExit(f"round {rounds}: '{left[0]}' was left behind")
        print(f"round {rounds}: {len(results)} cells, all equal; so far {dict(total)}", flush=True)
    print(f"{rounds} rounds of {len(expected)} cells, every row equal to the undisturbed run's; {dict(total)}")


if __name__ == "__main__":
    main()
