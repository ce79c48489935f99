"""The registry finds plugins by name. Built-in ones register as a stranger's do: through entry points.

Groups: `finetune_bench.methods` (Method subclasses), `finetune_bench.tasks` (Task objects), `finetune_bench.task_files`
(by file ending, callables that make a Task from a path and texts), `finetune_bench.task_sources` (the same by the
prefix before a colon, as in `hub:ag_news`), `finetune_bench.analyses` (Analysis subclasses), `finetune_bench.reports`
(Report subclasses) and `finetune_bench.studies` (`default`, the options of a study that names no task). A file given
with --plugin is a try: every Method, Task, Analysis and Report that it defines is added under its `name`. Nothing is
imported before it is asked for.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_bench import source_files
from finetune_bench.errors import FinetuneBenchError, MachineError, UnknownName, UsageError
from finetune_bench.parameters import as_text, check_fields, from_text
from finetune_bench.printable import brief
from finetune_bench.spec import parse_call, parse_stack

if TYPE_CHECKING:
    from finetune_bench.analysis import Analysis
    from finetune_bench.method.base import Method
    from finetune_bench.method.stack import Stack
    from finetune_bench.report import Report
    from finetune_bench.task import Task

# The one method that the core knows by name.
BASELINE = "vanilla"

_Made = TypeVar("_Made")

# What --plugin added: by group and name, the plugin and the file that it came from.
_added: dict[str, dict[str, Any]] = {"methods": {}, "tasks": {}, "analyses": {}, "reports": {}}
_SINGULAR = {"analyses": "analysis"}
_added_from: dict[tuple[str, str], Path] = {}


@cache
def _installed(group: str) -> dict[str, EntryPoint]:
    installed: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"finetune_bench.{group}"):
        # An editable install beside a wheel lists the same entry twice; two different objects are a conflict.
        if entry.name in installed and installed[entry.name].value != entry.value:
            raise MachineError(
                f"Two installed packages offer {_SINGULAR.get(group, group[:-1])} '{entry.name}': "
                f"{installed[entry.name].value} and {entry.value}. Uninstall one of them."
            )
        installed[entry.name] = entry
    return installed


def names(group: str) -> list[str]:
    """Return the names of all known plugins of a group ("methods", "tasks", "analyses", "reports"), sorted."""
    return sorted({*_installed(group), *_added[group]})


def foreign(group: str) -> list[str]:
    """List the names of a group that another package or a --plugin file brings, sorted; nothing is imported."""
    others = {name for name, entry in _installed(group).items() if not entry.value.startswith(f"{__package__}.")}
    return sorted(others | _added.get(group, {}).keys())


def source_roots(group: str, name: str) -> list[Path]:
    """List the file that brings a plugin from elsewhere; nothing for one of this package. Nothing is imported."""
    if name in _added.get(group, {}):
        return [_added_from[group, name]]
    entry = _installed(group).get(name)
    if entry is None or name not in foreign(group):
        return []
    path = source_files.module_file(entry.module)
    return [] if path is None else [path]


def source(group: str, name: str) -> str:
    """Return the fingerprint of the source of a plugin from elsewhere: of its file, and of local ones that it imports.

    The files of the methods and tasks that its class is derived from count too; of those of this package, the versions.

    Returns:
        16 hexadecimal digits; "" for a plugin of this package.
    """
    from finetune_bench.method.base import Method
    from finetune_bench.task import Task

    if name not in foreign(group):
        return ""
    roots, facts = source_roots(group, name), []
    loaded = _load(group, name)
    for owner in (loaded if isinstance(loaded, type) else type(loaded)).__mro__:
        if not issubclass(owner, Method | Task):
            continue
        file = getattr(sys.modules.get(owner.__module__), "__file__", None)
        if owner.__module__.startswith(f"{__package__}."):
            facts.append(f"{owner.__qualname__} {getattr(owner, 'version', '')}")
        elif file is not None and Path(file) not in roots:
            roots.append(Path(file))
    return source_files.fingerprint(roots, facts)


def _load(group: str, name: str) -> Any:
    if name in _added.get(group, {}):
        return _added[group][name]
    if name not in _installed(group):
        kind = _SINGULAR.get(group, group[:-1])
        raise UnknownName(kind, name, names(group), f"'finetune-bench list {group}' shows them.")
    entry = _installed(group)[name]
    try:
        return entry.load()
    except FinetuneBenchError:
        raise
    except (Exception, SystemExit) as error:  # another package may do anything when it is imported
        raise UsageError(
            f"The {_SINGULAR.get(group, group[:-1])} '{name}' can't be used: importing {entry.value} failed with "
            f"{type(error).__name__}: {brief(error)}."
        ) from error


def method_class(name: str) -> type[Method]:
    """Return the class of a method.

    Raises:
        UnknownName: no such method; tells the nearest name.
    """
    loaded: type[Method] = _load("methods", name)
    if name not in _added["methods"] and name in foreign("methods"):
        _check_installed(name)
    return loaded


@cache
def _check_installed(name: str) -> None:
    _check_method(_load("methods", name))


def _check_method(owner: type[Method]) -> None:
    """Refuse a method from elsewhere that is written for an earlier contract, or whose parameters can't be read."""
    from finetune_bench.method.former import refuse_former_code
    from finetune_bench.method.observing import check_observer

    refuse_former_code(owner)
    check_observer(owner)
    check_fields(owner)


