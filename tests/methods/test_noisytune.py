from __future__ import annotations

import math

import pytest
import torch

from finetune_bench.errors import FinetuneBenchError, ParameterError
from finetune_bench.methods.noisytune import NoisyTune, perturb_weight
from tests.tiny_run import CONFIGS, REGRESSION, tiny_run


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_noise_stays_within_half_the_width_and_has_its_spread() -> None:
    weight = torch.randn(400, 500, generator=generator(1)) * 0.03 + 0.7
    shift = perturb_weight(weight, 0.15, generator()) - weight
    std = weight.std().item()
    assert shift.abs().max() <= 0.15 / 2 * std * (1 + 1e-4)
    assert shift.abs().max() > 0.149 / 2 * std
    assert abs(shift.mean()) < 4 * 0.15 * std / math.sqrt(12 * weight.numel())
    assert (shift.std() / std).item() == pytest.approx(0.15 / math.sqrt(12), rel=0.01)


def test_against_hand_computed_numbers() -> None:
    weight = torch.tensor([1.0, 3.0])  # unbiased standard deviation √2
    drawn = torch.rand(2, generator=generator(7))
    expected = weight + (drawn - 0.5) * 0.5 * math.sqrt(2)
    torch.testing.assert_close(perturb_weight(weight, 0.5, generator(7)), expected)


def test_constant_tensor_and_zero_bias_stay() -> None:
    for weight in (torch.ones(16), torch.zeros(16), torch.full((8, 3), 0.25)):
        assert torch.equal(perturb_weight(weight, 0.15, generator()), weight)


def test_half_precision_keeps_its_dtype() -> None:
    assert perturb_weight(torch.randn(8, 8).bfloat16(), 0.15, generator()).dtype == torch.bfloat16


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_tensor_with_spread_moves_once(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    objects = {name: id(weight) for name, weight in run.params.items()}
    NoisyTune().setup(run)
    for name, weight in run.params.items():
        clean = run.pretrained[name]
        assert id(weight) == objects[name]
        assert torch.equal(weight, clean) == (clean.std().item() == 0), name
        assert ((weight - clean).abs() <= 0.15 / 2 * clean.std() * 1.001 + 1e-7).all(), name


def test_matrices_only_leaves_vectors() -> None:
    run = tiny_run()
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(torch.randn(weight.shape, generator=generator()))
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    NoisyTune(scope="matrices_only").setup(run)
    for name, weight in run.params.items():
        assert torch.equal(weight, before[name]) == (weight.ndim == 1), name


def test_single_entry_is_left_alone() -> None:
    run = tiny_run(task=REGRESSION)  # its head's bias has one entry
    NoisyTune().setup(run)
    assert all(weight.isfinite().all() for weight in run.params.values())
    assert torch.equal(run.params["classifier.bias"], run.pretrained["classifier.bias"])


def test_zero_intensity_changes_no_bit_and_draws_nothing() -> None:
    run = tiny_run()
    state = run.generator("noisytune").get_state()
    with torch.no_grad():
        run.params["classifier.bias"].fill_(-0.0)
    NoisyTune(intensity=0).setup(run)
    assert math.copysign(1, run.params["classifier.bias"][0].item()) == -1
    assert all(torch.equal(weight, run.pretrained[name]) for name, weight in run.params.items())
    assert torch.equal(run.generator("noisytune").get_state(), state)


def test_seed_decides_the_noise_and_the_global_stream_is_not_used() -> None:
    runs = [tiny_run(seed=seed) for seed in (1, 1, 2)]
    for index, run in enumerate(runs):
        torch.manual_seed(index)
        state = torch.get_rng_state()
        NoisyTune().setup(run)
        assert torch.equal(torch.get_rng_state(), state)
    weights = [run.params["classifier.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_second_application_is_refused() -> None:
    run, method = tiny_run(), NoisyTune()
    method.setup(run)
    with pytest.raises(FinetuneBenchError, match="applied twice"):
        method.setup(run)


def test_pretrained_weights_stay_clean() -> None:
    run = tiny_run()
    before = {name: weight.clone() for name, weight in run.pretrained.items()}
    NoisyTune().setup(run)
    assert all(torch.equal(weight, before[name]) for name, weight in run.pretrained.items())


def test_teardown_without_setup() -> None:
    NoisyTune().teardown(tiny_run())


@pytest.mark.parametrize("values", [{"intensity": -0.1}, {"scope": "some"}, {"intensity": math.inf}])
def test_wrong_parameters_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ParameterError, match="of NoisyTune must be"):
        NoisyTune(**values)
