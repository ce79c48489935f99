"""The Method contract: what a fine-tuning regulariser may do, and when.

The base class *is* vanilla fine-tuning: a method overrides only the hooks it needs. `Stack` makes several methods one.
`training.py` draws where each hook runs; `docs/first-method.md` walks through writing one.

    class MyMethod(Method):
        \"\"\"The card: what it does, the formula, the deviations from the paper.\"\"\"
        name = "my_method"
        neutral = {"strength": 0.0}
        strength: float = parameter(0.1, interval="[0, inf)", help="...")
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, ClassVar, Protocol, dataclass_transform

import torch
from torch import Generator, Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from finetune_bench.parameters import parameter, validate
from finetune_bench.study import Recipe
from finetune_bench.task import Batch, Output, Task


class Phase(IntEnum):
    """When a method's `setup` runs; every setup of a phase ends before the next phase begins."""

    SURGERY = 0  # change weights
    SELECT = 1  # choose what trains
    WRAP = 2  # hooks, parametrisations
    MEASURE = 3  # passes over the data, and all else


class Dropout(StrEnum):
    """What a method asks of the model's dropout. In a stack the strongest *off* wins."""

    KEEP = "keep"
    HIDDEN_OFF = "hidden_off"  # what HyPe's script zeroes: `hidden_dropout_prob`, `dropout`; see model.py and its card
    ALL_OFF = "all_off"


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes of one training step; a backward through two graphs at once counts as one."""

    forwards: int = 1
    backwards: int = 1


@dataclass(frozen=True)
class View:
    """How one forward pass is to be made.

    Attributes:
        embeds: (batch, seq, dim), replaces the raw token embeddings (before position embeddings, norm and dropout).
        perturb: False turns every method's `perturbing` off for this pass.
    """

    embeds: Tensor | None = None
    perturb: bool = True


@dataclass(frozen=True)
class Objective:
    """What one evaluation of the training loss yields.

    Attributes:
        loss: 0-dim, of the micro-batch; its graph reaches the weights.
        output: the output of the first forward pass.
        logs: named 0-dim tensors or numbers, kept per step in the training trace.
    """

    loss: Tensor
    output: Output
    logs: Mapping[str, Tensor | float] = field(default_factory=dict)


Inner = Callable[[View], Objective]


class Step(Protocol):
    """One micro-batch: the only door from a method to the training step."""

    @property
    def batch(self) -> Batch: ...
    def forward(self, view: View = ...) -> Output:
        """One training forward pass inside the stack's `perturbing` (unless the view says no); it is counted."""
        ...

    def embeds(self) -> Tensor:
        """Raw token embeddings (batch, seq, dim), before position embeddings, norm and dropout."""
        ...

    def divergence(self, p: Output, q: Output) -> Tensor:
        """The task's distance between two predictions, batch mean: symmetric KL, or the MSE for regression."""
        ...


