"""A batch as a whole against the same batch in micro-batches: both are handed the same random numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from finetune_bench.method.base import Method
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.metrics import Kind
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import choices_of, kind_of
from finetune_bench.testing.toys import CPU, RECIPE, toy_train, unsupported, weights


def forms(owner: type[Method]) -> list[dict[str, Any]]:
    """List what a method can be made with: its defaults, and each other value of each choice and each flag."""
    made_with: list[dict[str, Any]] = [{}]
    for field in dataclasses.fields(owner):
        if field.name != "dropout":
            flag = kind_of(owner, field)[0] is bool
            values = (True, False) if flag else choices_of(owner, field)
            made_with += [{field.name: value} for value in values if value != field.default]
    return made_with


def micro_batch_difference(
    owner: type[Method], parameters: dict[str, Any], kind: Kind, device: torch.device = CPU
) -> float | str:
    """Train with whole batches of 8 and with 4 micro-batches of 2, dropout off where the method can do without.

    Args:
        owner: the method's class.
        parameters: what it is made with, beside the dropout policy.
        kind: of the toy task.
        device: the device to train on.

    Returns:
        The largest difference of a weight after six steps at a learning rate of 1e-3, or why it can't be tried.
    """
    # A large epsilon: Adam divides by the gradient, which blows up the last bits of those near zero.
    whole, cut = (dataclasses.replace(RECIPE, adam_eps=1e-3, accumulation=count) for count in (1, 4))
    policy = {"dropout": Dropout.ALL_OFF}
    if unsupported(owner(**parameters, **policy), kind=kind, recipe=cut):
        policy = {}
    if reason := unsupported(owner(**parameters, **policy), kind=kind, recipe=cut):
        return reason
    ends: list[dict[str, Tensor]] = []
    drawn = []
    for recipe in (whole, cut):
        same_draws = SameDraws()
        run, _, _ = toy_train([same_draws, owner(**parameters, **policy)], kind=kind, recipe=recipe, device=device)
        ends.append(weights(run))
        drawn.append(same_draws.drawn_)
        if same_draws.within_kernels_:
            return "on this device it draws numbers within kernels, where they can't be cut"
    if [made for made in drawn[0] for _ in range(cut.accumulation)] != drawn[1]:
        return "what it draws for a batch, as an order of its examples, can't be cut into draws for micro-batches"
    return max(float((ends[0][name].double() - ends[1][name].double()).abs().max()) for name in ends[0])


class SameDraws(Method):
    """SameDraws is put left of a method; each micro-batch of a step gets its part of what the whole batch would draw.

    Every micro-batch starts from where the random streams stood before the step. A tensor of random numbers of which
    the first dimension counts the micro-batch's examples is drawn for the whole batch, and for the longest example
    there is; the rows of these examples, and as many tokens as they have, are handed out. All else is drawn as ever, so
    that micro-batches share what a step draws once (a mask on weights).

    `drawn_` lists what was drawn, by step: the operation and the shape in which it was made. `within_kernels_` says
    whether something was drawn that this file can't hand out: CUDA's dropout draws within its kernels.
    """

    name = "same_draws"

    def setup(self, run: Run) -> None:
        """Note the sizes of the batches to come."""
        self.parts_ = run.recipe.accumulation
        self.longest_ = int(run.examples.lengths().max())  # type: ignore[attr-defined]
        self.whole_ = run.recipe.batch_size
        self.count_ = 0
        self.drawn_: list[list[tuple[str, tuple[int, ...]]]] = []
        self.within_kernels_ = False

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate what is to the right of it with this micro-batch's part of the whole batch's draws."""
        position = self.count_ % self.parts_
        self.count_ += 1
        if position == 0:
            self.mark_ = step.mark()
        size, length = step.batch.inputs["input_ids"].shape
        draws = _CutDraws(size, length, self.whole_, self.longest_, first=position * size)
        with step.replay(self.mark_) if position else nullcontext(), draws:
            objective = inner(view)
        self.drawn_.append(draws.made)
        self.within_kernels_ |= draws.within_kernels
        return objective


class _CutDraws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, random tensors of a micro-batch's shape are cut from those of the whole batch.

    Args:
        size: examples of the micro-batch.
        length: tokens of its longest.
        whole: examples of the batch.
        longest: tokens of the longest of all.
        first: position of the micro-batch's first example in the batch.
    """

    def __init__(self, size: int, length: int, whole: int, longest: int, first: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.length, self.whole, self.longest, self.first = size, length, whole, longest, first
        self.made: list[tuple[str, tuple[int, ...]]] = []
        self.within_kernels = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        names = [argument.name for argument in func._schema.arguments]
        like = func._schema.name.endswith("_like")
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        # An operation that makes a tensor from a size, or an order from a count, draws from the global stream without.
        if not ("generator" in names or like or names[0] in ("size", "n")):
            values = {**dict(zip(names, args, strict=False)), **kwargs}
            self.within_kernels |= bool(values.get("p") or values.get("dropout_p"))
            return func(*args, **kwargs)
        changed = func._schema.is_mutable
        shape = tuple(args[0]) if names[0] == "size" else tuple(getattr(args[0], "shape", ()))
        by_entry = any(isinstance(value, Tensor) and value.ndim for value in args[1:])  # as a probability for each
        if shape[:1] != (self.size,) or by_entry or not (changed or like or names[0] == "size"):
            drawn = func(*args, **kwargs)
            self.made.append((str(func), tuple(getattr(drawn, "shape", ()))))
            return drawn
        wide = (self.whole, *(self.longest if entries == self.length else entries for entries in shape[1:]))
        self.made.append((str(func), wide))
        part = self._part(shape)
        if names[0] == "size":
            return func(wide, *args[1:], **kwargs)[part].clone()
        drawn = func(args[0].new_empty(wide), *args[1:], **kwargs)
        return args[0].copy_(drawn[part]) if changed else drawn[part].clone()

    def _part(self, shape: Sequence[int]) -> tuple[slice, ...]:
        """Return where the examples of this micro-batch are in a tensor of the whole batch."""
        rows = slice(self.first, self.first + self.size)
        return (rows, *(slice(entries) for entries in shape[1:]))
