from __future__ import annotations

import pytest
import torch

from finetune_bench.method.stack import Stack
from finetune_bench.methods.l2_sp import L2SP
from finetune_bench.methods.mixout import Mixout
from finetune_bench.methods.reinit_layers import ReinitLayers, redraw_weights
from finetune_bench.model.structure import layers, parameter_depths
from finetune_bench.testing import toys
from tests.tiny_run import CONFIGS, tiny_run


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_exactly_the_top_layers_are_drawn_anew(architecture: str) -> None:
    method = ReinitLayers(layers=2 if architecture == "albert" else 1)
    assert toys.unsupported(method, architecture) is None
    run = tiny_run(architecture=architecture)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    state = torch.get_rng_state()
    method.setup(run)
    assert torch.equal(state, torch.get_rng_state())
    depth = parameter_depths(run.model)
    pooler = getattr(run.model.base_model, "pooler", None)
    poolers = set() if pooler is None else set(pooler.parameters())
    for name, weight in run.params.items():
        if depth[weight] == 1 or weight in poolers:
            if weight.ndim > 1:
                assert not torch.equal(weight, before[name]), name
                assert 0.3 * 0.02 < float(weight.detach().std()) < 2 * 0.02, name
            elif name in run.undecayed and "_bias" not in name:
                assert bool((weight == (1.0 if name.endswith("weight") else 0.0)).all()), name
        else:
            assert torch.equal(weight, before[name]), name


def test_loaded_tensors_are_drawn_anew_in_spite_of_their_mark() -> None:
    run = tiny_run()
    (layer,) = layers(run.model)[:1]
    for weight in layer.parameters():
        weight._is_hf_initialized = True  # type: ignore[attr-defined]
    before = [weight.detach().clone() for weight in layer.parameters() if weight.ndim > 1]
    redraw_weights(run.model, [layer])
    after = [weight for weight in layer.parameters() if weight.ndim > 1]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert all(weight._is_hf_initialized for weight in layer.parameters())  # type: ignore[attr-defined]


def test_norms_and_biases_are_reset() -> None:
    run = tiny_run()
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(0.5)
    ReinitLayers(layers=1).setup(run)
    assert bool((run.params["bert.encoder.layer.1.output.LayerNorm.weight"] == 1).all())
    assert bool((run.params["bert.encoder.layer.1.output.dense.bias"] == 0).all())
    assert bool((run.params["bert.encoder.layer.0.output.dense.bias"] != 0).all())


def test_the_anchor_of_what_is_drawn_anew_is_the_draw() -> None:
    for stack in (
        Stack([ReinitLayers(), Mixout()]),
        Stack([Mixout(), ReinitLayers()]),
        Stack([L2SP(), ReinitLayers()]),
    ):
        run = tiny_run()
        loaded = dict(run.pretrained)
        stack.setup(run)
        for name, weight in run.params.items():
            assert torch.equal(run.pretrained[name], weight)
            redrawn = ".layer.1." in name or ".pooler." in name
            assert (run.pretrained[name] is loaded[name]) != redrawn, name


def test_the_draw_depends_on_the_seed_alone() -> None:
    drawn = []
    for seed in (1, 1, 2):
        run = tiny_run(seed=seed)
        torch.rand(3)
        ReinitLayers().setup(run)
        drawn.append(run.params["bert.pooler.dense.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_what_can_not_be_drawn_is_refused() -> None:
    assert "more than the 2" in str(toys.unsupported(ReinitLayers(layers=3)))
    assert "shares its layers" in str(toys.unsupported(ReinitLayers(layers=1), "albert"))
    assert "no pooler" in str(toys.unsupported(ReinitLayers(layers=0), "roberta"))
    assert toys.unsupported(ReinitLayers(layers=0)) is None
