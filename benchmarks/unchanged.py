"""Check that this checkout gives the same numbers and the same reports as an earlier commit.

    python -m benchmarks.unchanged 4c157d9
    python -m benchmarks.unchanged 4c157d9 --keep FOLDER

Both train the same studies on a tiny model with the interpreter that runs this: every method and five stacks on a
classification and a regression, a study that fills every section of a report, a search, and doses of two methods.
Compared are cell ids, rows (hashes of weights and batch order, scores, losses, notes; not what was measured by a
clock), the arrays beside them, and the reports that both write, in every format, of the earlier commit's stores. This
checkout then resumes those stores, where every cell has to be found done.

Words that were renamed on purpose are listed in `RENAMED` and applied to the earlier reports first; files that were are
counted apart. With --keep, what the earlier commit made is kept in FOLDER and not made again.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
FORMATS = "markdown,html,csv,latex"
STACKS = (
    "hype+rdrop",
    "rdrop+freelb",
    "hype(eps=1e-3)+child_tuning_f(reserve_p=0.4)",
    "noisytune+mixout+ema(beta=0.9)",
    "r3f+layerwise_lr_decay+top_k(k=1)",
)
TINY = ["--model", "tiny", "--batch-size", "8", "--lr", "1e-3", "--device", "cpu", "--workers", "2"]
TASKS = ["--tasks", "classes.jsonl,numbers.jsonl(kind=regression)"]
COMMANDS: dict[str, list[str]] = {
    "methods": ["run", "--seeds", "2", "--epochs", "2", *TASKS, *TINY],  # with --methods of every method
    "sections": [
        *("run", "--methods", "hype,rdrop,smart,hype+rdrop", "--attribution", "--fair-cost", "--seeds", "4"),
        *("--epochs", "3", *TASKS, *TINY, "--lr", "1e-3,5e-3", "--save-model"),
    ],
    "search": ["run", "--methods", "hype,rdrop", "--search", "3", "--seeds", "2", "--epochs", "2", *TASKS, *TINY],
    "dose": ["dose", "hype", "--eps", "1e-4,1e-2", "--seeds", "2", "--epochs", "2", "--tasks", "classes.jsonl", *TINY],
    "dose of a stack": [
        *("dose", "r3f+rdrop", "--r3f.eps", "1e-4,1e-2", "--seeds", "2", "--epochs", "1"),
        *("--tasks", "numbers.jsonl(kind=regression)", *TINY),
    ],
}
REPORTS = {"": [], "-options": ["--margin", "0.5", "--bootstrap"], "-rdrop": ["--baseline", "rdrop"]}
# No method of these reports is labelled "rdrop".
WITHOUT_RDROP = ("search", "dose", "dose of a stack")
# Keys that rows of earlier commits may not have.
ADDED = ("data", "weights", "sources", "training.grad_norm", "training.clipped_share")
# Arrays that those of earlier commits may not have.
ADDED_ARRAYS = {"grad_norm"}
# Keys of a row whose values a clock or the machine gives, or that say how it is stored: arrays are compared themselves.
MEASURED = re.compile(
    r"^(schema|sha256|files)($|\.)|(^|\.)(environment|shared_training|started|finished|seconds|cpu_seconds|peak_\w+|energy_joules|resumed_at|\w+_seconds"
    r"|examples_per_second)($|\.)"
)
# Words of the earlier reports that were renamed on purpose since, by the ending of the file: (pattern, replacement).
LAYOUTS = {"padded": "padded", "packed": "unpadded", "trimmed": "unpadded_trimmed"}
RENAMED: dict[str, list[tuple[str, str]]] = {
    ending: [(rf"\barrangement {old}\b", f"batch_layout {new}") for old, new in LAYOUTS.items()]
    for ending in (".md", ".html")
}

_MAKE_INPUTS = """
import json, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
from finetune_bench import registry
from finetune_bench.testing import tiny_checkpoint, tiny_texts
file = tiny_checkpoint(Path("tiny")) / "model.safetensors"
# Earlier commits kept the head of a checkpoint, which is drawn anew today: without one both draw the same.
save_file({key: value for key, value in load_file(file).items() if "classifier" not in key}, file, {"format": "pt"})
rows = [json.loads(line) for line in tiny_texts(Path("classes.jsonl")).read_text("utf-8").splitlines()]
numbers = [row | {"label": row["label"] + len(row["text"]) / 40} for row in rows]
Path("numbers.jsonl").write_text("\\n".join(json.dumps(row) for row in numbers), "utf-8")
print(",".join(registry.names("methods")))
"""


def call(checkout: Path, folder: Path, code: str, *arguments: str) -> str:
    """Run Python code of one checkout in a folder and return what it printed."""
    start = f"import sys; sys.path.insert(0, {str(checkout)!r}); sys.argv[0] = 'finetune-bench'\n"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", start + code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def command(checkout: Path, folder: Path, *arguments: str) -> str:
    """Run a finetune-bench command of one checkout in a folder."""
    return call(checkout, folder, "from finetune_bench.cli import main; sys.exit(main())", *arguments)


def train(checkout: Path, folder: Path) -> None:
    """Make all stores with one checkout."""
    names = call(checkout, folder, _MAKE_INPUTS).strip()
    for name, arguments in COMMANDS.items():
        methods = ["--methods", ",".join([names, *STACKS])] if name == "methods" else []
        print(f"  {name} ...", flush=True)
        command(checkout, folder, *arguments, *methods, "--out", name)
    (folder / "methods.txt").write_text(names, "utf-8")


def report(checkout: Path, stores: Path, out: Path) -> None:
    """Write the reports of all stores, in every format, with one checkout."""
    for name in COMMANDS:
        for suffix, options in REPORTS.items():
            if suffix == "-rdrop" and name in WITHOUT_RDROP:
                continue
            command(
                checkout, stores, "report", name, "--format", FORMATS, *options, "--out", str(out / (name + suffix))
            )


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return a row as one level of keys, without what was measured."""
    if isinstance(value, dict):
        return {k: v for name, inner in value.items() for k, v in flat(inner, f"{key}.{name}".lstrip(".")).items()}
    return {} if MEASURED.search(key) else {key: value}


