"""The rules of docs/architecture.md, held against the source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_bench import registry
from finetune_bench.errors import UsageError
from finetune_bench.spec import parse_stack, split
from tests import ROOT

# The built-in analyses register through entry points, as a stranger's do; they read named data sets.
ANALYSES = ROOT / "finetune_bench" / "analyses"
CORE = sorted({*(ROOT / "finetune_bench").rglob("*.py")} - {*ANALYSES.rglob("*.py")})
PLUGINS = {room: sorted((ROOT / room).rglob("*.py")) for room in ("methods", "tasks", "reports")}
SOURCES = [*CORE, *sorted(ANALYSES.rglob("*.py")), *PLUGINS["methods"], *PLUGINS["tasks"], *PLUGINS["reports"]]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
EVERYWHERE = [*SOURCES, *TESTS]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    modules: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)} has a relative import"
            modules |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call, with what is called as text."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(node: ast.Call, name: str) -> object:
    """A keyword's constant; None where it isn't given, its expression where it is no constant."""
    for argument in node.keywords:
        if argument.arg == name:
            return argument.value.value if isinstance(argument.value, ast.Constant) else ast.unparse(argument.value)
    return None


def names_in(text: str) -> set[str]:
    """The plugins that a text calls: `a`, `a,b`, `a(x=1)+b`; none where it is a sentence."""
    if " " in text:
        return set()
    try:
        return {call.name for part in split(text, ",") for call in parse_stack(part)}
    except UsageError:
        return set()


def test_no_import_goes_in_a_circle_or_upward() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/import_graph.py"], capture_output=True, text=True, check=False
    )
    assert ", 0 circles, 0 imports against the direction\n" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_names_no_plugin_but_vanilla(path: Path) -> None:
    # Two are words of the core's, too: a field of every method and of a row, and fields of checkpoints' configurations.
    known = {name for group in ("methods", "tasks") for name in {*registry.names(group)} - {*registry.foreign(group)}}
    known -= {registry.BASELINE, "dropout", "layerdrop"}
    literals = {node.value for node in ast.walk(tree(path)) if isinstance(node, ast.Constant)}
    named = {name for text in literals if isinstance(text, str) for name in names_in(text)}
    assert named & known == set()
    rooms = ("finetune_bench.methods", "finetune_bench.tasks")
    assert [module for module in imports(path) if module.startswith(rooms)] == []


def test_names_are_found_in_texts() -> None:
    assert names_in("hype(eps=1e-4)+rdrop,cola") == {"hype", "rdrop", "cola"}
    assert names_in("stacks, as hype+rdrop") == set()


@pytest.mark.parametrize("path", [p for p in PLUGINS["methods"] if p.stem != "__init__"], ids=name_of)
def test_a_method_imports_from_the_core_only(path: Path) -> None:
    rooms = ("finetune_bench.methods", "finetune_bench.tasks", "finetune_bench.reports")
    assert [module for module in imports(path) if module.startswith(rooms)] == []


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_plugins_are_never_imported_under_a_second_name(path: Path) -> None:
    assert {module.partition(".")[0] for module in imports(path)} & {"methods", "tasks", "reports"} == set()


@pytest.mark.parametrize("path", [p for p in PLUGINS["methods"] if p.stem != "__init__"], ids=name_of)
def test_a_method_draws_from_no_global_stream(path: Path) -> None:
    """What torch draws by name alone comes from the stream that makes the dropout masks."""
    drawing = {"rand", "randn", "randint", "randperm", "bernoulli", "normal", "bernoulli_", "normal_", "uniform_"}
    always = {"rand_like", "randn_like", "randint_like", "manual_seed", "seed", "dropout"}
    for called, node in calls(path):
        function = called.rpartition(".")[2]
        assert function not in always, f"line {node.lineno}: {called}"
        if function in drawing:
            assert keyword(node, "generator") is not None, f"line {node.lineno}: {called} without a generator"


def test_only_the_step_calls_backward() -> None:
    """Methods ask the step to; the checks of the contract derive a loss as a whole."""
    callers = {
        name_of(path)
        for path in SOURCES
        for called, _ in calls(path)
        if called.endswith(".backward") and called not in ("step.backward", "tuned.backward")
    }
    assert callers == {f"finetune_bench/{file}.py" for file in ("training/run", "training/memory", "testing/stacks")}


@pytest.mark.parametrize("path", EVERYWHERE, ids=name_of)
def test_nothing_that_can_run_foreign_code_is_loaded(path: Path) -> None:
    assert {module.partition(".")[0] for module in imports(path)} & {"pickle", "dill", "cloudpickle", "joblib"} == set()
    for called, node in calls(path):
        where = f"line {node.lineno}: {called}"
        assert keyword(node, "trust_remote_code") in (None, False), where
        if called == "torch.load":
            assert keyword(node, "weights_only") is True, where
        if called in ("np.load", "numpy.load"):
            assert keyword(node, "allow_pickle") in (None, False), where
        if called.endswith(("from_pretrained", "from_config")) and "library().AutoModel" in called:
            assert keyword(node, "use_safetensors") is True or called.endswith("from_config"), where


@pytest.mark.slow
def test_reports_and_studies_need_no_torch() -> None:
    parts = ["errors", "parameters", "spec", "study", "stats", "store", "registry", "report", "seeds"]
    modules = [f"finetune_bench.{part}" for part in parts]
    paths = [path.relative_to(ROOT).with_suffix("") for path in PLUGINS["reports"] if path.stem != "__init__"]
    modules += [f"finetune_bench.{'.'.join(path.parts)}" for path in paths]
    code = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


HELP = """
import sys
from finetune_bench.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
print(sorted({"torch", "pandas", "numpy", "transformers", "datasets", "rich"} & set(sys.modules)), file=sys.stderr)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert "COMMAND" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="this system does not tell a child's CPU time")
@pytest.mark.slow
def test_help_is_instant() -> None:
    """In CPU seconds of importing NumPy, the best of five: machines differ, and other processes compete."""

    def seconds(*arguments: str) -> float:
        child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)  # so that Popen does not wait for it again
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    numpy = min(seconds("-c", "import numpy") for _ in range(5))
    # It took twice as long where it was tried.
    assert min(seconds("-m", "finetune_bench.cli", "run", "--help") for _ in range(5)) < 3 * numpy


