"""This file holds all that differs between a CPU and an accelerator."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from finetune_bench.errors import MachineError, UsageError
from finetune_bench.printable import brief

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose(name: str | None, *, elsewhere: bool = False) -> list[torch.device]:
    """Return the devices that a study may use.

    Args:
        name: "cpu", "cuda" (every visible one), "cuda:1" (that one); None for CUDA where there is one, else the CPU.
        elsewhere: whether the cells run on other machines; then this one need not have the device.

    Raises:
        UsageError: not a device's name.
        MachineError: the machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        name = "cuda" if accelerator is not None and accelerator.type == "cuda" else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: expected cpu, cuda or cuda:N; got '{name}'.") from None
    if device.type == "cpu":
        return [torch.device("cpu")]
    if elsewhere:
        return [device]
    count = torch.accelerator.device_count() if accelerator is not None and accelerator.type == device.type else 0
    if count == 0 or (device.index or 0) >= count:
        raise MachineError(
            f"--device {name}: this machine shows {count} {device.type} devices to torch {torch.__version__}. "
            "Use --device cpu, or install a torch build for the device (see the README)."
        )
    return [device] if device.index is not None else [torch.device(device.type, index) for index in range(count)]


def prepare(device: torch.device, *, threads: int, deterministic: bool) -> None:
    """Set this process up for a device; fp32 stays fp32 (no TF32).

    Args:
        device: the device of the cells that come.
        threads: torch threads on a CPU, at least 1.
        deterministic: whether only deterministic kernels are allowed.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.accelerator.set_device_index(device.index or 0)
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        torch.backends.cudnn.fp32_precision = "ieee"
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def describe(device: torch.device) -> str:
    """Return the device's name for a person, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device.type


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device without waiting for it."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def random_state_kept(device: torch.device) -> Iterator[None]:
    """Put the global random streams (the CPU's and the device's) back, after the block, to what they were before it."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng(devices=[device.index or 0], device_type=device.type):
            yield


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the global random streams, the CPU's and the device's, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Put the global random streams back to the states that `random_state` returned."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(states[device.type], device)


def reset_peak(device: torch.device) -> bool:
    """Start measuring peak memory anew; return whether that can be done here."""
    gc.collect()  # what earlier cells left, or the allocator kept, would count for this cell
    if device.type != "cpu":
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats(device)
        return True
    if sys.platform != "linux":
        return False
    ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
    except OSError:  # not every container allows it
        return False
    return True


def peak(device: torch.device) -> tuple[int | None, int | None]:
    """Return the bytes at the peak since a `reset_peak` that worked.

    Returns:
        (allocated, reserved) on an accelerator; (resident set, None) on a CPU.
    """
    if device.type != "cpu":
        return torch.accelerator.max_memory_allocated(device), torch.accelerator.max_memory_reserved(device)
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024, None


def energy(device: torch.device) -> float | None:
    """Return the joules that a CUDA device has used since its driver was loaded, by NVML; None where it doesn't tell.

    It is the whole device's: other processes on it count too. Needs the extra `[energy]`.
    """
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By identity: NVML numbers all devices, torch those that it is shown.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:  # older than Volta, a slice of a device, or no rights
        return None


def is_broken(error: BaseException) -> bool:
    """Return whether an exception means that this process can't use its device any more."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the device or on the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in brief(error, 10_000)
