"""What a user's data loader yields is checked and becomes a batch on the model's device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from finetune_bench import device as devices
from finetune_bench.errors import UsageError
from finetune_bench.printable import brief
from finetune_bench.task import Batch, Task

# What a data loader yields: the model's arguments, and `labels`.
Inputs = Mapping[str, Tensor]


def to_batch(inputs: Inputs, task: Task, device: torch.device, padding: int | None = None) -> Batch:
    """Put what a data loader yielded on the device, the labels apart from the model's arguments.

    Args:
        inputs: the model's arguments by name, each (batch, ...), and labels, (batch,) or (batch, 1).
        task: what the labels are.
        device: where to put them.
        padding: the id by which the model itself tells padding, where there is no attention mask.

    Raises:
        UsageError: it is no such mapping, or its labels are not the task's. Their values are looked at on a CPU only: a
            device would have to be waited for.
    """
    if not isinstance(inputs, Mapping):
        raise UsageError(
            f"expected a batch as a dict of the model's arguments and 'labels'; got a {type(inputs).__name__}."
        )
    if "labels" not in inputs:
        raise UsageError(f"expected a batch with 'labels'; got {', '.join(map(str, inputs)) or 'an empty one'}.")
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"expected tensors in a batch; '{name}' is a {type(value).__name__}: {brief(value)}.")
    labels = _checked(inputs["labels"], task)
    tensors = {name: devices.put(tensor, device) for name, tensor in inputs.items() if name != "labels"}
    if "attention_mask" not in tensors and "input_ids" in tensors:
        # What the model takes for granted; methods tell padding by the mask.
        ids = tensors["input_ids"]
        tensors["attention_mask"] = torch.ones_like(ids) if padding is None else (ids != padding).to(ids.dtype)
    return Batch(tensors, devices.put(labels, device))


def _checked(labels: Tensor, task: Task) -> Tensor:
    """Return labels as the task's loss takes them, (batch,)."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]  # else (batch,) predictions are held against each of them
    if labels.ndim != 1 or not len(labels):
        raise UsageError(f"expected one label for each example, (batch,); got labels of shape {tuple(labels.shape)}.")
    is_readable = labels.device.type == "cpu"
    if task.kind == "regression":
        labels = labels.float()
        if is_readable and not labels.isfinite().all():
            raise UsageError(f"expected finite numbers as labels; got {labels[~labels.isfinite()][0]}.")
        return labels
    if labels.is_floating_point() or labels.is_complex():
        raise UsageError(
            f"expected classes as integers; got labels of {labels.dtype}. Give labels.long(), or load the model with "
            "num_labels=1 for a regression."
        )
    labels = labels.long()
    if is_readable and (wrong := labels[(labels < 0) | (labels >= task.outputs)]).numel():
        raise UsageError(f"expected classes from 0 to {task.outputs - 1}, as the model has; got {int(wrong[0])}.")
    return labels
