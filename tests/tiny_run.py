"""Tiny training runs for tests of single methods, with the weights as loaded at hand; from the contract's toy parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.task import Task
from finetune_bench.testing.toys import ARCHITECTURES as CONFIGS
from finetune_bench.testing.toys import CPU, toy_examples, toy_model, toy_task
from finetune_bench.training.run import TrainingRun, TrainingStep

CLASSIFICATION = toy_task("classification")
REGRESSION = toy_task("regression")

__all__ = ["CLASSIFICATION", "CONFIGS", "REGRESSION", "first_step", "tiny_model", "tiny_run"]


def tiny_model(architecture: str = "bert", task: Task = CLASSIFICATION, dropout: Dropout = Dropout.KEEP) -> nn.Module:
    """A model with random weights, the same at every call, in evaluation mode."""
    return toy_model(architecture, task.kind, dropout).eval()


def tiny_run(
    *methods: Method,
    architecture: str = "bert",
    task: Task = CLASSIFICATION,
    dropout: Dropout = Dropout.KEEP,
    examples: int = 16,
    seed: int = 1,
    **recipe: Any,
) -> TrainingRun:
    """Make a run that keeps the pre-trained weights; by default two steps of eight examples without warm-up."""
    options: dict[str, Any] = {"batch_size": 8, "epochs": None if "steps" in recipe else 1, "warmup": 0.0, "lr": 1e-3}
    options |= recipe
    stack = Stack(methods or [Vanilla()])
    stack.reads_pretrained = True  # type: ignore[misc]  # tests hold trained weights against them
    return TrainingRun(
        tiny_model(architecture, task, dropout),
        task,
        toy_examples(task.kind, examples, left=architecture == "xlnet"),
        Recipe(**options),
        stack,
        seed=seed,
        device=CPU,
    )


def first_step(run: TrainingRun) -> TrainingStep:
    """Return the first micro-batch of a run, the model in training mode; setup is the caller's."""
    run.model.train()
    # The loop, too, seeds the stream of the dropout masks before its first step.
    torch.manual_seed(1)
    return TrainingStep(run, next(run.batches("test")))
