"""A cell begins with these inputs: its data, tokenised, and its model before any training."""

from __future__ import annotations

import dataclasses
from functools import cache, lru_cache
from pathlib import Path

import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.analysis import measured_before
from finetune_bench.errors import DataError, ModelError
from finetune_bench.method.base import Facts
from finetune_bench.method.stack import Stack
from finetune_bench.model import files, hub, language, pretrained, unpadding, weights
from finetune_bench.model.dropout import Dropout, active_dropout, stays_on, switch_off, with_dropout
from finetune_bench.model.rates import active_dropout_under
from finetune_bench.model.structure import checkpoint_activations
from finetune_bench.printable import brief
from finetune_bench.runner import probe
from finetune_bench.seeds import derive
from finetune_bench.study.grid import Cell
from finetune_bench.task import Task, TaskData, hold_out, limit
from finetune_bench.training.examples import Encoded, encode, truncation


@lru_cache(maxsize=4)
def load_data(
    task_text: str, limit_train: int | None, data_root: Path | None, held_out: float = 0.0
) -> tuple[Task, TaskData]:
    """Return a task and its examples, which are kept for the next cell.

    Args:
        task_text: the task as typed.
        limit_train: number of training examples; None for all.
        data_root: the folder that data sets are read from; None for the hub.
        held_out: share of the (limited) training examples that becomes an evaluation split; 0 for none.

    Raises:
        UsageError: the task is unknown or its data can't be had.
    """
    task = registry.task(task_text)
    data = task.load(data_root)
    if limit_train is not None:
        data = _limited(task, data, limit_train)
    if not len(data.train) or not all(len(split) for split in data.evaluation.values()):
        raise DataError(f"The task '{task.name}' has a split without examples.")
    return task, hold_out(data, held_out, task.name) if held_out else data


def _limited(task: Task, data: TaskData, count: int) -> TaskData:
    """Return the data with so many training examples, and a note where they leave out a class."""
    train = limit(data.train, count, task.name)
    notes = data.notes
    if task.kind == "classification" and (lost := sorted({*data.train.labels} - {*train.labels})):
        names = ", ".join(f"'{brief(task.labels[int(label)], 60)}'" for label in lost)
        notes += (f"--limit-train {count} leaves no training example of {names}.",)
    return dataclasses.replace(data, train=train, notes=notes)


@lru_cache(maxsize=4)
def encoded(
    model: str,
    task_text: str,
    limit_train: int | None,
    data_root: Path | None,
    length: int,
    *,
    held_out: float = 0.0,
) -> tuple[Encoded, dict[str, Encoded]]:
    """Return a task's training examples, and its evaluation splits by name, tokenised; they are kept for the next cell.

    Args:
        model: the checkpoint as typed, whose tokenizer is used.
        task_text: the task as typed.
        limit_train: number of training examples; None for all.
        data_root: the folder that data sets are read from; None for the hub.
        length: tokens per example at most.
        held_out: share of the training examples that becomes an evaluation split; 0 for none.
    """
    task, data = load_data(task_text, limit_train, data_root, held_out)
    tokenizer = pretrained.tokenizer(model)
    train = encode(data.train, tokenizer, length, task.kind)
    return train, {name: encode(split, tokenizer, length, task.kind) for name, split in data.evaluation.items()}


def cuts(cell: Cell, data_root: Path | None) -> list[str]:
    """Return sentences about the examples that a cell's tokenizer cuts, one split after the other.

    Args:
        cell: the cell whose examples, tokenizer and length are taken.
        data_root: the folder that data sets are read from; None for the hub.

    Raises:
        DataError: so few tokens leave none for some text.
    """
    task, data = load_data(cell.task, cell.limit_train, data_root, cell.held_out)
    tokenizer, length = pretrained.tokenizer(cell.model), cell.recipe.max_length
    splits = {"train": data.train, **data.evaluation}  # encoded one by one, and not kept: workers make their own
    return [
        note
        for name, split in splits.items()
        for note in truncation(name, encode(split, tokenizer, length, task.kind), pretrained.label(cell.model))
    ]


def forget() -> None:
    """Drop everything that was read from files, which may have changed since, and ask the hub anew."""
    hub.forget()
    measured_before.clear()
    for reader in (
        load_data,
        encoded,
        _skeleton,
        dropout_stays_on,
        is_dropout_free,
        pretrained.config,
        pretrained.raw_config,
        pretrained.tokenizer,
        pretrained.content_hash,
        files.check_weights,
        weights.taken,
        probe.try_out,
        language.kind_of,
    ):
        reader.cache_clear()


def facts_of(cell: Cell, stack: Stack) -> Facts:
    """Return what is known of a cell before any weight is loaded."""
    task = registry.task(cell.task)
    skeleton = _skeleton(cell.model, task.outputs, stack.dropout)
    return Facts(
        skeleton=skeleton,
        active_dropout=tuple(active_dropout_under(skeleton, stack.rates)),
        task=task,
        recipe=cell.recipe,
        dtype=devices.DTYPES[cell.recipe.precision],
        keeps_head=weights.KEPT_HEAD in cell.weights,
    )


@cache
def _skeleton(name: str, outputs: int, policy: Dropout) -> torch.nn.Module:
    skeleton = pretrained.skeleton(with_dropout(pretrained.config(name, outputs), policy))
    switch_off(skeleton, policy)
    return skeleton


@cache
def dropout_stays_on(name: str, outputs: int, policy: Dropout) -> bool:
    """Return whether a checkpoint drops what a policy wants kept, by a pass of its skeleton."""
    return stays_on(_skeleton(name, outputs, policy), policy)


@cache
def is_dropout_free(name: str, outputs: int) -> bool:
    """Return whether a checkpoint drops nothing in training, so that no policy changes anything of it."""
    skeleton, config = _skeleton(name, outputs, Dropout.KEEP), pretrained.config(name, outputs)
    is_set = with_dropout(config, Dropout.ALL_OFF).to_dict() != config.to_dict()
    return not (is_set or active_dropout(skeleton) or stays_on(skeleton, Dropout.ALL_OFF))


def initial_model(cell: Cell, stack: Stack, device: torch.device) -> torch.nn.Module:
    """Return a cell's model before any training, under its dropout policy, set up as its recipe says.

    Raises:
        ModelError: the checkpoint can't be read, or isn't the one that the plan of the run found: its files changed
            since, or the hub has another commit of it.
    """
    task = registry.task(cell.task)
    config = with_dropout(pretrained.config(cell.model, task.outputs), stack.dropout)
    # The marks that may follow say how the checkpoint is taken.
    content, _, marks = cell.weights.partition("-")
    seed = derive(cell.seed, "init", task.name, content)
    classifier = weights.load(cell.model, config, seed, keep_head=weights.KEPT_HEAD in marks).to(device)
    if pretrained.fingerprint(cell.model) != content:  # asked now that the weights have been read
        raise ModelError(f"the checkpoint '{cell.model}' changed after the run was planned; start it again")
    switch_off(classifier, stack.dropout)
    unpadding.prepare_for(classifier, device, cell.recipe.batch_layout)
    if cell.recipe.gradient_checkpointing:
        checkpoint_activations(classifier)
    return classifier
