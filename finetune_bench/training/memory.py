"""This file holds memory formulas against measurement: the sizes they are made of, and what a run really keeps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.device import random_state_kept
from finetune_bench.errors import ModelError
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import View
from finetune_bench.model.structure import attention_heads_scaled, body, layer_inputs_changed, layers, output_layer
from finetune_bench.task import Batch, Output
from finetune_bench.training.run import TrainingRun, TrainingStep

# Of a float32.
BYTES_PER_NUMBER = 4


def memory_sizes(run: TrainingRun, frozen: Collection[str] = ()) -> dict[str, int]:
    """Measure `method.SIZES` on the first micro-batch of a run that no method touched, in bytes.

    Args:
        run: a run of vanilla.
        frozen: names of the weights that are taken not to train.
    """
    run.model.train()
    batch = run.first_batch()

    def forward() -> Output:
        return run.forward(batch, View(perturb=False))

    def loss() -> Tensor:
        return run.task.loss(forward(), batch.labels)

    def diverge() -> Tensor:
        return run.task.divergence(forward(), forward())

    # Marginal amounts: what the second one adds to the first.
    single, double = _saved(run, forward), _saved(run, forward, forward)
    one_pass = double - single
    one_loss = _saved(run, loss, loss) - _saved(run, loss)
    with torch.no_grad():
        hidden = run.forward(batch, View(perturb=False, hidden=True)).hidden[0]
    linear = [module for module in body(run.model).modules() if isinstance(module, nn.Linear)]
    frozen_weights = {run.params[name] for name in frozen}
    return {
        "I": _saved(run, loss) - one_loss,
        "F": one_pass,
        "F_frozen": _saved_below(run, batch, frozen_weights),
        "L": one_loss - one_pass,
        "D": _saved(run, diverge) - double,
        "H": BYTES_PER_NUMBER * hidden.numel(),
        "H_all": BYTES_PER_NUMBER * hidden.numel() * len(layers(run.model)),
        "H_heads": _saved_of_heads(run, forward) - single,
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
        "P_used": _saved(run, forward, without=[]) - single,
        "P_linear": _bytes(module.weight for module in linear),
        "P_frozen": _bytes(frozen_weights),
        "C": BYTES_PER_NUMBER * sum(module.in_features for module in linear),
    }


def _bytes(weights: Iterable[Tensor]) -> int:
    return BYTES_PER_NUMBER * sum(weight.numel() for weight in set(weights))


def _saved(run: TrainingRun, *parts: Callable[[], Any], without: list[Tensor] | None = None) -> int:
    """Return the bytes saved for the backward pass of all parts together, without some tensors (default: weights)."""
    meter = SavedActivations(list(run.params.values()) if without is None else without)
    held = []
    with random_state_kept(run.device), meter.counting():
        for part in parts:
            held.append(part())
    return meter.peak_bytes


def _saved_of_heads(run: TrainingRun, forward: Callable[[], Any]) -> int:
    """Return the bytes that a forward pass saves where what attention heads give is multiplied, if that can be done."""
    try:
        with attention_heads_scaled(run.model, lambda batch: torch.ones(batch, 1, device=run.device)):
            return _saved(run, forward)
    except ModelError:
        return _saved(run, forward)


def _saved_below(run: TrainingRun, batch: Batch, frozen: set[Any]) -> int:
    """Return the bytes that a pass saves before the input of the lowest layer with a weight that trains."""
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
    # Not before: what it holds is what is counted.
    del output
    return saved[0]


def kept_bytes(run: TrainingRun) -> int:
    """Return the bytes that a run keeps beyond weights, gradients and two moments: its methods' tensors and anchors.

    They are below 0 where gradients and moments of frozen weights are spared.
    """
    frozen = _bytes(weight for weight in run.params.values() if not weight.requires_grad)
    return held_bytes(run, run.method.methods) - 3 * frozen


def held_bytes(run: TrainingRun, methods: Sequence[Method]) -> int:
    """Return the bytes of the tensors that some methods of a run hold, with the pre-trained weights if one reads them.

    Each storage counts once, and none of the model's own.
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

    for method in methods:
        collect([value for name, value in vars(method).items() if name.endswith("_")])
    collect(run.pretrained if any(method.reads_pretrained for method in methods) else {})
    return sum(held.values())


def expected_bytes(memory: Memory, sizes: Mapping[str, int]) -> tuple[float, float]:
    """Return what a formula comes to: bytes saved, and bytes kept."""
    return (
        sum(sizes[name] * count for name, count in memory.saved.items()),
        sum(sizes[name] * count for name, count in memory.kept.items()),
    )


def saved_activation_bytes(run: TrainingRun) -> int:
    """Return the bytes that autograd keeps for one objective on the run's first micro-batch.

    It takes one extra evaluation of it, outside the timed steps; weights, gradients and the global random streams are
    left as they were. The methods' own streams move on: call it after the last step.
    """
    batch = run.first_batch()
    counted = (run.counter.forwards, run.counter.backwards)
    meter = SavedActivations(list(run.params.values()))
    with random_state_kept(run.device):
        run.model.train()
        with meter.counting():
            loss = TrainingStep(run, batch).objective().loss
            # With gradient checkpointing, what is computed again is saved again.
            if run.recipe.gradient_checkpointing:
                loss.backward()  # type: ignore[no-untyped-call]
    for parameter in run.params.values():
        parameter.grad = None
    run.counter.forwards, run.counter.backwards = counted
    return meter.peak_bytes


class _Saved:
    """A tensor that autograd keeps tells the meter when it is let go."""

    def __init__(self, tensor: Tensor, released: Callable[[Tensor], None]) -> None:
        self.tensor, self._released = tensor, released

    def __del__(self) -> None:
        self._released(self.tensor)


@dataclass
class SavedActivations:
    """A SavedActivations is a meter of the bytes that autograd keeps for backward: each storage once, at the peak.

    Attributes:
        parameters: tensors that are not counted.
        peak_bytes: the largest number of bytes that were kept at one time.
    """

    parameters: Iterable[Tensor]
    peak_bytes: int = 0
    _bytes: int = 0
    _holders: dict[int, int] = field(default_factory=dict)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what the forward passes inside save."""
        uncounted = {parameter.untyped_storage().data_ptr() for parameter in self.parameters}

        def keep(tensor: Tensor) -> _Saved | Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in uncounted:
                return tensor
            key = storage.data_ptr()
            if key not in self._holders:
                self._bytes += storage.nbytes()
                self.peak_bytes = max(self.peak_bytes, self._bytes)
            self._holders[key] = self._holders.get(key, 0) + 1
            # Detached: a graph that holds an output of its own, by a hook, is a cycle that no collector sees.
            return _Saved(tensor.detach(), self._release)

        def give(saved: _Saved | Tensor) -> Tensor:
            return saved.tensor if isinstance(saved, _Saved) else saved

        with torch.autograd.graph.saved_tensors_hooks(keep, give):
            yield

    def _release(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._holders[storage.data_ptr()] -= 1
        if not self._holders[storage.data_ptr()]:
            del self._holders[storage.data_ptr()]
            self._bytes -= storage.nbytes()
