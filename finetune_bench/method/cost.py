"""A method's cost is declared here: its passes per step, and its memory as sums of named sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Passes:
    """Passes counts forward and backward passes of one step; a backward through two graphs at once is one.

    Attributes:
        forwards: forward passes per micro-batch, a mean over the steps.
        backwards: backward passes per micro-batch.
    """

    forwards: float = 1
    backwards: float = 1


# What memory formulas are made of, each in bytes for one (micro-)batch.
SIZES = {
    "I": "the batch itself: ids, masks and labels that are saved for the backward pass, once for all passes",
    "F": "activations that one forward pass saves for the backward pass",
    "F_frozen": "the part of F below the lowest layer that trains, where the embeddings don't",
    "L": "what one task loss saves",
    "D": "what one divergence of two predictions saves",
    "H": "one hidden state: batch · seq · dim · 4",
    "H_all": "the hidden states that leave the layers: layers · H",
    "H_heads": "what attention heads give: layers · H where the kernel keeps it for itself, too, as CUDA's do, else 0",
    "P": "all weights: parameters · 4",
    "P_body": "the body's weights, that is all but the head's",
    "P_head": "the matrix of the head's last layer",
    "P_layers": "the weights of the encoder's layers",
    "P_dense": "weights and biases of the linear layers within the encoder's layers",
    "P_used": "the weights that a pass saves for the backward pass where they are not the model's own tensors",
    "P_linear": "the matrices of the body's linear layers",
    "P_frozen": "the weights that don't train",
    "C": "one number for each input column of the body's linear layers: columns · 4",
}


@dataclass(frozen=True)
class Memory:
    """Memory is needed by training beyond weights, gradients and two moments of each: sums of `SIZES`.

    Attributes:
        saved: how many of each size autograd keeps for the backward pass when it keeps most.
        kept: how many of each size are kept all along; below 0 where gradients and moments are saved.
    """

    saved: Mapping[str, float] = field(default_factory=lambda: {"I": 1.0, "F": 1.0, "L": 1.0})
    kept: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := sorted({*self.saved, *self.kept} - set(SIZES)):
            raise ValueError(f"a memory formula is made of {', '.join(SIZES)}; got '{unknown[0]}'")

    def plus(self, saved: Mapping[str, float] | None = None, kept: Mapping[str, float] | None = None) -> Memory:
        """Add counts of `SIZES` to both sums."""
        return Memory(_sum(self.saved, saved or {}), _sum(self.kept, kept or {}))

    def times(self, factor: float) -> Memory:
        """Multiply what graphs save, all but the batch, for so many graphs at once; what is kept all along stays."""
        return Memory({name: count if name == "I" else factor * count for name, count in self.saved.items()}, self.kept)

    @property
    def saved_formula(self) -> str:
        """Write `saved` as text, as `I + 2 · F + L`."""
        return _formula(self.saved)

    @property
    def kept_formula(self) -> str:
        """Write `kept` as text; `0` for nothing."""
        return _formula(self.kept)


def _sum(left: Mapping[str, float], right: Mapping[str, float]) -> dict[str, float]:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in SIZES if name in left or name in right}


def _formula(counts: Mapping[str, float]) -> str:
    text = ""
    for name, count in counts.items():
        if count:
            text += (" − " if text else "−") if count < 0 else (" + " if text else "")
            text += name if abs(count) == 1 else f"{abs(count):g} · {name}"
    return text or "0"
