from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import AdamW

from finetune_bench.errors import FinetuneBenchError, ParameterError
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.cost import Passes
from finetune_bench.method.step import Run
from finetune_bench.methods.child_tuning import (
    ChildTuningD,
    ChildTuningF,
    choose_masks,
    cut,
    encoder_weights,
    mask_gradient,
    mean_gradient,
    mean_squares,
    quantile,
)
from finetune_bench.methods.mixout import Mixout
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model.dropout import Dropout
from finetune_bench.recipe import Recipe
from finetune_bench.task import Task
from finetune_bench.training.loop import make_optimizer, train
from finetune_bench.training.run import TrainingRun
from tests.tiny_run import CLASSIFICATION, CONFIGS, REGRESSION, first_step, tiny_model, tiny_run

HEADS = ("classifier", "pooler", "pre_classifier", "head", "sequence_summary", "logits_proj")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(run: TrainingRun) -> dict[str, Tensor]:
    train(run)
    run.method.teardown(run)
    return {name: weight.detach().clone() for name, weight in run.params.items()}


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.equal(weight, second[name]) for name, weight in first.items())


# --- F ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.2, 0.3, 0.9])
def test_random_mask_keeps_its_share_and_rescales(p: float) -> None:
    gradient = torch.randn(300, 400, generator=generator(1)) + 5
    masked = gradient.clone()
    mask_gradient(masked, p, generator())
    kept = masked != 0
    bound = 4 * math.sqrt(p * (1 - p) / gradient.numel())
    assert abs(kept.float().mean().item() - p) < bound
    torch.testing.assert_close(masked[kept], gradient[kept] / p)


def test_expectation_is_the_gradient() -> None:
    gradient, stream, draws = torch.randn(50, generator=generator(1)), generator(), 20_000
    total = torch.zeros(50)
    for _ in range(draws):
        masked = gradient.clone()
        mask_gradient(masked, 0.3, stream)
        total += masked
    bound = 5 * gradient.abs() * math.sqrt(0.7 / 0.3 / draws)
    assert ((total / draws - gradient).abs() <= bound + 1e-4).all()


def test_p_one_changes_no_bit() -> None:
    gradient = torch.randn(1000, generator=generator())
    masked = gradient.clone()
    mask_gradient(masked, 1.0, generator())
    assert torch.equal(masked, gradient)


def test_f_masks_every_parameter_anew_and_skips_missing_gradients() -> None:
    run, method = tiny_run(), ChildTuningF()
    seen = []
    for _ in range(2):
        for weight in run.params.values():
            weight.grad = torch.ones_like(weight)
        run.params["classifier.bias"].grad = None
        method.gradients(run)
        assert run.params["classifier.bias"].grad is None
        seen.append(run.params["bert.embeddings.word_embeddings.weight"].grad)
        for weight in run.params.values():
            if weight.numel() > 100:
                torch.testing.assert_close(weight.grad.unique(), torch.tensor([0, 1 / 0.3]))
    assert not torch.equal(*seen)


def test_constant_gradient_under_adam_moves_by_the_square_root_of_p() -> None:
    weight = torch.nn.Parameter(torch.zeros(200_000))
    optimizer, stream = AdamW([weight], lr=1.0, betas=(0.0, 0.999), eps=1e-12, weight_decay=0), generator()
    for _ in range(400):
        before = weight.detach().clone()
        weight.grad = torch.ones_like(weight)
        mask_gradient(weight.grad, 0.3, stream)
        optimizer.step()
    assert (before - weight.detach()).mean().item() == pytest.approx(math.sqrt(0.3), rel=0.02)


# --- Fisher information, quantile and masks ---------------------------------------------------------------------------


def test_squares_against_hand_computed_numbers() -> None:
    first = [torch.tensor([3.0, 4.0]), torch.tensor([0.5])]  # norms 5 and 0.5
    second = [torch.tensor([0.0, 0.6]), torch.tensor([2.0])]
    squares = mean_squares([first, second], clip=1.0)
    torch.testing.assert_close(squares[0], torch.tensor([0.6**2, 0.8**2 + 0.6**2]) / 2)
    torch.testing.assert_close(squares[1], torch.tensor([0.5**2 + 1]) / 2)
    unclipped = mean_squares([first, second], clip=math.inf)
    torch.testing.assert_close(unclipped[0], torch.tensor([9.0, 16.36]) / 2)


