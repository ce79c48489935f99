"""Observers read a training and don't change it, so that one training serves all stacks that differ in them alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor

from finetune_bench.device import StepClock
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run, State
from finetune_bench.model.dropout import Dropout, Rates

# By the bytes of a number.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# What would make another training of it.
_OF_TRAINING = ("optimizer", "schedule", "perturbing", "objective", "losses", "gradients")


def is_observer(method: Method) -> bool:
    """Return whether the training of a stack is the same to the last bit without this method."""
    return method.observer and method.dropout == Dropout.KEEP and method.rates == Rates()


def check_observer(owner: type[Method]) -> None:
    """Refuse a method that says it only observes, and has a hook that takes part in the training.

    Raises:
        UsageError: names the hook.
    """
    taken = [name for name in _OF_TRAINING if getattr(owner, name) is not getattr(Method, name)]
    if owner.observer and taken:
        raise UsageError(
            f"The method '{owner.name}' has `observer = True`, and its hook `{taken[0]}` takes part in the training; "
            "leave out one of the two."
        )


class Observed(Stack):
    """An Observed is several stacks that are equal but for observers, as one that is trained with.

    Every observer keeps its place among the other methods.

    Args:
        stacks: the stacks, each by the id of its cell.

    Attributes:
        members: by the id of a cell, its stack, of which all but the observers are shared: for `evaluating`.
    """

    def __init__(self, stacks: Mapping[str, Stack]) -> None:
        # Vanilla's own stack has a method that does nothing, which those of single observers lack.
        kept = max(([m for m in stack.methods if not is_observer(m)] for stack in stacks.values()), key=len)
        self.members: dict[str, Stack] = {}
        self._kept: Sequence[Method] = kept
        self._observers: dict[str, list[Method]] = {}
        before: list[list[Method]] = [[] for _ in range(len(kept) + 1)]
        for cell_id, stack in stacks.items():
            parts: list[Method] = []
            for method in stack.methods:
                if is_observer(method):
                    before[sum(not is_observer(part) for part in parts)].append(method)
                    self._observers.setdefault(cell_id, []).append(method)
                    parts.append(method)
                else:
                    parts.append(kept[sum(not is_observer(part) for part in parts)])
            self.members[cell_id] = Stack(parts)
        ordered = [method for observers, own in zip(before, [*kept, None], strict=True) for method in (*observers, own)]
        super().__init__([method for method in ordered if method is not None])
        self._watched_steps = 0
        self._sums: list[tuple[Method, Tensor, Tensor]] = []
        # By the id of an observer, what it took of the set-up and of every step.
        self._setup_clocks: dict[int, StepClock] = {}
        self._step_clocks: dict[int, StepClock] = {}

    def _set_up(self, method: Method, run: Run) -> None:
        """Set a method up; observers are watched."""
        if not is_observer(method):
            method.setup(run)
            return
        with self._timed(self._setup_clocks, method, run), self._watching(method, run, thoroughly=True):
            method.setup(run)

    def after_step(self, run: Run) -> None:
        """Let the methods follow the step, left to right; observers are watched."""
        for method in self.methods:
            if getattr(method.after_step, "__func__", None) is Method.after_step:  # which does nothing
                continue
            if not is_observer(method):
                method.after_step(run)
                continue
            # What hides its writing from torch's count of them is found in the first step.
            thoroughly = self._watched_steps == 0
            with self._timed(self._step_clocks, method, run), self._watching(method, run, thoroughly=thoroughly):
                method.after_step(run)
        self._watched_steps += 1

    @staticmethod
    def _timed(clocks: dict[int, StepClock], method: Method, run: Run) -> AbstractContextManager[None]:
        return clocks.setdefault(id(method), StepClock(run.device)).step()

    def has_others(self, cell_id: str) -> bool:
        """Return whether another cell has observers."""
        return bool(self._observers.keys() - {cell_id})

    def seconds_of_others(self, cell_id: str) -> tuple[float, np.ndarray, np.ndarray]:
        """Return what the observers of the other cells took since this object was made; waits for the device.

        Returns:
            Wall seconds of the set-up, and wall and CPU seconds of every step, each (steps,).
        """
        others = {id(method) for name, methods in self._observers.items() if name != cell_id for method in methods}
        setups = sum(float(clock.seconds()[0].sum()) for key, clock in self._setup_clocks.items() if key in others)
        wall, cpu = np.zeros(self._watched_steps), np.zeros(self._watched_steps)
        for key, clock in self._step_clocks.items():
            if key in others:
                of_steps = clock.seconds()
                wall, cpu = wall + of_steps[0], cpu + of_steps[1]
        return setups, wall, cpu

    @contextmanager
    def _watching(self, method: Method, run: Run, *, thoroughly: bool) -> Iterator[None]:
        """Raise an error where an observer inside writes a weight or draws from the global random stream.

        Torch counts the writes to a tensor, which costs no look at its values. Sums of the weights' bits, which also
        find what goes around that count, stay on the device until `check` reads them.
        """
        weights = list(run.params.values())
        counts = [weight._version for weight in weights]
        before = _bits(weights) if thoroughly else None
        stream = torch.get_rng_state() if thoroughly else None
        yield
        if counts != [weight._version for weight in weights]:
            raise FinetuneBenchError(_complaint(method, "changed a weight"))
        if before is not None:
            self._sums.append((method, before, _bits(weights)))
        if stream is not None and not torch.equal(stream, torch.get_rng_state()):
            raise FinetuneBenchError(_complaint(method, "drew from the global random stream"))

    def check(self) -> None:
        """Hold what the weights were before the first call of each observer against what they were after it.

        Raises:
            FinetuneBenchError: an observer changed a weight.
        """
        for method, before, after in self._sums:
            if not torch.equal(before, after):
                raise FinetuneBenchError(_complaint(method, "changed a weight"))

    def state(self) -> State:
        """Return what the methods keep; an observer's is under its cell, so that no other one takes it for its own."""
        return {f"{name} {key}": value for name, method in self._named() for key, value in method.state().items()}

    def load_state(self, state: State) -> None:
        """Give every method back what `state` gave; what cells kept that are not here any more is left."""
        for name, method in self._named():
            prefix = f"{name} "
            kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if kept:
                method.load_state(kept)

    def _named(self) -> Iterator[tuple[str, Method]]:
        """Yield every method under its name in a checkpoint: its position, behind its cell's id for an observer."""
        for index, method in enumerate(self._kept):
            yield str(index), method
        for cell_id, methods in self._observers.items():
            for index, method in enumerate(methods):
                yield f"{cell_id} {index}", method


def _bits(weights: Sequence[Tensor]) -> Tensor:
    """Return a sum of the bits of every weight, (weights,), which wraps."""
    sums = []
    for weight in weights:
        # A sum of another type than its numbers' would need a copy of the weight, which would be the run's peak memory.
        integer = _INTEGERS[weight.element_size()]
        sums.append(weight.detach().contiguous().view(integer).sum(dtype=integer).long())
    return torch.stack(sums)


def _complaint(method: Method, what: str) -> str:
    return (
        f"'{method.name}' {what}, and its `observer = True` says that it leaves the training alone; take that line "
        "out, and its runs are trained apart."
    )
