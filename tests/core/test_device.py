"""What is asked of the device, by stand-ins where there is no CUDA: its errors, and its energy through NVML."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from finetune_bench import device
from finetune_bench.errors import MachineError, UsageError

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("error", "out_of_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 400.00 MiB."), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError("the user is out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error: BaseException, out_of_memory: bool) -> None:
    assert device.is_out_of_memory(error) == out_of_memory


def test_a_device_is_asked_whether_it_still_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = torch.AcceleratorError("CUDA error: device-side assert triggered")
    full = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    other = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device: None)
    assert device.is_broken(CUDA, fault)
    assert not device.is_broken(CUDA, full)
    assert not device.is_broken(CUDA, other)

    def fail(device: torch.device) -> None:
        raise fault

    monkeypatch.setattr(torch.accelerator, "synchronize", fail)
    assert device.is_broken(CUDA, full)
    assert device.is_broken(CUDA, other)
    assert not device.is_broken(torch.device("cpu"), other)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What `prepare` sets for the whole process is put back."""
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    # Written down by hand: what is in force, and how to put it back.
    cuda, switches = torch.backends.cuda, {}
    for name in ("cudnn", "flash", "mem_efficient", "math"):
        switches[name] = getattr(cuda, f"{name}_sdp_enabled")()
    precisions = cuda.matmul.fp32_precision, torch.backends.cudnn.fp32_precision
    yield
    for name, enabled in switches.items():
        getattr(cuda, f"enable_{name}_sdp")(enabled)
    cuda.matmul.fp32_precision, torch.backends.cudnn.fp32_precision = precisions


@pytest.mark.usefixtures("prepared")
def test_all_attention_on_cuda_has_the_same_kernel() -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    device.prepare(CUDA, threads=1, deterministic=False)
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.mem_efficient_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize(("precision", "multiplied"), [("tf32", "tf32"), ("fp32", "ieee"), ("bf16", "ieee")])
def test_float32_matrices_are_multiplied_as_the_recipe_says(
    precision: str, multiplied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_tf32", lambda device: True)
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    device.prepare(CUDA, threads=1, deterministic=False, precision=precision)
    assert torch.backends.cuda.matmul.fp32_precision == multiplied
    assert torch.backends.cudnn.fp32_precision == multiplied


@pytest.mark.usefixtures("prepared")
def test_tf32_on_an_old_card_is_an_error_and_not_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "has_tf32", lambda device: False)
    monkeypatch.setattr(device, "describe", lambda device: "an old card")
    with pytest.raises(MachineError, match="an old card has no TF32"):
        device.prepare(CUDA, threads=1, deterministic=False, precision="tf32")


@pytest.mark.usefixtures("prepared")
def test_products_can_be_exact_under_tf32() -> None:
    matmul = torch.backends.cuda.matmul
    matmul.fp32_precision = "tf32"
    with pytest.raises(ZeroDivisionError), device.exact_products():
        assert matmul.fp32_precision == "ieee"
        raise ZeroDivisionError
    assert matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("name", ["mps", "xpu:0", "meta", "gpu"])
def test_a_device_that_is_neither_a_cpu_nor_cuda_is_refused_at_once(name: str, elsewhere: bool) -> None:
    with pytest.raises(UsageError, match=f"expected cpu, cuda or cuda:N; got '{name}'"):
        device.choose(name, elsewhere=elsewhere)


def test_only_what_is_on_the_cpu_is_pinned_for_its_copy() -> None:
    """A tensor of a device has nothing to pin, which is an error; the meta device stands for one."""
    there = torch.ones(2, device="meta")
    assert device.put(there, torch.device("meta")) is there
    here = torch.ones(2)
    assert device.put(here, torch.device("cpu")) is here


def test_tf32_resolves_what_fp16_does_and_is_asked_of_new_cards_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.resolution("tf32") == device.resolution("fp16") == 2**-11
    assert device.resolution("fp32") == 2**-24
    for capability, expected in {(7, 5): False, (8, 0): True, (9, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert device.has_tf32(CUDA) == expected
    assert not device.has_tf32(torch.device("cpu"))


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
    # The card brings its counter up to date some ten times a second.
    after, deadline = before, time.monotonic() + 5
    while after == before and time.monotonic() < deadline:
        torch.rand(2000, 2000, device="cuda") @ torch.rand(2000, 2000, device="cuda")
        torch.accelerator.synchronize()
        after = device.energy(torch.device("cuda", 0))
    assert after is not None
    assert after > before
