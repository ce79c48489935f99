"""The record reads what steps logged in one copy, and gives the same numbers as one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune_bench.training.record import Record


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was copied to the host, each of which waits for a device."""
    sizes: list[int] = []
    copy, number = Tensor.cpu, Tensor.__float__
    monkeypatch.setattr(Tensor, "cpu", lambda tensor: sizes.append(tensor.numel()) or copy(tensor))
    monkeypatch.setattr(Tensor, "__float__", lambda tensor: sizes.append(1) or number(tensor))
    return sizes


def test_steps_are_read_in_one_copy_and_never_again(copies: list[int]) -> None:
    told: list[tuple[int, float]] = []
    record = Record(tell=lambda step, loss: told.append((step, loss)))
    losses = torch.rand(60, generator=torch.Generator().manual_seed(1))
    for loss in losses[:50]:
        record.add_step({"loss": loss, "task_loss": loss / 3}, 1, 8)
    assert copies == []
    record.read()
    assert copies == [100]
    for loss in losses[50:]:
        record.add_step({"loss": loss, "task_loss": loss / 3}, 1, 8)
    for _ in range(3):
        numbers = Record.state_dict(record)
    assert copies == [100, 20]
    assert told == [(50, float(losses.double()[49])), (60, float(losses.double()[59]))]  # only when it was read anyway
    assert numbers["log loss"].tolist() == losses.tolist()
    assert numbers["log task_loss"].tolist() == (losses / 3).tolist()


def test_numbers_of_any_type_are_what_they_were() -> None:
    record = Record()
    half, whole = torch.tensor(0.1, dtype=torch.bfloat16), torch.tensor([2**53 - 1])
    double = torch.tensor(1 / 3, dtype=torch.float64)
    record.add_step({"half": half, "plain": 0.1, "double": double}, 1, 8)
    record.add_step({"double": double, "whole": whole, "plain": 3, "nan": torch.tensor(float("nan"))}, 1, 8)
    numbers = record.numbers()
    np.testing.assert_equal(numbers["half"], [float(half), np.nan])
    assert numbers["plain"].tolist() == [0.1, 3.0]
    assert numbers["double"].tolist() == [1 / 3, 1 / 3]
    np.testing.assert_equal(numbers["whole"], [np.nan, 2**53 - 1])
    assert np.isnan(numbers["nan"]).all()
    assert {values.dtype for values in numbers.values()} == {np.dtype(np.float64)}


def test_a_log_stands_at_its_step_whatever_the_others_logged() -> None:
    """Read after any step, and gone on with from a checkpoint."""
    record = Record()
    for step, logs in enumerate([{}, {"rise": 1.0}, {}, {"rise": torch.tensor(3.0), "late": 4.0}, {}]):
        record.add_step({"loss": float(step), **logs}, 1, 8)
        if step == 2:
            state, record = record.state_dict(), Record()
            record.load_state_dict(state)
    numbers, absent = record.numbers(), np.nan
    np.testing.assert_equal(numbers["loss"], [0, 1, 2, 3, 4])
    np.testing.assert_equal(numbers["rise"], [absent, 1, absent, 3, absent])
    np.testing.assert_equal(numbers["late"], [absent, absent, absent, 4, absent])


def test_a_record_goes_on_from_its_state() -> None:
    first, second = Record(), Record()
    first.add_step({"loss": torch.tensor(0.25)}, 1, 8)
    second.load_state_dict(first.state_dict())
    second.add_step({"loss": torch.tensor(0.5)}, 1, 8)
    assert second.numbers()["loss"].tolist() == [0.25, 0.5]
