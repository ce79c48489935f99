"""Load a checkpoint as the language model that it was pre-trained as, where it still has that head."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finetune_bench.errors import ModelError
from finetune_bench.model import pretrained
from finetune_bench.model.library import library
from finetune_bench.model.structure import body
from finetune_bench.printable import brief

Kind = Literal["causal", "masked"]


@cache
def kind_of(name: str) -> Kind | None:
    """Return what a checkpoint's language-modelling head predicts; None where its files have no such head.

    "causal": the next token, from those before it. "masked": tokens that were masked, from those around them. Told by
    the architecture that the configuration names, and by whether all of its weights are in the files: exports for
    sentence embeddings name it, too, and have left its head out.
    """
    architectures = getattr(pretrained.raw_config(name), "architectures", None) or []
    for architecture in architectures:
        kind: Kind | None = None
        if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
            kind = "masked"
        elif architecture.endswith(("ForCausalLM", "LMHeadModel")):
            kind = "causal"
        if kind is not None:
            try:
                _, info = _read(name, kind, output_loading_info=True, device_map={"": "meta"})
            except ModelError:  # ELECTRA's pre-training has no such head
                continue
            if not info["missing_keys"] and not info["mismatched_keys"]:
                return kind
    return None


def load(name: str, kind: Kind) -> nn.Module:
    """Load a checkpoint with its language-modelling head, fp32, on the CPU, in evaluation mode.

    Raises:
        ModelError: the weights can't be read.
    """
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = _read(name, kind)
    return model.eval()


def take_body(model: nn.Module, weights: Mapping[str, Tensor], *, keep_output: bool = False) -> None:
    """Put the weights of a trained classifier's body into a language model.

    Args:
        model: the language model of the same checkpoint.
        weights: the classifier's weights by name.
        keep_output: whether an output matrix that is tied to the input embeddings keeps its own values, and is no
            longer tied.

    Raises:
        ModelError: the classifier lacks a weight of the body.
    """
    output: Any = model.get_output_embeddings()  # type: ignore[operator]
    if keep_output and output is not None:
        output.weight = nn.Parameter(output.weight.detach().clone())
    inside = {id(parameter) for parameter in body(model).parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if id(parameter) not in inside:
                continue
            if name not in weights:
                raise ModelError(f"the trained model has no weight '{name}', which the language model has")
            parameter.copy_(weights[name])


def _read(name: str, kind: Kind, **options: Any) -> Any:
    loader = library().AutoModelForCausalLM if kind == "causal" else library().AutoModelForMaskedLM
    try:
        return loader.from_pretrained(
            pretrained.source(name), dtype=torch.float32, trust_remote_code=False, use_safetensors=True, **options
        )
    except Exception as error:  # transformers raises errors of many types here
        line = brief(str(error).strip().partition("\n")[0]) or type(error).__name__
        raise ModelError(f"--model: '{name}' can't be read as a language model: {line}") from None
