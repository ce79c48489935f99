"""Label smoothing, focal loss, confidence penalty and DFT: hand-computed values, and torch's and transformers' own."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from finetune_bench import registry, testing
from finetune_bench.functional import weighted
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.methods.confidence_penalty import ConfidencePenalty
from finetune_bench.methods.dft import DFT
from finetune_bench.methods.focal import LEAST, Focal
from finetune_bench.methods.label_smoothing import LabelSmoothing
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.task import Output
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run

TASK = toys.toy_task("classification")
OWNERS: tuple[type[Method], ...] = (LabelSmoothing, Focal, ConfidencePenalty, DFT)


def changed(method: Method, logits: Tensor, labels: Tensor) -> Tensor:
    """The losses that a method makes of a prediction's."""
    output = Output(logits)
    return method.losses(tiny_run(), output, TASK.losses(output, labels))


@pytest.mark.parametrize(
    ("method", "loss", "gradient"),
    [
        (LabelSmoothing(epsilon=0.1), 0.463297, (0.7 - 0.9 - 0.1 / 3, 0.2 - 0.1 / 3, 0.1 - 0.1 / 3)),
        (LabelSmoothing(epsilon=0.1, uniform=False), 0.9 * 0.356675, (-0.27, 0.18, 0.09)),
        (Focal(gamma=2.0), 0.032101, (-0.071941, 0.047961, 0.023980)),
        (Focal(gamma=2.0, weights="shared"), 0.032101, (-0.3 * 0.09, 0.2 * 0.09, 0.1 * 0.09)),
        (ConfidencePenalty(beta=0.1), 0.276493, (-0.268840, 0.183848, 0.084992)),
        (DFT(), 0.249672, (-0.21, 0.14, 0.07)),
        (DFT(power=2.0), 0.49 * 0.356675, (-0.3 * 0.49, 0.2 * 0.49, 0.1 * 0.49)),
        (DFT(weights="normalised"), 0.356675, (-0.3, 0.2, 0.1)),
    ],
    ids=lambda value: registry.describe(Stack([value])) if isinstance(value, Method) else "",
)
def test_loss_and_gradient_by_hand(method: Method, loss: float, gradient: tuple[float, ...]) -> None:
    """p = (.7, .2, .1), the first class is right."""
    logits = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log().requires_grad_()
    made = changed(method, logits, torch.tensor([0]))
    assert made.tolist() == pytest.approx([loss], abs=1e-6)
    (on_logits,) = torch.autograd.grad(made.sum(), logits)
    assert on_logits.flatten().tolist() == pytest.approx(gradient, abs=1e-6)


def random_batch() -> tuple[Tensor, Tensor]:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return logits.requires_grad_(), torch.tensor([0, 2, 1, 1, 0, 2])


def test_smoothing_is_torchs_and_transformers() -> None:
    from transformers.trainer_pt_utils import LabelSmoother

    logits, labels = random_batch()
    mine = changed(LabelSmoothing(epsilon=0.2), logits, labels).mean()
    torch.testing.assert_close(mine, F.cross_entropy(logits, labels, label_smoothing=0.2))
    torch.testing.assert_close(mine, LabelSmoother(0.2)({"logits": logits}, labels))
    soft = F.one_hot(labels, 3).double().lerp(F.one_hot(labels.flip(0), 3).double(), 0.3)
    mixed = changed(LabelSmoothing(epsilon=0.2), logits, soft).mean()
    torch.testing.assert_close(mixed, F.cross_entropy(logits, soft, label_smoothing=0.2))


def test_dft_has_the_gradient_of_minus_the_labels_probability() -> None:
    logits, labels = random_batch()
    (mine,) = torch.autograd.grad(changed(DFT(), logits, labels).sum(), logits)
    (of_p,) = torch.autograd.grad(-logits.softmax(-1).gather(1, labels[:, None]).sum(), logits)
    torch.testing.assert_close(mine, of_p)


