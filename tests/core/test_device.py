"""What is asked of the device: energy through NVML, by a stand-in where there is no CUDA."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from finetune_bench import device


class NVMLError(Exception):
    """As pynvml's."""


def stand_in(monkeypatch: pytest.MonkeyPatch, millijoules: int | Exception) -> list[str]:
    """A pynvml of one device; returns the identities that were asked for."""
    asked: list[str] = []

    def energy(handle: str) -> int:
        if isinstance(millijoules, Exception):
            raise millijoules
        assert handle == "handle"
        return millijoules

    module = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: asked.append(uuid) or "handle",
        nvmlDeviceGetTotalEnergyConsumption=energy,
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="ab-12"))
    return asked


def test_energy_is_in_joules_and_of_the_device_that_torch_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = stand_in(monkeypatch, 12_345_678)
    assert device.energy(torch.device("cuda", 1)) == pytest.approx(12_345.678)
    assert asked == ["GPU-ab-12"]


def test_without_energy_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.energy(torch.device("cpu")) is None
    stand_in(monkeypatch, NVMLError("Not Supported"))
    assert device.energy(torch.device("cuda", 0)) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert device.energy(torch.device("cuda", 0)) is None


@pytest.mark.cuda
def test_energy_grows() -> None:
    pytest.importorskip("pynvml")
    before = device.energy(torch.device("cuda", 0))
    if before is None:
        pytest.skip("this device doesn't tell its energy")
    for _ in range(50):
        torch.rand(2000, 2000, device="cuda") @ torch.rand(2000, 2000, device="cuda")
    torch.accelerator.synchronize()
    after = device.energy(torch.device("cuda", 0))
    assert after is not None
    assert after > before
