"""Pack a run's store for the documentation's gallery, and unpack it: a folder of small files as one small archive.

    python -m scripts.gallery RUN NAME    writes docs/gallery/NAME.tar.xz

Packed is what a report reads: rows, arrays and the study, without logs, locks, checkpoints and models. A model that
lies in a folder is named by the last two parts of its path, so that no path of this machine goes along.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from finetune_bench.files import read_json
from finetune_bench.store.merge import merge
from finetune_bench.store.store import Store
from scripts.import_graph import ROOT

FOLDER = ROOT / "docs" / "gallery"
SUFFIX = ".tar.xz"
# Reports of several stores of the gallery together.
TOGETHER = {"wordnet-models": ("wordnet-minilm", "wordnet-mpnet", "wordnet-smollm2")}


def names() -> list[str]:
    """Return the names of the stores in the gallery."""
    return sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob(f"*{SUFFIX}"))


def reports() -> list[str]:
    """Return the names of the gallery's reports: of each store, and of several together."""
    return sorted([*names(), *TOGETHER])


def archive(name: str) -> Path:
    """Return where a store of the gallery lies."""
    return FOLDER / f"{name}{SUFFIX}"


def unpack(name: str, folder: Path) -> Store:
    """Unpack a store of the gallery, or several as one, into a folder, which is made; return the store."""
    if name in TOGETHER:
        with tempfile.TemporaryDirectory() as temporary:
            merge(folder, [unpack(part, Path(temporary) / part).root for part in TOGETHER[name]])
        return Store.open(folder)
    with tarfile.open(archive(name)) as packed:
        packed.extractall(folder, filter="data")
    return Store.open(folder)


def placeless(study: dict[str, Any]) -> dict[str, Any]:
    """Return a study, or a block of one, without where its data, models and results lay."""
    places = {key: None for key in ("data_root", "out") if key in study}
    return {**study, **places, "models": [short(model) for model in study["models"]]}


def pack(run: Path, name: str) -> Path:
    """Pack a run's store for the gallery; return the archive."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        merge(folder, [run])
        store = Store.open(folder)
        study = dict(store.read_study())
        blocks = [placeless(block) for block in study.get("blocks", [])]
        store.write_study({**placeless(study), **({"blocks": blocks} if blocks else {})})
        for path in sorted(folder.glob("cells/*/cell.json")):
            cell = read_json(path)
            path.write_text(json.dumps({**cell, "model": short(cell["model"])}, indent=1), "utf-8")
        for path in folder.glob("cells/*/log.txt"):
            path.unlink()
        FOLDER.mkdir(exist_ok=True)
        with tarfile.open(archive(name), "w:xz", preset=9) as packed:
            for path in [folder / "study.json", *sorted((folder / "cells").rglob("*"))]:
                packed.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=anonymous)
    return archive(name)


def short(model: str) -> str:
    """Return a hub name as it is, and the last two parts of a folder's path."""
    return "/".join(Path(model).parts[-2:])


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out of an archive's entry who made it, and when."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> int:
    """Pack the run that the command line names; return 0."""
    parser = argparse.ArgumentParser(prog="python -m scripts.gallery", description="Pack a run for the gallery.")
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    parser.add_argument("name", metavar="NAME", help="what the report is called in the gallery")
    parsed = parser.parse_args()
    print(pack(parsed.run, parsed.name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
