"""A Stack makes several methods one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch.optim import Optimizer

from finetune_bench.method.asking import ask
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import ARRANGEMENTS


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
            if reason := ask(method, "unsupported", own):
                return f"{method.name}: {reason}"
        return None

    def lost_noise(self, facts: Facts) -> str | None:
        """Which method's noise is below what the arithmetic resolves, as the end of "it is skipped: …"; else None."""
        finest = torch.finfo(facts.dtype).eps / 2
        for method in self.methods:
            scale = ask(method, "noise_scale")
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
        said = [f"{method.name}: {text}" for method, own in self._facts(facts) if (text := ask(method, "warning", own))]
        for place in dict.fromkeys(method.noises for method in self.methods if method.noises):
            names = [method.name for method in self.methods if method.noises == place]
            if len(names) > 1:
                said.append(f"{' and '.join(names)} all put noise on the {place}; their noises add up")
        return said

    def passes(self, inner: Passes) -> Passes:
        for method in reversed(self.methods):
            inner = ask(method, "passes", inner)
        return inner

    def memory(self, inner: Memory) -> Memory:
        for method in reversed(self.methods):
            inner = ask(method, "memory", inner)
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