def tracked() -> list[Path]:
    """The files of the repository, those that are not committed yet among them."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no git checkout")
    return [path for name in done.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = [f"/{name}/" for name in ("work", "root", "home", "Users", "mnt")]
    hosts = ["pypi" + ".org", "python" + "hosted", "download" + ".pytorch", "index" + "-url"]
    # Not the end of a longer path or address, such as docs/home/.
    machine = re.compile(rf"(?<![\w.~}}-])({'|'.join(map(re.escape, folders))})")
    mentions = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        mentions += [f"{name_of(path)}: {match[0]}" for match in machine.finditer(text) if path != Path(__file__)]
        mentions += [f"{name_of(path)}: {host}" for host in hosts if host in text]
    assert mentions == []


def test_text_files_are_utf8_and_end_with_one_line_end() -> None:
    endings = {".py", ".md", ".toml", ".txt", ".cff"}
    for path in tracked():
        if path.suffix in endings and (content := path.read_bytes()):
            content.decode("utf-8")
            assert content.endswith(b"\n"), name_of(path)
            assert not content.endswith(b"\n\n"), name_of(path)
            assert b"\r" not in content, name_of(path)


def test_methods_are_one_file_each_with_a_card() -> None:
    """The id is the file's name; a paper or a mechanism with several methods has one file."""
    for name in registry._installed("methods"):
        module = registry.method_class(name).__module__
        stem = module.rpartition(".")[2]
        kin = {"r4f": "r3f", "peft": "lora", "gradual_unfreezing": "unfreezing", "lisa": "unfreezing"}  # one mechanism
        assert name == stem or name.startswith(f"{stem}_") or kin.get(name) == stem
        card = sys.modules[module].__doc__ or ""
        for heading in ("In one sentence", "Formula", "Hyper-parameters", "Where it acts", "Cost", "Randomness drawn"):
            assert f"**{heading}" in card, f"{name}'s card has no '{heading}'"
        for heading in ("Interactions", "Deviations", "Source"):
            assert f"**{heading}" in card, f"{name}'s card has no '{heading}'"


def test_the_exception_tree_is_drawn_whole() -> None:
    from finetune_bench import errors

    classes = {name for name, item in vars(errors).items() if isinstance(item, type) and issubclass(item, Exception)}
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b", str(errors.__doc__)))
    assert classes <= drawn


def test_what_is_public_is_exported() -> None:
    import finetune_bench

    assert all(getattr(finetune_bench, name) is not None for name in finetune_bench.__all__)
    assert sorted(finetune_bench.__all__) == finetune_bench.__all__
