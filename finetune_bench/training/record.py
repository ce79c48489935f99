"""The record is what a run writes down while it trains: losses, weight sketches, times and passes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Under this name a trace has the norm of each step's gradient, before it is clipped.
GRAD_NORM = "grad_norm"


def _no_times() -> np.ndarray:
    return np.zeros(0)


@dataclass
class Record:
    """A Record holds what a training loop writes down, one entry per step unless said otherwise.

    Attributes:
        logs: by name, the losses and what the methods log, as far as they were read; NaN at a step without that log.
        examples: how many examples each step had.
        micro_batches: how many all steps together had.
        sketch_steps: after which steps, from 1, the weights were sketched.
        sketches: the sketches of the weights, each (64,).
        seconds: wall seconds, up to the last checkpoint or the end.
        cpu_seconds: CPU seconds, likewise.
        tell: is told the last step and its loss whenever they are read; None for nobody.
    """

    logs: dict[str, list[float]] = field(default_factory=dict)
    examples: list[int] = field(default_factory=list)
    micro_batches: int = 0
    sketch_steps: list[int] = field(default_factory=list)
    sketches: list[np.ndarray] = field(default_factory=list)
    seconds: np.ndarray = field(default_factory=_no_times)
    cpu_seconds: np.ndarray = field(default_factory=_no_times)
    tell: Callable[[int, float], None] | None = None
    _unread: list[Mapping[str, Tensor | float]] = field(default_factory=list)

    def add_step(self, logs: Mapping[str, Tensor | float], micro_batches: int, examples: int) -> None:
        """Write down what one step logged, and how many micro-batches and examples it had.

        Tensors stay on their device until `read` is called.
        """
        self.micro_batches += micro_batches
        self.examples.append(examples)
        self._unread.append(logs)

    def read(self) -> None:
        """Read what was logged since the last call: one copy from the device for all of it, which waits for it."""
        unread, self._unread = self._unread, []
        stacks: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        for value in (value for step in unread for value in step.values()):
            if isinstance(value, Tensor):
                stacks.setdefault((value.device, value.dtype), []).append(value.reshape(()))
        # In double on the host: every number of a shorter type is one there, and some devices have no double.
        numbers = {kind: iter(torch.stack(values).cpu().double().tolist()) for kind, values in stacks.items()}
        first = len(self.examples) - len(unread)
        for index, step in enumerate(unread, first):
            for name, value in step.items():
                number = next(numbers[value.device, value.dtype]) if isinstance(value, Tensor) else float(value)
                log = self.logs.setdefault(name, [])
                log.extend([math.nan] * (index - len(log)) + [number])
        for log in self.logs.values():
            log.extend([math.nan] * (len(self.examples) - len(log)))
        if self.tell is not None and unread:
            self.tell(len(self.examples), self.logs["loss"][-1])

    def add_sketch(self, step: int, sketch: np.ndarray) -> None:
        """Write down a sketch of the weights after a step."""
        self.sketch_steps.append(step)
        self.sketches.append(sketch)

    def add_times(self, seconds: np.ndarray, cpu_seconds: np.ndarray) -> None:
        """Write down the times of the steps since the last call."""
        self.seconds = np.concatenate([self.seconds, seconds])
        self.cpu_seconds = np.concatenate([self.cpu_seconds, cpu_seconds])

    def numbers(self) -> dict[str, np.ndarray]:
        """Return the logs as arrays, each (steps,); waits for the device."""
        self.read()
        return {name: np.array(values) for name, values in self.logs.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, arrays as tensors."""
        arrays = {f"log {name}": values for name, values in self.numbers().items()}
        arrays |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "sketches": np.array(self.sketches)}
        return {
            **{name: torch.from_numpy(values) for name, values in arrays.items()},
            "examples": self.examples,
            "micro_batches": self.micro_batches,
            "sketch_steps": self.sketch_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        prefix = "log "
        self.logs = {n.removeprefix(prefix): v.tolist() for n, v in state.items() if n.startswith(prefix)}
        self.seconds, self.cpu_seconds = state["seconds"].numpy(), state["cpu_seconds"].numpy()
        self.sketches = list(state["sketches"].numpy())
        self.examples, self.micro_batches = state["examples"], state["micro_batches"]
        self.sketch_steps = state["sketch_steps"]


@dataclass(frozen=True)
class TrainingResult:
    """A TrainingResult is what `train` returns of a run.

    Attributes:
        steps: by name, one value per step: `loss` (what was minimised), `task_loss` (the mean of the task's losses
            among it), `grad_norm` (of the gradient, before it is clipped), and whatever the methods log, NaN at steps
            where they didn't.
        sketch_steps: after which steps, from 1, the weights were sketched; the last is the run's last.
        sketches: the sketches of the weights, each (64,).
        examples: how many examples each step had, (steps,).
        seconds: wall seconds of each step, (steps,); a measurement.
        cpu_seconds: CPU seconds of each step, (steps,); a measurement.
        setup_seconds: wall seconds of the methods' setup; a measurement.
        setup_forwards: forward passes of the methods' setup.
        setup_backwards: backward passes of the methods' setup.
        forwards_per_step: forward passes per micro-batch, counted.
        backwards_per_step: backward passes per micro-batch, counted.
        resumed_at: the step whose checkpoint the run went on from; 0 for a run in one piece.
    """

    steps: dict[str, np.ndarray]
    sketch_steps: list[int]
    sketches: list[np.ndarray]
    examples: np.ndarray
    seconds: np.ndarray
    cpu_seconds: np.ndarray
    setup_seconds: float
    setup_forwards: int
    setup_backwards: int
    forwards_per_step: float
    backwards_per_step: float
    resumed_at: int