def test_focal_is_the_published_form_and_its_gradient_is_whole() -> None:
    logits, labels = random_batch()
    p = logits.softmax(-1).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(changed(Focal(gamma=0.5), logits, labels), -((1 - p) ** 0.5) * p.log())
    assert torch.autograd.gradcheck(lambda x: changed(Focal(gamma=0.5), x, labels), (logits,))
    sure = torch.tensor(
        [[200.0, 0.0, 0.0]], requires_grad=True
    )  # 1 − p is 0 in float32, and its root has no slope there
    made = changed(Focal(gamma=0.5), sure, torch.tensor([0]))
    assert made.tolist() == [0.0]
    (gradient,) = torch.autograd.grad(made.sum(), sure)
    assert float(gradient.abs().max()) <= LEAST


def test_the_controls_have_the_scale_or_the_selection() -> None:
    """`shared` and `own` have equal mean weights, `normalised` a mean weight of 1."""
    losses, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.5, 0.25, 0.0])
    made = {whose: weighted(losses, weights, whose).tolist() for whose in ("own", "shared", "normalised")}
    assert made == {"own": [0.5, 0.5, 0.0], "shared": [0.25, 0.5, 1.0], "normalised": [2.0, 2.0, 0.0]}
    assert weighted(losses, torch.zeros(3), "normalised").tolist() == [0.0, 0.0, 0.0]
    for method in (DFT(), Focal()):
        assert {effect: registry.describe(Stack([twin])) for effect, twin in method.effects().items()} == {
            "loss scale": f"{method.name}(weights=shared)",
            "per-example weights": method.name,
        }
    effects = LabelSmoothing().effects()
    assert [registry.describe(Stack([twin])) for twin in effects.values()] == [
        "label_smoothing(uniform=false)",
        "label_smoothing",
    ]


def test_a_mean_over_the_batch_is_refused_where_the_batch_is_cut() -> None:
    cut = Recipe(batch_size=8, accumulation=2)
    for owner in (DFT, Focal):
        assert toys.unsupported(owner(), recipe=cut) is None
        for whose in ("shared", "normalised"):
            assert f"weights={whose} takes a mean" in str(toys.unsupported(owner(weights=whose), recipe=cut))


@pytest.mark.parametrize("owner", OWNERS)
def test_regression_and_a_loss_of_its_own_are_refused(owner: type[Method]) -> None:
    for architecture in ("bert", "llama"):
        assert "no distribution over classes" in str(toys.unsupported(owner(), architecture, "regression"))

    @dataclasses.dataclass(frozen=True)
    class Hinge(toys.ToyTask):
        def loss(self, output: Output, labels: Tensor) -> Tensor:
            return F.multi_margin_loss(output.logits, labels)

    stack = Stack([owner()])
    facts = dataclasses.replace(toys.toy_facts(stack), task=Hinge(labels=tuple("abc")))
    assert "doesn't say the losses of single examples" in str(stack.unsupported(facts))


def test_weighting_what_another_method_has_changed_is_said() -> None:
    def warned(*methods: Method) -> list[str]:
        stack = Stack(methods)
        return stack.warnings(toys.toy_facts(stack))

    (said,) = warned(DFT(), LabelSmoothing())
    assert said.startswith("dft: it weights by what label_smoothing, to its right, has made of the losses")
    assert len(warned(Focal(), DFT(), ConfidencePenalty())) == 2
    assert warned(LabelSmoothing(), DFT()) == warned(ConfidencePenalty(), Focal()) == []


def test_the_mean_weight_is_in_the_trace() -> None:
    step = first_step(tiny_run(DFT(), dropout=Dropout.ALL_OFF))
    objective = step.objective()
    p = objective.output.logits.softmax(-1).gather(1, step.batch.labels[:, None])
    assert float(objective.logs["dft_weight"]) == pytest.approx(float(p.detach().mean()))
    _, result, _ = toys.toy_train([registry.method_class("rdrop")(), DFT()])
    assert ((result.steps["dft_weight"] > 0) & (result.steps["dft_weight"] < 1)).all()
    assert "dft_weight" not in toys.toy_train(DFT(power=0.0))[1].steps


@pytest.mark.slow
@pytest.mark.parametrize("other", ["freelb", "rdrop", "sam"])
@pytest.mark.parametrize("owner", OWNERS)
def test_it_goes_with_methods_of_several_passes(owner: type[Method], other: str) -> None:
    """FreeLB ends passes early: the gradient is still that of the loss, on either side."""
    partner = registry.method_class(other)
    for pair in ((owner, partner), (partner, owner)):
        testing.check_gradient([one() for one in pair], [one() for one in pair])
