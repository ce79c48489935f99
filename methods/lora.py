"""Adapters of the library peft, as an outside reference: `peft`, of eight kinds, and `lora`, one of them by itself.

**In one sentence.** The body's weights are frozen, and a few numbers beside some of them learn the update; the head is
trained in full.

**Formula.** With W a frozen matrix (out × in), and training begins at the pre-trained model:
- `lora`: W + (α/r) · B A, with A (r × in) random and B (out × r) zero at the start; `rslora`: α/√r in the place of α/r.
- `dora`: m · (W + (α/r) · B A) / ‖W + (α/r) · B A‖ by rows, m = ‖W‖ at the start.
- `pissa`: as `lora`, but A and B are W's r largest singular directions at the start, and W what is left of it.
- `vera`: W + diag(b) · B · diag(d) · A, with A and B random, frozen and shared by all matrices, b 0 and d 0.1 at the
  start.
- `ia3`: what leaves a matrix, or in the feed-forward block what enters it, is multiplied by a vector, 1 at the start.
- `oft`: W R, with R orthogonal by blocks and the identity at the start.
- `ln_tuning`: the norms' scales and shifts train.

**Hyper-parameters.** `kind` · `r` ≥ 1, the rank, 8, for `vera` 256; for `oft` the size of a block, by default the
largest up to 32 that fits all matrices · `alpha` > 0, 8 · `adapter_dropout` in [0, 1), 0, on the input of the updates.
All are peft's defaults; what a kind doesn't have is refused. Learning rates of full fine-tuning are too small for all
kinds: 10 to 100 times vanilla's best should be tried. On all-MiniLM-L6-v2 with 75 steps the best was 32 times vanilla's
for `lora` and `dora`, with 56 % right; at 4 times vanilla's they had 24 % (docs/todays-methods.md).

**Where it acts.** In `setup`, on the modules that peft names for the architecture (query and value, as a rule), and on
all linear layers of the encoder's layers, or all norms of the body, where it names none; `trainable_parameters` of the
row says what it came to. In evaluation, and in what is saved, the updates are merged into the weights; after teardown
the model is a plain one.

**Cost.** One forward and one backward pass; neither gradients nor moments of what is frozen, and four times the numbers
that are learned: r · (in + out) per matrix for `lora`. `vera` keeps its projections beside, `dora` makes W anew in
every pass, and saves two more numbers for each that leaves a matrix.

**Randomness drawn.** A, from a global stream of the method's own; `vera`'s projections from the run's seed, where peft
has the same for all seeds; dropout on the adapters, if asked for, from the training's.

**Interactions.** `noisytune` comes before it and noises the frozen weights; `reinit_layers` is refused, for re-drawn
layers would be frozen; `top_k` and others that choose what trains, too. Anchors mean nothing to adapters: `mixout`,
`l2_sp`, `prior_decay` and `recadam` are refused, `child_tuning_f`, `child_tuning_d` and `sage` as methods on weights
that are frozen here. `layerwise_lr_decay` is refused: it would take the adapters for the head's. `sam`, `ema` and
`swa` act on adapters and head. `pissa` refuses all that reads the pre-trained weights, for it splits them.
`--optimizer muon` takes the two matrices of low-rank kinds, and is refused with kinds that have none.

**No neutral setting.** At the start it predicts what vanilla predicts, but then trains other weights.

**Deviations from the papers and their code.**
1. The head is trained in place, not as a copy that peft keeps beside it.
2. Gradient checkpointing is refused: with frozen embeddings it needs a hook of its own on the inputs.
3. Vectors that multiply (`dora`, `ia3`, `vera`) and norms (`ln_tuning`) have no weight decay: it would pull them to 0.
4. `pissa` starts at the pre-trained model but for rounding, and so do `dora` and `oft`; the others to the last bit.
5. AdaLoRA (which needs a call per step), and prompts and prefixes (which make texts longer), are left out.

**Source.** Hu et al., ICLR 2022 (arXiv 2106.09685); Kalajdzievski, 2023 (arXiv 2312.03732); Liu et al., ICML 2024
(arXiv 2402.09353); Meng et al., NeurIPS 2024 (arXiv 2404.02948); Liu et al., NeurIPS 2022 (arXiv 2205.05638);
Kopiczko et al., ICLR 2024 (arXiv 2310.11454); Qiu et al., NeurIPS 2023 (arXiv 2306.07280); Zhao et al., ICLR 2024
(arXiv 2312.11420); code huggingface/peft.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from finetune_bench.errors import FinetuneBenchError, ModelError
from finetune_bench.method.base import Facts, Method, Phase
from finetune_bench.method.cost import Memory
from finetune_bench.method.reasons import without_trained_matrices
from finetune_bench.method.step import Run
from finetune_bench.model.structure import body, is_linear, is_norm, layers, weights_replaced
from finetune_bench.parameters import parameter

LOW_RANK = ("lora", "rslora", "dora", "pissa")
KINDS = (*LOW_RANK, "ia3", "vera", "oft", "ln_tuning")
REFUSED = {
    "reinit_layers": "re-drawn layers would be frozen",
    "layerwise_lr_decay": "layerwise_lr_decay would give its adapters the head's rate",
    **{
        name: f"{name} holds weights to their pre-trained values, and its adapters have none"
        for name in ("mixout", "l2_sp", "prior_decay", "recadam")
    },
    **{name: f"the weights that {name} acts on are frozen" for name in ("child_tuning_f", "child_tuning_d", "sage")},
}
LARGEST_BLOCK = 32


def target_names(model: nn.Module, kind: str = "lora") -> list[str]:
    """Name the modules that are updated: peft's for the architecture, else all linear layers within the layers.

    Those of `ln_tuning` are norms, and those of `oft` have their weight as (out, in).
    """
    # Here and below: the library is an extra, which may be missing.
    from peft.utils import constants

    mapping = {"ia3": "IA3", "vera": "VERA", "oft": "OFT", "ln_tuning": "LNTUNING"}.get(kind, "LORA")
    targets = getattr(constants, f"TRANSFORMERS_MODELS_TO_{mapping}_TARGET_MODULES_MAPPING")
    known = targets.get(model.config.model_type)  # type: ignore[union-attr]
    if kind == "ln_tuning":
        inside = {module for module in body(model).modules() if is_norm(module)}
    else:
        inside = {module for layer in layers(model) for module in layer.modules() if is_linear(module)}
    if kind == "oft":
        inside = {module for module in inside if isinstance(module, nn.Linear)}
    names = [name for name, module in model.named_modules() if module in inside]
    return [name for name in names if known is None or _is_one_of(name, known)] or names


def _is_one_of(name: str, endings: list[str]) -> bool:
    return any(f".{name}".endswith(f".{ending}") for ending in endings)


def common_width(model: nn.Module) -> int:
    """Return the greatest common divisor of the widths of what enters `oft`'s matrices."""
    return math.gcd(*(model.get_submodule(name).in_features for name in target_names(model, "oft")))  # type: ignore[arg-type]


