"""This file holds reasons shared by several methods, for refusals and warnings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from finetune_bench.errors import ModelError
from finetune_bench.method.base import Facts, Method
from finetune_bench.model.dropout import Dropout, Rates


def without_part(facts: Facts, find: Callable[[nn.Module], object]) -> str | None:
    """Return why a part of the model, as its layers, can't be had, as `find` says by an error; None where it is."""
    try:
        find(facts.skeleton)
    except ModelError as error:
        return str(error)
    return None


def without_whole_batch(facts: Facts, weights: str) -> str | None:
    """Return why weights of examples can't be had: `shared` and `normalised` ones take a mean over the batch."""
    if weights != "own" and facts.recipe.accumulation > 1:
        return f"gradient accumulation cuts the batch over which weights={weights} takes a mean"
    return None


def without_dropout(method: Method, facts: Facts, stack: str) -> str | None:
    """Return why passes would be identical, and the stack that has them differ, unless one asks for other dropout."""
    if facts.passes_differ:
        return None
    reason = "its passes would be identical: no dropout is active and no partner draws noise"
    may_be_added = all(part.dropout is Dropout.KEEP and part.rates == Rates() for part in (method, *facts.partners))
    return f"{reason}; dropout can be put in, as in {stack}" if may_be_added else reason


def losses_changed_before(facts: Facts) -> str | None:
    """Return what a method that weights by −log p is to be told of: losses that others have changed before it."""
    right = facts.partners[len(facts.outer) :]
    changing = [method.name for method in right if type(method).losses is not Method.losses]
    if not changing:
        return None
    return (
        f"it weights by what {' and '.join(changing)}, to its right, has made of the losses, not by the "
        f"probability of the label; to weight first, write it to the right"
    )


def without_masked_steps(facts: Facts) -> str | None:
    """Return why masking gradients doesn't mask steps: Muon makes an entry's step from all of its matrix's gradient."""
    if facts.recipe.optimizer == "muon":
        return "muon makes each entry's step from its whole matrix, so that entries without a gradient would move, too"
    return None


def without_trained_matrices(facts: Facts) -> str | None:
    """Return why there is nothing to do for Muon."""
    if facts.recipe.optimizer == "muon":
        return "muon is for matrices of the layers, and none of them trains; use --optimizer adamw"
    return None


def without_second_point(facts: Facts) -> str | None:
    """Return why a gradient can't be taken at other weights than the model's."""
    if facts.recipe.accumulation > 1:
        return "with gradient accumulation it would need two sweeps over all micro-batches of a step"
    if facts.recipe.gradient_checkpointing:
        return "gradient checkpointing computes the layers again with the weights below, not those up there"
    if facts.dtype == torch.float16:
        return "its climb doesn't know the loss scaling of fp16; use fp32 or bf16"
    return None
