"""Cutoff: a second pass sees the text with a part cut out, and both predictions are pulled together.

**In one sentence.** Every example passes twice, whole and with some of its embeddings set to zero; both passes are
trained on, and the symmetric divergence between their predictions is a penalty.

**Formula.** L = ½ (ℓ₁ + ℓ₂) + β · ½ · mean over the batch of [KL(p₁‖p₂) + KL(p₂‖p₁)]; regression has the squared
difference in place of the divergence. The second pass's token embeddings are zero on ⌊r·n⌋ of the n tokens of a text,
or in ⌊r·d⌋ of the d columns.

**Hyper-parameters.** `ratio` is r in [0, 1), 0.1 as in the authors' script; of a text of fewer than 1/r tokens nothing
is cut · `beta` ≥ 0, 1 in the authors' script · `kind`: `span` for consecutive tokens, `token` for any, `feature` for
columns of all tokens · `mask`: tokens that are cut are also hidden from attention, as in the authors' code.

**Where it acts.** In the objective; the embeddings are the raw ones, before position embeddings, norm and dropout. The
first and the last token of a text, which heads read, are never cut but for columns. Evaluation is one pass.

**Cost.** Two forward passes and one backward pass through both; the activations of both are kept.

**Randomness drawn.** batch numbers (`span`), batch · seq (`token`) or batch · dim (`feature`) for each evaluation of
the objective, from the method's own stream. The second pass draws its own dropout masks.

**Interactions.** As R-Drop's, with which it is refused: they are the same penalty. `mixup+cutoff` cuts a mixture.
`cutoff+sam` and `cutoff+freelb` climb in both passes. `neftune+cutoff`: both passes have the same noise, where it isn't
cut. With dropout on, the divergence measures the masks as well; `cutoff_divergence` and `cutoff_share`, the share of
what was cut, are logged.

**Deviations from the paper and its code.**
1. The authors' code adds the clean loss, α times the cut one and β times a divergence; here it is R-Drop's form: the
   mean of both losses, so that the learning rate means what it means in vanilla.
2. Its divergence is (KL(m‖p) + KL(m‖q)) / 2 with m the mean, which is not the Jensen-Shannon divergence that the paper
   names; here it is the task's symmetric one.
3. Its token and feature cuts draw with replacement, so that fewer are cut; here exactly so many are.
4. Its token cut leaves the clean loss out.
5. It can cut the first token. Here the first and the last token stay; separators between two texts can be cut.
6. It cuts the output of the embedding layer, where positions are added already, and hides what it cuts from attention;
   here positions stay, and hiding is `mask=true`. A pass with it is made with padding also in runs without.
7. Regression is supported, by the squared difference.

**Source.** Shen et al., 2020 (arXiv 2009.13818); code dinghanshen/Cutoff.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Generator, Tensor

from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import Range, parameter


def cut_span(mask: Tensor, ratio: float, generator: Generator) -> Tensor:
    """Draw ⌊ratio · n⌋ consecutive tokens of each text, neither its first nor its last.

    Args:
        mask: (batch, seq), 1 for real tokens, which lie side by side.
        ratio: share of a text's n tokens.
        generator: the stream, on the mask's device.

    Returns:
        (batch, seq), bool: what is cut.
    """
    count, room = _counts(mask, ratio)
    drawn = torch.rand(len(mask), generator=generator, device=mask.device)
    offset = (drawn * (room - count + 1)).long()
    start = mask.argmax(1) + 1 + offset
    position = torch.arange(mask.shape[1], device=mask.device)
    return (position >= start[:, None]) & (position < (start + count)[:, None])


def cut_tokens(mask: Tensor, ratio: float, generator: Generator) -> Tensor:
    """Draw ⌊ratio · n⌋ tokens of each text, neither its first nor its last; as `cut_span` but not consecutive."""
    count, room = _counts(mask, ratio)
    first = mask.argmax(1)[:, None]
    position = torch.arange(mask.shape[1], device=mask.device)
    within = (position > first) & (position <= first + room[:, None])
    drawn = torch.rand(mask.shape, generator=generator, device=mask.device)
    rank = drawn.masked_fill(~within, 2.0).argsort(1).argsort(1)
    return rank < count[:, None]


def cut_features(batch: int, dim: int, ratio: float, generator: Generator) -> Tensor:
    """Draw ⌊ratio · dim⌋ columns for each text, (batch, dim), bool."""
    drawn = torch.rand((batch, dim), generator=generator, device=generator.device)
    return drawn.argsort(1).argsort(1) < int(ratio * dim)


def _counts(mask: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Return how many tokens are cut of each text, and of how many they are drawn, each (batch,)."""
    lengths = mask.sum(1)
    room = (lengths - 2).clamp(min=0)
    return torch.minimum((ratio * lengths).long(), room), room


