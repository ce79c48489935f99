"""R3F and R4F: robust representations through regularised fine-tuning.

**In one sentence.** A second forward pass with slightly noisy token embeddings is made, and the change that the noise
makes to the prediction is penalised; R4F also keeps the head from making changes larger.

**Formula.** L = loss(f(x), y) + λ · D(f(x), f(x + z)), with z ~ U(−ε, ε) or N(0, ε²) for each entry of the raw token
embeddings. D is the task's divergence, a mean over the batch: KL(p‖q) + KL(q‖p), or (p − q)² for regression. Gradients
flow through both passes, but for the embedding table through the first alone. R4F: the head's last matrix is used as
W / σ, with σ = uᵀ W v its largest singular value by power iteration, u and v taken as constants by the gradient.

**Hyper-parameters.** `strength` is λ ≥ 0, 1.0 in the official code; 0.1 to 5 is a sensible search · `eps` ≥ 0, 1e-5 in
the official code: the bound of the uniform noise, the standard deviation of the normal one · `noise`: `uniform` (the
official default), `normal`, or `none`: then the second pass differs by what the stack adds and by dropout only.

**Where it acts.** In the objective. The noise goes in before position embeddings, norm and dropout. Evaluation is one
plain pass. R4F's W / σ is what every pass uses, evaluation among them, and what is saved; u and v are iterated 20 times
in set-up and once after each step, so that all passes of a step see one σ.

**Cost.** One more forward pass; one backward pass through both graphs, so the activations of two passes are kept.

**Randomness drawn.** batch · seq · dim numbers per micro-batch from the method's own stream, in float32. The second
pass draws its own dropout masks.

**Interactions.** The first pass is always free of the stack's perturbations, the second carries them on top of the
embedding noise: `hype+r3f` perturbs the second pass only, and `hype+r3f(noise=none)` puts HyPe's noise in the place of
R3F's. With dropout on, the divergence measures the two dropout masks far more than a noise of 1e-5; with dropout off it
almost vanishes at that size. The logged `divergence` shows which it is. A low-precision run that can't carry ε is
refused. R4F divides last: `mixout(include_head=true)` mixes W before, decay and penalties act on W itself. On
regression R4F bounds what the text can add to the head's bias by the length of the vector that enters the head.

**No neutral setting of R4F.** A head divided by σ trains otherwise than vanilla's; a test holds it against a loop that
divides by the exact singular value.

**Deviations from the paper and its code.**
1. Regression is supported, with the squared difference of the predictions, as HyPe's authors do; the official code adds
   nothing there, since a distribution over one logit never changes.
2. The noise is drawn where the model lies, in float32; the official code draws on the CPU and casts to the model's
   precision, where half precision loses most of it.
3. With `noise=none` the second pass looks its embeddings up by itself, so the embedding table learns from both passes.
4. R4F's σ moves once per step; the official one at every training pass, so that its two passes use two heads.
5. R4F leaves the parameter and its name alone, where the official code replaces them.

**Source.** Aghajanyan et al., ICLR 2021 (arXiv 2008.03156); code facebookresearch/fairseq, examples/rxf.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.reasons import without_part
from finetune_bench.method.step import Inner, Objective, Run, State, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import output_layer, weights_replaced
from finetune_bench.parameters import Range, parameter

# Noise below this changes predictions so little that its square, the divergence, is about 0.
NOTICEABLE = 1e-2
# How many iterations the power method makes before training.
ITERATIONS = 20


def add_noise(embeds: Tensor, noise: str, eps: float, generator: Generator) -> Tensor:
    """Add noise to every entry of token embeddings.

    Args:
        embeds: (batch, seq, dim).
        noise: "uniform" for U(−eps, eps), "normal" for N(0, eps²).
        eps: the noise's size, at least 0.
        generator: the stream, on the embeddings' device.

    Returns:
        (batch, seq, dim), in the embeddings' dtype.
    """
    if noise == "normal":
        drawn = torch.randn(embeds.shape, generator=generator, device=embeds.device)
    else:
        drawn = torch.rand(embeds.shape, generator=generator, device=embeds.device).mul_(2).sub_(1)
    return embeds + drawn.mul_(eps).to(embeds.dtype)


@torch.no_grad()
def iterate_power(weight: Tensor, left: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Make iterations of the power method, which approach the singular vectors of the largest singular value.

    Args:
        weight: W, (out, in).
        left: a start for u, (out,), not orthogonal to it.
        times: how many iterations to make, one at least.

    Returns:
        u (out,) and v (in,), of length 1: uᵀ W v is about the largest singular value.
    """
    for _ in range(times):
        right = nn.functional.normalize(weight.T @ left, dim=0)
        left = nn.functional.normalize(weight @ right, dim=0)
    return left, right


