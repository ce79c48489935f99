"""The recipe's optimisers: steps worked out by hand, which weights Muon takes, and every method under each of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import Parameter
from torch.optim import AdamW, Muon

from finetune_bench import registry
from finetune_bench.errors import FinetuneBenchError, UsageError
from finetune_bench.method.base import Method, Phase
from finetune_bench.method.step import Run
from finetune_bench.recipe import Recipe
from finetune_bench.testing import toys
from finetune_bench.training.checkpoint import Checkpoints
from finetune_bench.training.loop import make_optimizer, muon_weights
from finetune_bench.training.optimizer import Lion, MuonAndAdamW, muon_matrices

LION = Recipe(optimizer="lion", lr=1e-3, batch_size=8, epochs=1)
MUON = Recipe(optimizer="muon", lr=1e-3, batch_size=8, epochs=1)


def make(text: str) -> list[Method]:
    return list(registry.make_stack(text).methods)


def test_lion_steps_by_the_sign_of_what_momentum_and_gradient_come_to() -> None:
    """By hand: at the second step 0.9 × 0.005 − 0.1 × 0.01 is above 0, and the gradient is outvoted."""
    weight = Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = Lion([{"params": [weight]}], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for gradient, moved, momentum in ((0.5, 0.989, 0.005), (-0.01, 0.978011, 0.00485)):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        assert weight.item() == pytest.approx(moved, abs=1e-12)
        assert optimizer.state[weight]["momentum"].item() == pytest.approx(momentum, abs=1e-12)


def test_lion_equals_its_formula_in_numpy() -> None:
    """Also with two groups, a gradient of 0 and one that comes and goes."""
    random = np.random.default_rng(0)
    start = random.normal(size=(2, 3, 2))
    weights = [Parameter(torch.tensor(values)) for values in start]
    groups = [{"params": weights[:1]}, {"params": weights[1:], "lr": 0.1, "weight_decay": 0.5}]
    optimizer = Lion(groups, lr=0.02, betas=(0.8, 0.95))
    settings = ((0.02, 0.0), (0.1, 0.5))
    expected, momenta = start.copy(), np.zeros_like(start)
    for step in range(12):
        gradients = random.normal(size=start.shape) * 10.0 ** random.integers(-6, 3)
        gradients[:, 0, 0] = 0
        for index, (rate, decay) in enumerate(settings):
            asleep = index == 1 and step % 3 == 0
            weights[index].grad = None if asleep else torch.tensor(gradients[index])
            if asleep:
                continue
            direction = np.sign(0.8 * momenta[index] + (1 - 0.8) * gradients[index])
            expected[index] -= rate * (direction + decay * expected[index])
            momenta[index] = 0.95 * momenta[index] + (1 - 0.95) * gradients[index]
        optimizer.step()
    for weight, values in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), values, rtol=1e-12)
    assert weights[0][0, 0].item() == start[0, 0, 0]


def test_muons_step_of_an_orthogonal_gradient_is_known() -> None:
    """All singular values of such a gradient are 1/√n once it is scaled, and five iterations take each to p⁵(1/√n)."""
    n, rate, decay = 16, 0.5, 0.1
    orthogonal = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0)))[0]
    weight = Parameter(torch.zeros(n, n))
    start = Parameter(torch.ones(1))
    optimizer = MuonAndAdamW(
        [weight], [{"params": [start], "weight_decay": decay}], lr=rate, weight_decay=decay, betas=(0.9, 0.99), eps=0.0
    )
    weight.grad, start.grad = 7 * orthogonal, torch.tensor([3.0])
    optimizer.step()
    value = n**-0.5
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    expected = -rate * 0.2 * n**0.5 * value * orthogonal
    assert float((weight.detach() - expected).norm() / expected.norm()) < 0.02  # the iterations are in bfloat16
    # AdamW's first step is the rate, whatever the gradient.
    assert start.item() == pytest.approx(1 * (1 - rate * decay) - rate, abs=1e-6)


def test_muon_and_adamw_together_equal_both_apart() -> None:
    """Also where a method gives layers rates of their own after it was made."""
    stack = make("layerwise_lr_decay(decay=0.5)")
    together, _ = toys.toy_run(stack, recipe=MUON)
    apart, _ = toys.toy_run(stack, recipe=MUON)
    optimizer = together.method.optimizer(make_optimizer(together), together)
    names = {weight: name for name, weight in together.params.items()}
    muons, adamws = [], []
    for group in optimizer.param_groups:
        weights = [apart.params[names[weight]] for weight in group["params"]]
        settings = {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        if "momentum" in group:
            muons.append(Muon(weights, adjust_lr_fn="match_rms_adamw", **settings))
        elif weights:
            adamws.append(AdamW(weights, betas=(MUON.beta1, MUON.beta2), eps=MUON.adam_eps, fused=True, **settings))
    assert len(muons) > 1
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, weight in together.params.items():
            weight.grad = torch.randn(weight.shape, generator=generator)
            apart.params[name].grad = weight.grad.clone()
        for part in (optimizer, *muons, *adamws):
            part.step()
    assert all(torch.equal(weight, apart.params[name]) for name, weight in together.params.items())


@pytest.mark.parametrize(
    ("architecture", "per_layer", "never"),
    [
        ("bert", 6, ("embeddings", "pooler", "classifier", "bias", "LayerNorm")),
        ("albert", 6, ("embeddings", "mapping_in", "pooler", "bias")),
        ("deberta_v2", 8, ("rel_embeddings", "conv", "bias")),
        ("xlnet", 2, ("word_embedding", "mask_emb", "r_w_bias", "r_r_bias", "r_s_bias", "seg_embed", "rel_attn")),
        ("gpt2", 4, ("wte", "wpe", "score", "ln_")),
        ("llama", 7, ("embed_tokens", "score", "norm")),
        ("modernbert", 4, ("embeddings", "head", "norm")),
    ],
)
def test_muon_takes_the_matrices_of_the_layers(architecture: str, per_layer: int, never: tuple[str, ...]) -> None:
    run, _ = toys.toy_run(make("vanilla"), architecture, recipe=MUON)
    names = {weight: name for name, weight in run.params.items()}
    chosen = [names[weight] for weight in muon_weights(run)]
    layers = 1 if architecture == "albert" else 2
    assert len(chosen) == len(set(chosen)) == per_layer * layers
    assert not [name for name in chosen for part in never if part in name]
    optimizer = make_optimizer(run)
    stepped = [weight for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(map(id, stepped)) == sorted(map(id, run.params.values()))
    decayed = {names[w] for group in optimizer.param_groups if group["weight_decay"] for w in group["params"]}
    assert decayed == set(run.params) - run.undecayed


REFUSED = {
    "lion": {"recadam", "sage", "schedule_free"},
    "muon": {"recadam", "sage", "schedule_free", "bi_drop", "bitfit", "child_tuning_d", "child_tuning_f"},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [LION, MUON], ids=["lion", "muon"])
def test_every_method_trains_or_says_why_not(recipe: Recipe) -> None:
    """A method that replaces the update or masks gradients is refused; all others move weights, and stay finite."""
    recipe = dataclasses.replace(recipe, steps=2, epochs=None)
    usual = dataclasses.replace(recipe, optimizer="adamw")
    refused = set()
    for name in sorted(registry.names("methods")):
        if name == "ewc" or toys.unsupported(make(name), recipe=usual):  # which needs a checkpoint's language model
            continue
        if reason := toys.unsupported(make(name), recipe=recipe):
            refused.add(name)
            assert recipe.optimizer in reason
            continue
        start = toys.weights(toys.toy_run(make(name), recipe=recipe)[0])
        run, result, _ = toys.toy_train(make(name), recipe=recipe)
        assert np.isfinite(result.steps["loss"]).all(), name
        assert any(not torch.equal(start[key], weight) for key, weight in toys.weights(run).items()), name
    assert refused == REFUSED[recipe.optimizer]


def test_what_leaves_muon_nothing_to_do_is_refused() -> None:
    """Masks that put weights back, and all else that trains matrices, may go on."""
    for text in ("top_k(k=0)", "peft(kind=ia3)", "peft(kind=vera)", "peft(kind=oft)", "bitfit"):
        reason = toys.unsupported(make(text), recipe=MUON)
        assert reason is not None
        assert "muon is for matrices of the layers, and none of them trains; use --optimizer adamw" in reason
        assert toys.unsupported(make(text), recipe=LION) is None
    fine = ("top_k(k=1)", "lora(r=1)", "peft(kind=dora)", "child_tuning_d(strict=true)", "child_tuning_f(reserve_p=1)")
    for text in (*fine, "bi_drop(share=1)"):
        assert toys.unsupported(make(text), recipe=MUON) is None


def test_where_no_matrix_trains_muon_fails_with_the_reason() -> None:
    """A method from elsewhere may freeze what it likes, and no refusal knows of it."""

    class HeadOnly(Method):
        name = "head_only"
        phase = Phase.SELECT

        def setup(self, run: Run) -> None:
            for name, weight in run.params.items():
                weight.requires_grad_(name.startswith("classifier"))

    with pytest.raises(FinetuneBenchError, match="no matrix of the layers trains, so that it would be AdamW alone"):
        toys.toy_train(HeadOnly(), recipe=MUON)


def test_muon_takes_the_matrices_of_adapters() -> None:
    run, stack = toys.toy_run(make("lora"), recipe=MUON)
    stack.setup(run)
    names = {weight: name for name, weight in run.params.items()}
    chosen = {names[weight] for weight in muon_weights(run)}
    assert chosen == {name for name in run.params if name.endswith((".lora_A", ".lora_B"))} != set()
    stack.teardown(run)
    assert muon_matrices(run.model) != []


@pytest.mark.parametrize("recipe", [LION, MUON], ids=["lion", "muon"])
@pytest.mark.parametrize("text", ["rdrop", "layerwise_lr_decay+lisa(interval=2)"])
def test_a_run_goes_on_from_its_checkpoint(
    recipe: Recipe, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, with the state of both parts of Muon."""
    recipe = dataclasses.replace(recipe, epochs=3)
    whole, _, _ = toys.toy_train(make(text), recipe=recipe)
    checkpoints = Checkpoints(tmp_path / "checkpoint", every=4, owner="a run")
    toys.toy_train(make(text), recipe=recipe, checkpoints=checkpoints)
    assert checkpoints.path.exists()
    resumed, result, _ = toys.toy_train(make(text), recipe=recipe, checkpoints=checkpoints)
    assert result.resumed_at > 0
    after = toys.weights(resumed)
    assert all(torch.equal(weight, after[name]) for name, weight in toys.weights(whole).items())


