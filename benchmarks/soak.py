"""Kill a grid at random, again and again, and see whether it ends as an undisturbed one does.

    python benchmarks/soak.py --minutes 60 --folder /somewhere/outside

Every round runs the same grid of small cells, all methods, in a fresh store, with checkpoints every 20 steps. While it
runs, at random times: a worker is killed (-9), or a runner, or all of them; a runner is interrupted; all are killed and
a checkpoint is cut short, has a bit flipped or gets another cell's name; a second and a third runner are started on the
same store. Processes also kill themselves at chosen points: when a row has got its name and nobody was told yet, when a
lease is made but still empty, and in the middle of taking over the lease of a process that is gone.

The command is given again until it ends with all cells done. Then its store has to equal, row for row and array for
array, apart from measurements, that of one undisturbed run; and no finished cell may have been run again. Exit code 1,
and what differs, where one of it fails. A kind of fault that never came is counted with 0.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from finetune_bench import registry
from finetune_bench.store.row import Status
from finetune_bench.store.store import Store
from finetune_bench.testing.toys import tiny_checkpoint, tiny_texts

FAULTS = ("kill a worker", "kill a runner", "kill everything", "interrupt", "harm a checkpoint", "another runner")
POINTS = {"after the rename": 0.2, "empty lease": 0.01, "take-over": 0.3}  # chances of an end, each time one is passed
RUNNERS = 3  # at most at a time
PATIENCE = 900.0  # seconds that one command may take; a lease that stays empty is waited for 150 s
WAITS = (0.3, 1.5)  # between faults, in times that a run takes until its first row is there

# Python imports this module by itself when it starts: in the runners, and in their workers.
AT_POINTS = """
import json, os, random, signal
from finetune_bench.store import lease
from finetune_bench.store.store import Store

folder, points = os.environ["SOAK_FOLDER"], json.loads(os.environ["SOAK_POINTS"])

def passed(point):
    if random.random() < points.get(point, 0) and not os.path.exists(os.path.join(folder, "quiet")):
        with open(os.path.join(folder, "ends"), "a") as file:
            file.write(point + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)

replace, holder, files = Store._replace, lease._holder, lease.Leases._files

def replacing(store, new, target):
    replace(store, new, target)
    passed("after the rename")

def holding():
    passed("empty lease")  # its file has been made; or it is about to be rewritten
    return holder()

def listing(leases, name):
    listed = files(leases, name)
    if len(listed) > 1 and any(is_ours(path) for path in listed):  # and that of a process that is gone
        passed("take-over")
    return listed

def is_ours(path):
    try:
        return f"{os.getpid():20}" in path.read_text().splitlines()
    except FileNotFoundError:
        return False

Store._replace, lease._holder, lease.Leases._files = replacing, holding, listing
open(os.path.join(folder, "watched"), "w").close()
"""


def command(folder: Path, store: Path, methods: list[str]) -> list[str]:
    """Return the command that runs the grid in a store."""
    options = {
        "--methods": ",".join(methods),
        "--tasks": str(folder / "toy.jsonl"),
        "--model": str(folder / "tiny-bert"),
        "--seeds": "2",
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


def start(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a runner whose output goes to a file."""
    with open(log, "ab") as file:
        return subprocess.Popen(  # noqa: S603
            command, stdout=file, stderr=file, env=os.environ | {"HF_HUB_OFFLINE": "1"} | environment
        )


def at_points(folder: Path, points: Mapping[str, float]) -> dict[str, str]:
    """Return the environment in which processes end by themselves at these points; they tell the folder."""
    modules = folder / "modules"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "sitecustomize.py").write_text(AT_POINTS, "utf-8")
    path = os.pathsep.join(filter(None, [str(modules), os.environ.get("PYTHONPATH")]))
    return {"PYTHONPATH": path, "SOAK_FOLDER": str(folder), "SOAK_POINTS": json.dumps(points)}


