"""This file tries in the plan whether a checkpoint can do what a study asks of it, on three texts, with its weights.

Configurations have many ways to say what a model can't do: no more positions, a decoder's mask, a window, a batch that
has to be of one length. A pass shows all of them, before any cell runs.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench import device as devices
from finetune_bench.errors import ModelError
from finetune_bench.model import pretrained, unpadding, weights
from finetune_bench.model.attention import make_unpadding
from finetune_bench.model.structure import hidden_states_captured, is_decoder, last_tokens_read
from finetune_bench.printable import brief
from finetune_bench.task import Batch, Split
from finetune_bench.training.examples import encode

CLOSE = 1e-3  # of the largest number: rounding is far below, another token attended to far above
CPU = torch.device("cpu")
SPREAD = 24  # words of which the texts are made


@dataclass(frozen=True)
class Probe:
    """What a checkpoint can do.

    Attributes:
        unpads: whether a pass without padding attends as a padded pass does.
        embeds: whether a pass on its token embeddings is the pass on the tokens; methods that noise them need it.
        ignores_padding: whether a text's prediction is the same beside a longer text.
    """

    unpads: bool
    embeds: bool
    ignores_padding: bool


@cache
def try_out(name: str, max_length: int) -> Probe:
    """Run a checkpoint on three texts, one of them as long as a text may be.

    Args:
        name: of the checkpoint.
        max_length: tokens of the longest text.

    Raises:
        ModelError: it can't be run on them.
    """
    tokenizer, model = pretrained.tokenizer(name), weights.load(name, pretrained.config(name, 2), 0)
    words = _words(tokenizer)
    texts = [" ".join(words[:3]), " ".join(words * (1 + max_length // len(words))), " ".join(words[::-1])]
    examples = encode(Split(texts, None, [0, 0, 0]), tokenizer, max_length, "classification")
    batch = examples.batch(range(3), CPU)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits: Tensor = model.train()(**batch.inputs).logits  # some models refuse in training alone
            logits = _logits(model.eval(), batch.inputs)
            alone = _logits(model, examples.batch([0], CPU).inputs)
    except Exception as error:  # a model may fail in any way
        if devices.is_out_of_memory(error) or isinstance(error, MemoryError):
            return Probe(unpads=unpadding.furthest(model.config) != "padded", embeds=True, ignores_padding=True)
        line = brief(str(error).strip().partition("\n")[0])
        raise ModelError(
            f"--model: {type(model).__name__} of '{name}' fails on a batch of three texts of up to {max_length} tokens "
            f"({type(error).__name__}: {line}). Give another checkpoint, or a smaller --max-length."
        ) from None
    if logits.shape != (3, 2):
        raise ModelError(
            f"--model: {type(model).__name__} of '{name}' gives an output of {tuple(logits.shape)} for three texts and "
            "two classes, expected (3, 2). Give another checkpoint."
        )
    if not logits.isfinite().all():
        raise ModelError(f"--model: '{name}' predicts NaN or infinity before any training. Give another checkpoint.")
    with torch.no_grad():
        return Probe(
            embeds=_embeds(model, batch, logits),
            ignores_padding=_is_close(alone, logits[:1]),
            unpads=_unpads(model, batch),  # the last: it changes how the model attends
        )


def _words(tokenizer: Any) -> list[str]:
    """Return words that the tokenizer knows, from all over its vocabulary; letters where it has none (CANINE)."""
    known = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalnum())
    return known[:: max(1, len(known) // SPREAD)] or list("abcdefgh")


def _logits(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return what training and evaluation take for the model's prediction, (texts, outputs)."""
    mask = inputs.get("attention_mask")
    with last_tokens_read(model, mask) if mask is not None and is_decoder(model) else nullcontext():
        logits: Tensor = model(**inputs).logits
        return logits


def _embeds(model: nn.Module, batch: Batch, logits: Tensor) -> bool:
    inputs = {name: values for name, values in batch.inputs.items() if name != "input_ids"}
    try:
        embeds = model.get_input_embeddings()(batch.inputs["input_ids"])  # type: ignore[operator]
        return _is_close(_logits(model, inputs | {"inputs_embeds": embeds}), logits)
    except Exception:  # whatever it is, the pass can't be made
        return False


def _unpads(model: nn.Module, batch: Batch) -> bool:
    if unpadding.furthest(model.config) == "padded" or batch.lengths is None:
        return False
    real = batch.inputs["attention_mask"].bool()
    padded = _last_states(model, batch, real)
    unpadding.prepare(model)
    with unpadding.unpadded(model, make_unpadding(batch.lengths, CPU)):
        return _is_close(_last_states(model, batch, real), padded)


def _last_states(model: nn.Module, batch: Batch, real: Tensor) -> Tensor:
    """Return what leaves the last layer at real tokens, (tokens, dim)."""
    with hidden_states_captured(model) as states:
        model(**batch.inputs)
    return states[-1][real] if states[-1].shape[:2] == real.shape else states[-1].flatten(0, 1)


def _is_close(values: Tensor, wanted: Tensor) -> bool:
    return bool((values - wanted).abs().max() <= CLOSE * wanted.abs().max())