def test_squares_are_taken_in_single_precision() -> None:
    (squares,) = mean_squares([[torch.full((2,), 1e-5, dtype=torch.float16)]], clip=1.0)
    assert squares.dtype == torch.float32
    torch.testing.assert_close(squares, torch.full((2,), 1e-10), rtol=0.02, atol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 1001, 17_000_000])
def test_quantile_is_exact_for_any_size(count: int) -> None:
    values = np.random.default_rng(0).exponential(size=count).astype(np.float32)
    for q in (0.0, 0.7, 0.9, 1.0) if count < 10_000 else (0.7,):
        got = quantile(values.copy(), q)
        assert got == pytest.approx(np.quantile(values.astype(np.float64), q), rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.3, 1.0])
def test_masks_keep_the_largest_of_all_tensors_together(p: float) -> None:
    fisher = {
        "a": torch.rand(30, 41, generator=generator(1)),
        "b": torch.rand(777, generator=generator(2)) * 3,
        "c": torch.rand(1, generator=generator(3)),
    }
    masks = choose_masks(fisher, p)
    values = torch.cat([fisher[name].reshape(-1) for name in fisher])
    kept = torch.cat([masks[name].reshape(-1) for name in fisher])
    count = int(kept.sum())
    assert p * len(values) - 1 <= count <= p * len(values) + 1
    assert set(values[kept].tolist()) == set(values.sort(descending=True).values[:count].tolist())
    assert {name: mask.shape for name, mask in masks.items()} == {name: v.shape for name, v in fisher.items()}


def test_scale_of_the_fisher_information_does_not_matter() -> None:
    fisher = {"a": torch.rand(50, 40, generator=generator())}
    scaled = {"a": fisher["a"] * 2.0**-20}
    assert torch.equal(choose_masks(fisher, 0.3)["a"], choose_masks(scaled, 0.3)["a"])


def test_ties_are_kept() -> None:
    assert choose_masks({"a": torch.tensor([1.0, 2.0, 2.0, 2.0])}, 0.25)["a"].tolist() == [False, True, True, True]


# --- D: which weights, and what the measurement leaves behind ---------------------------------------------------------


