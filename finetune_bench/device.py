"""This file holds all that differs between a CPU and an accelerator."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finetune_bench.errors import MachineError, UsageError
from finetune_bench.printable import brief

# Memory ran out, in the words of the runtime, of its libraries and of the CPU's allocators, whose errors have no class.
_NO_MEMORY = re.compile(
    r"(CUDA|HIP)( driver)? error: out of memory|_STATUS_\w*ALLOC(ATION)?_FAILED"
    r"|can't allocate memory|not enough memory: you tried"
)

# The attention kernels of every cell on CUDA: the second for models whose shapes the first can't do.
ATTENTION_KERNELS = ("memory_efficient", "math")
_ATTENTION_SWITCHES = {
    "cudnn": torch.backends.cuda.enable_cudnn_sdp,
    "flash": torch.backends.cuda.enable_flash_sdp,
    "memory_efficient": torch.backends.cuda.enable_mem_efficient_sdp,
    "math": torch.backends.cuda.enable_math_sdp,
}

# The dtypes of the arithmetic, by precision; a precision that is not float32 is computed in under autocast.
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    # Others have no random streams or events that work as those of CUDA do: their runs would fail in the middle.
    if not re.fullmatch(r"(cpu|cuda)(:(0|[1-9][0-9]?))?", name):
        raise UsageError(f"--device: expected cpu, cuda or cuda:N; got '{name}'.")
    device = torch.device(name)
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


def prepare(device: torch.device, *, threads: int, deterministic: bool, precision: str = "fp32") -> None:
    """Set this process up for a device: on CUDA fp32 stays fp32 unless tf32 is asked for, and attention has one kernel.

    Args:
        device: the device of the cells that come.
        threads: torch threads on a CPU, at least 1.
        deterministic: whether only deterministic kernels are allowed.
        precision: the recipe's; of float32 matrices, tf32 multiplies the first 10 bits behind the point.

    Raises:
        MachineError: the device has no TF32, and the precision is tf32.
    """
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.accelerator.set_device_index(device.index or 0)
        if precision == "tf32" and not has_tf32(device):
            raise MachineError(f"--precision tf32: {describe(device)} has no TF32, and would compute in fp32.")
        multiplied = "tf32" if precision == "tf32" else "ieee"
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.fp32_precision = multiplied
        # Left to itself torch takes another kernel for another mask, precision or batch: methods would differ by it.
        for name, switch in _ATTENTION_SWITCHES.items():
            switch(name in ATTENTION_KERNELS)
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)


def resolution(precision: str) -> float:
    """Return the smallest change of a number near 1 that survives rounding in a precision's matrix products."""
    bits_of_fp16 = torch.finfo(torch.float16).eps  # TF32 has as many
    return (bits_of_fp16 if precision == "tf32" else torch.finfo(DTYPES[precision]).eps) / 2


def has_tf32(device: torch.device) -> bool:
    """Return whether a device can multiply in TF32; CUDA devices before compute capability 8.0 would in fp32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def describe(device: torch.device) -> str:
    """Return the device's name for a person, as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return device.type


def total_memory(device: torch.device) -> int:
    """Return how much memory a CUDA device has, in bytes."""
    return torch.cuda.get_device_properties(device).total_memory


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices on CUDA in full inside, also where the precision is tf32."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device, from the CPU without waiting for it."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


@contextmanager
def waiting_forbidden(device: torch.device) -> Iterator[None]:
    """Raise an error inside where the host would wait for a CUDA device; a CPU is never waited for."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode(before)


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


@dataclass
class StepClock:
    """A StepClock takes the times of steps, wall and CPU, without waiting for the device meanwhile."""

    device: torch.device
    _marks: list[tuple[torch.Event, torch.Event]] = field(default_factory=list)
    _seconds: list[float] = field(default_factory=list)
    _cpu_seconds: list[float] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time what is inside as one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self.device.type == "cpu":
            yield
        else:
            begin, end = (torch.Event(self.device, enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._marks.append((begin, end))
        self._seconds.append(time.perf_counter() - wall)
        self._cpu_seconds.append(time.process_time() - cpu)

    def seconds(self) -> tuple[np.ndarray, np.ndarray]:
        """Return wall and CPU seconds of every step, each (steps,); waits for the device."""
        if self._marks:
            torch.accelerator.synchronize(self.device)
            wall = np.array([begin.elapsed_time(end) / 1000 for begin, end in self._marks])
        else:
            wall = np.array(self._seconds)
        return wall, np.array(self._cpu_seconds)


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


def is_broken(device: torch.device, error: BaseException) -> bool:
    """Return whether this process can't use its device any more, after an exception.

    The exception alone doesn't tell: after a fault every later call fails, in whatever words the library has that
    notices it first. So the device is asked, too.
    """
    if isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error):
        return True
    if device.type == "cpu":
        return False
    try:
        torch.accelerator.synchronize(device)
    except RuntimeError:
        return True
    return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on the device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _NO_MEMORY.search(brief(error, 10_000)) is not None