@pytest.mark.parametrize("recipe", [LION, MUON], ids=["lion", "muon"])
def test_a_trimmed_vocabulary_trains_the_same(recipe: Recipe) -> None:
    """Rows of tokens that don't occur have no direction, and only decay."""
    tables, examples = [], toys.toy_examples("classification")
    unused = np.setdiff1d(np.arange(toys.VOCABULARY), np.concatenate([[0], *examples.columns["input_ids"]]))
    assert len(unused)
    for layout in ("unpadded", "unpadded_trimmed"):
        cut = dataclasses.replace(recipe, batch_layout=layout, steps=2, epochs=None)
        run, _, _ = toys.toy_train(make("vanilla(dropout=all_off)"), recipe=cut)
        tables.append(run.params["bert.embeddings.word_embeddings.weight"].detach()[unused])
    start = toys.toy_run(make("vanilla(dropout=all_off)"))[0].params["bert.embeddings.word_embeddings.weight"]
    assert not torch.equal(tables[0], start.detach()[unused])
    torch.testing.assert_close(*tables, rtol=1e-6, atol=0)


@pytest.mark.parametrize("recipe", [LION, MUON], ids=["lion", "muon"])
def test_a_step_that_overflows_is_left_out_whole(recipe: Recipe) -> None:
    """Neither weights nor momentum move where fp16's loss scaling finds a gradient that is not finite."""
    run, _ = toys.toy_run(make("vanilla"), recipe=recipe)
    optimizer = make_optimizer(run)
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}
    for number in (1.0, float("inf")):
        for weight in run.params.values():
            weight.grad = torch.full_like(weight, number)
        scaler.scale(torch.ones(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if number == 1.0:
            assert all(not torch.equal(weight, before[name]) for name, weight in run.params.items())
            before = {name: weight.detach().clone() for name, weight in run.params.items()}
            kept = {weight: dict(state) for weight, state in optimizer.state.items()}
    assert all(torch.equal(weight, before[name]) for name, weight in run.params.items())
    for weight, state in optimizer.state.items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(kept[weight][key])) for key, value in state.items()
        )


def test_lion_has_no_epsilon_to_set() -> None:
    with pytest.raises(
        UsageError, match="--adam-eps: --optimizer lion divides by nothing .* leave it at 1e-06, got 1e-08"
    ):
        Recipe(optimizer="lion", adam_eps=1e-8)
    assert Recipe(optimizer="muon", adam_eps=1e-8).adam_eps == 1e-8
