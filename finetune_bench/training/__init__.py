"""This room holds the training loop and what belongs to it: examples, checkpoints, evaluation, measurements."""

from __future__ import annotations

from finetune_bench.training.examples import Encoded, encode
from finetune_bench.training.loop import make_optimizer, make_scheduler, train
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.optimizer import Lion, MuonAndAdamW, muon_matrices
from finetune_bench.training.record import TrainingResult
from finetune_bench.training.run import TrainingRun, TrainingStep, has_graph

__all__ = [
    "Encoded",
    "Lion",
    "MuonAndAdamW",
    "TrainingResult",
    "TrainingRun",
    "TrainingStep",
    "encode",
    "has_graph",
    "make_optimizer",
    "make_scheduler",
    "muon_matrices",
    "saved_activation_bytes",
    "train",
]
