"""The Method contract says what a fine-tuning regulariser may do, and when.

The base class *is* vanilla fine-tuning: a method overrides only the hooks it needs. `Stack` makes several methods one.
`training/loop.py` draws where each hook runs; `docs/first-method.md` walks through writing one.

    class MyMethod(Method):
        \"\"\"The card: what it does, the formula, the deviations from the paper.\"\"\"
        name = "my_method"
        strength: float = parameter(0.1, interval="[0, inf)", neutral=0.0, search=Range(0.01, 1, log=True), help="...")
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, dataclass_transform

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.former import refuse_former
from finetune_bench.method.step import Inner, Objective, Run, State, Step, View
from finetune_bench.model.dropout import Dropout, Rates
from finetune_bench.parameters import Space, neutral_setting, parameter, search_space, validate
from finetune_bench.recipe import BATCH_LAYOUTS, FORMER_LAYOUTS, Recipe
from finetune_bench.task import Output, Task

# What a method may change of fine-tuning.
PLACES = (
    "inputs",
    "hidden states",
    "weights",
    "loss",
    "gradients",
    "which weights train",
    "averages of weights",
)


class Phase(IntEnum):
    """The phase says when a method's `setup` runs; every setup of a phase ends before the next phase begins.

    Attributes:
        SURGERY: for setups that change weights.
        SELECT: for setups that choose what trains.
        WRAP: for hooks and parametrisations.
        MEASURE: for passes over the data, and all else.
    """

    SURGERY = 0
    SELECT = 1
    WRAP = 2
    MEASURE = 3


@dataclass(frozen=True)
class Facts:
    """Facts are all that is known of a cell before any weight is loaded, for `Method.unsupported`.

    Attributes:
        skeleton: the model without weights (on the meta device); its structure and configuration may be read.
        active_dropout: names of the modules whose dropout stays above zero under the stack's policy.
        task: the cell's task.
        recipe: the cell's recipe.
        dtype: the dtype of the arithmetic: float32, or autocast's.
        partners: the other methods of the stack.
        outer: the methods to the left, whose objectives are around this method's.
        keeps_head: whether the model starts from the checkpoint's head, and not from a fresh one.
    """

    skeleton: nn.Module
    active_dropout: tuple[str, ...]
    task: Task
    recipe: Recipe
    dtype: torch.dtype
    partners: tuple[Method, ...] = ()
    outer: tuple[Method, ...] = ()
    keeps_head: bool = False

    @property
    def passes_differ(self) -> bool:
        """Say whether passes of one method over one batch differ: by dropout, or by what a partner draws for each."""
        # What a method to the left draws outside `perturbing`, it draws once for all passes to its right.
        partners = (p for p in self.partners if p not in self.outer or type(p).perturbing is not Method.perturbing)
        return bool(self.active_dropout) or any(partner.stochastic for partner in partners)


@dataclass_transform(kw_only_default=True)
@dataclass(kw_only=True, eq=False)
class Method:
    """A Method is a fine-tuning regulariser; the base class is vanilla fine-tuning, and each hook does nothing.

    Subclasses become keyword-only dataclasses by themselves. Their fields are hyper-parameters: public, validated when
    made, never changed after. What a method learns while it runs lives in attributes that end in `_`.

    Class attributes:
        name: the plugin's id, lower case: the file's name and the entry point's.
        acts_on: which of `PLACES` it changes, under which `list methods` has it; "" for something else.
        version: raised when the method's numbers change, so that stale rows never mix with new ones.
        phase: when `setup` runs.
        batch_layout: the furthest layout in which it works: "padded"; "unpadded" if whatever it does to hidden states
            between the layers may have them without padding, (1, tokens, dim); "unpadded_trimmed" if besides, from
            `optimizer` on, the token embeddings may have only the rows of tokens that occur, and it holds none of them
            from before.
        reads_pretrained: whether the method reads `run.pretrained`; costs one copy of the weights.
        classes_only: whether it needs a distribution over classes: on a regression task it is refused.
        observer: whether the training is the same to the last bit without it: it draws nothing, reads in `setup` and
            `after_step`, and acts in `evaluating` alone. Runs that differ in observers only share one training.
        noises: what it puts noise on, as "token embeddings"; that two of a stack have the same is said before a run.
        own_learning_rate: why it is no fair comparison at vanilla's learning rate, and which rates to try, as "its loss
            is smaller: 1 to 10 times vanilla's rate"; empty where one rate suits both.
        needs_adamw: why it works with AdamW alone, as "it makes AdamW's steps itself"; with another optimiser it is
            refused. Empty where any will do.
        search_space: what a search may try, by parameter; read off the parameters.
        neutral: the neutral values by parameter, None where no parameter has one; read off the parameters.
    """

    name: ClassVar[str]
    acts_on: ClassVar[str] = ""
    version: ClassVar[int] = 1
    phase: ClassVar[Phase] = Phase.MEASURE
    batch_layout: ClassVar[str] = BATCH_LAYOUTS[0]
    reads_pretrained: ClassVar[bool] = False
    classes_only: ClassVar[bool] = False
    observer: ClassVar[bool] = False
    noises: ClassVar[str] = ""
    own_learning_rate: ClassVar[str] = ""
    needs_adamw: ClassVar[str] = ""
    search_space: ClassVar[Mapping[str, Space]] = {}
    neutral: ClassVar[Mapping[str, Any] | None] = None

    dropout: Dropout = parameter(Dropout.KEEP, help="what is asked of the model's dropout")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        refuse_former(cls)
        # A class without a docstring has the file's card.
        if cls.__doc__ is None:
            cls.__doc__ = sys.modules[cls.__module__].__doc__
        # Version 0.1 called the batch layout `arrangement`; a plugin may do so for one more version.
        if (former := vars(cls).get("arrangement")) is not None:
            cls.batch_layout = FORMER_LAYOUTS.get(former, former)
        dataclass(kw_only=True, eq=False)(cls)
        cls.neutral, cls.search_space = neutral_setting(cls), search_space(cls)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def at_neutral(self) -> bool:
        """Say whether it is at its neutral setting; without one it never is."""
        return self.neutral is not None and all(getattr(self, name) == value for name, value in self.neutral.items())

    @property
    def stochastic(self) -> bool:
        """Say whether two training forwards of the same batch differ because of this method."""
        return False

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Name what only one method of a stack may have, as "evaluated weights"; a second one is refused."""
        return ()

    @property
    def rates(self) -> Rates:
        """Return the dropout rates that this method asks for; two methods of a stack may not ask for different ones."""
        return Rates()

    def unsupported(self, facts: Facts) -> str | None:
        """Return why this method can't run in such a cell, as the end of "NAME is skipped: …"; else None."""
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say what the user should know of a cell that can run: above all that this method has no effect in it."""
        return None

    def effects(self) -> Mapping[str, Method]:
        """Split what this method does: each twin turns one more effect on, and the last is the method itself.

        The first twin is compared with vanilla at this method's dropout; what that dropout does is split off before.
        """
        return {self.name: self}

    def noise_scale(self) -> float | None:
        """Return the standard deviation of the noise on activations; refused where the dtype can't carry it."""
        return None

    def passes(self, inner: Passes) -> Passes:
        """Return the passes of one step, given those of one call of `inner`; checked against what is counted."""
        return inner

    def memory(self, inner: Memory) -> Memory:
        """Return what training keeps, given what it keeps with `inner` alone; checked against what is measured."""
        return inner

    def setup(self, run: Run) -> None:
        """Prepare the run: called once, after the model is loaded and before the optimiser exists."""

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Replace or wrap the optimiser, or change its groups: called once, after every setup."""
        return optimizer

    def schedule(self, run: Run) -> Callable[[int], float] | None:
        """Return the factor of all learning rates at step 0 … total_steps − 1; None leaves the recipe's schedule.

        Called once, after `optimizer`. A factor may be above 1. Only one method of a stack may have a schedule.
        """
        return None

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Perturb activations or weights around every training forward pass, and leave no trace after it."""
        yield

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Return the loss of one micro-batch; `inner(view)` is that of the methods to the right, at last the task's."""
        return inner(view)

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Change the losses of one pass, one per example, given those of the methods to the right, at last the task's.

        Not called at the neutral setting, where the task's loss keeps its last bit.

        Args:
            run: the training run.
            output: the pass's prediction.
            losses: (batch,), float32 at least; their mean is the pass's loss.

        Returns:
            As many losses; to leave them as they are, `losses` itself, and the loss keeps its last bit.
        """
        return losses

    def gradients(self, run: Run) -> None:
        """Change the gradients of `run.params` in place: called after clipping, before the optimiser's step."""

    def after_step(self, run: Run) -> None:
        """Follow a step: called after the optimiser's and the scheduler's."""

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Swap weights around every evaluation, by copying into the same storage, and back."""
        yield

    def state(self) -> State:
        """Return what changes from step to step and is needed to go on: for a checkpoint in the middle of a run.

        It is not what `setup` and `optimizer` make, for they are replayed, nor weights of the model, the optimiser's
        state or random streams, which are kept without it.
        """
        return {}

    def load_state(self, state: State) -> None:
        """Take back what `state` gave, after `setup` and `optimizer`; tensors come on the run's device."""

    def teardown(self, run: Run) -> None:
        """Leave a plain model, whatever happened: called also after an error, and after a `setup` that never ran."""
