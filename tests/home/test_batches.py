"""What a user's data loader yields becomes a batch on the model's device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench import home
from finetune_bench.errors import UsageError
from finetune_bench.metrics import Kind
from finetune_bench.model.dropout import Dropout
from finetune_bench.testing.toys import toy_model, toy_task


def test_a_batch_goes_to_the_device_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    put: list[tuple[Tensor, torch.device]] = []
    monkeypatch.setattr(devices, "put", lambda tensor, device: put.append((tensor, device)) or tensor)
    second = torch.device("cuda", 1)
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.zeros(2, dtype=torch.long)}
    home.to_batch(inputs, toy_task("classification"), second)
    assert [device for _, device in put] == [second, second]
    assert [tensor is given for given, (tensor, _) in zip(inputs.values(), put, strict=True)] == [True, True]


def test_without_a_mask_a_decoder_s_padding_is_told_by_its_id() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [5, 0, 0]]), "labels": torch.tensor([0, 1])}
    for padding, mask in ((None, [[1, 1, 1], [1, 1, 1]]), (0, [[1, 1, 0], [1, 0, 0]])):
        batch = home.to_batch(inputs, toy_task("classification"), torch.device("cpu"), padding)
        assert batch.inputs["attention_mask"].tolist() == mask


def test_an_attached_decoder_reads_the_same_token_with_and_without_a_mask() -> None:
    inputs = {"input_ids": torch.tensor([[5, 6, 0], [7, 0, 0]]), "labels": torch.tensor([0, 1])}
    losses = []
    for batch in (inputs, inputs | {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}):
        model = toy_model("gpt2", "classification", Dropout.ALL_OFF)
        tuned = home.attach("vanilla", model, total_steps=1)
        tuned.optimizer(torch.optim.SGD(model.parameters()))
        losses.append(float(tuned.backward(batch)))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": torch.tensor([0.0, 1.0])}, "expected classes as integers; got labels of torch.float32"),
        ({"labels": torch.tensor([0, 3])}, "expected classes from 0 to 2, as the model has; got 3"),
        ({"labels": torch.tensor([-100, 1])}, "got -100"),
        ({"labels": torch.zeros(2, 3, dtype=torch.long)}, r"\(batch,\); got labels of shape \(2, 3\)"),
        ({"labels": torch.zeros(0, dtype=torch.long)}, r"got labels of shape \(0,\)"),
        ({"labels": [0, 1]}, r"expected tensors in a batch; 'labels' is a list: \[0, 1\]"),
        ({"text": ["a", "b"]}, "'text' is a list"),
    ],
)
def test_a_batch_that_would_train_something_else_is_refused(change: dict[str, Any], said: str) -> None:
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.tensor([0, 1])} | change
    with pytest.raises(UsageError, match=said):
        home.to_batch(inputs, toy_task("classification"), torch.device("cpu"))


def test_a_batch_is_a_mapping() -> None:
    with pytest.raises(UsageError, match="got a tuple"):
        home.to_batch((torch.ones(2, 3), torch.zeros(2)), toy_task("classification"), torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_labels_in_a_column_are_labels(kind: Kind) -> None:
    """Numbers of shape (batch, 1) were each held against all predictions, without a word."""
    column = torch.tensor([[0], [1]])
    inputs = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": column}
    labels = home.to_batch(inputs, toy_task(kind), torch.device("cpu")).labels
    assert labels.shape == (2,)
    assert labels.dtype == (torch.long if kind == "classification" else torch.float32)
    with pytest.raises(UsageError, match="expected finite numbers as labels; got nan"):
        home.to_batch(inputs | {"labels": torch.tensor([1.0, torch.nan])}, toy_task("regression"), torch.device("cpu"))