class R3F(Method):
    """A penalty on the change of the prediction under embedding noise."""

    name = "r3f"
    acts_on = "inputs"
    batch_layout = "unpadded_trimmed"
    noises = "token embeddings"

    strength: float = parameter(
        1.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.1, 10, log=True),
        help="λ: weight of the divergence (official code)",
    )
    eps: float = parameter(
        1e-5,
        interval="[0, inf)",
        search=Range(1e-6, 0.1, log=True),
        help="bound or standard deviation of the noise (official code)",
    )
    noise: str = parameter("uniform", choices=("normal", "uniform", "none"), help="distribution of the noise")
    dropout: Dropout = parameter(
        Dropout.KEEP, neutral=Dropout.ALL_OFF, help="what is asked of the model's dropout (neutral: passes are equal)"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse a cell in which both passes would be identical."""
        noisy = self.noise != "none" and self.eps > 0
        if noisy or facts.passes_differ:
            return None
        return (
            "its two passes would be identical, since it adds no noise, no dropout is active and no method "
            "stacked with it is stochastic"
        )

    def warning(self, facts: Facts) -> str | None:
        """Say where the passes hardly differ."""
        scales = [self.noise_scale() or 0.0, *(partner.noise_scale() or 0.0 for partner in facts.partners)]
        unknown = any(partner.stochastic and partner.noise_scale() is None for partner in facts.partners)
        if self.strength == 0 or facts.active_dropout or unknown or max(scales) >= NOTICEABLE:
            return None
        return (
            f"no dropout is active, so its two passes differ by noise of {max(scales):.0e} only, and their divergence, "
            "which grows with the square of it, is next to 0"
        )

    def effects(self) -> Mapping[str, Method]:
        """Split it into the second pass and the noise."""
        if self.noise == "none" or self.eps == 0:
            return {self.name: self}
        return {"two passes": replace(self, noise="none"), "noise": self}

    def noise_scale(self) -> float | None:
        """Return the standard deviation of the noise; None without noise."""
        if self.noise == "none" or self.eps == 0:
            return None
        return self.eps if self.noise == "normal" else self.eps / 3**0.5

    def passes(self, inner: Passes) -> Passes:
        """Add one forward pass."""
        return replace(inner, forwards=inner.forwards + 1)

    def memory(self, inner: Memory) -> Memory:
        """Add one forward pass and the divergence."""
        return inner.plus(saved={"F": 1, "D": 1})

    def setup(self, run: Run) -> None:
        """Keep the stream of the noise."""
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the divergence between the clean and the noised pass to the loss."""
        clean = inner(replace(view, perturb=False))
        if self.noise != "none":
            embeds = step.embeds(view).detach()
            view = replace(view, embeds=add_noise(embeds, self.noise, self.eps, self.generator_))
        divergence = step.divergence(clean.output, step.forward(view))
        return replace(
            clean,
            loss=clean.loss + self.strength * divergence,
            logs={**clean.logs, "divergence": divergence.detach()},
        )


class R4F(R3F):
    """R3F with a spectrally normalised head."""

    name = "r4f"
    acts_on = "inputs"
    version = 2  # 1 found the singular value in the run's precision

    # Declared anew, for nothing makes a divided head vanilla's.
    strength: float = parameter(
        1.0,
        interval="[0, inf)",
        search=Range(0.1, 10, log=True),
        help="λ: weight of the divergence (official code)",
    )
    dropout: Dropout = parameter(Dropout.KEEP, help="what is asked of the model's dropout")

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse heads that end in no linear layer, besides what R3F refuses."""
        return without_part(facts, output_layer) or super().unsupported(facts)

    def memory(self, inner: Memory) -> Memory:
        """Add the head's matrix."""
        return super().memory(inner).plus(saved={"P_head": 1})

    def setup(self, run: Run) -> None:
        """Find the singular vectors of the head's matrix, and divide it in every pass."""
        super().setup(run)
        layer = output_layer(run.model)
        self.name_ = next(name for name, weight in run.params.items() if weight is layer.weight)
        start = torch.randn(layer.out_features, generator=self.generator_, device=run.device)
        self.left_, self.right_ = iterate_power(layer.weight.detach(), start, ITERATIONS)
        self.normalising_ = True
        hidden: list[Any] = []

        def divide(module: nn.Module, args: Any) -> None:
            # What another method has put there for this pass.
            hidden.append(vars(module).get("weight"))
            if self.normalising_:
                # An instance attribute hides the registered parameter from the module's own code and from nobody else.
                vars(module)["weight"] = self.normalise(module.weight)  # type: ignore[arg-type]

        def put_back(module: nn.Module, args: Any, output: Any) -> None:
            vars(module).pop("weight", None)
            if (before := hidden.pop()) is not None:
                vars(module)["weight"] = before

        self.handles_ = [
            layer.register_forward_pre_hook(divide),
            layer.register_forward_hook(put_back, always_call=True),
        ]

    def normalise(self, weight: Tensor) -> Tensor:
        """Divide a matrix by its largest singular value, as it is known: W / (uᵀ W v), (out, in)."""
        # Autocast would multiply in the run's precision, and evaluation would divide by another number.
        with torch.autocast(weight.device.type, enabled=False):
            return weight / (self.left_ @ weight @ self.right_)

    def state(self) -> State:
        """Return the singular vectors."""
        return {"left": self.left_, "right": self.right_}

    def load_state(self, state: State) -> None:
        """Take them back."""
        self.left_, self.right_ = state["left"], state["right"]

    def after_step(self, run: Run) -> None:
        """Let the singular vectors follow the matrix."""
        super().after_step(run)
        self.left_, self.right_ = iterate_power(run.params[self.name_].detach(), self.left_, 1)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        """Put the divided matrix into the weight's place."""
        with torch.no_grad():
            divided = self.normalise(run.params[self.name_])
        self.normalising_ = False
        try:
            with weights_replaced(run.params, {self.name_: divided}):
                yield
        finally:
            self.normalising_ = True

    def teardown(self, run: Run) -> None:
        """Remove the hooks."""
        for handle in getattr(self, "handles_", []):
            handle.remove()
