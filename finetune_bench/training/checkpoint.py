"""The middle of a training run on disk, so that a killed one goes on from there and ends the same to the last bit.

One file: safetensors for the tensors, JSON in its header for the numbers. It is written under a temporary name, flushed
and renamed, so that there is a whole checkpoint or the one before it. What `setup` makes is not in it: whoever resumes
builds the run anew, replays `setup` with the same seeds, and then calls `restore`.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

if TYPE_CHECKING:
    from finetune_bench.training.run import TrainingRun
    from finetune_bench.training.vocabulary import Vocabulary

SCHEMA = 1


@dataclass(frozen=True)
class Checkpoints:
    """Where a run's checkpoint is, and how often it is written.

    Attributes:
        path: the file; of one run, never shared.
        every: steps from one to the next.
    """

    path: Path
    every: int

    def due(self, step: int, total_steps: int) -> bool:
        """Whether one is written after this step, counted from 1; after the last there is nothing to resume."""
        return step % self.every == 0 and step < total_steps


@dataclass
class Record:
    """What a training loop has written down so far, one entry per step unless said otherwise.

    Attributes:
        logs: by name, the losses and what the methods log; tensors on the device until they are needed.
        examples: how many there were.
        micro_batches: of all steps together.
        sketch_steps, sketches: after which steps the weights were sketched, and the sketches.
        seconds, cpu_seconds: of the steps up to the last checkpoint, or the end; measurements.
    """

    logs: dict[str, list[Tensor | float]] = field(default_factory=dict)
    examples: list[int] = field(default_factory=list)
    micro_batches: int = 0
    sketch_steps: list[int] = field(default_factory=list)
    sketches: list[np.ndarray] = field(default_factory=list)
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cpu_seconds: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def add_times(self, seconds: np.ndarray, cpu_seconds: np.ndarray) -> None:
        """Those of the steps since the last call."""
        self.seconds = np.concatenate([self.seconds, seconds])
        self.cpu_seconds = np.concatenate([self.cpu_seconds, cpu_seconds])

    def numbers(self) -> dict[str, np.ndarray]:
        """The logs as arrays; waits for the device."""
        return {name: np.array([float(value) for value in values]) for name, values in self.logs.items()}


@dataclass(frozen=True)
class Loop:
    """All of a training loop that changes from step to step."""

    run: TrainingRun
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    vocabulary: Vocabulary | None
    record: Record


def save(path: Path, loop: Loop, step: int) -> None:
    """Keep a loop as it stands after a step; a disk that is full costs the checkpoint, not the run."""
    run, record = loop.run, loop.record
    tensors = {f"weight {name}": tensor for name, tensor in _weights(run).items()}
    tensors |= {f"stream {name}": state for name, state in run.streams().items()}
    optimizer = loop.optimizer.state_dict()
    for index, state in optimizer["state"].items():
        tensors |= {f"optimizer {index} {name}": value for name, value in state.items()}
    methods = [method.state() for method in run.method.parts]
    for place, found in enumerate(methods):
        tensors |= {f"method {place} {name}": v for name, v in found.items() if isinstance(v, Tensor)}
    arrays = {f"log {name}": values for name, values in record.numbers().items()}
    arrays |= {"seconds": record.seconds, "cpu_seconds": record.cpu_seconds, "sketches": np.array(record.sketches)}
    tensors |= {f"record {name}": torch.from_numpy(values) for name, values in arrays.items()}
    facts = {
        "schema": SCHEMA,
        "step": step,
        "groups": optimizer["param_groups"],
        "scheduler": loop.scheduler.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "methods": [{name: v for name, v in found.items() if not isinstance(v, Tensor)} for found in methods],
        "decay": loop.vocabulary.decay if loop.vocabulary else 1.0,
        "own_blocks": run.own_blocks,
        "passes": [run.counter.forwards, run.counter.backwards],
        "examples": record.examples,
        "micro_batches": record.micro_batches,
        "sketch_steps": record.sketch_steps,
    }
    temporary = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Cloned: the format refuses tensors that share memory.
        cloned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(cloned, temporary, metadata={"facts": json.dumps(facts)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        print(f"No checkpoint after step {step}: {error}", file=sys.stderr, flush=True)
    finally:
        temporary.unlink(missing_ok=True)


def restore(path: Path, loop: Loop) -> int:
    """Put a loop, made anew with its methods' `setup` replayed, where `save` found it.

    Returns:
        The step after which it was saved; 0, with nothing changed, where there is no checkpoint that can be read.
    """
    found = _read(path)
    if found is None:
        return 0
    tensors, facts = found
    run, record = loop.run, loop.record
    with torch.no_grad():
        for name, weight in _weights(run).items():
            weight.copy_(tensors[f"weight {name}"])
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer", tensors).items():
        index, _, key = name.partition(" ")
        state.setdefault(int(index), {})[key] = value
    loop.optimizer.load_state_dict({"state": state, "param_groups": facts["groups"]})
    loop.scheduler.load_state_dict(facts["scheduler"])
    loop.scaler.load_state_dict(facts["scaler"])
    for place, (method, numbers) in enumerate(zip(run.method.parts, facts["methods"], strict=True)):
        own = {name: value.to(run.device) for name, value in _under(f"method {place}", tensors).items()}
        if own or numbers:
            method.load_state(own | numbers)
    if loop.vocabulary:
        loop.vocabulary.decay = facts["decay"]
    run.own_blocks.update(facts["own_blocks"])
    run.counter.forwards, run.counter.backwards = facts["passes"]
    arrays = {name: tensor.numpy() for name, tensor in _under("record", tensors).items()}
    record.logs = {name.removeprefix("log "): list(v) for name, v in arrays.items() if name.startswith("log ")}
    record.seconds, record.cpu_seconds = arrays["seconds"], arrays["cpu_seconds"]
    record.sketches = list(arrays["sketches"])
    record.examples, record.micro_batches = facts["examples"], facts["micro_batches"]
    record.sketch_steps = facts["sketch_steps"]
    run.set_streams(_under("stream", tensors))
    return int(facts["step"])


def _weights(run: TrainingRun) -> dict[str, Tensor]:
    return {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix} "): tensor for n, tensor in tensors.items() if n.startswith(f"{prefix} ")}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `save` wrote; None where there is nothing, or a file that something else cut or changed."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
            # Cloned: in the file they lie anywhere, and matrix products round by where their operands begin.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError):
        return None
    return (tensors, facts) if facts["schema"] == SCHEMA else None
