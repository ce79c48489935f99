"""LoRA: low-rank updates of frozen weights, through the library peft, as an outside reference.

**In one sentence.** The body's weights are frozen, and small matrices beside some of them learn the update; the head is
trained in full.

**Formula.** W_eff = W + (α/r) · B A, with A (r × in) random and B (out × r) zero at the start, so that training begins
at the pre-trained model.

**Hyper-parameters.** `r` ≥ 1, 8, and `alpha` > 0, 8: peft's defaults · `adapter_dropout` in [0, 1), 0, on the input of
the updates. Learning rates of full fine-tuning are too small for it: 1e-4 to 5e-4 is usual (our recollection).

**Where it acts.** In `setup`, on the matrices that peft names for the architecture (query and value, as a rule), and on
all linear layers of the encoder's layers where it names none. In evaluation, and in what is saved, the updates are
merged into W; after teardown the model is a plain one.

**Cost.** One forward and one backward pass; neither gradients nor moments of what is frozen, and r · (in + out) numbers
more per matrix, four times.

**Randomness drawn.** A, from a global stream of the method's own; dropout on the adapters, if asked for, from the
training's.

**Interactions.** `noisytune` comes before it and noises the frozen weights; `reinit_layers` is refused, for re-drawn
layers would be frozen; `top_k`, which chooses what trains as well, too. Anchors mean nothing to adapters: `mixout`,
`l2_sp`, `prior_decay` and `recadam` are refused, `child_tuning_f`, `child_tuning_d` and `sage` as methods on weights
that are frozen here. `layerwise_lr_decay` is refused: it would take the adapters for the head's. `sam`, `ema` and
`swa` act on adapters and head.

**No neutral setting.** With B = 0 it predicts what vanilla predicts, but then trains other weights.

**Deviations from the paper and its code.**
1. The head is trained in place, not as a copy that peft keeps beside it.
2. Gradient checkpointing is refused: with frozen embeddings it needs a hook of its own on the inputs.

**Source.** Hu et al., ICLR 2022 (arXiv 2106.09685); code huggingface/peft.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.errors import FinetuneBenchError, ModelError
from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body, is_linear, layers, weights_replaced
from finetune_bench.parameters import parameter

REFUSED = {
    "reinit_layers": "re-drawn layers would be frozen",
    "layerwise_lr_decay": "layerwise_lr_decay would give its adapters the head's rate",
    **dict.fromkeys(("mixout", "l2_sp", "prior_decay", "recadam"), "its adapters have no pre-trained values"),
    **dict.fromkeys(("child_tuning_f", "child_tuning_d", "sage"), "the weights that the other acts on are frozen"),
}


def merge_update(weight: Tensor, down: Tensor, up: Tensor, scale: float, *, is_turned: bool = False) -> Tensor:
    """Merge an update into its weight: W + scale · B A.

    Args:
        weight: W, (out, in), or (in, out) where it is turned.
        down: A, (r, in).
        up: B, (out, r).
        scale: α/r.
        is_turned: whether the layer has its weight the other way round.
    """
    update = up @ down
    return weight + scale * (update.T if is_turned else update)


def target_names(model: nn.Module) -> list[str]:
    """Name the linear layers that are updated: peft's for the architecture, else all within the layers."""
    # Here and in `setup`: the library is an extra, which may be missing.
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    known = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type)  # type: ignore[union-attr, arg-type]
    inside = {module for layer in layers(model) for module in layer.modules() if is_linear(module)}
    names = [name for name, module in model.named_modules() if module in inside]
    return [name for name in names if known is None or name.rpartition(".")[2] in known] or names


