"""LP-FT: what sleeps during the probe, both schedules, the fitted probe by hand, and the anchor it gives partners."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError
from finetune_bench.method.base import Method
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Inner, Objective, Run, Step, View
from finetune_bench.methods.kl_anchor import KLAnchor
from finetune_bench.methods.lp_ft import LPFT, features_of, fit_output, probe_steps, two_phases
from finetune_bench.model.dropout import evaluation_mode
from finetune_bench.model.structure import body, output_layer
from finetune_bench.task import Output, Task
from finetune_bench.testing import toys
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import train
from finetune_bench.training.run import TrainingStep

RECIPE = replace(toys.RECIPE, steps=8, epochs=None)


class Watching(Method):
    """Note at each step which weights moved, the optimiser's rate, and whether two passes differ."""

    name = "watching"

    def optimizer(self, optimizer: torch.optim.Optimizer, run: Run) -> torch.optim.Optimizer:
        self.optimizer_, self.before_ = optimizer, self._held(run)
        inside = {id(weight) for weight in body(run.model).parameters()}
        self.head_ = {name for name, weight in run.params.items() if id(weight) not in inside}
        self.rates_: list[float] = []
        self.moved_: list[tuple[bool, bool]] = []
        self.noisy_: list[bool] = []
        return optimizer

    def _held(self, run: Run) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in run.params.items()}

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        with torch.no_grad():
            self.noisy_.append(not step.forward().logits.equal(step.forward().logits))
        return inner(view)

    def gradients(self, run: Run) -> None:
        self.rates_.append(self.optimizer_.param_groups[0]["lr"])

    def after_step(self, run: Run) -> None:
        after = self._held(run)
        moved = {name for name, weight in after.items() if not weight.equal(self.before_[name])}
        self.moved_.append((bool(moved & self.head_), bool(moved - self.head_)))
        self.before_ = after


def watched(method: Method, architecture: str = "bert", recipe: Any = RECIPE) -> Watching:
    watching = Watching()
    run, _, _ = toys.toy_train([watching, method], architecture, recipe=recipe)
    assert all(weight.requires_grad for weight in run.params.values())
    return watching


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_the_body_keeps_its_bits_during_the_probe_and_has_no_dropout(architecture: str) -> None:
    seen = watched(LPFT(share=0.5), architecture)
    assert seen.moved_ == [(True, False)] * 4 + [(True, True)] * 4
    assert seen.noisy_ == [False] * 4 + [True] * 4


def test_each_phase_climbs_and_falls() -> None:
    factors = [two_phases(4, 12, 3, 50.0)(step) for step in range(12)]
    assert factors[:4] == pytest.approx([0.0, 50.0, 50 * 2 / 3, 50 / 3])
    assert factors[4:] == pytest.approx([0.0, 0.5, 1.0, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    rates = watched(LPFT(share=0.5, head_lr=0.1)).rates_
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025, 1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_each_phase_has_a_step_where_there_are_two() -> None:
    assert [probe_steps(share, steps) for share, steps in [(0.25, 8), (0.01, 8), (0.99, 8), (0.5, 1), (0.0, 8)]] == [
        *(2, 1, 7, 1, 0)
    ]


def test_the_fit_is_the_smallest_penalised_loss() -> None:
    """At the least Σ loss + ½‖W‖² the gradient is zero, and nothing is pulled at the bias."""
    stream = np.random.default_rng(0)
    x = stream.normal(size=(40, 5)) + 1
    for outputs in (2, 3):
        y = stream.integers(outputs, size=40)
        weight, bias = (torch.tensor(part, requires_grad=True) for part in fit_output(x, y, outputs, bias=True))
        logits = torch.from_numpy(x) @ weight.T + bias
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
        # Of two classes the one vector w is penalised, which is (−w/2, +w/2) here.
        norm = 2 * weight.square().sum() if outputs == 2 else weight.square().sum()
        for gradient in torch.autograd.grad(loss + norm / 2, [weight, bias]):
            assert float(gradient.abs().max()) < 1e-4
    weight, bias = fit_output(x, x @ np.arange(5.0), 1, bias=False)
    np.testing.assert_allclose(weight[0], np.linalg.solve(x.T @ x + np.eye(5), x.T @ x @ np.arange(5.0)))
    assert bias.tolist() == [0.0]
    with pytest.raises(FinetuneBenchError, match="class 1 of 3 has none among 4; use probe=sgd"):
        fit_output(x[:4], np.array([0, 2, 2, 0]), 3, bias=True)


@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "llama"])
def test_the_closed_probe_is_the_regression_on_features(architecture: str, kind: Any) -> None:
    run, stack = toys.toy_run([LPFT(probe="closed", reanchor=True)], architecture, kind)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    stack.setup(run)
    layer = output_layer(run.model)
    x, labels = (part.numpy() for part in features_of(run, layer, "lp_ft"))
    weight, bias = fit_output(x, labels, layer.out_features, bias=layer.bias is not None)
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5, atol=1e-6)
    batch = next(run.batches("lp_ft"))
    with evaluation_mode(run.model), torch.no_grad():
        logits = run.forward(batch).logits.numpy().reshape(len(batch.labels), -1)
    np.testing.assert_allclose(logits, x[: len(logits)] @ weight.T + bias, rtol=1e-4, atol=1e-4)
    moved = {name for name, weight in run.params.items() if not weight.equal(before[name])}
    assert {id(run.params[name]) for name in moved} == {id(weight) for weight in layer.parameters()}
    assert stack.schedule(run) is None
    stack.teardown(run)