class Cutoff(Method):
    """The whole text and one with a part cut out, pulled together."""

    name = "cutoff"
    acts_on = "inputs"
    batch_layout = "unpadded_trimmed"

    ratio: float = parameter(
        0.1, interval="[0, 1)", neutral=0.0, search=Range(0.05, 0.3), help="r: share that is cut (authors' script)"
    )
    beta: float = parameter(
        1.0,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(0.1, 10, log=True),
        help="β: weight of the divergence (authors' script)",
    )
    kind: str = parameter(
        "span", choices=("span", "token", "feature"), search=("span", "token", "feature"), help="what is cut"
    )
    mask: bool = parameter(False, help="hide the tokens that are cut from attention, too")
    dropout: Dropout = parameter(
        Dropout.KEEP, neutral=Dropout.ALL_OFF, help="what is asked of the model's dropout (neutral: passes are equal)"
    )

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse R-Drop, hidden columns, and a cell in which both passes would be identical."""
        if any(partner.name == "rdrop" for partner in facts.partners):
            return "rdrop is the same penalty on two passes"
        if self.kind == "feature" and self.mask:
            return "columns can't be hidden from attention; use kind=span, kind=token or mask=false"
        if self.ratio == 0 and not facts.passes_differ:
            return "its two passes would be identical: nothing is cut, no dropout is active and no partner draws noise"
        return None

    def passes(self, inner: Passes) -> Passes:
        """Return twice the passes, but for the last backward pass."""
        # The last backward pass is of both.
        return Passes(2 * inner.forwards, 2 * inner.backwards - 1)

    def memory(self, inner: Memory) -> Memory:
        """Return twice what is saved, and the divergence."""
        return inner.times(2).plus(saved={"D": 1})

    def setup(self, run: Run) -> None:
        """Keep the stream of the cuts."""
        self.generator_ = run.generator(self.name)

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Average the loss of the whole and the cut text, and add the divergence of their predictions."""
        first = inner(view, weight=0.5)
        cut, share = self.cut(step, view)
        second = inner(cut, weight=0.5)
        divergence = step.divergence(first.output, second.output)
        loss = first.loss + second.loss + self.beta * 0.5 * divergence
        return Objective(loss, first.output, {**first.logs, "cutoff_divergence": divergence, "cutoff_share": share})

    def cut(self, step: Step, view: View) -> tuple[View, Tensor]:
        """Return the view of the second pass, and the mean share of a text that is cut from it, 0-dim."""
        seen = step.batch.inputs["attention_mask"] if view.mask is None else view.mask
        embeds = step.embeds(view)
        if self.kind == "feature":
            columns = cut_features(len(embeds), embeds.shape[-1], self.ratio, self.generator_)
            return replace(view, embeds=embeds * ~columns[:, None]), columns.float().mean()
        draw = cut_span if self.kind == "span" else cut_tokens
        tokens = draw(seen, self.ratio, self.generator_)
        hidden = seen * ~tokens if self.mask else view.mask
        share = (tokens.sum(1) / seen.sum(1)).mean()
        return replace(view, embeds=embeds * ~tokens[..., None], mask=hidden), share
