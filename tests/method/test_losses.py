"""Losses of single examples and soft targets, by hand-computed values; two methods written from the tutorial alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune_bench import registry, testing
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import layer_inputs_changed
from finetune_bench.parameters import Range, parameter
from finetune_bench.task import Output
from finetune_bench.testing import toys
from tests.tiny_run import REGRESSION, first_step, tiny_run


class LabelSmoothing(Method):
    """The loss of each example, drawn towards that of a uniform prediction."""

    name = "smoothing"
    classes_only = True

    epsilon: float = parameter(0.1, interval="[0, 1]", neutral=0.0, search=Range(0.01, 0.4, log=True), help="share")

    def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
        return (1 - self.epsilon) * losses - self.epsilon * output.logits.float().log_softmax(-1).mean(-1)


class Mixup(Method):
    """What enters one layer, and the labels, mixed with those of another example of the batch."""

    name = "mixup"

    share: float = parameter(0.4, interval="[0, 0.5]", neutral=0.0, search=Range(0.1, 0.5), help="largest share")
    layer: int = parameter(1, interval="[0, inf)", help="the layer whose input is mixed")

    @property
    def stochastic(self) -> bool:
        return self.share > 0

    def unsupported(self, facts: Facts) -> str | None:
        if facts.recipe.accumulation > 1:
            return "accumulation cuts the batch within which it mixes"
        if facts.recipe.gradient_checkpointing:
            return "gradient checkpointing computes the layer again when nothing is mixed any more"
        return None

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        if self.share == 0:
            return inner(view)
        stream, whole = step.run.generator(self.name), step.targets(view)
        order = torch.randperm(len(whole), generator=stream, device=whole.device)
        share = torch.rand((), generator=stream, device=whole.device) * self.share

        def mix(index: int, hidden: Tensor) -> Tensor:
            return hidden.lerp(hidden[order], share.to(hidden.dtype)) if index == self.layer else hidden

        with layer_inputs_changed(step.run.model, mix):
            return inner(replace(view, targets=whole.lerp(whole[order], share)))


LOGITS = torch.tensor([[0.7, 0.2, 0.1]]).log()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both methods are known by their names, as with --plugin."""
    monkeypatch.setitem(registry._added, "methods", {"smoothing": LabelSmoothing, "mixup": Mixup})


def test_losses_by_hand() -> None:
    """p = (.7, .2, .1), the first class is right."""
    losses = toys.toy_task("classification").losses(Output(LOGITS), torch.tensor([0]))
    assert losses.tolist() == pytest.approx([0.356675], abs=1e-6)
    run = tiny_run()
    smoothed = LabelSmoothing(epsilon=0.1).losses(run, Output(LOGITS), losses)
    assert smoothed.tolist() == pytest.approx([0.463297], abs=1e-6)
    soft = torch.tensor([[0.9 + 0.1 / 3, 0.1 / 3, 0.1 / 3]])
    by_targets = toys.toy_task("classification").losses(Output(LOGITS), soft)
    assert by_targets.tolist() == pytest.approx([0.463297], abs=1e-6)


def test_smoothing_is_torchs() -> None:
    logits, labels = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])
    losses = toys.toy_task("classification").losses(Output(logits), labels)
    mine = LabelSmoothing(epsilon=0.2).losses(tiny_run(), Output(logits), losses).mean()
    torch.testing.assert_close(mine, F.cross_entropy(logits, labels, label_smoothing=0.2))


def test_the_mean_of_the_losses_is_the_loss() -> None:
    for kind, dtype in (
        ("classification", torch.float32),
        ("classification", torch.bfloat16),
        ("regression", torch.float32),
    ):
        task = toys.toy_task(kind)  # type: ignore[arg-type]
        logits = torch.randn(6, task.outputs, generator=torch.Generator().manual_seed(1)).to(dtype)
        labels = torch.tensor([0, 1, 2, 0, 1, 2]) if kind == "classification" else torch.arange(6.0)
        losses = task.losses(Output(logits), labels)
        assert losses.shape == (6,)
        assert losses.dtype == torch.float32
        torch.testing.assert_close(losses.mean(), task.loss(Output(logits), labels), atol=1e-6, rtol=1e-6)
    by_hand = toys.toy_task("regression").losses(Output(torch.tensor([[1.0], [2.0]])), torch.tensor([3.0, 2.5]))
    assert by_hand.tolist() == [4.0, 0.25]


def test_losses_are_left_alone_at_the_neutral_setting() -> None:
    """The task's loss keeps its last bit, whatever rounding the method's formula has there."""

    class Rounding(Method):
        name = "rounding"
        strength: float = parameter(1.0, interval="[0, inf)", neutral=0.0)

        def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
            return losses * (1 + self.strength) + 1e-3

    step = first_step(tiny_run(Rounding(strength=0.0), dropout=Dropout.ALL_OFF))
    assert torch.equal(step.objective().loss.detach(), step.task_losses[0])
    assert not Rounding().at_neutral
    assert Rounding(strength=0.0).at_neutral
    assert not Method().at_neutral
    with pytest.raises(AssertionError, match=r"with {'strength': 0.0} its `losses` change by 1.*e-03"):
        testing.neutral_is_vanilla(Rounding)


def test_what_needs_classes_is_refused_for_numbers() -> None:
    for stack in ([LabelSmoothing()], [Mixup(), LabelSmoothing()]):
        assert toys.unsupported(stack, kind="classification") is None
        reason = toys.unsupported(stack, kind="regression")
        assert reason == "smoothing: a regression task has no distribution over classes"


