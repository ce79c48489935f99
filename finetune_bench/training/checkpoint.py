"""A checkpoint keeps the middle of a training run, so that a killed one goes on and ends the same to the last bit.

Every part of the loop gives its own `state_dict()`; this file flattens them into one file and writes it: safetensors
for the tensors, JSON in its header for the numbers. It is written under a temporary name, flushed and renamed, so that
there is a whole checkpoint or the one before it. What `setup` makes is not in it: whoever resumes builds the run anew,
replays `setup` with the same seeds, and then calls `restore`.

A checkpoint belongs to one run. Its header names that run, and holds a hash of the name, the facts and the tensors.
What was cut or changed, or is another run's, is no checkpoint: it is told on stderr, and the run begins anew.

    weight NAME, stream NAME      the run: weights and buffers, random streams
    anchor NAME                   its pre-trained weights that a method replaced
    optimizer INDEX NAME          what the optimiser keeps of a parameter
    method INDEX NAME             what a method of the stack keeps
    record log NAME, record NAME  what was written down so far
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from finetune_bench.training.record import Record
from finetune_bench.training.run import TrainingRun
from finetune_bench.training.vocabulary import Vocabulary

SCHEMA = 5


@dataclass(frozen=True)
class Checkpoints:
    """A Checkpoints says where a run's checkpoint is, and how often it is written.

    Attributes:
        path: the file.
        every: steps from one checkpoint to the next, at least 1.
        owner: names the run and no other; a checkpoint of another owner is not gone on from.
        members: ids of the cells that share the run; a checkpoint that doesn't have all of them is not gone on from.
    """

    path: Path
    every: int
    owner: str
    members: tuple[str, ...] = ()

    def due(self, step: int, total_steps: int) -> bool:
        """Return whether one is written after this step, from 1; after the last there is nothing to resume."""
        return step % self.every == 0 and step < total_steps


@dataclass(frozen=True)
class Loop:
    """A Loop is all of a training loop that changes from step to step; each part gives and takes its own state."""

    run: TrainingRun
    optimizer: Optimizer
    scheduler: LRScheduler
    scaler: torch.amp.GradScaler
    vocabulary: Vocabulary | None
    record: Record


def save(checkpoints: Checkpoints, loop: Loop, step: int) -> None:
    """Keep a loop as it stands after a step; a disk that is full costs the checkpoint, not the run."""
    tensors, facts = _flatten(loop)
    header = json.dumps(
        {"schema": SCHEMA, "owner": checkpoints.owner, "members": checkpoints.members, "step": step, **facts}
    )
    path = checkpoints.path
    temporary = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Cloned: the format refuses tensors that share memory.
        cloned = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
        save_file(cloned, temporary, metadata={"facts": header, "hash": _hash(header, cloned)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        print(f"No checkpoint after step {step}: {error}", file=sys.stderr, flush=True)
    finally:
        temporary.unlink(missing_ok=True)


def restore(checkpoints: Checkpoints, loop: Loop) -> int:
    """Put a loop, made anew with its methods' `setup` replayed, where `save` left it.

    Returns:
        The step after which it was saved; 0, with nothing changed, where there is no checkpoint of this run.
    """
    content = read(checkpoints)
    if content is None:
        return 0
    tensors, facts = content
    _unflatten(loop, tensors, facts)
    return int(facts["step"])


def read(checkpoints: Checkpoints) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and the facts that `save` wrote; None where there is no file, or it is not what `save` wrote.

    Where a file is refused, stderr gets a sentence with the reason.
    """
    if not checkpoints.path.exists():
        return None
    try:
        with safe_open(checkpoints.path, framework="pt") as file:
            metadata = file.metadata()
            # Cloned: in the file they lie anywhere, and matrix products round by where their operands begin.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        facts = json.loads(metadata["facts"])
        refusal = _refusal(facts, checkpoints)
        if refusal is None and metadata["hash"] != _hash(metadata["facts"], tensors):
            refusal = "its content is not what was saved"
    except Exception as error:  # a file may hold anything, and the reader's errors are of many classes
        refusal = f"it can't be read ({type(error).__name__})"
    if refusal is not None:
        print(f"The checkpoint '{checkpoints.path}' is not used: {refusal}.", file=sys.stderr, flush=True)
        return None
    return tensors, facts


def _refusal(facts: dict[str, Any], checkpoints: Checkpoints) -> str | None:
    """Return why a checkpoint with these facts is not this run's; None where it is."""
    if facts["schema"] != SCHEMA:
        return "another version of finetune-bench wrote it"
    if facts["owner"] != checkpoints.owner:
        return f"it belongs to '{facts['owner']}', and this run is '{checkpoints.owner}'"
    if absent := [member for member in checkpoints.members if member not in facts["members"]]:
        return f"it was written without '{absent[0]}', which shares the training now"
    return None


def _hash(facts: str, tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of all that a checkpoint says: its facts, and every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _flatten(loop: Loop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the parts' states as the file has them: tensors by their names in it, and the facts of its header."""
    tensors, run_facts = _split("", loop.run.state_dict())
    optimizer = loop.optimizer.state_dict()
    for index, moments in optimizer["state"].items():
        tensors |= _split(f"optimizer {index} ", moments)[0]
    method_tensors, method_facts = _split("method ", loop.run.method.state())
    tensors |= method_tensors
    record_tensors, record_facts = _split("record ", loop.record.state_dict())
    return tensors | record_tensors, {
        "groups": optimizer["param_groups"],
        "scheduler": loop.scheduler.state_dict(),
        "scaler": loop.scaler.state_dict(),
        "method": method_facts,
        "decay": loop.vocabulary.state_dict()["decay"] if loop.vocabulary else 1.0,
        **run_facts,
        **record_facts,
    }


def _unflatten(loop: Loop, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Give every part of a loop the state that `_flatten` took from it."""
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _under("optimizer ", tensors).items():
        index, _, key = name.partition(" ")
        moments.setdefault(int(index), {})[key] = value
    loop.optimizer.load_state_dict({"state": moments, "param_groups": facts["groups"]})
    loop.scheduler.load_state_dict(facts["scheduler"])
    loop.scaler.load_state_dict(facts["scaler"])
    moved = {name: tensor.to(loop.run.device) for name, tensor in _under("method ", tensors).items()}
    loop.run.method.load_state(moved | facts["method"])
    if loop.vocabulary:
        loop.vocabulary.load_state_dict(facts)
    loop.record.load_state_dict(_under("record ", tensors) | facts)
    # The run comes last: nothing may draw from its random streams once they stand where they stood.
    loop.run.load_state_dict(tensors | facts)


def _split(prefix: str, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a state, by name with a prefix, and all else."""
    tensors = {prefix + name: value for name, value in state.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in state.items() if not isinstance(value, Tensor)}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose name begins with a prefix, by the rest of it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
