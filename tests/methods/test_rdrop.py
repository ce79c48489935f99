"""R-Drop: its loss against hand-computed values, its gradient, and when it can't work."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from finetune_bench import functional, registry
from finetune_bench.method.stack import Stack
from finetune_bench.methods import rdrop
from finetune_bench.methods.rdrop import combine_passes
from finetune_bench.testing import toys


def test_symmetric_kl_by_hand() -> None:
    """p = (0.8, 0.2), q = (0.5, 0.5): KL(p‖q) + KL(q‖p) = Σ (p − q)·ln(p/q)."""
    p, q = torch.tensor([[math.log(0.8), math.log(0.2)]], dtype=torch.float64), torch.zeros(1, 2).double()
    by_hand = 0.3 * math.log(0.8 / 0.5) - 0.3 * math.log(0.2 / 0.5)
    assert float(functional.symmetric_kl(p, q)) == pytest.approx(by_hand, rel=1e-12)
    both = torch.cat([p, q]), torch.cat([q, q])
    assert float(functional.symmetric_kl(*both)) == pytest.approx(by_hand / 2, rel=1e-12)  # a batch mean


def test_symmetric_kl_is_symmetric_and_zero_for_equal_logits() -> None:
    p, q = torch.randn(5, 3), torch.randn(5, 3)
    assert torch.equal(functional.symmetric_kl(p, q), functional.symmetric_kl(q, p))
    assert float(functional.symmetric_kl(p, p.clone())) == 0.0


def test_gradient_reaches_both_passes() -> None:
    """Against torch's own KL in both directions, differentiated numerically."""
    p = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    q = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(functional.symmetric_kl, (p, q))
    kl = torch.nn.functional.kl_div
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    reference = kl(log_q, log_p, log_target=True, reduction="batchmean") + kl(
        log_p, log_q, log_target=True, reduction="batchmean"
    )
    ours = functional.symmetric_kl(p, q)
    torch.testing.assert_close(ours, reference)
    for mine, theirs in zip(torch.autograd.grad(ours, (p, q)), torch.autograd.grad(reference, (p, q)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_loss_by_hand() -> None:
    loss = combine_passes(torch.tensor(0.2), torch.tensor(0.3), torch.tensor(0.2), alpha=3.0)
    assert float(loss) == pytest.approx(0.5 * (0.4 + 0.6) + 3.0 * 0.5 * 0.2)


def test_the_published_weights_in_ours() -> None:
    """The reference adds a batch sum of the divergence for classification, and a batch mean for regression."""
    first, second, divergence, batch = 0.4, 0.6, 0.3, 16

    def ours(alpha: float) -> float:
        parts = (torch.tensor(value, dtype=torch.float64) for value in (first / 2, second / 2, divergence))
        return float(combine_passes(*parts, alpha=alpha))

    of_bert = first + second + 0.5 * (batch * divergence) / 2
    of_roberta = 0.5 * (first + second) + 0.7 * (batch * divergence) / 2
    assert 2 * ours(0.5 * batch / 2) == pytest.approx(of_bert)
    assert ours(0.7 * batch) == pytest.approx(of_roberta)
    assert 2 * ours(1.0) == pytest.approx(first + second + 1.0 * divergence)  # STS-B, BERT
    assert ours(1.6) == pytest.approx(0.5 * (first + second) + 0.8 * divergence)  # STS-B, RoBERTa
    card = " ".join((rdrop.__doc__ or "").split())
    assert "For classification alpha = α_code · B" in card
    assert "alpha = 1 (BERT file, 1.0) and alpha = 1.6 (RoBERTa file, 0.8)" in card


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_objective_is_the_two_passes(kind: str) -> None:
    """The objective of a step, against two forward passes and the formula, on the same random state."""
    from finetune_bench.training.run import TrainingStep

    run, _stack = toys.toy_run(registry.method_class("rdrop")(alpha=2.0), kind=kind)  # type: ignore[arg-type]
    batch = run.examples.batch(range(8), toys.CPU)
    run.model.train()
    torch.manual_seed(0)
    objective = TrainingStep(run, batch).objective()
    torch.manual_seed(0)
    first, second = run.model(**batch.inputs).logits, run.model(**batch.inputs).logits
    assert not torch.equal(first, second)
    if kind == "regression":
        losses = [((logits[:, 0] - batch.labels) ** 2).mean() for logits in (first, second)]
        distance = ((first - second) ** 2).mean()
    else:
        losses = [torch.nn.functional.cross_entropy(logits, batch.labels) for logits in (first, second)]
        p, q = first.softmax(-1), second.softmax(-1)
        distance = ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()
    torch.testing.assert_close(objective.loss, 0.5 * (losses[0] + losses[1]) + 2.0 * 0.5 * distance)
    assert torch.equal(objective.output.logits, first)


def test_identical_passes_are_refused() -> None:
    rdrop, hype = registry.method_class("rdrop"), registry.method_class("hype")
    assert "identical" in str(toys.unsupported(rdrop(dropout="all_off")))
    assert toys.unsupported([hype(), rdrop(dropout="all_off")]) is None  # HyPe's noise tells the passes apart
    assert toys.unsupported(rdrop(dropout="hidden_off")) is None  # the attention dropout does


def test_passes_that_hardly_differ_are_told() -> None:
    rdrop, hype = registry.method_class("rdrop"), registry.method_class("hype")

    def warned(eps: float, **parameters: object) -> list[str]:
        stack = Stack([hype(eps=eps, **parameters), rdrop()])
        return stack.warnings(toys.toy_facts(stack))

    (said,) = warned(1e-5, dropout="all_off")
    assert said.startswith("rdrop: no dropout is active, so its two passes differ by noise of 1e-05 only")
    assert warned(0.1, dropout="all_off") == []
    assert warned(1e-5) == []  # the attention dropout is on


def test_hype_and_rdrop_noise_both_passes() -> None:
    """HyPe + R-Drop needs no code of its own: with all dropout off, only HyPe's noise makes the passes differ."""
    methods = [registry.method_class("hype")(eps=0.3, dropout="all_off"), registry.method_class("rdrop")()]
    _, result, _ = toys.toy_train(methods)
    assert (result.steps["rdrop_divergence"] > 0).all()
    still = [registry.method_class("hype")(eps=0.0, dropout="all_off"), registry.method_class("rdrop")()]
    assert np.array_equal(toys.toy_train(still)[1].steps["rdrop_divergence"], np.zeros(6))
