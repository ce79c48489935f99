"""EWC: elastic weight consolidation holds each weight to its pre-trained value as firmly as pre-training needs it.

**In one sentence.** A squared penalty on the distance to the pre-trained weights counts each weight by the Fisher
information that the pre-training objective has of it, so that what the language model doesn't need is free to move.

**Formula.** L + λ/2 · Σ_j F_j · (θ_j − θ⁰_j)² over the body's weights. F_j is the mean over texts of (∂ℓ/∂θ_j)², with ℓ
the language-modelling loss of one text under the pre-trained model, a mean over its predicted tokens; F is then scaled
to a mean of 1 over all of these weights, and cut at 100.

**Hyper-parameters.** `strength` is λ ≥ 0, 0.1 (ours); with F's mean of 1 it compares with L2-SP's α; 1e-3 to 100 is a
sensible search · `fisher`: `lm` measures F with the checkpoint's own language-modelling head, `none` is F = 1, which is
L2-SP on the body alone · `texts`: of how many training texts F is the mean, 256 (ours) · `labels`: the tokens that are
predicted are those `observed`, which gives the empirical Fisher information, or `sampled` from the model's own
prediction, which gives the true one.

**Where it acts.** In the loss, so that the penalty's gradient is clipped and passes through Adam's moments like the
task's. Where it pulls, the recipe's weight decay toward zero is off. The head is not pulled.

**Cost.** One forward and one backward pass; a copy of the pre-trained weights and F; until the backward pass the
difference, and F once more. Before training one forward and one backward pass for each of the texts, by itself, through
a second model that is loaded and let go.

**Randomness drawn.** The texts are the first of an order of its own; masks and sampled tokens come from its own stream.

**What the old task is.** Pre-training: a decoder predicts each next token of the training texts; an encoder predicts 15
% of the tokens, which are masked. The Fisher information of the new task through a fresh head would say what that task
needs, which is the opposite. A checkpoint without its language-modelling head, as exports for sentence embeddings are,
is refused.

**Interactions.** Refused: `l2_sp`, `prior_decay`, `recadam`, which pull to the same point; `lora`, whose weights have
no pre-trained values. `reinit_layers`: what was drawn anew is not pulled. `noisytune`: its noise is penalised.
`child_tuning_f` and `child_tuning_d` mask the penalty's gradient with the task's. `rdrop`, left or right: the penalty
counts once. `layerwise_lr_decay` scales the pull with the rate.

**Deviations from the paper.**
1. The paper's old tasks are supervised; here it is language modelling on the texts of the new one, as the corpus of
   pre-training is not at hand.
2. F is scaled and cut, so that λ means the same for every checkpoint, and single weights can't freeze the training.
3. The empirical Fisher information is the default.
4. A text's loss is the mean over its tokens, so that long texts count like short ones.
5. What the language model lacks, as BERT's pooler, is not pulled.

**Source.** Kirkpatrick et al., PNAS 2017 (arXiv 1612.00796).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from finetune_bench.errors import ModelError
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Memory
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model import language, pretrained
from finetune_bench.model.structure import body
from finetune_bench.optimizers import regroup
from finetune_bench.parameters import Range, parameter

# No weight is held more firmly than this many times the mean.
LARGEST = 100.0
MASKED_SHARE = 0.15


def mean_squares(gradients: Iterable[Sequence[Tensor]]) -> list[Tensor]:
    """Compute the mean over texts of squared gradients: F, a tensor for each weight; one text at least."""
    sums: list[Tensor] = []
    count = 0
    for gradient in gradients:
        squares = [part.float().square() for part in gradient]
        sums = [total.add_(square) for total, square in zip(sums, squares, strict=True)] if sums else squares
        count += 1
    return [total / count for total in sums]


def scale_fisher(fisher: Sequence[Tensor]) -> list[Tensor]:
    """Scale F to a mean of 1 over all entries of all tensors, and cut it at `LARGEST`; zero everywhere stays zero."""
    total = torch.stack([part.double().sum() for part in fisher]).sum()
    mean = (total / sum(part.numel() for part in fisher)).clamp(min=torch.finfo(torch.float32).tiny)
    return [(part / mean).float().clamp(max=LARGEST) for part in fisher]


def penalty(weights: Sequence[Tensor], anchors: Sequence[Tensor], fisher: Sequence[Tensor] | None) -> Tensor:
    """Compute Σ F · (θ − θ⁰)², 0-dim, over tensors of one shape each; F is 1 where there is none."""
    if fisher is None:
        parts = [(weight - anchor).square().sum() for weight, anchor in zip(weights, anchors, strict=True)]
    else:
        pulled = zip(weights, anchors, fisher, strict=True)
        parts = [(factor * (weight - anchor).square()).sum() for weight, anchor, factor in pulled]
    return torch.stack(parts).sum()


def text_loss(
    model: nn.Module, ids: Tensor, masked: Tensor | None, mask_id: int, generator: Generator | None
) -> Tensor:
    """Compute a language model's mean loss of one text, 0-dim.

    Args:
        model: the language model, in evaluation mode.
        ids: (tokens,), two at least.
        masked: (tokens,), which of them are masked and predicted; None to predict each from those before it.
        mask_id: the mask token's id.
        generator: draws the tokens that count as right from the prediction; None for those of the text.
    """
    if masked is None:
        logits, targets = model(input_ids=ids[None]).logits[0, :-1].float(), ids[1:]
    else:
        hidden = ids.masked_fill(masked, mask_id)
        logits, targets = model(input_ids=hidden[None]).logits[0, masked].float(), ids[masked]
    if generator is not None:
        targets = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
    return F.cross_entropy(logits, targets)


def draw_masked(ids: Tensor, special: Tensor, generator: Generator) -> Tensor:
    """Draw 15 % of a text's tokens, one at least, none of them special; (tokens,), bool, all False without any."""
    words = torch.isin(ids, special, invert=True).nonzero()[:, 0]
    count = max(1, round(MASKED_SHARE * len(words)))
    order = torch.randperm(len(words), generator=generator, device=ids.device)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[words[order[:count]]] = True
    return masked