def compare_stores(old: Path, new: Path) -> tuple[list[str], int]:
    """Return what differs between the cells of two stores, one text each, and how many cells there are."""
    cells = {path.parent.name for root in (old, new) for path in root.glob("cells/*/row.json")}
    differences = []
    for cell in sorted(cells):
        folders = [root / "cells" / cell for root in (old, new)]
        if not all((folder / "row.json").is_file() for folder in folders):
            differences.append(f"{cell}: only in {'old' if folders[0].is_dir() else 'new'}")
            continue
        rows = [flat(json.loads((folder / "row.json").read_text("utf-8"))) for folder in folders]
        keys = [
            key
            for key in sorted(rows[0].keys() | rows[1].keys())
            if rows[0].get(key, ...) != rows[1].get(key, ...) and (key in rows[0] or key not in ADDED)
        ]
        differences += [
            f"{cell}: {key}: {rows[0].get(key, 'missing')!r} → {rows[1].get(key, 'missing')!r}" for key in keys
        ]
        for path in sorted(folders[0].glob("*.npz")):
            with np.load(path) as before, np.load(folders[1] / path.name) as after:
                same = set(before) | ADDED_ARRAYS >= set(after) and all(
                    np.array_equal(before[name], after[name]) for name in before
                )
            differences += [] if same else [f"{cell}: {path.name} differs"]
    return differences, len(cells)


def compare_reports(old: Path, new: Path) -> tuple[list[str], int, int]:
    """Return what differs between two folders of reports, the number of files, and that of files with renamed words."""
    files = {path.relative_to(root) for root in (old, new) for path in root.rglob("*") if path.is_file()}
    differences, renamed = [], 0
    for file in sorted(files):
        if not ((old / file).is_file() and (new / file).is_file()):
            differences.append(f"{file}: only in {'old' if (old / file).is_file() else 'new'}")
            continue
        before, after = (old / file).read_bytes(), (new / file).read_bytes()
        if before == after:
            continue
        text, expected = before.decode("utf-8", "replace"), after.decode("utf-8", "replace")
        for pattern, replacement in RENAMED.get(file.suffix, []):
            text = re.sub(pattern, replacement, text)
        if text == expected:
            renamed += 1
            continue
        pairs = zip(text.splitlines(), expected.splitlines(), strict=False)
        line = next(((number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1]), None)
        differences.append(
            f"{file}: " + (f"line {line[0]}: {line[1][0][:200]!r} → {line[1][1][:200]!r}" if line else "length")
        )
    return differences, len(files), renamed


def main() -> int:
    """Compare, print what differs, and return 1 if anything does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="the earlier commit")
    parser.add_argument("--keep", type=Path, help="folder for what the earlier commit makes")
    parser.add_argument(
        "--reports-only", action="store_true", help="train nothing here: compare reports and resumption"
    )
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="unchanged-") as temporary:
        work = Path(temporary)
        kept = (parsed.keep or work).resolve()
        old = kept / parsed.commit
        clone = work / "clone"
        if not (old / "reports").is_dir():
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)  # noqa: S603, S607
            subprocess.run(["git", "-C", str(clone), "checkout", "-q", parsed.commit], check=True)  # noqa: S603, S607
        for part in ("stores", "reports"):
            if not (old / part).is_dir():
                print(f"{parsed.commit} makes its {part}:", flush=True)
                unfinished = old / "unfinished" / part  # rows name a checkpoint by the last two folders of its path
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
                if part == "stores":
                    train(clone, unfinished)
                else:
                    report(clone, old / "stores", unfinished)
                unfinished.rename(old / part)
        differences: list[str] = []
        if not parsed.reports_only:
            print("this checkout trains:", flush=True)
            (work / "stores").mkdir()
            train(ROOT, work / "stores")
            cells = 0
            for name in COMMANDS:
                differing, count = compare_stores(old / "stores" / name, work / "stores" / name)
                differences += [f"{name}: {line}" for line in differing]
                cells += count
            print(f"{cells} cells: {len(differences)} differences in ids, hashes, rows and arrays")
        print("this checkout reports and resumes the earlier stores ...", flush=True)
        stores = work / "earlier"
        shutil.copytree(old / "stores", stores)
        report(ROOT, stores, work / "reports")
        differing, files, renamed = compare_reports(old / "reports", work / "reports")
        print(f"{files} report files: {len(differing)} differ, {renamed} are the same but for renamed words")
        differences += differing
        methods = (stores / "methods.txt").read_text("utf-8")
        for name, arguments in COMMANDS.items():
            before = {path: path.stat().st_mtime_ns for path in (stores / name).glob("cells/*/row.json")}
            typed = ["--methods", ",".join([methods, *STACKS])] if name == "methods" else []
            command(ROOT, stores, *arguments, *typed, "--out", name)
            after = {path: path.stat().st_mtime_ns for path in (stores / name).glob("cells/*/row.json")}
            again = [path.parent.name for path in after if after[path] != before.get(path)]
            print(f"{name}: {len(after)} cells, {len(after) - len(again)} cached")
            differences += [f"{name}: {cell} was trained again" for cell in again]
    for line in differences:
        print(line)
    print("Nothing changed." if not differences else f"{len(differences)} differences.")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
