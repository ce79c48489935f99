"""LP-FT: the head is trained on frozen features first, and then everything from there.

**In one sentence.** A fresh head sends the body gradients that distort its features before the head is any good; so
the head alone is trained first (linear probing), and fine-tuning begins with a head that fits.

**Formula.** Of T steps the first P = share · T (rounded, one at least, T − 1 at most) are the probe: the body sleeps,
and the model predicts without dropout. From step P on all weights train. Each phase has a learning rate that climbs
from 0 and falls to 0, with its part of the warm-up; its peak is `head_lr` in the first and the recipe's in the
second. `closed`: no step is spent on the probe. Before the first one the output layer is fitted to the features of
one pass over the training data: it minimises Σ loss + ½‖W‖² (multinomial logistic regression; ridge for regression: Σ
(y − ŷ)² + ‖W‖²).

**Hyper-parameters.** `share` in [0, 1), 0.25; 0 is no probe of either kind · `head_lr`, 1e-3 · `probe`: `sgd` by
default, the recipe's optimiser, or `closed` · `reanchor`: whether the trained head is what partners take for
pre-trained. All defaults are ours.

**Where it acts.** The schedule; which weights train, after each step, for the next one; around each training pass of
the probe, which is made in evaluation mode. `closed`: in `setup`.

**Cost.** One forward and one backward pass; the probe's ends at the head. The formulas are those of all weights
awake. `closed`: one more pass over the training data before training, without a graph.

**Randomness drawn.** None; dropout draws nothing during the probe.

**Interactions.** `lp_ft+kl_anchor` has a reference with an opinion: with `reanchor` the head's present values count
as pre-trained after each step of the probe, so that the distance is 0 during it, and afterwards is that to the probed
model. `wise_ft(head=all)` takes its means with that head. `l2_sp` and `prior_decay` pull the head to zero as ever.
Partners act in both phases: their noise stays on during the probe, and `rdrop`'s penalty is 0 there. `closed` knows
nothing of partners that change the loss. Refused: others that decide which weights train, and other schedules
(`schedule_free`).

**Deviations from the paper and its code.**
1. The paper's probe is fitted to its end, with a penalty chosen on validation data, and spends none of the steps; the
default here is a number of steps out of the same T, so that budgets are equal. `closed` is nearest to the paper, with
a fixed penalty.
2. The head is all that lies outside of the body; where it has layers before the last one, as RoBERTa's has, `sgd`
trains them too, and `closed` leaves them as they were drawn.
3. One optimiser: the head's moments go on into the second phase. Those of the body begin with it.
4. As in the code, two classes get the weights (−w/2, +w/2) of the one vector that is fitted.

**Source.** Kumar et al., ICLR 2022 (arXiv 2202.10054); code AnanyaKumar/transfer_learning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune_bench.errors import FinetuneBenchError, ModelError
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.step import Run, State, View
from finetune_bench.model.dropout import evaluation_mode
from finetune_bench.model.structure import body, output_layer
from finetune_bench.parameters import Range, parameter
from finetune_bench.recipe import rate_factor
from finetune_bench.task import Task

# Fits of this many rounds end before it; on classes that can be separated none is needed to the last digit.
_ROUNDS = 10_000


def probe_steps(share: float, total_steps: int) -> int:
    """Return how many of the steps are the probe's: one at least, and one is left to fine-tune where there are two."""
    return max(1, min(round(share * total_steps), total_steps - 1)) if share else 0


def two_phases(first: int, total_steps: int, warmup: int, peak: float) -> Callable[[int], float]:
    """Return a schedule of two phases, each with a rise and a fall of its own.

    Args:
        first: the steps of the first phase.
        total_steps: the steps of both.
        warmup: the steps of both in which rates climb; each phase has its part.
        peak: the first phase's highest factor; the second's is 1.
    """
    in_first = warmup * first // total_steps

    def factor(step: int) -> float:
        if step < first:
            return peak * rate_factor(step, first, in_first)
        return rate_factor(step - first, total_steps - first, warmup - in_first)

    return factor


def fit_output(features: np.ndarray, labels: np.ndarray, outputs: int, *, bias: bool) -> tuple[np.ndarray, np.ndarray]:
    """Fit an output layer by logistic regression, or by ridge regression where it has one output.

    Args:
        features: (examples, dim), float64.
        labels: (examples,), classes or numbers.
        outputs: how many outputs the layer has.
        bias: whether it has a bias.

    Returns:
        Weights (outputs, dim) and biases (outputs,).

    Raises:
        FinetuneBenchError: a class has no example.
    """
    from sklearn.linear_model import LogisticRegression, Ridge  # loading them takes a second
    from threadpoolctl import threadpool_limits  # it comes with scikit-learn

    # One thread: sums are rounded by how they are cut.
    with threadpool_limits(limits=1):
        if outputs == 1:
            ridge = Ridge(alpha=1.0, fit_intercept=bias).fit(features, labels)
            return ridge.coef_.reshape(1, -1), np.atleast_1d(ridge.intercept_)
        if absent := sorted(set(range(outputs)) - set(labels.tolist())):
            raise FinetuneBenchError(
                f"lp_ft(probe=closed) fits a head to examples of every class, and class {absent[0]} of {outputs} has "
                f"none among {len(labels)}; use probe=sgd, or more training examples."
            )
        fitted = LogisticRegression(C=1.0, fit_intercept=bias, tol=1e-8, max_iter=_ROUNDS).fit(features, labels)
    if outputs == 2:
        halves = np.array([[-0.5], [0.5]])
        return halves * fitted.coef_, halves[:, 0] * fitted.intercept_
    return fitted.coef_, np.broadcast_to(fitted.intercept_, (outputs,))


