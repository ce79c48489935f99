"""The source files that a plugin rests on: its own, and the local ones that it imports."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from finetune_bench.source_files import fingerprint, imported_files, module_file


def write(folder: Path, **files: str) -> Path:
    """Write modules, `a_in_b` as b/a.py and `init_in_b` as b/__init__.py, and return the file of `plugin`."""
    for name, text in files.items():
        module, _, package = name.partition("_in_")
        path = folder / package / f"{'__init__' if module == 'init' else module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8", newline="")
    return folder / "plugin.py"


def names(plugin: Path) -> set[str]:
    return {path.relative_to(plugin.parent).as_posix() for _, path in imported_files([plugin])}


IMPORTS = [
    ("import helper", {"helper"}),
    ("import helper as h, other", {"helper", "other"}),
    ("from helper import value", {"helper"}),
    ("from package import part", {"package/__init__", "package/part"}),
    ("from package.part import value", {"package/__init__", "package/part"}),
    ("from package import *", {"package/__init__"}),
    ("from .helper import value", {"helper"}),
    ("from . import helper", {"helper"}),
    ("from bare import part", {"bare/part"}),  # a package without an __init__.py
    ("import bare.deep.part", {"bare/deep/part"}),
    ("def setup():\n    import helper", {"helper"}),
    ("try:\n    import helper\nexcept ImportError:\n    pass", {"helper"}),
    ("import chain", {"chain", "helper"}),
    ("import circle", {"circle", "round"}),
    ("import broken", {"broken"}),
    ("import json, os.path, numpy, torch.nn, pytest, absent.part", set()),
    ("from finetune_bench.method import Method\nfrom finetune_bench import registry", set()),
    ("'import helper'", set()),
    ("def (", set()),
    ("from ........................................ import x", set()),
]


@pytest.mark.parametrize(("text", "expected"), IMPORTS)
def test_local_imports_are_seen_wherever_they_stand(text: str, expected: set[str], tmp_path: Path) -> None:
    plugin = write(
        tmp_path,
        plugin=text,
        helper="value = 1",
        other="value = 2",
        init_in_package="",
        part_in_package="value = 3",
        part_in_bare="value = 4",
        **{"part_in_bare/deep": "value = 5"},
        chain="import helper",
        circle="import round",
        round="import circle, plugin",
        broken="def (",
    )
    assert names(plugin) == {f"{name}.py" for name in {"plugin", *expected}}
    before = fingerprint([plugin])
    for name in expected:
        path = tmp_path / f"{name}.py"
        content = path.read_text("utf-8")
        path.write_text(content + "\n# edited", "utf-8")
        assert fingerprint([plugin]) != before, name
        path.write_text(content, "utf-8")
    assert fingerprint([plugin]) == before


def test_only_content_counts(tmp_path: Path) -> None:
    plugin = write(tmp_path / "a", plugin="import one, two\n", one="x = 1\n", two="x = 2\n")
    before = fingerprint([plugin])
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    assert fingerprint([tmp_path / "moved" / "plugin.py"]) == before
    assert fingerprint([plugin.rename(plugin.with_name("renamed.py"))]) == before
    lines = write(tmp_path / "windows", plugin="import one, two\r\n", one="x = 1\r\n", two="x = 2\n")
    assert fingerprint([lines]) == before
    swapped = write(tmp_path / "swapped", plugin="import one, two\n", one="x = 2\n", two="x = 1\n")
    assert fingerprint([swapped]) != before
    gone = write(tmp_path / "gone", plugin="import one, two\n", one="x = 1\n")
    assert fingerprint([gone]) != before
    assert fingerprint([plugin.with_name("renamed.py")], ["HyPe 2"]) != before


def test_links_are_followed_and_circles_of_them_end(tmp_path: Path) -> None:
    plugin = write(tmp_path / "here", plugin="import linked, self.self.self.helper")
    target = write(tmp_path / "there", plugin="value = 1")
    (plugin.parent / "linked.py").symlink_to(target)
    (plugin.parent / "self").symlink_to(plugin.parent)
    before = fingerprint([plugin])
    target.write_text("value = 2", "utf-8")
    assert fingerprint([plugin]) != before


def test_the_path_is_searched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = write(tmp_path / "here", plugin="import library_of_mine")
    library = write(tmp_path / "there", library_of_mine="import deeper", deeper="value = 1").with_name("deeper.py")
    before = fingerprint([plugin])
    monkeypatch.syspath_prepend(library.parent)
    seen = fingerprint([plugin])
    assert seen != before
    library.write_text("value = 2", "utf-8")
    assert fingerprint([plugin]) != seen
    assert module_file("library_of_mine") == library.with_name("library_of_mine.py")
    assert "library_of_mine" not in sys.modules


def test_an_installed_package_counts_for_itself_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site-packages"
    write(folder, init_in_theirs="", method_in_theirs="from theirs import part\nimport other", part_in_theirs="x = 1")
    write(folder, other="x = 1")
    monkeypatch.syspath_prepend(folder)
    method = module_file("theirs.method")
    assert method == folder / "theirs" / "method.py"
    read = {path.relative_to(folder).as_posix() for _, path in imported_files([method])}
    assert read == {"theirs/method.py", "theirs/__init__.py", "theirs/part.py"}
    assert names(write(tmp_path, plugin="import theirs.method")) == {"plugin.py"}
