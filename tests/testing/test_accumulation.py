"""The accumulation check gives whole batches and micro-batches the same draws, and finds what depends on these."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from finetune_bench import registry, testing
from finetune_bench.method.base import Method
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.parameters import parameter
from finetune_bench.testing import toys
from finetune_bench.testing.accumulation import SameDraws, forms
from finetune_bench.testing.toys import RECIPE


class Noisy(Method):
    """Penalises what a noise on the embeddings does to the logits."""

    name = "noisy"

    of: str = parameter("batch", choices=("batch", "tokens"), help="what the penalty is a mean over")

    def setup(self, run: Run) -> None:
        self.seen_: list[torch.Tensor] = []

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        first = inner(view)
        embeds = step.embeds(view)
        drawn = torch.randn(embeds.shape, generator=step.run.generator(self.name))
        self.seen_.append(drawn)
        change = (step.forward(replace(view, embeds=embeds + drawn)).logits - first.output.logits).square().sum()
        count = len(step.batch) if self.of == "batch" else step.batch.inputs["attention_mask"].sum()
        return replace(first, loss=first.loss + change / count)


class TokenMean(Noisy):
    """The same, wrong by default."""

    name = "token_mean"

    of: str = parameter("tokens", choices=("batch", "tokens"), help="what the penalty is a mean over")


class WithinKernel(Method):
    """Drops embeddings as CUDA's dropout does: the kernel draws, from the global stream."""

    name = "within_kernel"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        return inner(replace(view, embeds=torch.native_dropout(step.embeds(view), 0.5, True)[0]))


class Shuffled(Method):
    """Mixes each example with another one of its micro-batch."""

    name = "shuffled"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        order = torch.randperm(len(step.batch), generator=step.run.generator(self.name))
        return inner(replace(view, embeds=step.embeds(view).lerp(step.embeds(view)[order], 0.3)))


def test_a_penalty_that_depends_on_the_micro_batch_is_found() -> None:
    """A stream of its own was enough to be skipped."""
    with pytest.raises(AssertionError, match=r"with its defaults \(classification\) weights differ"):
        testing.accumulates(TokenMean)


@pytest.mark.slow
def test_so_is_one_in_a_form_that_is_not_the_default() -> None:
    with pytest.raises(AssertionError, match=r"with of=tokens \(classification\) weights differ"):
        testing.accumulates(Noisy)
    assert forms(Noisy) == [{}, {"of": "tokens"}]


def test_draws_that_no_example_can_be_told_in_are_skipped() -> None:
    with pytest.raises(testing.Skip, match="can't be cut into draws for micro-batches"):
        testing.accumulates(Shuffled)


class Redrawn(Noisy):
    """Draws for the whole micro-batch with a library that knows the global stream only."""

    name = "redrawn"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        with step.run.own_randomness(self.name):
            noise = torch.randn(step.embeds(view).shape)
        return inner(replace(view, embeds=step.embeds(view) + 0.1 * noise))


class Reordered(Method):
    """Mixes as Shuffled does, with an order from the global stream."""

    name = "reordered"

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        with step.run.own_randomness(self.name):
            order = torch.randperm(len(step.batch))
        return inner(replace(view, embeds=step.embeds(view).lerp(step.embeds(view)[order], 0.3)))


@pytest.mark.slow
def test_draws_from_the_global_stream_are_cut_too() -> None:
    """They were not looked at: what draws so failed, whatever it did."""
    testing.accumulates(Redrawn)
    with pytest.raises(testing.Skip, match="an order of its examples, can't be cut"):
        testing.accumulates(Reordered)


def test_micro_batches_get_their_rows_of_the_batchs_draws() -> None:
    seen = []
    for parts in (1, 4):
        noisy = Noisy()
        toys.toy_train([SameDraws(), noisy], recipe=replace(RECIPE, accumulation=parts))
        seen.append(noisy.seen_)
    whole, cut = seen
    assert (len(whole), len(cut)) == (6, 24)
    for number, drawn in enumerate(cut):
        first = number % 4 * 2
        assert torch.equal(drawn, whole[number // 4][first : first + 2, : drawn.shape[1]])
    assert not torch.equal(whole[0][:2, :4], whole[1][:2, :4])  # each step draws anew


@pytest.mark.slow
def test_passes_that_differ_by_dropout_are_compared_too() -> None:
    """R-Drop refuses to run without any, and was skipped for that."""
    testing.accumulates(registry.method_class("rdrop"))


def test_what_kernels_draw_cannot_be_cut() -> None:
    with pytest.raises(testing.Skip, match="draws numbers within kernels"):
        testing.accumulates(WithinKernel)
