"""What a user's data loader yields becomes a batch on the model's device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench import home


def test_a_batch_goes_to_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[Tensor, torch.device]] = []
    monkeypatch.setattr(devices, "put", lambda tensor, device: put.append((tensor, device)) or tensor)
    second = torch.device("cuda", 1)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    home.to_batch(inputs, "classification", second)
    assert [device for _, device in put] == [second, second]
    assert [tensor is given for given, (tensor, _) in zip(inputs.values(), put, strict=True)] == [True, True]
