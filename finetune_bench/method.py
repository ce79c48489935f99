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

from finetune_bench.parameters import Range, parameter, validate
from finetune_bench.study import ARRANGEMENTS, Recipe
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


# What memory formulas are made of, each in bytes for one (micro-)batch.
SIZES = {
    "I": "the batch itself: ids, masks and labels that are saved for the backward pass, once for all passes",
    "F": "activations that one forward pass saves for the backward pass",
    "F_frozen": "the part of F below the lowest layer that trains, where the embeddings don't",
    "L": "what one task loss saves",
    "D": "what one divergence of two predictions saves",
    "H": "one hidden state: batch · seq · dim · 4",
    "H_all": "the hidden states that leave the layers: layers · H",
    "P": "all weights: parameters · 4",
    "P_body": "the body's weights, that is all but the head's",
    "P_head": "the matrix of the head's last layer",
    "P_layers": "the weights of the encoder's layers",
    "P_dense": "weights and biases of the linear layers within the encoder's layers",
    "P_used": "the weights that a pass saves for the backward pass where they are not the model's own tensors",
    "P_linear": "the matrices of the body's linear layers",
    "P_frozen": "the weights that don't train",
    "C": "one number for each input column of the body's linear layers: columns · 4",
}


@dataclass(frozen=True)
class Memory:
    """What training needs beyond weights, gradients and the optimiser's two moments, as sums of `SIZES`.

    Attributes:
        saved: how many of each size autograd keeps for the backward pass when it keeps most.
        kept: how many of each size are kept all along; below 0 where gradients and moments are saved.
    """

    saved: Mapping[str, float] = field(default_factory=lambda: {"I": 1.0, "F": 1.0, "L": 1.0})
    kept: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted({*self.saved, *self.kept} - set(SIZES)):
            raise ValueError(f"a memory formula is made of {', '.join(SIZES)}; got '{unknown[0]}'")

    def plus(self, saved: Mapping[str, float] | None = None, kept: Mapping[str, float] | None = None) -> Memory:
        """This and more."""
        return Memory(_sum(self.saved, saved or {}), _sum(self.kept, kept or {}))

    def times(self, factor: float) -> Memory:
        """With so many graphs alive at once; the batch is saved once, and what is kept all along stays."""
        return Memory({name: count if name == "I" else factor * count for name, count in self.saved.items()}, self.kept)

    @property
    def saved_formula(self) -> str:
        """`saved` as text, as `I + 2 · F + L`."""
        return _formula(self.saved)

    @property
    def kept_formula(self) -> str:
        """`kept` as text; `0` for nothing."""
        return _formula(self.kept)


def _sum(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in SIZES if name in left or name in right}


def _formula(counts: Mapping[str, float]) -> str:
    text = ""
    for name, count in counts.items():
        if count:
            text += (" − " if text else "−") if count < 0 else (" + " if text else "")
            text += name if abs(count) == 1 else f"{abs(count):g} · {name}"
    return text or "0"


