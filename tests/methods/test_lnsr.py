from __future__ import annotations

import pytest
import torch

from finetune_bench import registry
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.lnsr import LNSR, draw_noise, state_distance
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run


def test_the_noise_is_relative_and_spares_padding() -> None:
    hidden = torch.ones(1, 2, 5000) * torch.tensor([3.0, 8.0])[None, :, None]
    noise = draw_noise(hidden, torch.tensor([[1, 0]]), 0.05, torch.Generator().manual_seed(0))
    assert float(noise[0, 0].std()) == pytest.approx(0.15, rel=0.03)
    assert float(noise[0, 0].mean()) == pytest.approx(0.0, abs=0.01)
    assert not noise[0, 1].any()


def test_the_distance_by_hand() -> None:
    clean = [torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)]
    noised = [torch.tensor([[[1.0, 2.0], [9.0, 9.0]]]), torch.tensor([[[3.0, 0.0], [9.0, 9.0]]])]
    assert state_distance(noised, clean, torch.tensor([[1, 0]])) == 7.0  # (1 + 4)/2 + 9/2; the second token is padding


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_states_between_layers(architecture: str) -> None:
    run, _ = toys.toy_run(LNSR(), architecture)
    run.model.eval()
    batch = run.examples.batch(range(5), toys.CPU)
    length = batch.inputs["input_ids"].shape[1]
    with torch.no_grad():
        hidden = run.forward(batch, View(hidden=True, perturb=False)).hidden
        theirs = run.model(**batch.inputs, output_hidden_states=True).hidden_states
    assert [state.shape for state in hidden] == [(5, length, 16)] * 3
    both = list(zip(hidden[:2], theirs[:2], strict=True))
    for own, other in both[:1] if architecture == "deberta_v2" else both:  # it adds a convolution to layer 0's output
        torch.testing.assert_close(own, other if other.shape == own.shape else other.transpose(0, 1))


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_the_penalty_against_two_passes(architecture: str) -> None:
    lnsr = LNSR(strength=2.0, noise=0.3)
    run = tiny_run(lnsr, architecture=architecture)
    step = first_step(run)
    lnsr.setup(run)
    mark = step.mark()
    found = step.objective()
    with step.replay(mark):
        clean = step.forward(View(hidden=True))
    torch.testing.assert_close(found.output.logits, clean.logits)  # the same masks
    torch.testing.assert_close(found.loss.detach(), step.task_losses[0] + 2.0 * found.logs["lnsr_distance"])
    assert float(found.logs["lnsr_distance"]) > 0


def test_without_noise_the_penalty_is_zero_and_small_noise_counts_by_its_square() -> None:
    def distance(noise: float) -> float:
        lnsr = LNSR(noise=noise)
        run = tiny_run(lnsr)  # dropout on: both passes have the same masks
        step = first_step(run)
        lnsr.setup(run)
        torch.manual_seed(3)
        return float(step.objective().logs["lnsr_distance"])

    assert distance(0.0) == 0.0
    assert distance(2e-3) == pytest.approx(4 * distance(1e-3), rel=0.05)


def test_the_clean_pass_may_be_detached() -> None:
    def gradient(**parameters: object) -> torch.Tensor:
        lnsr = LNSR(strength=10.0, noise=0.3, **parameters)  # type: ignore[arg-type]
        run = tiny_run(lnsr)
        step = first_step(run)
        lnsr.setup(run)
        torch.manual_seed(3)
        return run.grad(step.objective().loss, [run.params["bert.encoder.layer.1.output.dense.weight"]])[0]

    assert not torch.equal(gradient(), gradient(detach_clean=True))


def test_what_is_refused_and_said() -> None:
    assert "none of the 2 layers" in str(toys.unsupported(LNSR(layer=2)))
    stack = Stack([LNSR(noise=0.0)])
    assert ["penalty is 0" in text for text in stack.warnings(toys.toy_facts(stack))] == [True]
    both = Stack([registry.method_class("hype")(), LNSR()])
    assert any("all put noise on the layer inputs" in text for text in both.warnings(toys.toy_facts(both)))
