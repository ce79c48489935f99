from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from finetune_bench.errors import ParameterError
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run, View
from finetune_bench.methods.r3f import R3F, add_noise
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.task import Task
from finetune_bench.testing import toys
from finetune_bench.training.loop import train
from finetune_bench.training.run import TrainingRun
from tests.tiny_run import CLASSIFICATION, CONFIGS, REGRESSION, first_step, tiny_model, tiny_run


def test_noise_that_tf32_rounds_away_is_refused() -> None:
    stack = Stack([R3F()])
    assert stack.lost_noise(toys.toy_facts(stack)) is None
    lost = stack.lost_noise(toys.toy_facts(stack, recipe=Recipe(precision="tf32")))
    assert lost is not None
    assert "noise of 6e-06 is lost in tf32 arithmetic" in lost


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class HeadNoise(Method):
    """A stochastic partner: shifts the head's bias for the length of a pass, and counts the passes."""

    name = "head_noise"
    stochastic = True
    passes_seen = 0

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        self.passes_seen += 1
        bias = run.params["classifier.bias"]
        drawn = torch.rand(bias.shape, generator=run.generator(self.name))
        with torch.no_grad():
            bias.add_(drawn)
        try:
            yield
        finally:
            with torch.no_grad():
                bias.sub_(drawn)


def independent_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    return ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()


@pytest.mark.parametrize(("noise", "std"), [("uniform", 0.5 / math.sqrt(3)), ("normal", 0.5)])
def test_noise_has_the_declared_distribution(noise: str, std: float) -> None:
    embeds = torch.zeros(40, 50, 100)
    drawn = add_noise(embeds, noise, 0.5, generator())
    assert abs(drawn.mean()) < 4 * std / math.sqrt(drawn.numel())
    assert drawn.std().item() == pytest.approx(std, rel=0.01)
    assert R3F(noise=noise, eps=0.5).noise_scale() == pytest.approx(std)
    if noise == "uniform":
        assert drawn.abs().max() <= 0.5
        assert drawn.min() < -0.499
        assert drawn.max() > 0.499


def test_small_noise_reaches_single_precision_embeddings() -> None:
    embeds = torch.randn(8, 16, 32, generator=generator(1)) * 0.05
    changed = add_noise(embeds, "uniform", 1e-5, generator()) - embeds
    assert (changed != 0).float().mean() > 0.99
    assert changed.abs().max() <= 1e-5 + 2**-26


def test_noise_takes_the_embeddings_precision_after_it_is_drawn() -> None:
    embeds = torch.zeros(2, 3, 4, dtype=torch.bfloat16)
    noised = add_noise(embeds, "normal", 0.1, generator())
    assert noised.dtype == torch.bfloat16
    assert torch.equal(noised, add_noise(embeds.float(), "normal", 0.1, generator()).bfloat16())


@pytest.mark.parametrize("architecture", CONFIGS)
def test_embeddings_path_equals_the_ids_path(architecture: str) -> None:
    run = tiny_run(architecture=architecture, dropout=Dropout.ALL_OFF)
    step = first_step(run)
    by_ids = step.forward()
    assert step.embeds().ndim == 3
    assert torch.equal(step.forward(View(embeds=step.embeds())).logits, by_ids.logits)


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
def test_objective_is_the_formula(architecture: str, task: Task) -> None:
    method = R3F(strength=0.7, eps=0.3)
    run = tiny_run(method, architecture=architecture, task=task, dropout=Dropout.ALL_OFF)
    method.setup(run)
    step = first_step(run)
    objective = step.objective()

    noise = torch.rand(step.embeds().shape, generator=tiny_run().generator("r3f")) * 0.6 - 0.3
    clean, noised = step.forward().logits, step.forward(View(embeds=step.embeds() + noise)).logits
    labels = step.batch.labels
    if task is REGRESSION:
        loss, divergence = ((clean[:, 0] - labels) ** 2).mean(), ((clean - noised) ** 2).mean()
    else:
        rows = clean.log_softmax(-1)
        loss = -torch.stack([row[label] for row, label in zip(rows, labels, strict=True)]).mean()
        divergence = independent_divergence(clean, noised).float()
    assert divergence > 1e-6
    torch.testing.assert_close(objective.loss, loss + 0.7 * divergence, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective.logs["divergence"], divergence.detach(), rtol=1e-3, atol=1e-6)
    assert torch.equal(objective.output.logits, clean)


def test_zero_eps_without_dropout_gives_exactly_zero() -> None:
    method = R3F(eps=0)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    method.setup(run)
    assert first_step(run).objective().logs["divergence"] == 0


