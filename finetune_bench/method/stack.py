"""A Stack makes several methods one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor
from torch.optim import Optimizer

from finetune_bench.device import resolution
from finetune_bench.errors import FinetuneBenchError, ModelError
from finetune_bench.functional import weigh
from finetune_bench.method.asking import ask
from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.step import Inner, Objective, Run, State, Step, View
from finetune_bench.model.dropout import Dropout, Rates
from finetune_bench.model.rates import plan_rates, set_rates
from finetune_bench.recipe import BATCH_LAYOUTS, OPTIMIZERS
from finetune_bench.task import Output

# The claim of every method that has a schedule.
SCHEDULE = "schedule of the learning rates"


class Stack(Method):
    """A Stack is several methods as one: setup by phase, then left to right; the leftmost objective outermost."""

    name = "stack"

    def __init__(self, methods: Sequence[Method]) -> None:
        # The methods of a stack within stand in its place.
        self.methods: tuple[Method, ...] = tuple(
            part for method in methods for part in getattr(method, "methods", [method])
        )
        self.dropout = max((method.dropout for method in self.methods), key=list(Dropout).index)
        self.batch_layout = min((m.batch_layout for m in self.methods), key=BATCH_LAYOUTS.index)  # type: ignore[misc]
        self.reads_pretrained = any(method.reads_pretrained for method in self.methods)  # type: ignore[misc]
        self._set_rates = ExitStack()

    @property
    def stochastic(self) -> bool:
        """Say whether one of the methods is."""
        return any(ask(method, "stochastic") for method in self.methods)

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Name what the methods need for themselves."""
        return tuple(dict.fromkeys(claim for method in self.methods for claim in _claims(method)))

    @property
    def rates(self) -> Rates:
        """Return the dropout rates that the methods ask for, by place the leftmost's."""
        asked = [dataclasses.asdict(ask(method, "rates")) for method in reversed(self.methods)]
        return Rates(**{place: rate for rates in asked for place, rate in rates.items() if rate is not None})

    def _rates_conflict(self) -> str | None:
        """Return which two methods want different dropout in one place; None where no two do."""
        for place, rate in dataclasses.asdict(self.rates).items():
            every = [(method.name, getattr(ask(method, "rates"), place)) for method in self.methods]
            asked = [(name, wanted) for name, wanted in every if wanted is not None]
            if len({wanted for _, wanted in asked}) > 1:
                return "; ".join(f"{name} asks for {place} dropout of {wanted:g}" for name, wanted in asked)
            if rate and (off := [method for method in self.methods if _turns_off(method.dropout, place)]):
                asking, against = asked[0][0], off[0]
                return (
                    f"{asking} asks for {place} dropout of {rate:g}, and {against.name} for dropout={against.dropout}"
                )
        return None

    def _conflict(self) -> str | None:
        """Return which two methods need the same for themselves; None where no two do."""
        held_by: dict[str, str] = {}
        for method in self.methods:
            claims = _claims(method)
            for claim in claims:
                if claim in held_by:
                    return f"{held_by[claim]} and {method.name} both decide about the {claim}, and only one method can"
            held_by |= dict.fromkeys(claims, method.name)
        return None

    def unsupported(self, facts: Facts) -> str | None:
        """Return the first method's reason against the cell, with its name; None where all of them can run."""
        if conflict := self._conflict() or self._rates_conflict():
            return conflict
        try:
            plan_rates(facts.skeleton, self.rates)
        except ModelError as error:
            return str(error).removesuffix(".")
        if self.changes_losses and not facts.task.is_mean_of_losses:
            return f"the loss of '{facts.task.name}' is its own, and it doesn't say the losses of single examples"
        for method, method_facts in self._facts(facts):
            if method.needs_adamw and facts.recipe.optimizer != OPTIMIZERS[0]:
                return f"{method.name}: {method.needs_adamw}, and the optimiser is {facts.recipe.optimizer}"
            if method.classes_only and facts.task.kind == "regression":
                return f"{method.name}: a regression task has no distribution over classes"
            if reason := ask(method, "unsupported", method_facts):
                return f"{method.name}: {reason}"
        return None

    def lost_noise(self, facts: Facts) -> str | None:
        """Name the method whose noise the arithmetic can't resolve, as the end of "it is skipped: …"; else None."""
        finest = resolution(facts.recipe.precision)
        for method in self.methods:
            scale = ask(method, "noise_scale")
            if scale and scale < finest:
                return (
                    f"{method.name}: noise of {scale:.1g} is lost in {facts.recipe.precision} arithmetic, which "
                    f"resolves {finest:.1g} near 1; use --precision fp32 or stronger noise"
                )
        return None

    def noise_scale(self) -> float | None:
        """Return the smallest noise of the methods; None where none of them says one."""
        return min((scale for method in self.methods if (scale := ask(method, "noise_scale"))), default=None)

    def effects(self) -> Mapping[str, Method]:
        """Return the effects of a single method; several are one effect together."""
        if len(self.methods) == 1:
            return dict(ask(self.methods[0], "effects"))
        return {self.name: self}

    def warning(self, facts: Facts) -> str | None:
        """Return what `warnings` says, in one text; None for nothing."""
        return "; ".join(self.warnings(facts)) or None

    def _facts(self, facts: Facts) -> Iterator[tuple[Method, Facts]]:
        """Yield every method with the facts of its cell, its partners among them."""
        for index, method in enumerate(self.methods):
            outer, right = self.methods[:index], self.methods[index + 1 :]
            yield method, dataclasses.replace(facts, partners=outer + right, outer=outer)

    def warnings(self, facts: Facts) -> list[str]:
        """Say what the user should know before a run, one sentence each."""
        warnings = []
        for method, method_facts in self._facts(facts):
            if text := ask(method, "warning", method_facts):
                warnings.append(f"{method.name}: {text}")
        for noised in dict.fromkeys(method.noises for method in self.methods if method.noises):
            names = [method.name for method in self.methods if method.noises == noised]
            if len(names) > 1:
                warnings.append(f"{' and '.join(names)} all put noise on the {noised}; their noises add up")
        return warnings

    def passes(self, inner: Passes) -> Passes:
        """Return the passes of one step: each method's around those to the right of it."""
        for method in reversed(self.methods):
            inner = ask(method, "passes", inner)
        return inner

    def memory(self, inner: Memory) -> Memory:
        """Return what training keeps: each method's around that of those to the right of it."""
        for method in reversed(self.methods):
            inner = ask(method, "memory", inner)
        return inner

    def setup(self, run: Run) -> None:
        """Set the methods up by phase, then left to right; dropout gets its rates before anything is measured."""
        changes = plan_rates(run.model, self.rates)
        ordered = sorted(self.methods, key=lambda method: method.phase)
        for method in ordered:
            if method.phase <= Phase.SELECT:
                self._set_up(method, run)
        # What chooses the weights that train may put modules around others, of which the names stay.
        self._set_rates = set_rates(run.model, changes)
        for method in ordered:
            if method.phase > Phase.SELECT:
                self._set_up(method, run)

    def _set_up(self, method: Method, run: Run) -> None:
        method.setup(run)

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Pass the optimiser through the methods, left to right."""
        for method in self.methods:
            optimizer = method.optimizer(optimizer, run)
        return optimizer

    def schedule(self, run: Run) -> Callable[[int], float] | None:
        """Return the schedule of the method that has one; None for the recipe's.

        Raises:
            FinetuneBenchError: a method answered with something that can't be called.
        """
        for method in self.methods:
            factor = method.schedule(run)
            if factor is None:
                continue
            if callable(factor):
                return factor
            raise FinetuneBenchError(
                f"'{method.name}': its `schedule` must return a function of the step, or None; got {factor!r}."
            )
        return None

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Enter every method's `perturbing`, the leftmost first."""
        with ExitStack() as contexts:
            for method in self.methods:
                contexts.enter_context(method.perturbing(run))
            yield

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Put the methods' objectives into each other, the leftmost outermost."""
        for method in reversed(self.methods):
            inner = _nest(method, step, inner)
        return inner(view)

    @property
    def changes_losses(self) -> bool:
        """Say whether a method has a say in the losses of single examples."""
        return any(type(method).losses is not Method.losses for method in self.methods)

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        """Let the methods change the losses of single examples, right to left: the leftmost is the outermost.

        Raises:
            FinetuneBenchError: a method returned something else than one loss per example.
        """
        for method in reversed(self.methods):
            if method.at_neutral:
                continue
            changed = method.losses(run, output, losses)
            if not isinstance(changed, Tensor) or changed.shape != losses.shape:
                got = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
                raise FinetuneBenchError(
                    f"'{method.name}': its `losses` must return one loss per example, {tuple(losses.shape)}; got {got}."
                )
            losses = changed
        return losses

    def gradients(self, run: Run) -> None:
        """Let the methods change the gradients, left to right."""
        for method in self.methods:
            method.gradients(run)

    def after_step(self, run: Run) -> None:
        """Let the methods follow the step, left to right."""
        for method in self.methods:
            method.after_step(run)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Enter every method's `evaluating`, the leftmost first."""
        with ExitStack() as contexts:
            for method in self.methods:
                contexts.enter_context(method.evaluating(run))
            yield

    def state(self) -> State:
        """Return what the methods keep for a checkpoint, under the position of each in the stack: `0 steps`."""
        return {f"{index} {key}": v for index, method in enumerate(self.methods) for key, v in method.state().items()}

    def load_state(self, state: State) -> None:
        """Give every method back what `state` gave; those that kept nothing are not asked."""
        for index, method in enumerate(self.methods):
            prefix = f"{index} "
            kept = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            if kept:
                method.load_state(kept)

    def teardown(self, run: Run) -> None:
        """Run every method's teardown in reversed order."""
        # Every teardown runs, also when another one raises.
        with ExitStack() as callbacks:
            for method in self.methods:
                callbacks.callback(method.teardown, run)
            callbacks.callback(self._set_rates.close)


def _turns_off(policy: Dropout, place: str) -> bool:
    return policy is Dropout.ALL_OFF or (policy is Dropout.HIDDEN_OFF and place != "attention")


def _claims(method: Method) -> tuple[str, ...]:
    """Return what a method needs for itself: what it says, and the schedule where it has one."""
    claims: tuple[str, ...] = ask(method, "exclusive")
    return (*claims, SCHEDULE) if type(method).schedule is not Method.schedule else claims


def _nest(method: Method, step: Step, inner: Inner) -> Inner:
    def nested(view: View, weight: float | Tensor = 1.0) -> Objective:
        with step.within(view, weight):
            objective = method.objective(step, inner, view)
        return dataclasses.replace(objective, loss=weigh(objective.loss, weight))

    return nested
