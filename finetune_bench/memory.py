"""Memory formulas against measurement: the sizes that they are made of, and what a run really keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.device import random_state_kept
from finetune_bench.measure import SavedActivations
from finetune_bench.method import Memory, Stack, View
from finetune_bench.model import body, layer_inputs_changed, layers, output_layer
from finetune_bench.task import Batch, Output
from finetune_bench.training import TrainingRun

NUMBER = 4  # bytes of a float32


def memory_sizes(run: TrainingRun, frozen: Collection[str] = ()) -> dict[str, int]:
    """The values of `method.SIZES` for the first micro-batch of a run that no method touched, in bytes.

    Args:
        run: a vanilla run.
        frozen: names of the weights that are taken not to train.
    """
    run.model.train()
    batch = run.examples.batch(next(run.steps())[0], run.device)

    def forward() -> Output:
        return run.forward(batch, View(perturb=False))

    def loss() -> Tensor:
        return run.task.loss(forward(), batch.labels)

    def diverge() -> Tensor:
        return run.task.divergence(forward(), forward())

    # Marginal amounts: what the second one adds to the first.
    one_pass = _saved(run, forward, forward) - _saved(run, forward)
    one_loss = _saved(run, loss, loss) - _saved(run, loss)
    with torch.no_grad():
        hidden = run.forward(batch, View(perturb=False, hidden=True)).hidden[0]
    linear = [module for module in body(run.model).modules() if isinstance(module, nn.Linear)]
    still = {run.params[name] for name in frozen}
    return {
        "I": _saved(run, loss) - one_loss,
        "F": one_pass,
        "F_frozen": _saved_below(run, batch, still),
        "L": one_loss - one_pass,
        "D": _saved(run, diverge) - _saved(run, forward, forward),
        "H": NUMBER * hidden.numel(),
        "H_all": NUMBER * hidden.numel() * len(layers(run.model)),
        "P": _bytes(run.params.values()),
        "P_body": _bytes(body(run.model).parameters()),
        "P_head": _bytes([output_layer(run.model).weight]),
        "P_layers": _bytes(weight for layer in layers(run.model) for weight in layer.parameters()),
        "P_dense": _bytes(
            weight
            for layer in layers(run.model)
            for module in layer.modules()
            if isinstance(module, nn.Linear)
            for weight in module.parameters()
        ),
        "P_used": _saved(run, forward, own=[]) - _saved(run, forward),
        "P_linear": _bytes(module.weight for module in linear),
        "P_frozen": _bytes(still),
        "C": NUMBER * sum(module.in_features for module in linear),
    }


def _bytes(weights: Iterable[Tensor]) -> int:
    return NUMBER * sum(weight.numel() for weight in set(weights))


def _saved(run: TrainingRun, *parts: Callable[[], Any], own: list[Tensor] | None = None) -> int:
    """Bytes saved for the backward pass when all parts are alive, without tensors in `own`, by default all weights."""
    meter = SavedActivations(list(run.params.values()) if own is None else own)
    alive = []
    with random_state_kept(run.device), meter.counting():
        for part in parts:
            alive.append(part())
    return meter.peak_bytes


def _saved_below(run: TrainingRun, batch: Batch, frozen: set[Any]) -> int:
    """Bytes that a pass saves before the input of the lowest layer with a weight that trains."""
    embeddings = set(body(run.model).get_input_embeddings().parameters())  # type: ignore[operator]
    if not embeddings <= frozen:
        return 0
    lowest = next((i for i, layer in enumerate(layers(run.model)) if set(layer.parameters()) - frozen), None)
    meter = SavedActivations(list(run.params.values()))
    saved: list[int] = []

    def note(index: int, hidden: Tensor) -> Tensor:
        if index == lowest:
            saved.append(meter.peak_bytes)
        return hidden

    with random_state_kept(run.device), meter.counting(), layer_inputs_changed(run.model, note):
        output = run.forward(batch, View(perturb=False))
        saved.append(meter.peak_bytes)
    del output  # not before: what it holds is what is counted
    return saved[0]


def kept_bytes(run: TrainingRun, stack: Stack) -> int:
    """What a run keeps beyond weights, gradients and two moments of each: tensors of its methods, and the anchors.

    Below 0 where gradients and moments of frozen weights are saved.
    """
    weights = {weight.untyped_storage().data_ptr() for weight in run.model.parameters()}
    held: dict[int, int] = {}

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            if storage.data_ptr() not in weights:
                held[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, Mapping):
            collect(list(value.values()))
        elif isinstance(value, list | tuple):
            for part in value:
                collect(part)

    for method in stack.methods:
        collect([value for name, value in vars(method).items() if name.endswith("_")])
    collect(run.pretrained if stack.reads_pretrained else {})
    frozen = _bytes(weight for weight in run.params.values() if not weight.requires_grad)
    return sum(held.values()) - 3 * frozen


def expected_bytes(memory: Memory, sizes: Mapping[str, int]) -> tuple[float, float]:
    """What a formula comes to: bytes saved, and bytes kept."""
    return (
        sum(sizes[name] * count for name, count in memory.saved.items()),
        sum(sizes[name] * count for name, count in memory.kept.items()),
    )
