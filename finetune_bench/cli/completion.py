"""Tell bash, zsh and fish how to complete commands, options, methods, tasks, formats and run folders.

The shell asks this program at every press of the tab key, so that what is installed or lies in runs/ is always offered;
argcomplete speaks the shells' languages. Nothing heavy is imported to answer.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from finetune_bench.cli.console import show
from finetune_bench.errors import FinetuneBenchError, MachineError

SHELLS = ("bash", "zsh", "fish")
ASKED_BY_A_SHELL = "_ARGCOMPLETE"  # the variable that the printed code sets

Completer = Callable[..., Sequence[str]]

# What an option's value may be where it is one of a few words.
_WORDS = {
    "optimizer": ("adamw", "lion", "muon"),
    "executor": ("local", "ray", "slurm"),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "batch_layout": ("auto", "padded", "unpadded", "unpadded_trimmed"),
    "device": ("cpu", "cuda"),
}
_FOLDERS = ("data_root", "out")
_FILES = ("config", "plugin", "tasks", "model")


def completion_command(parsed: argparse.Namespace) -> int:
    """Print the code that a shell evaluates; return 0."""
    try:
        import argcomplete
    except ImportError:
        raise MachineError("Completion needs the package argcomplete; run: pip install argcomplete") from None
    show(argcomplete.shellcode(["finetune-bench"], shell=parsed.shell, use_defaults=False).rstrip())
    return 0


def answer(parser: argparse.ArgumentParser) -> None:
    """Tell the shell that asks what it may complete, and end the process; return where argcomplete isn't installed."""
    try:
        import argcomplete
    except ImportError:
        return
    prepare(parser)
    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=_nothing)


def prepare(parser: argparse.ArgumentParser) -> None:
    """Give every argument of a parser, and of those below it, what completes its values."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                prepare(below)
        elif completer := _completer(action.dest):
            action.completer = completer  # type: ignore[attr-defined]


def _completer(name: str) -> Completer | None:
    """Return what completes the argument of that name; None for argparse's choices, or nothing."""
    completers: dict[str, Completer] = {
        "methods": _names("methods"),
        "method": _names("methods"),
        "baseline": _names("methods"),
        "tasks": _names("tasks", paths),
        "format": _names("reports"),
        "analyses": _names("analyses"),
        "name": _names("methods", _tasks, _reports, runs),
        "target": _names("methods", paths),
        "run": runs,
        "paper": _papers,
        "preset": _presets,
        "runs": runs,
        **dict.fromkeys(_FOLDERS, folders),
    }
    if name in _WORDS:
        return lambda prefix, **_: [word for word in _WORDS[name] if word.startswith(prefix)]
    return completers.get(name) or (paths if name in _FILES else None)


def _names(group: str, *more: Completer) -> Completer:
    """Return what completes the last name of a list or a stack, as `hype,rdrop+r` to `hype,rdrop+r3f`."""

    def complete(prefix: str, **_: Any) -> Sequence[str]:
        if prefix.count("(") > prefix.count(")"):  # within a method's parameters
            return ()
        begin = max(prefix.rfind(","), prefix.rfind("+")) + 1
        found = [prefix[:begin] + name for name in _known(group) if name.startswith(prefix[begin:])]
        for other in more:
            found += [text for text in other(prefix=prefix) if text not in found]
        return found

    return complete


def _known(group: str) -> list[str]:
    from finetune_bench import registry

    try:
        return registry.names(group)
    except FinetuneBenchError:  # two packages offer one name: any command will say so
        return []


def _tasks(prefix: str, **_: Any) -> Sequence[str]:
    return [name for name in _known("tasks") if name.startswith(prefix)]


def _reports(prefix: str, **_: Any) -> Sequence[str]:
    return [name for name in _known("reports") if name.startswith(prefix)]


def _presets(prefix: str, **_: Any) -> Sequence[str]:
    from finetune_bench.papers.presets import preset_names

    return [name for name in preset_names() if name.startswith(prefix)]


def _papers(prefix: str, **_: Any) -> Sequence[str]:
    from finetune_bench.papers.published import paper_names

    # The folder of a run may stand in its place, to have the run's files checked.
    return [*(name for name in paper_names() if name.startswith(prefix)), *runs(prefix)]


def runs(prefix: str, **_: Any) -> Sequence[str]:
    """List the folders that a text begins: whole where one is a run, else with a slash, as it may hold some."""
    offered = []
    for name in _entries(prefix, folders_only=True):
        is_run = os.path.isdir(os.path.join(os.path.expanduser(name), "cells"))  # noqa: PTH111, PTH112, PTH118
        offered.append(name if is_run else f"{name}/")
    return offered if prefix else [*offered, *runs("runs/")]


def folders(prefix: str, **_: Any) -> Sequence[str]:
    """List the folders that a text begins."""
    return [f"{name}/" for name in _entries(prefix, folders_only=True)]


def paths(prefix: str, **_: Any) -> Sequence[str]:
    """List the files and folders that a text begins."""
    return [f"{name}/" if os.path.isdir(os.path.expanduser(name)) else name for name in _entries(prefix)]  # noqa: PTH111, PTH112


def _entries(prefix: str, *, folders_only: bool = False) -> Iterator[str]:
    """Yield what lies in the folder that a text names, as far as it begins like the text; nothing hidden unasked."""
    folder, _, begin = prefix.rpartition("/")
    shown = f"{folder}/" if "/" in prefix else ""
    try:
        entries = sorted(os.scandir(os.path.expanduser(shown) or "."), key=lambda entry: entry.name)  # noqa: PTH111
    except (OSError, ValueError):
        return
    for entry in entries:
        is_hidden = entry.name.startswith(".") and not begin.startswith(".")
        if entry.name.startswith(begin) and not is_hidden and (entry.is_dir() or not folders_only):
            yield shown + entry.name


def _nothing(prefix: str, **_: Any) -> Sequence[str]:
    """Complete nothing: of a number, say, there is nothing to offer."""
    return ()