class EWC(Method):
    """A pull to the pre-trained weights, by what pre-training needs."""

    name = "ewc"
    acts_on = "loss"
    batch_layout = "unpadded"
    reads_pretrained = True

    strength: float = parameter(
        0.1,
        interval="[0, inf)",
        neutral=0.0,
        search=Range(1e-3, 100, log=True),
        help="λ: weight of the penalty (ours)",
    )
    fisher: str = parameter("lm", choices=("lm", "none"), help="F: of the checkpoint's language modelling, or 1")
    texts: int = parameter(256, interval="[1, inf)", help="how many training texts F is measured on (ours)")
    labels: str = parameter("observed", choices=("observed", "sampled"), help="the tokens that F takes for right")

    @property
    def exclusive(self) -> tuple[str, ...]:
        """It pulls the weights back."""
        return ("pull to the pre-trained weights",)

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse adapters, and checkpoints without a language-modelling head."""
        if any(partner.name in ("lora", "peft") for partner in facts.partners):
            return "adapters have no pre-trained values"
        if self.fisher == "none":
            return None
        name: str = facts.skeleton.config.name_or_path  # type: ignore[union-attr, assignment]
        try:
            if name and language.kind_of(name) is not None:
                return None
        except ModelError as error:
            return str(error)
        return "the checkpoint has no language-modelling head to measure with; use ewc(fisher=none), or l2_sp"

    def memory(self, inner: Memory) -> Memory:
        """Add one copy of the weights, F, and until the backward pass the body's differences, and F."""
        pulls, measured = int(self.strength > 0), int(self.strength > 0 and self.fisher == "lm")
        return inner.plus(saved={"P_body": pulls + measured}, kept={"P": 1, "P_body": measured})

    def setup(self, run: Run) -> None:
        """Measure F, with a second model that is let go."""
        self.names_: list[str] = []
        self.fisher_: list[Tensor] | None = None
        if self.strength == 0:
            return
        inside = {id(weight) for weight in body(run.model).parameters()}
        names = [name for name, weight in run.params.items() if id(weight) in inside]
        if self.fisher == "none":
            self.names_ = names
            return
        checkpoint: str = run.model.config.name_or_path  # type: ignore[union-attr, assignment]
        kind = language.kind_of(checkpoint)
        if kind is None:
            raise ModelError(f"--model: '{checkpoint}' has no language-modelling head, which ewc measures with")
        model = language.load(checkpoint, kind).to(run.device)
        known = dict(model.named_parameters())
        # What was drawn anew is not what the language model was pre-trained to.
        self.names_ = [name for name in names if name in known and torch.equal(known[name], run.pretrained[name])]
        if not self.names_:
            raise ModelError(f"--model: the weights are not those of '{checkpoint}', whose language model ewc loads")
        measured = mean_squares(self._gradients(run, model, kind, [known[name] for name in self.names_]))
        self.fisher_ = scale_fisher(measured)

    def _gradients(
        self, run: Run, model: nn.Module, kind: language.Kind, weights: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        """Yield the gradients of one text after the other."""
        stream = run.generator(self.name)
        tokenizer: Any = pretrained.tokenizer(run.model.config.name_or_path) if kind == "masked" else None  # type: ignore[union-attr]
        special = torch.tensor(tokenizer.all_special_ids if tokenizer else [], device=run.device)
        mask_id = tokenizer.mask_token_id if tokenizer else 0
        if mask_id is None:
            raise ModelError("--model: the tokenizer has no mask token, which a masked language model predicts at")
        count = 0
        for ids in _texts(run, self.name):
            masked = draw_masked(ids, special, stream) if kind == "masked" else None
            if len(ids) < 2 or (masked is not None and not masked.any()):
                continue
            loss = text_loss(model, ids, masked, mask_id, stream if self.labels == "sampled" else None)
            yield run.grad(loss, weights)
            count += 1
            if count == self.texts:
                return
        if count == 0:
            raise ModelError("no training text has a token that a language model could predict; use ewc(fisher=none)")

    def optimizer(self, optimizer: Optimizer, run: Run) -> Optimizer:
        """Remember what is pulled, and turn its weight decay off."""
        trained = [index for index, name in enumerate(self.names_) if run.params[name].requires_grad]
        self.pulled_ = {self.names_[index]: run.params[self.names_[index]] for index in trained}
        self.anchors_ = [run.pretrained[name] for name in self.pulled_]
        if self.fisher_ is not None:
            self.fisher_ = [self.fisher_[index] for index in trained]
        pulled = {id(weight) for weight in self.pulled_.values()}

        def off(weight: Tensor, group: dict[str, Any]) -> dict[str, Any]:
            return {"weight_decay": 0.0} if id(weight) in pulled else {}

        if pulled:
            regroup(optimizer, off)
        return optimizer

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        """Add the penalty to the loss."""
        objective = inner(view)
        if not self.pulled_:
            return objective
        swapped = view.weights or {}
        weights = [swapped.get(name, weight) for name, weight in self.pulled_.items()]
        pull = self.strength / 2 * penalty(weights, self.anchors_, self.fisher_)
        return replace(objective, loss=objective.loss + pull, logs={**objective.logs, "ewc_penalty": pull})


def _texts(run: Run, order: str) -> Iterator[Tensor]:
    """Yield the token ids of the training texts, without padding, each (tokens,)."""
    for batch in run.batches(order):
        for ids, mask in zip(batch.inputs["input_ids"], batch.inputs["attention_mask"], strict=True):
            yield ids[mask.bool()]
