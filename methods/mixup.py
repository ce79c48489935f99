"""Mixup: a text and its label are mixed with those of another text of the batch.

**In one sentence.** Every example is drawn toward another one, and its label as far toward the other's, so that between
two examples the prediction goes straight.

**Formula.** r' = λ · r + (1 − λ) · r_π and q' = λ · q + (1 − λ) · q_π, with λ ~ Beta(α, α), π a permutation of the
batch, q the one-hot labels or the numbers of a regression, and r what enters the head's last layer, or, position by
position, the raw token embeddings or what leaves a layer of the encoder (TMix). The loss is that of the mixture's
prediction against q'.

**Hyper-parameters.** `alpha` ≥ 0, 0.4 (ours); 0.05 to 2 is a sensible search; the smaller, the nearer λ lies to 0 or 1,
and at 0 nothing is mixed · `where`: `head`, `embeddings` or `layer` · `dominant`: λ is taken as max(λ, 1 − λ), so that
an example is mostly itself · `per`: one λ for each `example`, or one for the `batch`.

**Where it acts.** In the objective: all passes inside have one mixture and its labels. At the head the logits are
mixed: the last layer is linear, so that this is what mixing its input gives, to rounding. For embeddings a token is
seen if it is one of either text. For `layer` one layer of the upper half is drawn each time, of BERT-base one of 7 to
12; what lies above it attends to the tokens of the first text only. Evaluation is free of it.

**Cost.** One forward and one backward pass; a few vectors. The batch has the hidden states of both texts, so that the
layers below are not computed twice.

**Randomness drawn.** For each evaluation of the objective one permutation of the batch from the method's own stream,
and for `layer` the layer, and batch numbers, or one, from a stream of its own, whatever is drawn elsewhere.

**Interactions.** It stands left of methods that make several passes, which then all have one mixture: `mixup+rdrop`,
`mixup+freelb`, `mixup+sam`. Right of them it is refused, for each pass would have another one. `hype`: noise on each
text before they are mixed at the head. `neftune`, `freelb`: the length of a mixture of embeddings is that of its first
text. Methods that change the losses of single examples get those of the mixtures. Refused: `match_tuning`, which mixes
the batch, too; `kl_anchor`; gradient checkpointing with `layer`. With gradient accumulation π stays within a
micro-batch, so that the result depends on its size, and a micro-batch of one example is left as it is; a warning says
so. A task with a loss of its own has to say the losses of single examples.

**Deviations from the papers and their code.**
1. Mixup-Transformer fixes λ and begins at some epoch; here λ is drawn, and mixing goes on throughout.
2. TMix draws the layer from a set of its own, 7, 9 and 12 of BERT-base's, with α = 0.75; here from all of the upper
   half. As in its code, the first text's mask stays, and padding is mixed in where the other text is shorter.
3. One λ for each example; `per=batch` is the published form.
4. Token types and positions stay those of the first text.
5. A pass over mixed embeddings or hidden states is made with padding also in runs without.

**Source.** Zhang et al., ICLR 2018 (arXiv 1710.09412); on text: Sun et al., COLING 2020 (arXiv 2010.02394), and Chen,
Yang and Yang, ACL 2020 (arXiv 2004.12239), code SALT-NLP/MixText.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from finetune_bench.errors import ModelError
from finetune_bench.method.asking import ask
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.structure import layer_outputs_changed, layers, output_layer
from finetune_bench.parameters import Range, parameter

REFUSED = {
    "match_tuning": "match_tuning mixes the examples of the batch, too",
    "kl_anchor": "kl_anchor's reference predicts texts, not mixtures of them",
}


def mix(values: Tensor, order: Tensor, share: Tensor) -> Tensor:
    """Mix each row with another one.

    Args:
        values: (batch, …).
        order: the other row of each, (batch,).
        share: λ of each, (batch,): how much of a row is its own.

    Returns:
        λ · values + (1 − λ) · values[order], in the values' shape and dtype.
    """
    other = (1 - share).reshape(-1, *[1] * (values.ndim - 1)).to(values.dtype)
    return torch.lerp(values, values[order], other)


def draw_shares(count: int, alpha: float, *, dominant: bool, device: torch.device) -> Tensor:
    """Draw λ ~ Beta(alpha, alpha) from the global stream of the device, (count,); at least ½ where it is dominant."""
    concentration = torch.full((count,), alpha, device=device)
    # Its checks would read values on the host.
    share: Tensor = Beta(concentration, concentration, validate_args=False).sample()
    return torch.maximum(share, 1 - share) if dominant else share


@contextmanager
def logits_mixed(model: nn.Module, order: Tensor, share: Tensor) -> Iterator[None]:
    """Mix the logits, (batch, outputs), of every forward pass inside."""

    def change(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = mix(output.logits, order, share)
        return output

    handle = model.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def layers_mixed(model: nn.Module, order: Tensor, share: Tensor, chosen: Tensor) -> Iterator[None]:
    """Mix what leaves one layer, in every forward pass inside; each is made with padding.

    Args:
        model: the classifier.
        order: the other text of each, (batch,).
        share: λ of each, (batch,).
        chosen: the layer's index from 0, 0-dim.
    """
    count = len(layers(model))

    def change(index: int, entered: Tensor, left: Tensor) -> Tensor:
        # A shared layer counts its calls on from pass to pass. Which layer it is, only the device knows: at a share of
        # 1 the others give what they have, to the last bit.
        return mix(left, order, torch.where(chosen == index % count, share, 1.0))

    with layer_outputs_changed(model, change):
        yield


class Mixup(Method):
    """Texts and labels mixed in pairs."""

    name = "mixup"
    acts_on = "inputs"
    batch_layout = "unpadded_trimmed"

    alpha: float = parameter(
        0.4, interval="[0, inf)", neutral=0.0, search=Range(0.05, 2, log=True), help="α of λ ~ Beta(α, α) (ours)"
    )
    where: str = parameter(
        "head",
        choices=("head", "embeddings", "layer"),
        search=("head", "embeddings"),
        help="what is mixed: the input of the head's last layer, token embeddings, or what leaves a layer",
    )
    dominant: bool = parameter(True, help="take max(λ, 1 − λ), so that an example is mostly itself")
    per: str = parameter("example", choices=("example", "batch"), help="what has a λ of its own")

    @property
    def stochastic(self) -> bool:
        """Say whether it draws mixtures."""
        return self.alpha > 0

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse passes with several mixtures, partners that can't have any, and losses that aren't of examples."""
        for partner in facts.partners:
            if partner.name in REFUSED:
                return REFUSED[partner.name]
        for partner in facts.outer:
            if ask(partner, "passes", Passes()).forwards > 1:
                return f"each pass of {partner.name} would have another mixture; write mixup+{partner.name}"
        if not facts.task.is_mean_of_losses:
            return f"the loss of '{facts.task.name}' is its own, and it doesn't say the losses of single examples"
        if self.where == "layer" and facts.recipe.gradient_checkpointing:
            return "gradient checkpointing computes the layers again without the mixture of their outputs"
        needed = {"head": output_layer, "layer": layers}.get(self.where)
        try:
            if needed is not None:
                needed(facts.skeleton)
        except ModelError as error:
            return str(error)
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say what gradient accumulation does to it."""
        size = facts.recipe.batch_size // facts.recipe.accumulation
        if self.alpha == 0 or (size > 1 and facts.recipe.accumulation == 1):
            return None
        if size == 1:
            return "batches of one example have nothing to mix with, so it does nothing"
        return f"it mixes within the {size} examples of a micro-batch, so the result depends on --accumulation"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Evaluate the loss of mixtures against mixed labels."""
        if self.alpha == 0:
            return inner(view)
        order, share = self.draw(step.run, len(step.batch.labels))
        view = replace(view, targets=mix(step.targets(view), order, share))
        if self.where == "head":
            with logits_mixed(step.run.model, order, share):
                objective = inner(view)
        elif self.where == "layer":
            # The mask that the pass has anyway, given so that it is made with padding.
            mask = step.batch.inputs["attention_mask"] if view.mask is None else view.mask
            with layers_mixed(step.run.model, order, share, self.draw_layer(step.run)):
                objective = inner(replace(view, mask=mask))
        else:
            mask = step.batch.inputs["attention_mask"] if view.mask is None else view.mask
            embeds = mix(step.embeds(view), order, share)
            objective = inner(replace(view, embeds=embeds, mask=torch.maximum(mask, mask[order])))
        return replace(objective, logs={**objective.logs, "mixup_share": share.mean()})

    def draw(self, run: Run, count: int) -> tuple[Tensor, Tensor]:
        """Draw π and λ for so many examples, each (count,)."""
        order = torch.randperm(count, generator=run.generator(self.name), device=run.device)
        # The library's Beta draws from the global stream.
        with run.own_randomness(self.name):
            shares = draw_shares(
                count if self.per == "example" else 1, self.alpha, dominant=self.dominant, device=run.device
            )
        return order, shares.expand(count)

    def draw_layer(self, run: Run) -> Tensor:
        """Draw the layer after which hidden states are mixed, of the upper half, 0-dim on the device."""
        count = len(layers(run.model))
        return torch.randint(count // 2, count, (), generator=run.generator(self.name), device=run.device)
