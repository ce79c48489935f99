"""Find the source files that a plugin's numbers rest on, its own and the local ones that it imports, and hash them.

Import statements are read from the text of the files, wherever they stand; nothing is run. A file counts unless it lies
among installed packages or in the standard library, or belongs to this package: those have versions. What no statement
names isn't seen: modules loaded through `importlib`, and files that the code opens.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path

_INSTALLED = {"site-packages", "dist-packages"}


def fingerprint(roots: Sequence[Path], facts: Sequence[str] = ()) -> str:
    """Return a hash of some files and of the local files that they import: 16 hexadecimal digits.

    Where the files lie, and how their lines end, is no part of it.

    Args:
        roots: the files to begin with.
        facts: texts that the hash is to depend on as well.
    """
    digest = hashlib.sha256()
    for module, path in imported_files(roots):
        digest.update(f"{module} {_content_hash(path)}\n".encode())
    for fact in facts:
        digest.update(f"{fact}\n".encode())
    return digest.hexdigest()[:16]


def imported_files(roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield some files and the local ones that they import, each with the module's name as the import statement has it.

    A file that several statements name is yielded for each of them; one of the roots has no name.
    """
    importlib.invalidate_caches()  # a file may have been added a moment ago
    packages = [package for root in roots if (package := _package_folder(root)) is not None]
    waiting = deque(("", Path(os.path.abspath(root))) for root in roots)  # noqa: PTH100  # a link's own folder counts
    read: set[Path] = set()
    while waiting:
        module, path = waiting.popleft()
        yield module, path
        if path in read:
            continue
        read.add(path)
        for imported in _imports(path):
            for file in _files_of(imported, path):
                if not _is_installed(file) or any(file.is_relative_to(package) for package in packages):
                    waiting.append((imported, file))


def module_file(name: str) -> Path | None:
    """Return the file of a module by its dotted name, without importing it; None where there is none."""
    files = _search(name, None)
    return files[-1] if files else None


def _package_folder(path: Path) -> Path | None:
    """Return the top folder of the package that a file is part of; None where it is in none."""
    folder = None
    for parent in path.parents:
        if not (parent / "__init__.py").is_file():
            break
        folder = parent
    return folder


def _content_hash(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError:
        return "unreadable"
    if path.suffix == ".py":
        content = content.replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()


def _imports(path: Path) -> list[str]:
    """Return the modules that a file's import statements may mean, with the leading dots of relative ones."""
    if path.suffix != ".py":
        return []
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # importing it tells what is wrong
        return []
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            between = "" if start.endswith(".") else "."
            modules += [start, *(f"{start}{between}{alias.name}" for alias in node.names if alias.name != "*")]
    return [name for name in dict.fromkeys(modules) if name.partition(".")[0] != __package__]


def _files_of(module: str, importer: Path) -> list[Path]:
    """Return the files that importing a module runs: those of its packages, and its own.

    An absolute name is looked up beside the importing file, where plugins often put their folder on the path, and on
    the path. Where both have it, both count: which of them is taken depends on what else is imported.
    """
    name = module.lstrip(".")
    level = len(module) - len(name)
    if not level:
        return list(dict.fromkeys([*_search(name, [str(importer.parent)]), *_search(name, None)]))
    if level > len(importer.parents):
        return []
    folder = importer.parents[level - 1]
    package = folder / "__init__.py"
    return [*([package] if package.is_file() else []), *(_search(name, [str(folder)]) if name else [])]


def _search(name: str, folders: Sequence[str] | None) -> list[Path]:
    """Return the files of a module's packages and of the module, as far as they are there.

    Args:
        name: the module's dotted name.
        folders: where the first part of the name is looked for; None for wherever Python would.
    """
    files: list[Path] = []
    for part in name.split("."):
        # Modules that were imported before aren't asked for: a worker will import them anew.
        finders = sys.meta_path if folders is None else [PathFinder]
        spec = None
        with suppress(ImportError, ValueError, AttributeError):
            # The name without its packages: with them, Python would look for the packages among imported modules.
            specs = (finder.find_spec(part, folders, None) for finder in finders)
            spec = next((spec for spec in specs if spec is not None), None)
        if spec is None:
            break
        if spec.has_location and spec.origin is not None and Path(spec.origin).is_file():
            files.append(Path(os.path.abspath(spec.origin)))  # noqa: PTH100
        if spec.submodule_search_locations is None:
            break
        folders = list(spec.submodule_search_locations)
    return files


def _is_installed(path: Path) -> bool:
    """Return whether a file is one of an installed package or of the standard library."""
    return any(
        _INSTALLED & set(place.parts) or any(place.is_relative_to(folder) for folder in _standard_library())
        for place in (path, path.resolve())
    )


@cache
def _standard_library() -> tuple[Path, ...]:
    names = ("stdlib", "platstdlib")
    folders = {Path(folder) for name in names if (folder := sysconfig.get_path(name))}
    return tuple(sorted({*folders, *(folder.resolve() for folder in folders)}))
