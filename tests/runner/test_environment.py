"""The environment of a row names the commit of a checkout."""

from __future__ import annotations

import subprocess

import pytest
import torch

from finetune_bench import device as devices
from finetune_bench.runner.environment import environment
from tests import ROOT


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no checkout")
def test_a_row_made_in_a_checkout_names_its_commit() -> None:
    command = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert environment(torch.device("cpu"))["commit"] == head


def test_a_row_made_on_cuda_names_its_attention_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "describe", lambda device: "a card")
    assert environment(torch.device("cuda", 7))["attention"] == "memory_efficient, else math"
    assert "attention" not in environment(torch.device("cpu"))