def block_size(model: nn.Module) -> int:
    """Return the largest block up to 32 that the inputs of all of `oft`'s matrices can be cut into."""
    return max(size for size in range(1, LARGEST_BLOCK + 1) if common_width(model) % size == 0)


def merged_values(module: Any) -> dict[nn.Parameter, Tensor]:
    """Compute what the weights of an adapted module come to with its update merged; they are left as they are."""
    weights = dict(module.base_layer.named_parameters())
    if hasattr(module, "ln_tuning_layers"):
        trained = dict(module.ln_tuning_layers["default"].named_parameters())
        return {weight: trained[name].detach() for name, weight in weights.items()}
    before = {weight: (weight.data, weight.data.clone()) for weight in weights.values()}
    module.merge()
    merged = {weight: weight.data.clone() for weight in before}
    # The library's own way back rounds.
    for weight, (storage, value) in before.items():
        weight.data = storage.copy_(value)
    module.merged_adapters.clear()
    return merged


class _Adapted(Method):
    """What all kinds of adapters do; a method says its kind and its configuration."""

    acts_on = "which weights train"
    batch_layout = "unpadded_trimmed"
    phase = Phase.SELECT
    own_learning_rate = "its adapters need larger steps than full fine-tuning: try 10 to 100 times vanilla's rate"

    def _kind(self) -> str:
        raise NotImplementedError

    def _config(self, run: Run, targets: list[str], is_turned: bool) -> Any:
        raise NotImplementedError

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
            if not target_names(facts.skeleton, self._kind()):
                return f"{type(facts.skeleton).__name__} has no linear layer of torch's within its layers, or no norm"
        except ModelError as error:
            return str(error)
        return None if self._kind() in LOW_RANK else without_trained_matrices(facts)

    def memory(self, inner: Memory) -> Memory:
        """Take gradients and moments of the frozen weights off."""
        return inner.plus(kept={"P_frozen": -3})

    def setup(self, run: Run) -> None:
        """Freeze the body and put adapters beside its weights."""
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        inside = set(body(run.model).parameters())
        targets = target_names(run.model, self._kind())
        # GPT-2's weights are (in, out).
        is_turned = not any(isinstance(run.model.get_submodule(name), nn.Linear) for name in targets)
        config = self._config(run, targets, is_turned)
        self.frozen_ = [weight for weight in run.params.values() if weight.requires_grad and weight in inside]
        heads = [weight for weight in run.params.values() if weight.requires_grad and weight not in inside]
        canonical = {weight: name for name, weight in run.params.items()}
        with run.own_randomness(self.name), warnings.catch_warnings():
            # It says so of every norm, which are what `ln_tuning` is made for.
            warnings.filterwarnings("ignore", "Unsupported layer type", UserWarning)
            PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](run.model, config, adapter_name="default")
        # The library freezes all that is not its own.
        for weight in heads:
            weight.requires_grad_(True)
        modules = [module for module in run.model.modules() if hasattr(module, "base_layer")]
        self.layers_: dict[str, Any] = {canonical[module.base_layer.weight]: module for module in modules}  # type: ignore[index, union-attr]
        if not self.layers_:
            raise FinetuneBenchError(f"peft found nothing to adapt in {type(run.model).__name__}.")
        self.adapters_ = {}
        for name, module in self.layers_.items():
            for path, weight in module.named_parameters():
                if weight not in canonical:
                    kept = path.replace(".default", "").removesuffix(".weight")
                    self.adapters_[f"{name}.{kept}"] = weight
        run.params |= self.adapters_
        run.undecayed |= {name for name in self.adapters_ if not name.endswith((".lora_A", ".lora_B", ".oft_R"))}

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Merge the adapters into the frozen weights."""
        names = {weight: name for name, weight in run.params.items()}
        merged: dict[str, Tensor] = {}
        with torch.no_grad():
            for module in self.layers_.values():
                merged |= {names[weight]: value for weight, value in merged_values(module).items()}
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
        for module in getattr(self, "layers_", {}).values():
            path = next(path for path, candidate in run.model.named_modules() if candidate is module)
            owner, _, attribute = path.rpartition(".")
            setattr(run.model.get_submodule(owner), attribute, module.base_layer)
        for name in getattr(self, "adapters_", {}):
            del run.params[name]
            run.undecayed.discard(name)
        self.layers_, self.adapters_ = {}, {}
        for weight in getattr(self, "frozen_", []):
            weight.requires_grad_(True)


def _low_rank(kind: str, targets: list[str], *, r: int, alpha: float, dropout: float, is_turned: bool) -> Any:
    """Make the configuration of a low-rank kind."""
    from peft import LoraConfig

    return LoraConfig(
        r=r,
        # A float does as well, whatever the library declares.
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=targets,
        fan_in_fan_out=is_turned,
        use_rslora=kind == "rslora",
        use_dora=kind == "dora",
        init_lora_weights="pissa" if kind == "pissa" else True,
    )


class LoRA(_Adapted):
    """Low-rank updates of frozen weights."""

    name = "lora"

    r: int = parameter(8, interval="[1, inf)", search=(4, 8, 16, 32), help="rank of the updates (peft)")
    alpha: float = parameter(
        8.0, interval="(0, inf)", search=(8.0, 16.0, 32.0), help="α: the update is scaled by α/r (peft)"
    )
    adapter_dropout: float = parameter(0.0, interval="[0, 1)", help="dropout on the updates' input (peft)")

    def _kind(self) -> str:
        return "lora"

    def _config(self, run: Run, targets: list[str], is_turned: bool) -> Any:
        return _low_rank("lora", targets, r=self.r, alpha=self.alpha, dropout=self.adapter_dropout, is_turned=is_turned)


class Peft(_Adapted):
    """Adapters of eight kinds beside frozen weights."""

    name = "peft"

    kind: str = parameter("dora", choices=KINDS, help="what is learned beside the frozen weights")
    r: int | None = parameter(
        None, interval="[1, inf)", help="rank (none: 8, of vera 256), of oft the size of a block (none: up to 32)"
    )
    alpha: float | None = parameter(
        None, interval="(0, inf)", help="α of lora, rslora, dora and pissa, which scales the update (none: 8)"
    )
    adapter_dropout: float = parameter(0.0, interval="[0, 1)", help="dropout on the updates' input (peft)")

    def _kind(self) -> str:
        return self.kind

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse parameters that the kind doesn't have, and partners that need the weights as they were."""
        if self.r is not None and self.kind in ("ia3", "ln_tuning"):
            return f"kind={self.kind} has no rank; leave r out"
        if self.alpha is not None and self.kind not in LOW_RANK:
            return f"kind={self.kind} has no alpha; leave it out"
        if self.adapter_dropout > 0 and self.kind not in (*LOW_RANK, "vera"):
            return f"kind={self.kind} has no dropout; leave adapter_dropout out"
        for partner in facts.partners:
            if self.kind == "pissa" and partner.reads_pretrained:
                return f"{partner.name} reads the pre-trained weights, and pissa splits them"
        if (reason := super().unsupported(facts)) or self.kind != "oft" or self.r is None:
            return reason
        if common_width(facts.skeleton) % self.r:
            return f"r={self.r}: not every matrix of {type(facts.skeleton).__name__} can be cut into such blocks"
        return None

    def memory(self, inner: Memory) -> Memory:
        """Add, of `dora`, what leaves its matrices before and beside the update, taking them for query and value."""
        return super().memory(inner).plus(saved={"H_all": 4} if self.kind == "dora" else {})

    def _config(self, run: Run, targets: list[str], is_turned: bool) -> Any:
        import peft
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as FEEDFORWARD

        if self.kind in LOW_RANK:
            r, alpha = self.r or 8, self.alpha or 8.0
            return _low_rank(self.kind, targets, r=r, alpha=alpha, dropout=self.adapter_dropout, is_turned=is_turned)
        if self.kind == "ia3":
            entering = FEEDFORWARD.get(run.model.config.model_type, [])  # type: ignore[union-attr, arg-type]
            feedforward = [name for name in targets if _is_one_of(name, entering)]
            return peft.IA3Config(target_modules=targets, feedforward_modules=feedforward, fan_in_fan_out=is_turned)
        if self.kind == "vera":
            # The stream's seed is the run's; the library's generator takes 32 bits.
            seed = run.generator(self.name).initial_seed() % 2**32
            return peft.VeraConfig(
                r=self.r or 256,
                projection_prng_key=seed,
                vera_dropout=self.adapter_dropout,
                target_modules=targets,
                fan_in_fan_out=is_turned,
            )
        if self.kind == "oft":
            return peft.OFTConfig(target_modules=targets, oft_block_size=self.r or block_size(run.model))
        return peft.LNTuningConfig(target_modules=targets)