class Run(Protocol):
    """What `setup` and the other hooks may use of the training run."""

    model: nn.Module
    params: dict[str, Parameter]  # canonical names, fixed at build; the objects stay the same under parametrisation
    undecayed: set[str]  # names of the parameters that the recipe's weight decay leaves out: biases and norms
    task: Task
    recipe: Recipe
    total_steps: int
    device: torch.device
    dtype: torch.dtype  # of the arithmetic: float32, or autocast's

    @property
    def pretrained(self) -> Mapping[str, Tensor]:
        """The weights as loaded, by canonical name, before any method touched them. Needs `reads_pretrained`."""
        ...

    def reanchor(self, names: Iterable[str]) -> None:
        """From here on `pretrained` holds these parameters' present values. For surgery that discards the old ones."""
        ...

    def generator(self, name: str) -> Generator:
        """The method's own random stream of that name, on `device`; the same object at each call."""
        ...

    def batches(self, order: str) -> Iterator[Batch]:
        """One pass over the training data in batches of the recipe's size, shuffled by the stream `order`."""
        ...

    def loss(self, batch: Batch, view: View = ...) -> Tensor:
        """The plain task loss of a batch (0-dim, batch mean), the model in the mode it is in."""
        ...

    def grad(self, loss: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of a loss, zero for weights that it doesn't depend on; counted, and `.grad` is left alone."""
        ...

    def own_randomness(self, name: str) -> AbstractContextManager[None]:
        """Inside, the global random streams (dropout) are the method's own; after it they are as they were."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a cell before any weight is loaded, for `Method.unsupported`.

    Attributes:
        skeleton: the model without weights (on the meta device); its structure and configuration may be read.
        active_dropout: names of the modules whose dropout stays above zero under the stack's policy.
        dtype: of the arithmetic (float32, or autocast's).
        partners: the other methods of the stack.
    """

    skeleton: nn.Module
    active_dropout: tuple[str, ...]
    task: Task
    recipe: Recipe
    dtype: torch.dtype
    partners: tuple[Method, ...] = ()


@dataclass_transform(kw_only_default=True)
@dataclass(kw_only=True, eq=False)
class Method:
    """Vanilla fine-tuning; the base class of every method.

    Subclasses become keyword-only dataclasses by themselves. Their fields are hyper-parameters: public, validated when
    made, never changed after. What a method learns while it runs lives in attributes that end in `_`.

    Class attributes:
        name: the plugin's id, lower case: the file's name and the entry point's.
        version: raised when the method's numbers change, so that stale rows never mix with new ones.
        phase: when `setup` runs.
        stochastic: whether two training forwards of the same batch differ because of this method.
        reads_pretrained: whether the method reads `run.pretrained`; costs one copy of the weights.
        neutral: parameters under which the method equals vanilla (with the same dropout) to the last bit; None where
            there is no such setting, and the card says why.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    phase: ClassVar[Phase] = Phase.MEASURE
    stochastic: ClassVar[bool] = False
    reads_pretrained: ClassVar[bool] = False
    neutral: ClassVar[Mapping[str, Any] | None] = None

    dropout: Dropout = parameter(Dropout.KEEP, help="what is asked of the model's dropout")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__doc__ is None:  # the file's card, where the class has no words of its own
            cls.__doc__ = sys.modules[cls.__module__].__doc__
        dataclass(kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        validate(self)

    def unsupported(self, facts: Facts) -> str | None:
        """Why this method can't run in a cell with these facts, as the end of "NAME is skipped: …"; else None."""
        return None

    def noise_scale(self) -> float | None:
        """Standard deviation of the noise this method adds to activations; refused where the dtype can't carry it."""
        return None

    def passes(self, inner: Passes) -> Passes:
        """Passes of one step, given those of one call of `inner`. Checked against what is counted."""
        return inner

    def setup(self, run: Run) -> None:
        """Once, after the model is loaded and before the optimiser exists."""

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Replace or wrap the optimiser, or change its groups; once, after every setup."""
        return optimizer

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Around every training forward: perturb activations or weights inside, leave no trace after."""
        yield

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """The loss of one micro-batch. `inner(view)` is that of the methods to the right, at last the task's loss."""
        return inner(view)

    def gradients(self, run: Run) -> None:
        """Change the gradients of `run.params` in place: after clipping, before the optimiser's step."""

    def after_step(self, run: Run) -> None:
        """After the optimiser's and the scheduler's step."""

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Around every evaluation; weights are swapped by copying into the same storage, and back."""
        yield

    def teardown(self, run: Run) -> None:
        """Leave a plain model, whatever happened; runs also after an error, and after a `setup` that never ran."""


class Stack(Method):
    """Several methods as one: setup by phase, then left to right; contexts nested; the leftmost objective outermost."""

    name = "stack"

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = tuple(methods)
        self.dropout = max((method.dropout for method in self.methods), key=list(Dropout).index)
        self.stochastic = any(method.stochastic for method in self.methods)  # type: ignore[misc]
        self.reads_pretrained = any(method.reads_pretrained for method in self.methods)  # type: ignore[misc]

    def unsupported(self, facts: Facts) -> str | None:
        for method in self.methods:
            partners = tuple(other for other in self.methods if other is not method)
            if reason := method.unsupported(dataclasses.replace(facts, partners=partners)):
                return f"{method.name}: {reason}"
        return None

    def passes(self, inner: Passes) -> Passes:
        for method in reversed(self.methods):
            inner = method.passes(inner)
        return inner

    def setup(self, run: Run) -> None:
        for method in sorted(self.methods, key=lambda method: method.phase):
            method.setup(run)

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        for method in self.methods:
            optimizer = method.optimizer(optimizer, run)
        return optimizer

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        with ExitStack() as contexts:
            for method in self.methods:
                contexts.enter_context(method.perturbing(run))
            yield

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        for method in reversed(self.methods):
            inner = _nest(method, step, inner)
        return inner(view)

    def gradients(self, run: Run) -> None:
        for method in self.methods:
            method.gradients(run)

    def after_step(self, run: Run) -> None:
        for method in self.methods:
            method.after_step(run)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        with ExitStack() as contexts:
            for method in self.methods:
                contexts.enter_context(method.evaluating(run))
            yield

    def teardown(self, run: Run) -> None:
        with ExitStack() as last:  # every teardown runs, also when another one raises
            for method in self.methods:
                last.callback(method.teardown, run)


def _nest(method: Method, step: Step, inner: Inner) -> Inner:
    return lambda view: method.objective(step, inner, view)
