"""A Recipe says how one training run is trained; it is one of a cell's coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from finetune_bench.errors import UsageError
from finetune_bench.parameters import parameter, validate

DEFAULT_EPOCHS = 3

# What makes the steps. At its default it is left out of files and cell ids, so that those of before stay what they are.
OPTIMIZERS = ("adamw", "lion", "muon")
# Why an optimiser is no fair comparison at AdamW's learning rate, and which rates to try.
OWN_LEARNING_RATES = {
    "lion": "each entry moves by the whole rate at each step: try a third to a tenth of AdamW's rate",
    "muon": "its steps in the layers' matrices are scaled to be as large as AdamW's, and bear 1 to 10 times its rate",
}

# How a batch is laid out; each layout leaves more out than the one before it.
BATCH_LAYOUTS = ("padded", "unpadded", "unpadded_trimmed")

# Asks for the furthest layout that all of a study can do.
AUTO = "auto"

# Version 0.1 called the field `arrangement` and its values so. Files and cell ids keep those words, so that they stay
# what they are; flags and plugins may use them for one more version.
FORMER_LAYOUTS = {"padded": "padded", "packed": "unpadded", "trimmed": "unpadded_trimmed"}
_IN_FILES = {layout: former for former, layout in FORMER_LAYOUTS.items()} | {AUTO: AUTO}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe says how a cell is trained; the defaults are the HyPe paper's.

    A step's batch is `batch_size` examples, whatever the accumulation: `accumulation` cuts it into that many
    micro-batches, which gives the same gradient in less memory.

    The batch layout says what is left out of the arithmetic, and never of what is trained: nothing, each text being
    padded to the longest of its batch (padded); the padding, between embeddings and head (unpadded); besides, the rows
    of the token embeddings whose tokens don't occur (unpadded_trimmed).

    The fields stand in the order in which `finetune-bench run --help` shows them, and their `help` is what it says.
    """

    lr: float = parameter(2e-5, interval="(0, inf)", help="peak learning rate")
    epochs: int | None = parameter(
        None, interval="[1, inf)", help=f"passes over the training data (default {DEFAULT_EPOCHS})"
    )
    steps: int | None = parameter(None, interval="[1, inf)", help="optimiser steps, in place of --epochs")
    batch_size: int = parameter(16, interval="[1, inf)", help="examples per optimiser step (default {default})")
    accumulation: int = parameter(
        1, interval="[1, inf)", help="cut each batch into N micro-batches (default {default})"
    )
    warmup: float = parameter(0.1, interval="[0, inf)", help="share of the steps, or steps if ≥ 1 ({default})")
    # Biases and norms don't decay.
    weight_decay: float = parameter(0.1, interval="[0, inf)", help="decoupled weight decay ({default})")
    optimizer: str = parameter("adamw", choices=OPTIMIZERS, help="adamw, lion, or muon for matrices ({default})")
    beta1: float = parameter(0.9, interval="[0, 1)", help="AdamW's or Lion's first beta")
    beta2: float = parameter(0.99, interval="[0, 1)", help="AdamW's or Lion's second beta")
    adam_eps: float = parameter(1e-6, interval="(0, inf)", help="AdamW's epsilon ({default})")
    clip: float = parameter(1.0, interval="(0, inf]", help="largest global gradient norm, inf for none ({default})")
    max_length: int = parameter(128, interval="[2, inf)", help="tokens per example at most ({default})")
    precision: str = parameter(
        "fp32", choices=("fp32", "tf32", "bf16", "fp16"), help="of the arithmetic; weights stay fp32 ({default})"
    )
    gradient_checkpointing: bool = parameter(False, help="recompute activations in the backward pass")
    batch_layout: str = parameter("padded", choices=BATCH_LAYOUTS, help="what is left out: see docs/protocol.md")
    deterministic: bool = parameter(False, help="only deterministic kernels; slower on CUDA")

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
        if self.optimizer == "lion" and self.adam_eps != type(self).adam_eps:
            raise UsageError(
                f"--adam-eps: --optimizer lion divides by nothing and has no epsilon; leave it at "
                f"{type(self).adam_eps:g}, got {self.adam_eps:g}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as files and cell ids hold it; `from_dict` reads it back."""
        values = in_files(asdict(self))
        if self.optimizer == OPTIMIZERS[0]:
            del values["optimizer"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Return the recipe that `to_dict` gave."""
        fields = dict(values)
        return cls(batch_layout=FORMER_LAYOUTS[fields.pop("arrangement")], **fields)

    def total_steps(self, examples: int) -> int:
        """Return the optimiser steps for a training set of that many examples."""
        return self.steps or (self.epochs or DEFAULT_EPOCHS) * -(-examples // self.batch_size)

    def warmup_steps(self, total_steps: int) -> int:
        """Return the steps in which the learning rate climbs."""
        return int(self.warmup if self.warmup >= 1 else self.warmup * total_steps)


def in_files(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields with the batch layout under the name and in the word that files and cell ids have for it."""
    return {key: value for key, value in values.items() if key != "batch_layout"} | {
        "arrangement": _IN_FILES[values["batch_layout"]]
    }


def rate_factor(step: int, total_steps: int, warmup: int) -> float:
    """Return the factor of the learning rate at a step from 0: it climbs from 0 for `warmup` steps, then falls to 0."""
    if step < warmup:
        return step / warmup
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