def workers_of(runner: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the workers of a runner, whichever of its threads started them."""
    workers = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(runner.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any("executors.worker" in word for word in process.cmdline()):
                    workers.append(process)
    return workers


def strike(fault: str, runner: subprocess.Popen[bytes], store: Store, dice: random.Random) -> bool:
    """Do harm to a runner, its workers or its checkpoints; return whether there was anything to harm."""
    workers = workers_of(runner)
    files = sorted(store.checkpoints.glob("*.safetensors"))
    if fault == "harm a checkpoint" and not files:
        return False
    if runner.poll() is not None or (fault == "kill a worker" and not workers):
        return False
    if fault == "interrupt":
        runner.send_signal(signal.SIGINT)
    if fault in ("kill a runner", "kill everything", "harm a checkpoint"):
        runner.kill()
    victims = workers if fault in ("kill everything", "harm a checkpoint") else []
    for worker in [dice.choice(workers)] if fault == "kill a worker" else victims:
        with suppress(psutil.NoSuchProcess):
            worker.kill()
    if fault == "harm a checkpoint":
        with suppress(FileNotFoundError):  # its cell may have ended at the last moment
            harm(dice.choice(files), dice.choice(files), dice)
    return True


def harm(file: Path, other: Path, dice: random.Random) -> None:
    """Cut a file's end off, as a file system might, flip one of its bits, or put another file in its place."""
    way = dice.choice(("cut", "flip", "replace"))
    if way == "cut":
        os.truncate(file, dice.randrange(200))
    elif way == "flip":
        content = bytearray(file.read_bytes())
        if content:
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        file.write_bytes(content)
    elif file != other:
        file.write_bytes(other.read_bytes())


def disturb(
    runners: list[subprocess.Popen[bytes]],
    start_another: Callable[[], subprocess.Popen[bytes]],
    store: Store,
    *,
    dice: random.Random,
    faults: collections.Counter[str],
    most: int,
    pace: float,
    end: float,
    quiet: Path,
) -> None:
    """Harm runners until they have ended; all kinds come in a new order, after a first killed worker."""
    begin, left = time.monotonic(), list[str]()
    while any(runner.poll() is None for runner in runners):
        # The first worker is killed as soon as there is one: on a fast machine a short grid ends within one wait.
        time.sleep(pace * dice.uniform(*WAITS) if faults.total() else 0.05)
        if time.monotonic() - begin > PATIENCE:
            raise SystemExit(f"a run of the grid did not end within {PATIENCE:g} s")
        # A round has to end some day; the first fault comes in any case.
        if faults.total() >= most or (faults.total() and time.monotonic() > end):
            quiet.touch()
            continue
        left = left or [*dice.sample(FAULTS[1:], len(FAULTS) - 1), FAULTS[0]]
        fault = left.pop()
        running = [runner for runner in runners if runner.poll() is None]
        if fault == "another runner" and running and len(running) < RUNNERS:
            more = dice.randint(1, RUNNERS - len(running))
            runners += [start_another() for _ in range(more)]
            faults[fault] += 1
            faults["three runners at a time"] += len(running) + more == RUNNERS
        elif fault != "another runner" and running and strike(fault, dice.choice(running), store, dice):
            faults[fault] += 1
        else:  # there was nothing to harm
            left.append(fault)


def play(
    folder: Path,
    store: Store,
    methods: list[str],
    *,
    dice: random.Random,
    points: Mapping[str, float],
    most: int,
    pace: float,
    end: float,
) -> collections.Counter[str]:
    """Run the grid under faults until all is done; return how many faults of which kind there were.

    Raises:
        SystemExit: a run doesn't end, or a finished cell was run again.
    """
    faults: collections.Counter[str] = collections.Counter()
    environment = at_points(store.root.with_name(f"{store.root.name}-ends"), points)
    ends, quiet = (Path(environment["SOAK_FOLDER"], name) for name in ("ends", "quiet"))

    def start_another() -> subprocess.Popen[bytes]:
        return start(command(folder, store.root, methods), folder / "talk.log", environment)

    finished: dict[str, str] = {}
    for _ in range(200):
        runners = [start_another()]
        disturb(runners, start_another, store, dice=dice, faults=faults, most=most, pace=pace, end=end, quiet=quiet)
        if points and not Path(environment["SOAK_FOLDER"], "watched").exists():
            raise SystemExit(f"no process watched for the points at which to end; see {folder / 'talk.log'}")
        for row in store.rows():
            if row["status"] == Status.DONE:
                faults["resumed in the middle"] += row["id"] not in finished and bool(row["cost"]["resumed_at"])
                times = row["started"] + row["finished"]
                if finished.setdefault(row["id"], times) != times:
                    raise SystemExit(f"cell {row['id']} was finished, and run again")
        if runners[0].returncode == 0:
            return faults + collections.Counter(ends.read_text("utf-8").splitlines() if ends.exists() else [])
    raise SystemExit("the grid did not end after 200 commands")


def main() -> None:
    """Run rounds until the time is over."""
    parser = argparse.ArgumentParser(description="Kill a grid at random; compare its store with an undisturbed one's.")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, required=True, help="for stores and logs; outside the work tree")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--faults", type=int, default=40, help="of a round, apart from ends at chosen points")
    parser.add_argument("--points", default=",".join(POINTS), help="at which processes end by themselves")
    parser.add_argument("--methods", default=None, help="fewer of them, for a short run (default: all)")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    tiny_checkpoint(folder / "tiny-bert")
    tiny_texts(folder / "toy.jsonl", 120)
    methods = arguments.methods.split(",") if arguments.methods else registry.names("methods")
    points = {name: POINTS[name] for name in arguments.points.split(",") if name}
    end = time.monotonic() + 60 * arguments.minutes

    undisturbed, pace = Store(folder / "undisturbed"), 0.0
    begin, runner = time.monotonic(), start(command(folder, undisturbed.root, methods), folder / "talk.log", {})
    while runner.poll() is None:
        time.sleep(0.1)
        pace = pace or (time.monotonic() - begin if undisturbed.rows() else 0.0)
    if runner.returncode != 0:
        raise SystemExit(f"the undisturbed run failed; see {folder / 'talk.log'}")
    expected = undisturbed.without_measurements()
    total = collections.Counter(dict.fromkeys([*FAULTS, "three runners at a time", *points], 0))
    rounds = 0
    while rounds == 0 or time.monotonic() < end:
        rounds += 1
        store = Store(folder / f"round-{arguments.seed}-{rounds}")
        dice = random.Random(f"{arguments.seed} {rounds}")
        total.update(play(folder, store, methods, dice=dice, points=points, most=arguments.faults, pace=pace, end=end))
        results = store.without_measurements()
        cells = expected.keys() | results.keys()
        different = sorted(cell for cell in cells if expected.get(cell) != results.get(cell))
        if different:
            raise SystemExit(f"round {rounds}: cells {different} differ from the undisturbed run; see {store.root}")
        # A lease that is empty may be being made, so it is waited for only where its cell is to run.
        leases = [file for file in (store.root / "locks").iterdir() if file.stat().st_size > 0]
        left = [*store.checkpoints.glob("*"), *store.cells.glob(".*"), *leases]
        if left:
            raise SystemExit(f"round {rounds}: '{left[0]}' was left behind")
        print(f"round {rounds}: {len(results)} cells, all equal; so far {dict(total)}", flush=True)
    print(f"{rounds} rounds of {len(expected)} cells, every row equal to the undisturbed run's; {dict(total)}")


if __name__ == "__main__":
    main()