@dataclass(frozen=True)
class View:
    """How one forward pass is to be made.

    Attributes:
        embeds: (batch, seq, dim), replaces the raw token embeddings (before position embeddings, norm and dropout).
        weights: by canonical name, take the place of the parameters in this pass; gradients flow to them.
        perturb: False turns every method's `perturbing` off for this pass.
        hidden: also return the states between the layers, as `Output.hidden`.
        weight: the factor by which outer methods will multiply the loss of this pass. A method that multiplies
            `inner`'s loss by c passes `replace(view, weight=c * view.weight)`; early backward passes need it.
    """

    embeds: Tensor | None = None
    weights: Mapping[str, Tensor] | None = None
    perturb: bool = True
    hidden: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Objective:
    """What one evaluation of the training loss yields.

    Attributes:
        loss: 0-dim, of the micro-batch; its graph reaches the weights.
        output: that of a forward pass of which the graph is alive: the first, unless the method says otherwise.
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

    def embeds(self, view: View = ...) -> Tensor:
        """The view's raw token embeddings (batch, seq, dim), before position embeddings, norm and dropout."""
        ...

    def divergence(self, p: Output, q: Output) -> Tensor:
        """The task's distance between two predictions, batch mean: symmetric KL, or the MSE for regression."""
        ...

    def mark(self) -> Streams:
        """Where all random streams stand: dropout's, and every method's."""
        ...

    def replay(self, mark: Streams) -> AbstractContextManager[None]:
        """Inside, passes draw what they drew from the mark on: the same masks, the same noise, for equal shapes.

        After it the streams stand where they stood before. What a method draws for itself it therefore draws outside:
        inside it would draw the same at every step.
        """
        ...

    def backward(self, part: Tensor, view: View) -> Tensor:
        """Add the gradients of a part (0-dim) of this method's loss now, and free its graph.

        Args:
            part: a summand of the loss that this method will return.
            view: the one that this method was given: its `weight` is applied here, as is all other scaling of losses.

        Returns:
            The part, detached, to be added to the loss that is returned. Declare `early_backward`.
        """
        ...


Streams = Mapping[str, Tensor]  # states of random streams, by name
State = Mapping[str, Any]  # what a method has to keep, by name: tensors, and what JSON can hold


class Run(Protocol):
    """What `setup` and the other hooks may use of the training run."""

    model: nn.Module
    # Canonical names, fixed at build; the objects stay the same under wrapping. A method that brings parameters of its
    # own puts them here in `setup` and takes them out in `teardown`.
    params: dict[str, Parameter]
    undecayed: set[str]  # names of the parameters that the recipe's weight decay leaves out: biases and norms
    weights: Mapping[str, Tensor]  # while a pass runs: what it uses in the place of the parameters of these names
    trained: dict[str, Tensor]  # masks of the entries that train, for parameters of which a method fixed the others
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

    def grad(self, loss: Tensor, weights: Sequence[Tensor], view: View = ...) -> list[Tensor]:
        """Gradients of a loss, zero for weights that it doesn't depend on; counted, and `.grad` is left alone.

        The loss's graph is freed; with the view that its passes were made from, what lies below its embeddings is not.
        """
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
        outer: those to the left, whose objectives are around this method's.
    """

    skeleton: nn.Module
    active_dropout: tuple[str, ...]
    task: Task
    recipe: Recipe
    dtype: torch.dtype
    partners: tuple[Method, ...] = ()
    outer: tuple[Method, ...] = ()


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
        arrangement: the furthest arrangement in which it works: "padded"; "packed" if whatever it does to hidden states
            between the layers may have them without padding, (1, tokens, dim); "trimmed" if besides, from `optimizer`
            on, the token embeddings may have only the rows of tokens that occur, and it holds none of them from before.
        reads_pretrained: whether the method reads `run.pretrained`; costs one copy of the weights.
        early_backward: whether it calls `step.backward`, so that the loss it returns is partly detached.
        noises: the place where it puts noise, as "token embeddings"; stacking two of one place is said before a run.
        search_space: by parameter, the range or the choices that a search may try; the default need not be inside.
        neutral: parameters under which the method equals vanilla (with the same dropout) to the last bit; None where
            there is no such setting, and the card says why.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    phase: ClassVar[Phase] = Phase.MEASURE
    stochastic: ClassVar[bool] = False
    arrangement: ClassVar[str] = ARRANGEMENTS[0]
    reads_pretrained: ClassVar[bool] = False
    early_backward: ClassVar[bool] = False
    noises: ClassVar[str] = ""
    search_space: ClassVar[Mapping[str, Range | tuple[Any, ...]]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None

    dropout: Dropout = parameter(Dropout.KEEP, help="what is asked of the model's dropout")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__doc__ is None:  # the file's card, where the class has no words of its own
            cls.__doc__ = sys.modules[cls.__module__].__doc__
        dataclass(kw_only=True, eq=False)(cls)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The methods that this one is made of: itself."""
        return (self,)

    def unsupported(self, facts: Facts) -> str | None:
        """Why this method can't run in a cell with these facts, as the end of "NAME is skipped: …"; else None."""
        return None

    def warning(self, facts: Facts) -> str | None:
        """What the user should know of a cell that can run: above all that this method has no effect in it."""
        return None

    def effects(self) -> Mapping[str, Method]:
        """What this method does, split: each twin turns one more effect on, the last is the method itself.

        The first is compared with vanilla at this method's dropout; what that dropout does is split off before.
        """
        return {self.name: self}

    def noise_scale(self) -> float | None:
        """Standard deviation of the noise this method adds to activations; refused where the dtype can't carry it."""
        return None

    def passes(self, inner: Passes) -> Passes:
        """Passes of one step, given those of one call of `inner`. Checked against what is counted."""
        return inner

    def memory(self, inner: Memory) -> Memory:
        """What training keeps, given what it keeps with `inner` alone. Checked against what is measured."""
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

    def state(self) -> State:
        """What changes from step to step and is needed to go on: for a checkpoint in the middle of a run.

        Not what `setup` and `optimizer` make, for they are replayed, nor weights of the model, the optimiser's state or
        random streams, which are kept by themselves.
        """
        return {}

    def load_state(self, state: State) -> None:
        """Take back what `state` gave, after `setup` and `optimizer`; tensors come on the run's device."""

    def teardown(self, run: Run) -> None:
        """Leave a plain model, whatever happened; runs also after an error, and after a `setup` that never ran."""