def test_targets_can_be_mixed() -> None:
    step = first_step(tiny_run())
    labels = step.batch.labels
    assert torch.equal(step.targets(), F.one_hot(labels, 3).float())
    assert torch.equal(step.targets(View(targets=labels.flip(0))), F.one_hot(labels.flip(0), 3).float())
    soft = torch.full((8, 3), 1 / 3)
    assert step.targets(View(targets=soft)) is soft
    of_numbers = first_step(tiny_run(task=REGRESSION))
    assert of_numbers.targets(View()) is of_numbers.batch.labels


def test_the_leftmost_is_the_outermost() -> None:
    class Doubled(Method):
        name = "doubled"

        def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
            return 2 * losses

    class Shifted(Method):
        name = "shifted"

        def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
            return losses + 1

    for stack, expected in (
        ((Doubled(), Shifted()), lambda x: 2 * (x + 1)),
        ((Shifted(), Doubled()), lambda x: 2 * x + 1),
    ):
        step = first_step(tiny_run(*stack, dropout=Dropout.ALL_OFF))
        loss = step.objective().loss
        torch.testing.assert_close(loss.detach(), expected(step.task_losses[0]))  # the trace has the task's own


def test_targets_stand_in_for_the_labels() -> None:
    run = tiny_run(dropout=Dropout.ALL_OFF)
    step = first_step(run)
    other = step.batch.labels.flip(0)
    plain = step.task_objective(View())
    torch.testing.assert_close(step.task_objective(View(targets=other)).loss, step.loss(plain.output, other))
    soft = F.one_hot(other, 3).float().lerp(F.one_hot(step.batch.labels, 3).float(), 0.25)
    mixed = 0.75 * step.loss(plain.output, other) + 0.25 * step.loss(plain.output, step.batch.labels)
    torch.testing.assert_close(step.task_objective(View(targets=soft)).loss, mixed)
    of_numbers = first_step(tiny_run(task=REGRESSION, dropout=Dropout.ALL_OFF))
    output = of_numbers.task_objective(View()).output
    by_hand = (output.logits.reshape(-1) - 2.0).square().mean()
    torch.testing.assert_close(of_numbers.task_objective(View(targets=torch.full((8,), 2.0))).loss, by_hand)


def test_both_passes_of_rdrop_are_smoothed_and_their_divergence_is_not() -> None:
    def objective(*methods: Method) -> tuple[float, float]:
        run = tiny_run(*methods)
        step = first_step(run)
        made = step.objective()
        return float(made.loss.detach()), float(made.logs["rdrop_divergence"].detach())  # type: ignore[union-attr]

    rdrop = registry.method_class("rdrop")
    plain, smoothed = objective(rdrop()), objective(rdrop(), LabelSmoothing())
    assert plain[1] == smoothed[1]
    assert objective(LabelSmoothing(), rdrop()) == smoothed
    assert plain[0] != smoothed[0]


def test_a_task_with_a_loss_of_its_own_is_refused() -> None:
    @dataclass(frozen=True)
    class Hinge(toys.ToyTask):
        def loss(self, output: Output, labels: Tensor) -> Tensor:
            return F.multi_margin_loss(output.logits, labels)

    @dataclass(frozen=True)
    class Said(Hinge):
        def losses(self, output: Output, labels: Tensor) -> Tensor:
            return F.multi_margin_loss(output.logits, labels, reduction="none")

    stack = testing.toys.Stack([LabelSmoothing()])
    facts = dataclasses.replace(toys.toy_facts(stack), task=Hinge(labels=tuple("abc")))
    assert "doesn't say the losses of single examples" in str(stack.unsupported(facts))
    assert stack.unsupported(dataclasses.replace(facts, task=Said(labels=tuple("abc")))) is None
    assert testing.toys.Stack([Mixup()]).unsupported(facts) is None
    with pytest.raises(FinetuneBenchError, match="define `losses` in Hinge"):
        first_step(tiny_run(task=Hinge(labels=tuple("abc")))).task_objective(View(targets=torch.zeros(8).long()))


@pytest.mark.parametrize("wrong", [lambda losses: losses.mean(), lambda losses: None, lambda losses: losses[:, None]])
def test_one_loss_per_example_is_asked_for(wrong: Any) -> None:
    class Careless(Method):
        name = "careless"

        def losses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
            return wrong(losses)  # type: ignore[no-any-return]

    with pytest.raises(FinetuneBenchError, match=r"'careless': its `losses` must return one loss per example, \(8,\)"):
        first_step(tiny_run(Careless())).objective()


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("owner", [LabelSmoothing, Mixup], ids=["smoothing", "mixup"])
@pytest.mark.slow
def test_a_method_written_from_the_tutorial_keeps_the_contract(owner: type[Method]) -> None:
    quick = [
        c
        for c in testing.CHECKS
        if c not in (testing.pairs, testing.trains_everywhere, testing.arranges, testing.resumes)
    ]
    outcomes = list(testing.check_method(owner, checks=quick))
    assert [f"{check.name}: {check.detail}" for check in outcomes if check.outcome == "FAIL"] == []


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("other", ["freelb", "rdrop", "r3f", "sam"])
@pytest.mark.parametrize("owner", [LabelSmoothing, Mixup], ids=["smoothing", "mixup"])
def test_it_goes_with_methods_of_several_passes(owner: type[Method], other: str) -> None:
    """FreeLB ends passes early: the gradient is still that of the loss, on either side."""
    partner = registry.method_class(other)
    for pair in ((owner, partner), (partner, owner)):
        testing.check_gradient([one() for one in pair], [one() for one in pair])