def in_layers(name: str) -> bool:
    """Tell by the official rule, "layer" in the name, and for GPT-2, which calls its layers h, by that."""
    return "layer" in name or ".h." in name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_encoder_weights_are_those_of_the_official_rule(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    by_name = {name for name in run.params if in_layers(name)}
    assert set(encoder_weights(run)) == by_name
    assert not any(name.startswith(HEADS) or "embeddings" in name for name in by_name)


def test_frozen_weights_take_no_part() -> None:
    run = tiny_run()
    frozen = "bert.encoder.layer.0.output.dense.weight"
    run.params[frozen].requires_grad_(False)
    method = ChildTuningD()
    method.setup(run)
    assert frozen not in method.masks_
    assert len(method.masks_) == len([name for name in run.params if "layer" in name]) - 1


@pytest.mark.parametrize("fisher", ["batch", "example"])
def test_masks_are_those_of_an_independent_measurement(fisher: str) -> None:
    run = tiny_run(dropout=Dropout.ALL_OFF, examples=12)
    method = ChildTuningD(fisher=fisher, reserve_p=0.3)
    method.setup(run)

    weights = {name: weight for name, weight in run.params.items() if "layer" in name}
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in run.batches("fisher"):
        rows = range(len(batch)) if fisher == "example" else [slice(None)]
        for row in rows:
            at = slice(row, row + 1) if isinstance(row, int) else row
            logits = run.model(**{key: values[at] for key, values in batch.inputs.items()}).logits
            loss = torch.nn.functional.cross_entropy(logits, batch.labels[at])
            loss.backward()
            for name, weight in weights.items():
                torch.nn.utils.clip_grad_norm_([weight], run.recipe.clip)
                total[name] += weight.grad**2
                weight.grad = None
    together = np.concatenate([values.numpy().reshape(-1) for values in total.values()])
    threshold = np.percentile(together, 70)
    for name, values in total.items():
        clear = (values / threshold - 1).abs() > 1e-4  # sums in another order may differ in the last bits
        assert torch.equal(method.masks_[name][clear], (values >= threshold)[clear]), name
    assert method.kept_ == pytest.approx(0.3, abs=0.001)


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_masked_weights_only_decay_and_the_rest_trains(architecture: str, task: Task) -> None:
    method = ChildTuningD()
    run = tiny_run(method, architecture=architecture, task=task)
    method.setup(run)
    optimizer = make_optimizer(run)
    step = first_step(run)
    for _ in range(3):
        optimizer.zero_grad()
        step.objective().loss.backward()
        method.gradients(run)
        optimizer.step()
        method.after_step(run)
    shrunk = (1 - 1e-3 * 0.1) ** 3
    for name, weight in run.params.items():
        mask = method.masks_.get(name, torch.ones(weight.shape, dtype=torch.bool))
        start = run.pretrained[name]
        decay = 1.0 if name in run.undecayed or weight.grad is None else shrunk
        torch.testing.assert_close(weight[~mask], start[~mask] * decay, rtol=1e-6, atol=1e-9)
        if weight.grad is not None:
            moving = mask & (weight.grad.abs() > 1e-6)
            assert not (weight == start * decay)[moving].any(), name
    assert set(method.masks_) == {name for name in run.params if in_layers(name)}


@pytest.mark.parametrize("values", [{"strict": True, "decay": 0.5}, {"strict": False, "decay": 0.0}])
def test_masked_weights_stay_to_the_last_bit(values: dict[str, float]) -> None:
    method = ChildTuningD(strict=bool(values["strict"]))
    run = tiny_run(method, weight_decay=values["decay"], steps=4)
    after = trained(run)
    for name, mask in method.masks_.items():
        assert torch.equal(after[name][~mask], run.pretrained[name][~mask]), name
    moved = torch.cat([(after[name] != run.pretrained[name])[mask] for name, mask in method.masks_.items()])
    assert moved.float().mean() > 0.9


def test_strict_keeps_the_trained_weights_as_they_would_be() -> None:
    loose, strict = (trained(tiny_run(ChildTuningD(strict=flag), examples=8)) for flag in (False, True))
    method = ChildTuningD()
    method.setup(tiny_run(examples=8))
    for name, mask in method.masks_.items():  # one step only: then nothing has fed back yet
        assert torch.equal(loose[name][mask], strict[name][mask]), name


@pytest.mark.parametrize("mode", [True, False])
def test_measuring_leaves_no_trace(mode: bool) -> None:
    run = tiny_run()
    run.model.train(mode)
    streams = torch.get_rng_state()
    ChildTuningD().setup(run)
    assert torch.equal(torch.get_rng_state(), streams)
    assert all(weight.grad is None for weight in run.params.values())
    assert all(torch.equal(weight, run.pretrained[name]) for name, weight in run.params.items())
    assert all(module.training == mode for module in run.model.modules())


def test_dropout_is_on_while_measuring() -> None:
    masks = []
    for dropout in (Dropout.KEEP, Dropout.ALL_OFF):
        method = ChildTuningD()
        method.setup(tiny_run(dropout=dropout))
        masks.append(method.masks_)
    assert differ(*masks)


class Watcher(Method):
    """Counts the passes inside `perturbing`."""

    name = "watcher"
    seen = 0

    @contextmanager
    def perturbing(self, run: Run) -> Iterator[None]:
        self.seen += 1
        yield


def test_stack_perturbs_the_measurement_but_mixout_waits() -> None:
    def masks(*methods: Method) -> dict[str, Tensor]:
        train(tiny_run(*methods, dropout=Dropout.ALL_OFF))
        return next(method for method in methods if isinstance(method, ChildTuningD)).masks_

    watcher = Watcher()
    alone = masks(ChildTuningD())
    masks(ChildTuningD(), watcher)
    assert watcher.seen == 4  # two batches measured, two trained on
    assert not differ(alone, masks(Mixout(), ChildTuningD()))
    assert not differ(alone, masks(ChildTuningD(), Mixout()))


def test_measuring_in_micro_batches_gives_the_same_gradient() -> None:
    whole, parts = tiny_run(dropout=Dropout.ALL_OFF), tiny_run(dropout=Dropout.ALL_OFF, accumulation=4)
    batch = next(whole.batches("fisher"))
    first = mean_gradient(whole, batch, list(encoder_weights(whole).values()))
    second = mean_gradient(parts, batch, list(encoder_weights(parts).values()))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert [len(part) for part in cut(batch, 3)] == [3, 3, 2]


def test_too_many_ties_fail_with_the_reason() -> None:
    run = tiny_run(dropout=Dropout.ALL_OFF)
    with torch.no_grad():
        run.params["classifier.weight"].zero_()  # nothing reaches the encoder
    with pytest.raises(FinetuneBenchError, match="100% of the encoder's weights where reserve_p asks for 30%"):
        ChildTuningD().setup(run)
    ChildTuningD(reserve_p=1.0).setup(run)


def test_a_loss_that_is_not_finite_fails_with_the_reason() -> None:
    run = tiny_run()
    with torch.no_grad():
        run.params["classifier.weight"].fill_(math.nan)
    with pytest.raises(FinetuneBenchError, match="not finite"):
        ChildTuningD().setup(run)


# --- both -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ChildTuningF, ChildTuningD])
@pytest.mark.parametrize("dropout", [Dropout.KEEP, Dropout.ALL_OFF])
def test_neutral_equals_vanilla_to_the_last_bit(kind: type[ChildTuningF | ChildTuningD], dropout: Dropout) -> None:
    vanilla = trained(tiny_run(Vanilla(), dropout=dropout))
    assert not differ(vanilla, trained(tiny_run(kind(**kind.neutral), dropout=dropout)))
    assert differ(vanilla, trained(tiny_run(kind(), dropout=dropout)))
    assert kind().passes(Passes()) == Passes()


@pytest.mark.parametrize("kind", [ChildTuningF, ChildTuningD])
def test_same_seed_gives_the_same_weights(kind: type[ChildTuningF | ChildTuningD]) -> None:
    runs = [trained(tiny_run(kind(), seed=seed)) for seed in (3, 3, 4)]
    assert not differ(runs[0], runs[1])
    assert differ(runs[0], runs[2])


def test_kept_share_is_in_the_trace() -> None:
    method = ChildTuningD(reserve_p=0.2)
    result = train(tiny_run(method))
    assert result.steps["kept"].tolist() == [method.kept_] * 2
    assert method.kept_ == pytest.approx(0.2, abs=0.001)
    assert result.setup_forwards == 2


def test_a_model_without_layers_is_skipped() -> None:
    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = tiny_model().config
            self.base_model = torch.nn.Linear(2, 2)

    facts = Facts(Odd(), (), CLASSIFICATION, Recipe(), torch.float32)
    assert "layers" in (ChildTuningD().unsupported(facts) or "")
    facts = Facts(tiny_model(), (), CLASSIFICATION, Recipe(), torch.float32)
    assert ChildTuningD().unsupported(facts) is None


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ChildTuningF, {"reserve_p": 0.0}),
        (ChildTuningF, {"reserve_p": 1.5}),
        (ChildTuningD, {"reserve_p": 0.0}),
        (ChildTuningD, {"fisher": "exact"}),
    ],
)
def test_wrong_parameters_are_refused(kind: type[Method], values: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match=r"of ChildTuning[FD] must be"):
        kind(**values)


def test_teardown_without_setup() -> None:
    ChildTuningF().teardown(tiny_run())
    ChildTuningD().teardown(tiny_run())