@pytest.mark.parametrize("partner", ["mixout", "r3f", "noisytune", "child_tuning_d"])
def test_the_closed_probe_trains_beside_others(partner: str) -> None:
    for turned in (1, -1):
        stack = [LPFT(probe="closed"), registry.method_class(partner)()][::turned]
        _, result, _ = toys.toy_train(stack)
        assert np.isfinite(result.steps["loss"]).all()


@pytest.mark.parametrize("probe", ["sgd", "closed"])
def test_share_0_is_vanilla_with_either_probe(probe: str) -> None:
    runs = [toys.toy_train(method)[0] for method in (LPFT(share=0.0, probe=probe), registry.method_class("vanilla")())]
    assert toys.same(*runs)


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("probe", ["sgd", "closed"])
def test_the_anchor_and_the_phase_outlive_a_checkpoint(tmp_path: Path, probe: str, every: int) -> None:
    """From the middle of the probe (step 2 of 4, where the run is stopped at 3) and from after it."""

    class Stop(Exception):
        """Ends the run."""

    def stop(step: int, loss: float) -> None:
        if step == every + 1:
            raise Stop

    def stack() -> list[Method]:
        return [LPFT(share=0.5, probe=probe), KLAnchor(strength=1.0)]

    undisturbed, _, _ = toys.toy_train(stack(), recipe=RECIPE)
    checkpoints = Checkpoints(tmp_path / "run", every=every, owner="a run")
    stopped, methods = toys.toy_run(stack(), recipe=RECIPE)
    with pytest.raises(Stop):
        train(stopped, checkpoints, stop)
    methods.teardown(stopped)
    again, result, _ = toys.toy_train(stack(), recipe=RECIPE, checkpoints=checkpoints)
    assert result.resumed_at == every
    assert toys.same(undisturbed, again)


def test_kl_anchor_holds_to_the_probed_model() -> None:
    """The distance is zero during the probe, and then that to the model as it was at the probe's end."""
    method = KLAnchor(strength=1.0)
    run, stack = toys.toy_run([LPFT(share=0.5, head_lr=0.1), method], recipe=RECIPE)
    result = train(run)
    distances, entropies = result.steps["kl_anchor_distance"], result.steps["kl_anchor_entropy"]
    assert np.abs(distances[:4]).max() < 1e-6
    assert (distances[5:] > 1e-5).all()
    assert entropies[4] < entropies[0]
    step = TrainingStep(run, run.examples.batch(range(6), toys.CPU))
    reference = method.reference(step).logits
    stack.teardown(run)

    expected, _ = toys.toy_run([LPFT(share=0.5, head_lr=0.1)], recipe=RECIPE)

    class Stop(Exception):
        """Ends the run."""

    def stop(step: int, loss: float) -> None:
        if step == 4:
            raise Stop

    with pytest.raises(Stop):
        train(expected, tell=stop)
    with evaluation_mode(expected.model), torch.no_grad():
        torch.testing.assert_close(reference, expected.forward(step.batch).logits)


def test_without_reanchor_the_reference_keeps_its_fresh_head() -> None:
    for share, reanchors in ((0.5, True), (0.5, False), (0.0, True)):
        run, _, _ = toys.toy_train([LPFT(share=share, reanchor=reanchors), KLAnchor()], recipe=RECIPE)
        assert bool(run.reanchored) == (reanchors and share > 0)


def test_what_is_refused_and_what_is_said() -> None:
    for other in ("lora", "peft", "bitfit", "top_k", "gradual_unfreezing", "lisa"):
        for stack in ([LPFT(), registry.method_class(other)()], [registry.method_class(other)(), LPFT()]):
            assert "both decide about the weights that train" in str(toys.unsupported(stack))
    refused = str(toys.unsupported([LPFT(), registry.method_class("schedule_free")()]))
    assert "both decide about the schedule of the learning rates" in refused

    class Own(toys.ToyTask):
        def loss(self, output: Output, labels: Tensor) -> Tensor:
            return Task.loss(self, output, labels)

    stack = Stack([LPFT(probe="closed")])
    facts = replace(toys.toy_facts(stack), task=Own(kind="classification", labels=("a", "b", "c")))
    assert "the loss of 'toy' is its own; use probe=sgd" in str(stack.unsupported(facts))
    assert Stack([LPFT()]).unsupported(facts) is None

    warned = Stack([LPFT(probe="closed", head_lr=1e-2)])
    assert warned.warnings(toys.toy_facts(warned)) == [
        "lp_ft: probe=closed spends no steps: share and head_lr have no effect"
    ]
    for silent in (LPFT(probe="closed"), LPFT(head_lr=1e-2)):
        assert Stack([silent]).warnings(toys.toy_facts(Stack([silent]))) == []
