"""`drift` measures how far weights and representations have moved by training, layer by layer.

Weights: D = ‖θ − θ₀‖ per group (embeddings, each layer, what follows them, the head), alone, relative to ‖θ₀‖, and as
the root mean square over weights. Representations: linear CKA (Kornblith et al., 2019) between the sentence tokens'
states of the trained and the untouched model on the same texts, by the unbiased estimator of HSIC, which unlike the
usual one doesn't grow with the width where there are few texts.
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor, nn

from finetune_bench.analysis import Analysis, Findings, Trained, some_texts
from finetune_bench.errors import ModelError
from finetune_bench.model.structure import body, layers, parameter_depths
from finetune_bench.parameters import parameter

FEWEST_TEXTS = 4  # for the unbiased estimator


def distance(pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float, float]:
    """Return ‖θ − θ₀‖, the same relative to ‖θ₀‖, and as the root mean square, of some (θ, θ₀).

    All sums are in float64. The relative distance is NaN where all of θ₀ is 0.
    """
    moved = sum(float((new.double().cpu() - old.double().cpu()).square().sum()) for new, old in pairs)
    before = sum(float(old.double().square().sum()) for _, old in pairs)
    count = sum(old.numel() for _, old in pairs)
    relative = math.sqrt(moved / before) if before > 0 else math.nan
    return math.sqrt(moved), relative, math.sqrt(moved / count)


def groups(model: nn.Module) -> dict[str, str]:
    """Return the group of every parameter by its name: embeddings, layer 1, …, after the layers, head.

    Raises:
        ModelError: no list of layers was found.
    """
    depths, inside, count = parameter_depths(model), set(body(model).parameters()), len(layers(model))
    named = {}
    for name, weight in model.named_parameters():  # a tied one is there once
        depth = depths[weight]
        if weight not in inside:
            named[name] = "head"
        elif depth < 0:
            named[name] = "embeddings"
        else:
            named[name] = f"layer {depth + 1}" if depth < count else "after the layers"
    return named


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741 — the letters of the formula
    """Return the unbiased estimate of HSIC from two Gram matrices, (n, n), whose diagonals are taken as 0; n ≥ 4."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    rows_k, rows_l = k.sum(axis=1), l.sum(axis=1)
    trace = float((k * l).sum())
    ends = float(rows_k.sum() * rows_l.sum()) / ((n - 1) * (n - 2))
    middle = 2 / (n - 2) * float(rows_k @ rows_l)
    return (trace + ends - middle) / (n * (n - 3))


def unbiased_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return the linear CKA of two sets of features of the same texts, (texts, dim) each, by unbiased HSIC.

    It may be a little below 0. NaN where the features of one are constant, or there are fewer than four texts.
    """
    if len(x) < FEWEST_TEXTS:
        return math.nan
    x, y = (values.astype(np.float64) - values.astype(np.float64).mean(axis=0) for values in (x, y))
    if is_constant(x) or is_constant(y):
        return math.nan
    k, l = x @ x.T, y @ y.T  # noqa: E741
    product = hsic(k, k) * hsic(l, l)
    return hsic(k, l) / math.sqrt(product) if product > 0 else math.nan


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return ‖YᵀX‖²/(‖XᵀX‖·‖YᵀY‖) of centred features, (texts, dim) each; it is too high where dim isn't ≪ texts."""
    x, y = (values.astype(np.float64) - values.astype(np.float64).mean(axis=0) for values in (x, y))
    if is_constant(x) or is_constant(y):
        return math.nan
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


def is_constant(centred: np.ndarray) -> bool:
    """Return whether centred features are 0 but for rounding in float32."""
    return not float(np.abs(centred).max(initial=0.0)) > 1e-6


class Drift(Analysis):
    """Measure how far training moved the weights and what the layers represent."""

    name = "drift"
    title = "Drift from the checkpoint"
    about = (
        "Distance: Euclidean, of the weights from those of the checkpoint; relative: divided by their length; rms: per "
        "weight. The head begins at random, so its distance says little. CKA: linear centred kernel alignment of a "
        "layer's sentence tokens, trained against untouched, by the unbiased estimator; 1 means the same up to a "
        "rotation and a scale. Neither direction is better by itself: less drift keeps more of what was pre-trained."
    )

    texts: int = parameter(2000, interval="[4, inf)", help="how many texts CKA is taken on, those of evaluation first")

    def measure(self, trained: Trained) -> Findings:
        """Hold the trained model against the untouched one."""
        untouched = trained.untouched()
        numbers, relative = self._weights(trained, dict(untouched.params), groups(untouched.model))
        split = some_texts(trained.data, self.texts)
        examples = trained.encode(split)
        after, before = trained.model.sentence_states(examples), untouched.sentence_states(examples)
        cka = [unbiased_cka(new, old) for new, old in zip(after, before, strict=True)]
        notes = []
        if len(split) < FEWEST_TEXTS:
            notes.append(f"CKA is undefined on {len(split)} texts; it takes {FEWEST_TEXTS}.")
        elif any(math.isnan(value) for value in cka):
            notes.append("CKA is undefined in layers where every sentence token has the same state.")
        biased = [linear_cka(new, old) for new, old in zip(after, before, strict=True)]
        numbers["last layer: CKA"] = cka[-1]
        return Findings(
            numbers=numbers,
            layers={"CKA": cka, "relative distance of weights": relative, "CKA, biased estimator": biased},
            notes=notes,
            facts={"texts": len(split), "data": split.fingerprint()},
        )

    def _weights(
        self, trained: Trained, before: dict[str, Tensor], group_of: dict[str, str]
    ) -> tuple[dict[str, float], list[float]]:
        """Return the distances of all groups, and the relative ones of embeddings and layers in their order."""
        pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for name, group in group_of.items():
            if name not in trained.model.params:
                raise ModelError(f"the trained model has no weight '{name}', which the checkpoint has")
            pairs.setdefault(group, []).append((trained.model.params[name].detach(), before[name].detach()))
        numbers: dict[str, float] = {}
        curve = []
        inside = [pair for group, of_group in pairs.items() if group != "head" for pair in of_group]
        for group, of_group in [("all but the head", inside), *pairs.items()]:
            moved, relative, rms = distance(of_group)
            numbers |= {f"{group}: distance": moved, f"{group}: relative": relative, f"{group}: rms": rms}
            if group == "embeddings" or group.startswith("layer "):
                curve.append(relative)
        return numbers, curve
