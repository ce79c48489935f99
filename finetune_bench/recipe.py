"""How one training run is trained: the Recipe, one of a cell's coordinates."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_bench.errors import UsageError
from finetune_bench.parameters import parameter, validate

DEFAULT_EPOCHS = 3


ARRANGEMENTS = ("padded", "packed", "trimmed")  # of a batch; each leaves more out than the one before it


AUTO = "auto"  # the furthest that all of a study can do


@dataclass(frozen=True)
class Recipe:
    """How one cell is trained; the defaults are the HyPe paper's.

    A step's batch is `batch_size` examples, whatever the accumulation: `accumulation` cuts it into that many
    micro-batches, which gives the same gradient in less memory.

    The arrangement says what is left out of the arithmetic, and never of what is trained: nothing but padding to the
    longest of the batch (padded); the padding too, between embeddings and head (packed); besides, the rows of the token
    embeddings whose tokens don't occur (trimmed).
    """

    lr: float = parameter(2e-5, interval="(0, inf)", help="peak learning rate of AdamW")
    batch_size: int = parameter(16, interval="[1, inf)", help="examples per optimiser step")
    epochs: int | None = parameter(None, interval="[1, inf)", help="passes over the training data; 3 unless steps say")
    steps: int | None = parameter(None, interval="[1, inf)", help="optimiser steps, in place of epochs")
    warmup: float = parameter(0.1, interval="[0, inf)", help="linear warm-up: below 1 a share of the steps, else steps")
    weight_decay: float = parameter(0.1, interval="[0, inf)", help="decoupled; not on biases and norms")
    beta1: float = parameter(0.9, interval="[0, 1)", help="AdamW's first beta")
    beta2: float = parameter(0.99, interval="[0, 1)", help="AdamW's second beta")
    adam_eps: float = parameter(1e-6, interval="(0, inf)", help="AdamW's epsilon")
    clip: float = parameter(1.0, interval="(0, inf]", help="largest global gradient norm; inf for none")
    accumulation: int = parameter(1, interval="[1, inf)", help="micro-batches per step")
    gradient_checkpointing: bool = parameter(False, help="recompute activations in the backward pass")
    max_length: int = parameter(128, interval="[2, inf)", help="tokens per example at most")
    precision: str = parameter("fp32", choices=("fp32", "bf16", "fp16"), help="of the arithmetic; weights stay fp32")
    deterministic: bool = parameter(False, help="only deterministic kernels; slower on CUDA")
    arrangement: str = parameter("padded", choices=ARRANGEMENTS, help="what is left out: see docs/protocol.md")

    def __post_init__(self) -> None:
        validate(self)
        if self.steps is not None and self.epochs is not None:
            raise UsageError("--steps and --epochs both say how long to train; give one of them.")
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", DEFAULT_EPOCHS)
        if self.batch_size % self.accumulation:
            raise UsageError(
                f"--accumulation must divide --batch-size, so that micro-batches are alike; "
                f"got {self.accumulation} and {self.batch_size}."
            )

    def total_steps(self, examples: int) -> int:
        """Optimiser steps for a training set of that size."""
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * -(-examples // self.batch_size)

    def warmup_steps(self, total_steps: int) -> int:
        """Steps in which the learning rate climbs."""
        return int(self.warmup if self.warmup >= 1 else self.warmup * total_steps)
