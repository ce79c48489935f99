"""Make the trainings that docs/performance.md compares: the loop here, transformers' Trainer, and a plain PyTorch loop.

Each function returns a loop that has all it needs; called with `pass_on`, it calls that after each of its steps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired_timing import WARM
from torch import nn

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run
from finetune_bench.model import pretrained, unpadding, weights
from finetune_bench.model.dropout import with_dropout
from finetune_bench.recipe import Recipe
from finetune_bench.runner.inputs import encoded
from finetune_bench.training.examples import Encoded
from finetune_bench.training.loop import make_optimizer, make_scheduler, train
from finetune_bench.training.run import TrainingRun

PAIRS = 24
LENGTH = 128
CPU = torch.device("cpu")
RECIPE = Recipe(lr=2e-5, steps=PAIRS + WARM, warmup=0.1)


@dataclass(frozen=True)
class Setting:
    """A setting says where data and checkpoint are: a folder in the hub's layout, and a model's name or folder."""

    data_root: Path
    model: str


class _Turn(Method):
    """This method passes on after each step and does nothing else."""

    name = "turn"
    batch_layout = "unpadded_trimmed"

    def __init__(self) -> None:
        super().__init__()
        self.pass_on: Callable[[], None] = lambda: None

    def after_step(self, run: Run) -> None:
        self.pass_on()


def make_run(setting: Setting, task: str, stack: Stack, recipe: Recipe) -> TrainingRun:
    """Return a run on the first 480 examples of a task, with seed 1."""
    train, _ = encoded(setting.model, task, 480, setting.data_root, LENGTH)
    owner = registry.task(task)
    net = weights.load(setting.model, with_dropout(pretrained.config(setting.model, owner.outputs), stack.dropout), 1)
    unpadding.prepare_for(net, CPU, recipe.batch_layout)
    return TrainingRun(net, owner, train, recipe, stack, seed=1, device=CPU)


def ours(setting: Setting, task: str, method: str, batch_layout: str) -> Callable[[Callable[[], None]], TrainingRun]:
    """Return the loop of this project."""
    turn = _Turn()
    stack = Stack([*registry.make_stack(method).methods, turn])
    run = make_run(setting, task, stack, replace(RECIPE, batch_layout=batch_layout))

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        turn.pass_on = pass_on
        train(run)
        stack.teardown(run)
        return run

    return loop


def trainer_of(run: TrainingRun, examples: list[dict[str, Any]], pass_on: Callable[[], None], **options: Any) -> Any:
    """Return transformers' Trainer with the recipe of a run, on these examples in this order: the reference script."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> None:
            return None

    class PassOn(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pass_on()

    recipe = run.recipe
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=run.total_steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.lr,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.beta1,
        adam_beta2=recipe.beta2,
        adam_epsilon=recipe.adam_eps,
        max_grad_norm=recipe.clip,
        warmup_steps=recipe.warmup_steps(run.total_steps),
        report_to=[],
        save_strategy="no",
        logging_steps=10**9,
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return InOrder(model=run.model, args=arguments, train_dataset=examples, callbacks=[PassOn()])  # type: ignore[arg-type]


def padded_to(examples: Encoded, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Return examples as the reference script has them, each padded to 128 tokens."""
    return [
        {
            name: np.pad(c[i], (0, LENGTH - len(c[i])), constant_values=examples.padding[name])
            for name, c in examples.columns.items()
        }
        | {"labels": int(examples.labels[i])}
        for i in positions
    ]


def reference(setting: Setting, task: str, method: str = "vanilla") -> Callable[[Callable[[], None]], TrainingRun]:
    """Return the reference script's loop, from the same head, on the same examples in the same steps."""
    run = make_run(setting, task, registry.make_stack(method), RECIPE)
    examples = padded_to(run.examples, [position for step in run.steps() for part in step for position in part])

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        torch.manual_seed(1)
        trainer_of(run, examples, pass_on).train()
        return run

    return loop


def bare(setting: Setting, task: str) -> Callable[[Callable[[], None]], TrainingRun]:
    """Return a plain PyTorch loop with the same kernels."""
    run = make_run(setting, task, registry.make_stack("vanilla"), RECIPE)

    def loop(pass_on: Callable[[], None]) -> TrainingRun:
        run.model.train()
        optimizer = make_optimizer(run)
        scheduler = make_scheduler(optimizer, run.recipe, run.total_steps)
        for (part,) in run.steps():
            batch = run.examples.batch(part, CPU)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(run.model(**batch.inputs).logits, batch.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(run.params.values(), run.recipe.clip)
            optimizer.step()
            scheduler.step()
            pass_on()
        return run

    return loop