def make_stack(text: str) -> Stack:
    """Make the stack that a text such as `hype(eps=1e-4)+rdrop` describes; a single method is a stack of one.

    Raises:
        UnknownName, ParameterError, UsageError: says which part is wrong.
    """
    from finetune_bench.method.stack import Stack

    calls = parse_stack(text)
    called = [call.name for call in calls]
    for name in called:
        if called.count(name) > 1:
            raise UsageError(f"'{name}' stands twice in '{brief(text)}'; a method can be stacked once only.")
        if name == BASELINE and len(called) > 1:
            raise UsageError(f"'{name}' in '{brief(text)}' is fine-tuning without any method; leave it out there.")
    methods = []
    for call in calls:
        methods.append(_made(method_class(call.name), call.arguments, f"'{call.name}' in '{brief(text)}'"))
    return Stack(methods)


def describe(stack: Stack, *, full: bool = False) -> str:
    """Return the text of a stack, as `make_stack` reads it.

    Args:
        stack: the stack to describe.
        full: whether to spell out every parameter, in the order of declaration; otherwise those that differ from the
            defaults, which is how reports label a method.
    """
    parts = []
    for method in stack.methods:
        shown = [
            f"{field.name}={as_text(getattr(method, field.name))}"
            for field in dataclasses.fields(method)
            if full or getattr(method, field.name) != field.default
        ]
        parts.append(f"{method.name}({','.join(shown)})" if shown else method.name)
    return "+".join(parts)


def task(text: str) -> Task:
    """Return the task of that name, or make it from a file or a source: `reviews.csv(label=stars)`, `hub:ag_news`.

    Raises:
        UnknownName, UsageError, DataError: says what is wrong with the name, the options or the file.
    """
    call = parse_call(text)
    group, name = task_plugin(text)
    if group == "task_sources":
        find: Callable[[str, Mapping[str, str]], Task] = _installed(group)[name].load()
        return find(call.name.partition(":")[2], call.arguments)
    if group == "task_files":
        make: Callable[[str, Mapping[str, str]], Task] = _installed(group)[name].load()
        return make(os.path.normpath(call.name), call.arguments)
    if Path(call.name).suffix and call.name not in names("tasks"):
        makers = ", ".join(sorted(_installed("task_files")))
        raise UsageError(f"'{brief(call.name)}' can't be read: expected a file ending in {makers}.")
    named: Task = _load("tasks", call.name)
    if call.arguments:
        raise UsageError(f"The task '{call.name}' takes no options; got ({', '.join(call.arguments)}).")
    return named


def task_plugin(text: str) -> tuple[str, str]:
    """Return the group and the name of the plugin that makes a task of such a text; it need not be there."""
    name = parse_call(text).name
    prefix, colon, _ = name.partition(":")
    ending = Path(name).suffix.lstrip(".").lower()
    if name in names("tasks"):
        return "tasks", name
    if colon and prefix in _installed("task_sources"):
        return "task_sources", prefix
    return ("task_files", ending) if ending in _installed("task_files") else ("tasks", name)


