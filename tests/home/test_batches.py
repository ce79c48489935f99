"""What a user's data loader yields becomes a batch on the model's device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench import home
from finetune_bench.model.dropout import Dropout
from finetune_bench.testing.toys import toy_model


def test_a_batch_goes_to_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[Tensor, torch.device]] = []
    monkeypatch.setattr(devices, "put", lambda tensor, device: put.append((tensor, device)) or tensor)
    second = torch.device("cuda", 1)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    home.to_batch(inputs, "classification", second)
    assert [device for _, device in put] == [second, second]
    assert [tensor is given for given, (tensor, _) in zip(inputs.values(), put, strict=True)] == [True, True]


def test_without_a_mask_a_decoder_s_padding_is_told_by_its_id() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [5, 0, 0]]), "labels": torch.tensor([0, 1])}
    cpu = torch.device("cpu")
    assert home.to_batch(inputs, "classification", cpu).inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]
    mask = home.to_batch(inputs, "classification", cpu, padding=0).inputs["attention_mask"]
    assert mask.tolist() == [[1, 1, 0], [1, 0, 0]]


def test_an_attached_decoder_reads_the_same_token_with_and_without_a_mask() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [7, 0, 0]]), "labels": torch.tensor([0, 1])}
    losses = []
    for batch in (inputs, inputs | {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}):
        model = toy_model("gpt2", "classification", Dropout.ALL_OFF)
        tuned = home.attach("vanilla", model, total_steps=1)
        tuned.optimizer(torch.optim.SGD(model.parameters()))
        losses.append(float(tuned.backward(batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
