"""Take it home: `attach` puts the methods of the benchmark into a training loop of one's own.

    tuned = home.attach("hype(eps=1e-4)+rdrop", model, total_steps=len(loader) * epochs)
    optimizer = tuned.optimizer(AdamW(tuned.parameters(), lr=2e-5))
    for batch in loader:                      # a dict of input_ids, attention_mask, labels …
        optimizer.zero_grad()
        loss = tuned.backward(batch)
        nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        tuned.before_step()
        optimizer.step()
        scheduler.step()
        tuned.after_step()
    with tuned.evaluating(): ...
    tuned.finish()

It is the same `TrainingRun`, `TrainingStep` and hooks as in the benchmark's loop, so that equal batches give equal
weights. `docs/take-it-home.md` has complete examples; `trainer.py` does the same inside transformers.Trainer.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import Optimizer

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError, Unsupported, UsageError
from finetune_bench.home.batches import Inputs, to_batch
from finetune_bench.home.model import refuse_other_heads, restore, skeleton_of, switch_off_as, task_of
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.stack import SCHEDULE, Stack
from finetune_bench.metrics import Kind
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.rates import active_dropout_under
from finetune_bench.model.structure import is_decoder
from finetune_bench.recipe import OPTIMIZERS, Recipe
from finetune_bench.task import Batch, Task
from finetune_bench.training.examples import Encoded
from finetune_bench.training.run import TrainingRun, TrainingStep

# Makes one pass over the training data, shuffled by the stream of the name it is given.
MakePass = Callable[[str], Iterable[Inputs]]


# Models that methods are in at present.
_ATTACHED: WeakSet[nn.Module] = WeakSet()


def make_stack(method: str | Method | Iterable[Method]) -> Stack:
    """Make the stack that a text, a method or several methods describe."""
    if isinstance(method, str):
        return registry.make_stack(method)
    if isinstance(method, Stack):
        return method
    return Stack([method] if isinstance(method, Method) else list(method))


def attach(
    method: str | Method | Iterable[Method],
    model: nn.Module,
    *,
    total_steps: int,
    batches: Iterable[Inputs] | MakePass | None = None,
    batch_size: int = 16,
    accumulation: int = 1,
    precision: str = "fp32",
    kind: Kind | None = None,
    clip: float = 1.0,
    seed: int = 0,
) -> Attached:
    """Prepare a model for training with a method: its dropout, and the methods' `setup`.

    Args:
        method: as on the command line, "hype(eps=1e-4)+rdrop"; or a method, or several, the outermost first.
        model: a text classifier of transformers with fp32 weights, on the device where it trains.
        total_steps: optimiser steps that will be made.
        batches: the training data, for methods that pass over it before training; a data loader will do.
        batch_size: examples per optimiser step.
        accumulation: micro-batches per step.
        precision: the arithmetic: fp32, or bf16 or fp16 under autocast, which `backward` enters by itself.
        kind: classification or regression; by default what `model.config.num_labels` says.
        clip: the norm to which you clip gradients; a few methods clip in their setup likewise.
        seed: the seed of the methods' own random streams. The global one, and with it dropout, stays yours.

    Raises:
        UsageError: the method's text, the model or an argument is wrong.
        Unsupported: a method can't run with this model and these arguments.
    """
    stack = make_stack(method)
    if SCHEDULE in stack.exclusive:
        raise UsageError(
            f"'{registry.describe(stack)}' brings a schedule of the learning rates, and in your loop the schedule is "
            "yours: give your scheduler that of the method, and attach the others."
        )
    if precision == "tf32":
        raise UsageError(
            "precision='tf32' is a setting of the whole process, which is yours: set "
            "torch.backends.cuda.matmul.fp32_precision = 'tf32' before training, and leave precision= out."
        )
    recipe = Recipe(
        steps=total_steps,
        batch_size=batch_size,
        accumulation=accumulation,
        precision=precision,
        clip=clip,
        weight_decay=0.0,  # not known before the optimiser is; see `recipe_of`
        gradient_checkpointing=any(getattr(module, "gradient_checkpointing", False) for module in model.modules()),
    )
    return Attached(stack, model, task_of(model, kind), recipe, batches=batches, seed=seed)


def recipe_of(optimizer: Optimizer, recipe: Recipe) -> Recipe:
    """Take over what an optimiser says of how it trains: its kind, largest rate and decay, the first betas and eps.

    Which kind it is, its class's name says: there are many versions of each.

    Args:
        optimizer: torch's or one like it.
        recipe: keeps what the groups don't say.
    """
    groups, kind = optimizer.param_groups, type(optimizer).__name__.lower()
    values: dict[str, Any] = {"weight_decay": max(float(group.get("weight_decay") or 0.0) for group in groups)}
    values["optimizer"] = next((name for name in ("lion", "muon") if name in kind), OPTIMIZERS[0])
    if (rate := max(float(group.get("lr") or 0.0) for group in groups)) > 0:
        values["lr"] = rate
    # Muon's groups have an epsilon of another kind, and no betas.
    first = next((group for group in groups if "betas" in group), {})
    if isinstance(betas := first.get("betas"), tuple | list) and len(betas) == 2:
        values |= {"beta1": float(betas[0]), "beta2": float(betas[1])}
    if isinstance(eps := first.get("eps"), float) and eps > 0 and values["optimizer"] != "lion":
        values["adam_eps"] = eps
    return dataclasses.replace(recipe, **values)


# How far the shares of a step's micro-batches, added up, may be from 1.
ROUNDING = 1e-4


class Attached:
    """An Attached is a model in training with a method; `attach` makes it."""

    def __init__(
        self,
        stack: Stack,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        *,
        batches: Iterable[Inputs] | MakePass | None,
        seed: int,
    ) -> None:
        if model in _ATTACHED:
            raise UsageError(
                "this model has methods attached: end that training first, with finish() or close() of what attach "
                "returned. Several methods are attached as one stack, as 'hype+rdrop'."
            )
        skeleton = skeleton_of(model, stack.dropout)
        refuse_other_heads(skeleton, task.outputs)
        self._stack, self._batches = stack, batches
        self._optimizer: Optimizer | None = None
        self._open, self._is_evaluating, self._steps = True, False, 0
        self._shares, self._prepared, self._late = 0.0, False, False
        # Without a request the model's dropout stays what the user made it, whatever its configuration says.
        self._rates = {} if stack.dropout is Dropout.KEEP else switch_off_as(model, skeleton)
        try:
            self._facts = Facts(
                skeleton,
                tuple(active_dropout_under(model, stack.rates)),
                task,
                recipe,
                devices.DTYPES[recipe.precision],
            )
            if reason := stack.lost_noise(self._facts) or stack.unsupported(self._facts):
                raise Unsupported(reason)
            self.warnings = stack.warnings(self._facts)
            # The objects stay, whatever is wrapped around them.
            self.weights = model.state_dict(keep_vars=True)
            no_examples = Encoded({}, {}, False, torch.zeros(0))
            device = next(model.parameters()).device
            # A decoder's head looks for the last token that is no padding.
            self._padding = model.config.get_text_config().pad_token_id if is_decoder(model) else None  # type: ignore[union-attr, operator]
            self.run = TrainingRun(
                model, task, no_examples, recipe, stack, seed=seed, device=device, batches=self._one_pass
            )
        except BaseException:
            restore(self._rates)
            raise
        _ATTACHED.add(model)
        try:
            stack.setup(self.run)
        except BaseException:
            self.close()
            raise

    def _one_pass(self, order: str) -> Iterator[Batch]:
        """Yield one pass over the user's training data."""
        if self._batches is None:
            raise UsageError(
                "this method passes over the training data before training, and has none; "
                "give it: attach(…, batches=loader)."
            )
        for inputs in self._batches(order) if callable(self._batches) else self._batches:
            yield to_batch(inputs, self.run.task, self.run.device, self._padding)

    def parameters(self) -> list[Parameter]:
        """Return what trains: for the optimiser, and for clipping."""
        return [weight for weight in self.run.params.values() if weight.requires_grad]

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Return the optimiser to use from here on; some methods change it. Make the scheduler after it.

        What methods say of its learning rate, weight decay, betas and epsilon is in `warnings` from here on.

        Raises:
            Unsupported: a method can't go with this optimiser.
            UsageError: it lacks weights that train.
        """
        if self._optimizer is not None:
            raise FinetuneBenchError("The methods have had their optimiser; attach anew for another one.")
        self.run.recipe = recipe_of(optimizer, self.run.recipe)
        self._facts = dataclasses.replace(self._facts, recipe=self.run.recipe)
        if reason := self._stack.unsupported(self._facts) or self._why_not(optimizer):
            raise Unsupported(reason)
        held = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        trained = {name: weight for name, weight in self.run.params.items() if weight.requires_grad}
        if lacking := [name for name, weight in trained.items() if id(weight) not in held]:
            raise UsageError(
                f"the optimiser has {len(trained) - len(lacking)} of the {len(trained)} weights that train, and not "
                f"'{lacking[0]}': make it of tuned.parameters(), after attach. What is not to train is set so "
                "before, by requires_grad_(False)."
            )
        self.warnings = self._stack.warnings(self._facts)
        self._optimizer = self.run.method.optimizer(optimizer, self.run)
        self._optimizer.register_step_pre_hook(self._stepping)
        return self._optimizer

    def _why_not(self, optimizer: Optimizer) -> str | None:
        """Return which method needs settings that AdamW has and this optimiser lacks; None where none does."""
        lacking = [key for key in ("lr", "betas", "eps", "weight_decay") if key not in optimizer.param_groups[0]]
        needing = [method for method in self._stack.methods if method.needs_adamw]
        if not lacking or not needing:
            return None
        method = needing[0]
        return f"{method.name}: {method.needs_adamw}, and {type(optimizer).__name__} has no {lacking[0]}"

    def backward(self, batch: Inputs, share: float = 1.0, scaler: torch.amp.GradScaler | None = None) -> Tensor:
        """Add the gradients of a (micro-)batch's objective, in training mode.

        Args:
            batch: the model's arguments, and `labels`.
            share: which part of the step's examples is in the micro-batch, above 0 and up to 1.
            scaler: your loss scaler in fp16; unscale before clipping.

        Returns:
            The objective (0-dim), detached; multiply it by the share to sum it over a step.
        """
        if self._optimizer is None:
            raise FinetuneBenchError("The methods have not seen the optimiser: optimizer = tuned.optimizer(AdamW(…)).")
        if not self._open:
            raise FinetuneBenchError("The training is finished, and its methods are gone; attach anew for another one.")
        if self._is_evaluating:
            raise FinetuneBenchError(
                "Inside tuned.evaluating() the model has the weights that are evaluated; train outside of it."
            )
        if not 0 < share <= 1 + ROUNDING:
            raise UsageError(f"share= must be above 0 and at most 1; got {share:g}.")
        weight = next(self.run.model.parameters())
        if weight.dtype != torch.float32 or weight.device != self.run.device:
            raise FinetuneBenchError(
                f"The model was moved to {weight.device}, {weight.dtype} after attach, which took it on "
                f"{self.run.device}, in float32: move it before."
            )
        self.run.model.train()
        step = TrainingStep(self.run, to_batch(batch, self.run.task, self.run.device, self._padding), share, scaler)
        self._shares += share
        return step.backward(step.objective().loss)

    def before_step(self) -> None:
        """Let the methods change gradients: call it after clipping, before the optimiser's step."""
        if self._late:
            raise FinetuneBenchError("The last step was not told to the methods: call tuned.after_step() after each.")
        if abs(self._shares - 1) > ROUNDING:
            raise FinetuneBenchError(
                f"The shares of this step's micro-batches add up to {self._shares:g} where 1 was expected; give each "
                "its part of the step's examples: tuned.backward(part, share=len(part['labels']) / examples)."
            )
        self._shares, self._prepared = 0.0, True
        self.run.method.gradients(self.run)

    def _stepping(self, *_: Any) -> None:
        """Refuse an optimiser's step that methods had no part in: it would train something else without a word."""
        if self._open and not self._prepared:
            raise FinetuneBenchError(
                "The methods have not seen this step's gradients: call tuned.before_step() before optimizer.step()."
            )
        self._prepared, self._late = False, True

    def after_step(self) -> None:
        """Tell the methods of the step: call it after the optimiser's and the scheduler's."""
        self._late = False
        if not self._open:  # as an optimiser's step after the last evaluation
            return
        self._steps += 1
        self.run.method.after_step(self.run)
        if self.run.is_length_read and self._steps == self.run.total_steps + 1:
            warnings.warn(self._length_text(), stacklevel=2)

    def _length_text(self) -> str:
        return (
            f"attach was told of {self.run.total_steps} steps, and this is the end of step {self._steps}: a method "
            "acts by the length of the training, and was planned for another one."
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put averaged or merged weights into the model around every evaluation. Put it in `eval()` yourself."""
        if self._is_evaluating or not self._open:  # the model has them already
            yield
            return
        self._is_evaluating = True
        try:
            with self.run.method.evaluating(self.run):
                yield
        finally:
            self._is_evaluating = False

    def state_dict(self) -> dict[str, Tensor]:
        """Return the plain model's tensors as they stand; inside `evaluating`, those that are evaluated."""
        return {name: tensor.detach() for name, tensor in self.weights.items()}

    def finish(self) -> None:
        """Keep the weights that evaluation uses, and leave a plain model with its own dropout; once is enough."""
        if not self._open:
            return
        if self._is_evaluating:  # which would put the last step's weights back afterwards
            raise FinetuneBenchError(
                "Inside tuned.evaluating() a training can't be finished; call finish() outside of it."
            )
        if self.run.is_length_read and self._steps < self.run.total_steps:
            warnings.warn(self._length_text(), stacklevel=2)
        with torch.no_grad():
            with self.evaluating():
                kept = {name: tensor.clone() for name, tensor in self.state_dict().items()}
            self.close()
            for name, tensor in kept.items():
                self.weights[name].copy_(tensor)

    def close(self) -> None:
        """Leave a plain model with the last step's weights, as after an error."""
        if self._open:
            self._open = False
            _ATTACHED.discard(self.run.model)
            try:
                self.run.method.teardown(self.run)
            finally:
                restore(self._rates)

    def __enter__(self) -> Attached:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.close()