def report_class(name: str) -> type[Report]:
    """Return the class of a report format.

    Raises:
        UnknownName: no such format; tells the nearest name.
    """
    loaded: type[Report] = _load("reports", name)
    return loaded


def analysis_class(name: str) -> type[Analysis]:
    """Return the class of an analysis.

    Raises:
        UnknownName: no such analysis; tells the nearest name.
    """
    loaded: type[Analysis] = _load("analyses", name)
    return loaded


def make_analysis(text: str) -> Analysis:
    """Make the analysis that a text such as `transfer(to=hans+paws)` describes.

    Raises:
        UnknownName, ParameterError, UsageError: says which part is wrong.
    """
    call = parse_call(text)
    return _made(analysis_class(call.name), call.arguments, f"The analysis '{brief(text)}'")


def _made(owner: type[_Made], arguments: dict[str, str], called: str) -> _Made:
    """Make a method or an analysis with the arguments of its call."""
    values = from_text(owner, arguments)
    try:
        return owner(**values)
    except FinetuneBenchError:
        raise
    except (Exception, SystemExit) as error:  # a plugin's own __post_init__
        raise UsageError(
            f"{called} can't be made: {owner.__name__} failed with {type(error).__name__}: {brief(error)}."
        ) from error


def default_options() -> dict[str, Any]:
    """Return the options of the study that runs when no task is named: `[finetune_bench.studies] default` has them."""
    options: dict[str, Any] = _installed("studies")["default"].load()()
    return options


def load_plugin(path: str | Path) -> list[str]:
    """Add the methods, tasks, analyses and reports of one Python file, for this process only; return their names.

    Raises:
        UsageError: no such file, nothing in it, an error while importing it, or a name that is taken.
    """
    from finetune_bench.analysis import Analysis
    from finetune_bench.method.base import Method
    from finetune_bench.report import Report
    from finetune_bench.task import Task

    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"--plugin: expected a Python file, but there is none at '{path}'.")
    module = _import_file(path)
    added: list[str] = []
    for item in vars(module).values():
        is_class = isinstance(item, type) and item.__module__ == module.__name__
        if is_class and issubclass(item, Method):
            group = "methods"
        elif is_class and issubclass(item, Analysis):
            group = "analyses"
        elif is_class and issubclass(item, Report):
            group = "reports"
        elif isinstance(item, Task):
            group = "tasks"
        else:
            continue
        _check_plugin(item, group, path)
        _added[group][item.name], _added_from[group, item.name] = item, path
        added.append(item.name)
    if not added:
        raise UsageError(f"--plugin: '{path}' defines no Method, Task, Analysis or Report.")
    return added


def _check_plugin(item: Any, group: str, path: Path) -> None:
    """Check that a file's plugin has a name that is free and can be typed, and parameters that can be read."""
    if not isinstance(getattr(item, "name", None), str):
        raise UsageError(f"--plugin: '{item.__name__}' in '{path}' has no `name`; give it one in lower case.")
    is_of_another_file = item.name in _added[group] and _added_from[group, item.name] != path
    if item.name in _installed(group) or is_of_another_file:
        raise UsageError(f"--plugin: the name '{item.name}' in '{path}' is taken by another of the {group}.")
    if group != "tasks" and not re.fullmatch("[a-z0-9_]+", item.name):
        raise UsageError(f"--plugin: the name '{item.name}' in '{path}' may hold a to z, 0 to 9 and _ only.")
    if group == "methods":
        _check_method(item)
    if group == "analyses":
        check_fields(item)


def _import_file(path: Path) -> ModuleType:
    content = str(path).encode() + path.read_bytes()  # an edited file is another module
    name = f"finetune_bench_plugin_{path.stem}_{hashlib.sha256(content).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--plugin: '{path}' is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except FinetuneBenchError as error:  # a class that this package refuses says what to write
        del sys.modules[name]
        raise UsageError(f"--plugin: '{path}': {error}") from error
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"--plugin: importing '{path}' failed with {type(error).__name__}: {brief(error)}") from error
    return module