class LoRA(Method):
    """Low-rank updates of frozen weights."""

    name = "lora"
    acts_on = "which weights train"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SELECT

    r: int = parameter(8, interval="[1, inf)", search=(4, 8, 16, 32), help="rank of the updates (peft)")
    alpha: float = parameter(
        8.0, interval="(0, inf)", search=(8.0, 16.0, 32.0), help="α: the update is scaled by α/r (peft)"
    )
    adapter_dropout: float = parameter(0.0, interval="[0, 1)", help="dropout on the updates' input (peft)")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Claim the choice of the weights that train."""
        return ("weights that train",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse where peft or a layer to adapt is missing, and what can't work with frozen weights."""
        if importlib.util.find_spec("peft") is None:
            return "it needs the library peft: pip install 'finetune-bench[lora]'"
        if facts.recipe.gradient_checkpointing:
            return "gradient checkpointing with frozen embeddings needs a hook on the inputs that it does not set"
        for partner in facts.partners:
            if partner.name in REFUSED:
                return REFUSED[partner.name]
        try:
            if not target_names(facts.skeleton):
                return f"{type(facts.skeleton).__name__} has no linear layer within its layers"
        except ModelError as error:
            return str(error)
        return None

    def memory(self, inner: Memory) -> Memory:
        """Take gradients and moments of the frozen weights off."""
        return inner.plus(kept={"P_frozen": -3})

    def setup(self, run: Run) -> None:
        """Freeze the body and put adapters beside its matrices."""
        from peft import LoraConfig, inject_adapter_in_model

        inside = set(body(run.model).parameters())
        config = LoraConfig(
            r=self.r,
            # A float does as well, whatever the library declares.
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.adapter_dropout,
            target_modules=(targets := target_names(run.model)),
            # GPT-2's weights are (in, out).
            fan_in_fan_out=not any(isinstance(run.model.get_submodule(name), nn.Linear) for name in targets),
        )
        self.frozen_ = [weight for weight in run.params.values() if weight.requires_grad and weight in inside]
        heads = [weight for weight in run.params.values() if weight.requires_grad and weight not in inside]
        canonical = {weight: name for name, weight in run.params.items()}
        with run.own_randomness(self.name):
            inject_adapter_in_model(config, run.model)
        # The library freezes all that is not its own.
        for weight in heads:
            weight.requires_grad_(True)
        self.layers_: dict[str, Any] = {
            canonical[module.base_layer.weight]: module  # type: ignore[index, union-attr]
            for module in run.model.modules()
            if hasattr(module, "lora_A") and hasattr(module, "base_layer")
        }
        if not self.layers_:
            raise FinetuneBenchError(f"peft found nothing to adapt in {type(run.model).__name__}.")
        self.adapters_ = {}
        for name, module in self.layers_.items():
            self.adapters_[f"{name}.lora_A"] = module.lora_A["default"].weight
            self.adapters_[f"{name}.lora_B"] = module.lora_B["default"].weight
        run.params |= self.adapters_

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Merge the adapters into the frozen weights."""
        with torch.no_grad():
            merged = {
                name: merge_update(
                    module.base_layer.weight,
                    module.lora_A["default"].weight,
                    module.lora_B["default"].weight,
                    module.scaling["default"],
                    is_turned=module.fan_in_fan_out,
                )
                for name, module in self.layers_.items()
            }
        self._use_adapters(False)
        try:
            with weights_replaced(run.params, merged):
                yield
        finally:
            self._use_adapters(True)

    def _use_adapters(self, used: bool) -> None:
        for module in self.layers_.values():
            module._disable_adapters = not used

    def teardown(self, run: Run) -> None:
        """Take the adapters out and let all weights train again."""
        for name, module in getattr(self, "layers_", {}).items():
            path = next(path for path, candidate in run.model.named_modules() if candidate is module)
            owner, _, attribute = path.rpartition(".")
            setattr(run.model.get_submodule(owner), attribute, module.base_layer)
            del run.params[f"{name}.lora_A"], run.params[f"{name}.lora_B"]
        self.layers_ = {}
        for weight in getattr(self, "frozen_", []):
            weight.requires_grad_(True)
