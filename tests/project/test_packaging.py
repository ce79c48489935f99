"""What is built is whole, and what is declared exists."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import finetune_bench
from tests import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
BESIDE = ("methods", "tasks", "reports")
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "site", "tests")


def python(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False)


def on_disk() -> set[str]:
    """Every module of the four folders, by its path in the wheel; py.typed, papers' numbers, the page's files too."""
    data = [path for path in (ROOT / "finetune_bench" / "papers").rglob("*") if path.suffix in (".csv", ".toml")]
    files = {"finetune_bench/py.typed", *(path.relative_to(ROOT).as_posix() for path in data)}
    for room in BESIDE:
        paths = [path for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".css", ".js")]
        files |= {f"finetune_bench/{path.relative_to(ROOT).as_posix()}" for path in paths}
    core = (path for path in (ROOT / "finetune_bench").rglob("*.py") if path.relative_to(ROOT).parts[1] not in BESIDE)
    return files | {path.relative_to(ROOT).as_posix() for path in core}


def content(wheel: Path) -> dict[str, int]:
    """The files of a wheel with their checksums, without its metadata."""
    entries = zipfile.ZipFile(wheel).infolist()
    return {
        entry.filename: entry.CRC for entry in entries if not entry.filename.partition("/")[0].endswith(".dist-info")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an sdist, the wheel that was built from it, and, in `direct/`, a wheel of the tree itself."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE, symlinks=True)
    for arguments in (("--outdir", str(folder)), ("--wheel", "--outdir", str(folder / "direct"))):
        done = python("-m", "build", "--no-isolation", *arguments, str(source), cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = (built / "direct").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module(wheel: Path) -> None:
    assert set(content(wheel)) == on_disk()


@pytest.mark.slow
def test_the_sdist_makes_the_same_wheel(built: Path, wheel: Path) -> None:
    (through_sdist,) = built.glob("*.whl")
    assert content(through_sdist) == content(wheel)
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names
    linked = re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text("utf-8"))
    assert set(linked) <= names
    assert [name for name in names if name.endswith(".xz")] == []


@pytest.mark.slow
def test_the_wheel_works_by_itself(wheel: Path, tmp_path: Path) -> None:
    """Unpacked far from any checkout, every entry point loads from it; nothing is missing that the checkout had."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import finetune_bench\n"
        "from finetune_bench import cli, registry\n"
        "print(finetune_bench.__file__, registry.method_class('hype').__init__.__globals__['__name__'])\n"
        "for group in ('methods', 'tasks', 'analyses', 'reports', 'task_files', 'task_sources', 'studies'):\n"
        "    for entry in registry._installed(group).values():\n"
        "        entry.load()\n"
        "        print(entry.value, __import__('sys').modules[entry.module].__file__)\n"
    )
    done = python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + sum(map(len, PROJECT["project"]["entry-points"].values()))
    assert all(str(tmp_path / "site") in line for line in lines)


@pytest.mark.slow
def test_the_wheels_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (folder,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = archive.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"Version: {finetune_bench.__version__}" in metadata
    assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert "finetune-bench = finetune_bench.cli:main" in archive.read(f"{folder}/entry_points.txt").decode()


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        (group.partition(".")[2], name, value)
        for group, entries in PROJECT["project"]["entry-points"].items()
        for name, value in entries.items()
    ],
)
def test_an_entry_point_resolves_to_what_bears_its_name(group: str, name: str, value: str) -> None:
    module, _, attribute = value.partition(":")
    plugin = getattr(importlib.import_module(module), attribute)
    if group in ("methods", "tasks", "analyses", "reports"):
        assert plugin.name == name
    else:
        assert callable(plugin)


def test_every_method_file_is_registered() -> None:
    """A file in methods/ that no entry point names is invisible to users."""
    values = PROJECT["project"]["entry-points"]["finetune_bench.methods"].values()
    registered = {value.partition(":")[0].rpartition(".")[2] for value in values}
    assert registered == {path.stem for path in (ROOT / "methods").glob("*.py")} - {"__init__"}


def test_every_analysis_file_is_registered() -> None:
    """A file in finetune_bench/analyses/ that no entry point names is invisible to users."""
    values = PROJECT["project"]["entry-points"]["finetune_bench.analyses"].values()
    registered = {value.partition(":")[0].rpartition(".")[2] for value in values}
    assert registered == {path.stem for path in (ROOT / "finetune_bench" / "analyses").glob("*.py")} - {"__init__"}


def test_the_version_is_the_same_everywhere() -> None:
    version = finetune_bench.__version__
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "finetune_bench._version.__version__"}
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_citation_is_complete() -> None:
    """It has what the format asks for, and says the same licence and keywords as the package."""
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "type", "title", "abstract", "authors", "version"} <= set(citation)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", citation["date-released"])
    assert citation["license"] == PROJECT["project"]["license"]
    assert {word.casefold() for word in citation["keywords"]} <= {w.casefold() for w in PROJECT["project"]["keywords"]}
    assert [set(author) for author in citation["authors"]] == [{"name"}]


def test_ci_installs_what_builds_the_site() -> None:
    test = PROJECT["project"]["optional-dependencies"]["test"]
    (extras,) = [text for text in test if text.startswith("finetune-bench[")]
    assert "docs" in extras.removeprefix("finetune-bench[").removesuffix("]").split(",")
    assert "export FINETUNE_BENCH_SITE=required" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_the_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_what_the_package_imports_is_declared() -> None:
    """Third-party modules that the source imports are dependencies of the project."""
    import ast

    # datasets depends on the hub's client and on packaging, scikit-learn on threadpoolctl
    distributions = {"sklearn": "scikit-learn", "huggingface_hub": "datasets", "packaging": "datasets"}
    distributions |= {"pynvml": "nvidia-ml-py", "threadpoolctl": "scikit-learn"}
    extras = PROJECT["project"]["optional-dependencies"]
    used_by_us = ("lora", "trainer", "energy", "ray", "slurm", "offline-decoder")
    listed = [*PROJECT["project"]["dependencies"], *(name for extra in used_by_us for name in extras[extra])]
    declared = {re.split(r"[<>=~! \[]", text)[0] for text in listed}
    used: set[str] = set()
    for room in ("finetune_bench", *BESIDE):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    used |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    used.add(str(node.module).partition(".")[0])
    foreign = used - set(sys.stdlib_module_names) - {"finetune_bench"}
    assert {distributions.get(name, name) for name in foreign} <= declared


def test_an_editable_install_is_a_path() -> None:
    """It names the checkout and runs no code, so that type checkers and editors can follow it."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    files = [path for folder in folders for path in folder.glob("__editable__*finetune_bench*.pth")]
    if not files:
        pytest.skip("this is no editable install")
    for path in files:
        (line,) = path.read_text("utf-8").splitlines()
        assert (Path(line) / "finetune_bench" / "__init__.py").is_file()


def test_mypy_is_strict() -> None:
    assert PROJECT["tool"]["mypy"]["strict"] is True