def test_gradient_flows_to_both_sides_but_to_the_embeddings_from_the_clean_one_only() -> None:
    method = R3F(eps=0.3)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    method.setup(run)
    step = first_step(run)
    sides = {}
    for side in ("clean", "noised"):
        state = method.generator_.get_state()
        embeds = add_noise(step.embeds().detach(), "uniform", 0.3, method.generator_)
        method.generator_.set_state(state)
        clean, noised = step.forward(), step.forward(View(embeds=embeds))
        kept = type(clean)((noised if side == "clean" else clean).logits.detach())
        divergence = step.divergence(clean, kept) if side == "clean" else step.divergence(kept, noised)
        sides[side] = torch.autograd.grad(divergence, list(run.params.values()), allow_unused=True)
    objective = step.objective()
    penalty = objective.loss - step.run.task.loss(objective.output, step.batch.labels)
    both = torch.autograd.grad(penalty, list(run.params.values()), allow_unused=True)
    for name, total, clean_side, noised_side in zip(run.params, both, sides["clean"], sides["noised"], strict=True):
        if name == "bert.embeddings.word_embeddings.weight":
            assert noised_side is None
        if clean_side is not None:
            expected = clean_side if noised_side is None else clean_side + noised_side
            torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-6)
    head = list(run.params).index("classifier.weight")
    assert min(sides[side][head].abs().max() for side in sides) > 1e-6


def test_stack_perturbs_the_second_pass_only() -> None:
    for methods in ([HeadNoise(), R3F()], [R3F(), HeadNoise()], [HeadNoise(), R3F(noise="none")]):
        partner = next(method for method in methods if isinstance(method, HeadNoise))
        run = tiny_run(*methods, dropout=Dropout.ALL_OFF)
        next(method for method in methods if isinstance(method, R3F)).setup(run)
        step = first_step(run)
        objective = step.objective()
        assert partner.passes_seen == 1
        assert torch.equal(objective.output.logits, step.forward(View(perturb=False)).logits)
        assert objective.logs["divergence"] > 1e-4


def test_noise_none_draws_nothing() -> None:
    method = R3F(noise="none")
    run = tiny_run(method)
    method.setup(run)
    state = run.generator("r3f").get_state()
    first_step(run).objective()
    assert torch.equal(run.generator("r3f").get_state(), state)
    assert method.noise_scale() is None


def test_outer_embeddings_and_outer_clean_pass_are_kept() -> None:
    method, partner = R3F(eps=0.0), HeadNoise()
    run = tiny_run(method, partner, dropout=Dropout.ALL_OFF)
    method.setup(run)
    step = first_step(run)
    view = View(embeds=step.embeds() + 0.5, perturb=False)
    objective = method.objective(step, step.task_objective, view)
    assert torch.equal(objective.output.logits, step.forward(view).logits)
    assert objective.logs["divergence"] == 0
    assert partner.passes_seen == 0


def test_loss_does_not_depend_on_the_batch_size() -> None:
    method = R3F(noise="normal", eps=0.2)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    method.setup(run)
    step = first_step(run)
    embeds = step.embeds()
    noised = add_noise(embeds, "normal", 0.2, generator())
    once = step.divergence(step.forward(View(embeds=embeds)), step.forward(View(embeds=noised)))
    batch = step.batch
    step.batch = type(batch)({k: v.repeat(2, 1) for k, v in batch.inputs.items()}, batch.labels.repeat(2))
    twice = step.divergence(
        step.forward(View(embeds=embeds.repeat(2, 1, 1))), step.forward(View(embeds=noised.repeat(2, 1, 1)))
    )
    torch.testing.assert_close(once, twice)


def trained(run: TrainingRun) -> tuple[torch.Tensor, float]:
    result = train(run)
    run.method.teardown(run)
    return torch.cat([weight.detach().reshape(-1) for weight in run.params.values()]), result.forwards_per_step


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
def test_neutral_equals_vanilla_to_the_last_bit(task: Task) -> None:
    vanilla, _ = trained(tiny_run(Vanilla(), task=task, dropout=Dropout.ALL_OFF))
    neutral, passes = trained(tiny_run(R3F(**R3F.neutral), task=task, dropout=Dropout.ALL_OFF))
    alive, _ = trained(tiny_run(R3F(strength=1.0, eps=0.3), task=task, dropout=Dropout.ALL_OFF))
    assert torch.equal(vanilla, neutral)
    assert not torch.equal(vanilla, alive)
    assert passes == R3F().passes(Passes()).forwards == 2
    assert R3F().passes(Passes(2, 1)) == Passes(3, 1)


def test_same_seed_gives_the_same_weights() -> None:
    runs = [trained(tiny_run(R3F(eps=0.1), seed=seed))[0] for seed in (3, 3, 4)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("values", "active", "partners", "skipped"),
    [
        ({"noise": "none"}, (), (), True),
        ({"eps": 0.0}, (), (), True),
        ({"noise": "none"}, ("bert.encoder.layer.*.attention.self",), (), False),
        ({"noise": "none"}, (), (HeadNoise(),), False),
        ({}, (), (), False),
        ({"strength": 0.0}, (), (), False),
    ],
)
def test_identical_passes_are_refused(
    values: dict[str, object], active: tuple[str, ...], partners: tuple[Method, ...], skipped: bool
) -> None:
    facts = Facts(tiny_model(), active, CLASSIFICATION, Recipe(), torch.float32, partners)
    reason = R3F(**values).unsupported(facts)
    assert (reason is not None) == skipped
    assert reason is None or "identical" in reason


@pytest.mark.parametrize("values", [{"eps": -1.0}, {"strength": -1.0}, {"noise": "gaussian"}])
def test_wrong_parameters_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="of R3F must be"):
        R3F(**values)


def test_teardown_without_setup() -> None:
    R3F().teardown(tiny_run())