class Stack(Method):
    """Several methods as one: setup by phase, then left to right; contexts nested; the leftmost objective outermost."""

    name = "stack"

    def __init__(self, methods: Sequence[Method]) -> None:
        self.methods = tuple(methods)
        self.dropout = max((method.dropout for method in self.methods), key=list(Dropout).index)
        self.stochastic = any(method.stochastic for method in self.methods)  # type: ignore[misc]
        self.arrangement = min((m.arrangement for m in self.methods), key=ARRANGEMENTS.index)  # type: ignore[misc]
        self.reads_pretrained = any(method.reads_pretrained for method in self.methods)  # type: ignore[misc]

    @property
    def parts(self) -> tuple[Method, ...]:
        return self.methods

    def unsupported(self, facts: Facts) -> str | None:
        for method, own in self._facts(facts):
            if reason := method.unsupported(own):
                return f"{method.name}: {reason}"
        return None

    def lost_noise(self, facts: Facts) -> str | None:
        """Which method's noise is below what the arithmetic resolves, as the end of "it is skipped: …"; else None."""
        finest = torch.finfo(facts.dtype).eps / 2
        for method in self.methods:
            scale = method.noise_scale()
            if scale and scale < finest:
                return (
                    f"{method.name}: noise of {scale:.1g} is lost in {facts.recipe.precision} arithmetic, which "
                    f"resolves {finest:.1g} near 1; use --precision fp32 or stronger noise"
                )
        return None

    def _facts(self, facts: Facts) -> Iterator[tuple[Method, Facts]]:
        for index, method in enumerate(self.methods):
            outer, right = self.methods[:index], self.methods[index + 1 :]
            yield method, dataclasses.replace(facts, partners=outer + right, outer=outer)

    def warnings(self, facts: Facts) -> list[str]:
        """What the user should know before a run, one sentence each."""
        said = [f"{method.name}: {text}" for method, own in self._facts(facts) if (text := method.warning(own))]
        for place in dict.fromkeys(method.noises for method in self.methods if method.noises):
            names = [method.name for method in self.methods if method.noises == place]
            if len(names) > 1:
                said.append(f"{' and '.join(names)} all put noise on the {place}; their noises add up")
        return said

    def passes(self, inner: Passes) -> Passes:
        for method in reversed(self.methods):
            inner = method.passes(inner)
        return inner

    def memory(self, inner: Memory) -> Memory:
        for method in reversed(self.methods):
            inner = method.memory(inner)
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