@torch.no_grad()
def features_of(run: Run, layer: nn.Module, order: str) -> tuple[Tensor, Tensor]:
    """Return what enters a layer in one pass over the training data, without noise, (examples, dim), and the labels."""
    entered: list[Tensor] = []
    labels: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        entered.append(args[0].double().cpu())

    # After the pass: a decoder's layer is given the last tokens by a hook of its own.
    handle = layer.register_forward_hook(keep)
    try:
        with evaluation_mode(run.model):
            for batch in run.batches(order):
                run.loss(batch, View(perturb=False))
                labels.append(batch.labels.cpu())
    finally:
        handle.remove()
    return torch.cat(entered), torch.cat(labels)


class LPFT(Method):
    """The head is trained first, and then everything."""

    name = "lp_ft"
    acts_on = "which weights train"
    # The rows of a trimmed table would have no decay while it sleeps.
    batch_layout = "unpadded"

    share: float = parameter(
        0.25,
        interval="[0, 1)",
        neutral=0.0,
        search=Range(0.1, 0.5),
        help="share of the steps that train the head alone",
    )
    head_lr: float = parameter(
        1e-3, interval="(0, inf)", search=Range(1e-4, 1e-2, log=True), help="peak learning rate of those steps"
    )
    probe: str = parameter("sgd", choices=("sgd", "closed"), help="train the head in steps, or fit it before the first")
    reanchor: bool = parameter(True, help="let the trained head count as pre-trained for kl_anchor and wise_ft")

    # Partners' set-ups make passes before this method's own.
    probing_ = False

    @property
    def exclusive(self) -> tuple[str, ...]:
        """Claim the choice of the weights that train."""
        return ("weights that train",)

    @property
    def trains_head_first(self) -> bool:
        """Say whether partners find a trained head among the pre-trained weights."""
        return self.share > 0 and self.reanchor

    def unsupported(self, facts: Facts) -> str | None:
        """Refuse to fit what no regression fits."""
        if self.probe == "sgd":
            return None
        if type(facts.task).loss is not Task.loss:
            return f"probe=closed fits by regression, and the loss of '{facts.task.name}' is its own; use probe=sgd"
        try:
            output_layer(facts.skeleton)
        except ModelError as error:
            return f"{str(error).removesuffix('.')}, which probe=closed would fit; use probe=sgd"
        return None

    def warning(self, facts: Facts) -> str | None:
        """Say which parameters a fitted probe doesn't read."""
        usual = type(self).share, type(self).head_lr
        if self.probe == "closed" and self.share > 0 and (self.share, self.head_lr) != usual:
            return "probe=closed spends no steps: share and head_lr have no effect"
        return None

    def setup(self, run: Run) -> None:
        """Fit the output layer, where that is asked for."""
        inside = {id(weight) for weight in body(run.model).parameters()}
        self.head_ = [name for name, weight in run.params.items() if id(weight) not in inside]
        self.step_, self.steps_ = 0, probe_steps(self.share, run.total_steps) if self.probe == "sgd" else 0
        if self.probe == "closed" and self.share > 0:
            self._fit(run)
            self._reanchor(run)

    def _fit(self, run: Run) -> None:
        layer = output_layer(run.model)
        features, labels = features_of(run, layer, self.name)
        weight, bias = fit_output(features.numpy(), labels.numpy(), layer.out_features, bias=(layer.bias is not None))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(bias.copy()))

    def _reanchor(self, run: Run) -> None:
        if self.reanchor:
            run.reanchor(self.head_)

    def schedule(self, run: Run) -> Callable[[int], float] | None:
        """Return the schedule of both phases, and put the body to sleep: by now all methods have seen it awake."""
        if self.steps_ == 0:
            return None
        head = set(self.head_)
        self.body_ = [w for name, w in run.params.items() if w.requires_grad and name not in head]
        self._begin_phase()
        warmup = run.recipe.warmup_steps(run.total_steps)
        return two_phases(self.steps_, run.total_steps, warmup, self.head_lr / run.recipe.lr)

    def _begin_phase(self) -> None:
        self.probing_ = self.step_ < self.steps_
        for weight in self.body_:
            weight.requires_grad_(not self.probing_)

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        """Predict without dropout during the probe."""
        with evaluation_mode(run.model) if self.probing_ else nullcontext():
            yield

    def after_step(self, run: Run) -> None:
        """Count the probe's steps, and let the body train after the last."""
        if not self.probing_:
            return
        self.step_ += 1
        self._reanchor(run)
        self._begin_phase()

    def state(self) -> State:
        """Return the count of the probe's steps."""
        return {"step": self.step_}

    def load_state(self, state: State) -> None:
        """Take it back, and wake the body where its phase has begun."""
        self.step_ = state["step"]
        if self.steps_:
            self._begin_phase()

    def teardown(self, run: Run) -> None:
        """Let all weights train again, and have their dropout."""
        self.probing_ = False
        for weight in getattr(self, "body_", []):
            weight.requires_grad_(True)
