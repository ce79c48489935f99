from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import orthogonal

from finetune_bench.errors import FinetuneBenchError, ParameterError
from finetune_bench.method.base import Facts
from finetune_bench.method.cost import Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import View
from finetune_bench.methods.mixout import Mixout, mix_weights
from finetune_bench.methods.noisytune import NoisyTune
from finetune_bench.methods.vanilla import Vanilla
from finetune_bench.model.dropout import Dropout
from finetune_bench.model.structure import is_linear
from finetune_bench.recipe import Recipe
from finetune_bench.task import Task
from finetune_bench.testing import toys
from finetune_bench.training.loop import make_optimizer, train
from finetune_bench.training.run import TrainingRun
from tests.tiny_run import CLASSIFICATION, CONFIGS, REGRESSION, first_step, tiny_model, tiny_run

# How many matrices are mixed in two layers, pooler and factorised embeddings included, the head not.
MIXED = {
    "bert": 2 * 6 + 1,
    "roberta": 2 * 6,
    "electra": 2 * 6 + 1,
    "xlnet": 2 * (5 + 2),
    "deberta": 2 * 6,
    "deberta_v2": 2 * 8,
    "albert": 6 + 2,
    "distilbert": 2 * 6,
    "modernbert": 2 * 4,
    "llama": 2 * 7,
    "qwen3": 2 * 7,
    "gpt2": 2 * 4,
    "mpnet": 2 * 6,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixing(run: TrainingRun, method: Mixout) -> Mixout:
    """Set Mixout up on a run, whose weights then move away from the pre-trained ones."""
    method.setup(run)
    method.optimizer(make_optimizer(run), run)
    with torch.no_grad():
        for weight in run.params.values():
            weight.add_(torch.randn(weight.shape, generator=generator(1)), alpha=0.1)
    return method


def attribute(run: TrainingRun, name: str) -> Tensor:
    path, _, key = name.rpartition(".")
    found: Tensor = getattr(run.model.get_submodule(path), key)
    return found


def mixed_names(run: TrainingRun, method: Mixout) -> list[str]:
    with method.perturbing(run):
        return [name for name, weight in run.params.items() if attribute(run, name) is not weight]


def test_hand_computed_numbers() -> None:
    weight, anchor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    mixed = mix_weights(weight, anchor, torch.tensor([[1.0, 0.0]]), 0.5)
    assert mixed.tolist() == [[2.0, 1.0], [5.0, 0.0]]  # first column U + 2(W − U), second column U


@pytest.mark.parametrize("p", [0.1, 0.7, 0.9])
def test_expectation_is_the_weight(p: float) -> None:
    weight, anchor = torch.randn(4, 5, generator=generator(1)), torch.randn(4, 5, generator=generator(2))
    draws = 20_000
    keep = torch.empty(draws, 1, 5).bernoulli_(1 - p, generator=generator())
    mean = torch.stack([mix_weights(weight, anchor, mask, p) for mask in keep]).mean(0)
    bound = 5 * (weight - anchor).abs() * (p / (1 - p) / draws) ** 0.5
    assert ((mean - weight).abs() <= bound + 1e-5).all()


def test_equal_weights_come_back_to_the_last_bit() -> None:
    weight = torch.randn(64, 32, generator=generator()) * 0.05
    for p in (0.1, 0.9, 1.0):
        keep = torch.empty(1, 32).bernoulli_(1 - p, generator=generator())
        assert torch.equal(mix_weights(weight, weight.clone(), keep, p), weight)
        assert torch.equal(mix_weights(weight, weight.clone(), keep, p, reference_gradient=True), weight)


def test_official_form_is_the_same_number() -> None:
    weight, anchor = (
        torch.randn(6, 5, generator=generator(1)).double(),
        torch.randn(6, 5, generator=generator(2)).double(),
    )
    keep, p = torch.tensor([[1.0, 0, 0, 1, 0]]).double(), 0.9
    official = (keep * weight + (1 - keep) * anchor - p * anchor) / (1 - p)
    torch.testing.assert_close(mix_weights(weight, anchor, keep, p), official)


def test_p_one_gives_the_anchor_and_no_gradient() -> None:
    weight, anchor = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    for reference in (False, True):
        mixed = mix_weights(weight, anchor, torch.zeros(1, 4), 1.0, reference_gradient=reference)
        assert torch.equal(mixed, anchor)
        (gradient,) = torch.autograd.grad(mixed.sum(), weight)
        assert not gradient.any()


def test_gradient_is_that_of_the_formula() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, generator=generator(1)).requires_grad_()
    anchor = torch.randn(3, 4, dtype=torch.float64, generator=generator(2))
    keep = torch.tensor([[1.0, 0, 1, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: mix_weights(w, anchor, keep, 0.9), (weight,))


def test_reference_gradient_leaves_the_correction_out() -> None:
    weight, anchor = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    keep, p = torch.tensor([[1.0, 0, 1, 0]]), 0.9
    upstream = torch.randn(3, 4)
    true, reference = (
        torch.autograd.grad(mix_weights(weight, anchor, keep, p, reference_gradient=flag), weight, upstream)[0]
        for flag in (False, True)
    )
    torch.testing.assert_close(reference, true * (1 - p))
    assert torch.equal(reference, upstream * keep)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_linear_layer_of_the_body_is_mixed(architecture: str) -> None:
    run = tiny_run(architecture=architecture)
    names = mixed_names(run, mixing(run, Mixout()))
    assert len(names) == MIXED[architecture]
    prefix = run.model.base_model_prefix
    linear = {
        f"{path}.weight" for path, module in run.model.named_modules() if is_linear(module) and path.startswith(prefix)
    }
    bare = {name for name in run.params if ".rel_attn." in name and name[-2:] in (".q", ".k", ".v", ".o", ".r")}
    assert set(names) == linear | bare
    with_head = mixed_names(run, mixing(run, Mixout(include_head=True)))
    assert {name for name in with_head if not name.startswith(prefix)} == {
        f"{path}.weight"
        for path, module in run.model.named_modules()
        if isinstance(module, nn.Linear) and not path.startswith(prefix)
    }


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_gradients_are_those_of_the_mixed_weights(architecture: str, reference: bool) -> None:
    method = Mixout(p=0.6, reference_gradient=reference)
    run = tiny_run(method, architecture=architecture, dropout=Dropout.ALL_OFF)
    mixing(run, method)
    state = run.generator("mixout").get_state()
    step = first_step(run)
    names = mixed_names(run, method)
    weights = [run.params[name] for name in names]
    run.generator("mixout").set_state(state)
    loss = step.objective().loss
    got = torch.autograd.grad(loss, weights, allow_unused=True)

    run.generator("mixout").set_state(state)
    with method.perturbing(run):
        mixed = {name: attribute(run, name).detach().requires_grad_() for name in names}
    logits = functional_call(run.model, mixed, kwargs=step.batch.inputs).logits
    assert torch.equal(run.task.loss(type(step.forward())(logits), step.batch.labels), loss)
    upstream = torch.autograd.grad(
        nn.functional.cross_entropy(logits, step.batch.labels), list(mixed.values()), allow_unused=True
    )
    for name, gradient, over in zip(names, got, upstream, strict=True):
        anchor = run.pretrained[name]
        factor = ((mixed[name] - anchor) / (run.params[name] - anchor)).detach().round(decimals=2)
        expected = over * (factor * 0.4 if reference else factor)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_masks_are_constant_along_columns_and_meet_p() -> None:
    run = tiny_run()
    method = mixing(run, Mixout(p=0.75))
    replaced = columns = 0
    for _ in range(40):
        for name in mixed_names(run, method)[:1]:
            with method.perturbing(run):
                factor = (attribute(run, name) - run.pretrained[name]) / (run.params[name] - run.pretrained[name])
            torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-2, atol=1e-3)
        with method.perturbing(run):
            for target in method.targets_:
                mixed = vars(target.owner)[target.attribute]
                same = (mixed == target.anchor).all(0)
                assert torch.equal(same, (mixed == target.anchor).any(0))
                replaced, columns = replaced + int(same.sum()), columns + same.numel()
    assert abs(replaced / columns - 0.75) < 4 * (0.75 * 0.25 / columns) ** 0.5


def test_a_column_belongs_to_one_input() -> None:
    """With U = 0 Mixout is dropout on the layer's input; XLNet's tensors are laid out in their own way."""
    run = tiny_run(architecture="xlnet")
    method = mixing(run, Mixout(p=0.5))
    for target in method.targets_:
        target.anchor.zero_()
    x = torch.randn(3, 2, 16, generator=generator(3))
    heads = torch.randn(3, 2, 2, 8, generator=generator(4))
    attention = run.model.get_submodule("transformer.layer.0.rel_attn")
    feed_forward = run.model.get_submodule("transformer.layer.0.ff.layer_1")
    clean = {key: getattr(attention, key).detach() for key in "qkvor"}
    with method.perturbing(run):
        for key in "qkvr":
            keep = (attention.__dict__[key] != 0).any(-1).any(-1).float()
            torch.testing.assert_close(
                torch.einsum("ibh,hnd->ibnd", x, attention.__dict__[key]),
                torch.einsum("ibh,hnd->ibnd", x * keep * 2, clean[key]),
            )
        keep = (attention.__dict__["o"] != 0).any(0).float()
        torch.testing.assert_close(
            torch.einsum("ibnd,hnd->ibh", heads, attention.__dict__["o"]),
            torch.einsum("ibnd,hnd->ibh", heads * keep * 2, clean["o"]),
        )
        keep = (feed_forward.weight != 0).any(0).float()
        torch.testing.assert_close(
            feed_forward(x),
            nn.functional.linear(x * keep * 2, run.params["transformer.layer.0.ff.layer_1.weight"]) + feed_forward.bias,
        )


def test_each_training_pass_has_its_own_mask_and_clean_passes_have_none() -> None:
    method = Mixout(p=0.5)
    run = tiny_run(method, dropout=Dropout.ALL_OFF)
    mixing(run, method)
    step = first_step(run)
    clean = run.forward(step.batch, View(perturb=False)).logits
    first, second = step.forward().logits, step.forward().logits
    assert not torch.equal(first, second)
    assert not torch.equal(first, clean)
    assert torch.equal(step.forward(View(perturb=False)).logits, clean)
    run.model.eval()
    assert torch.equal(run.forward(step.batch, View(perturb=False)).logits, clean)


def test_mixing_starts_after_every_setup() -> None:
    run = tiny_run()
    method = Mixout()
    method.setup(run)
    assert mixed_names(run, method) == []
    method.optimizer(make_optimizer(run), run)
    assert mixed_names(run, method)


def test_anchor_is_the_clean_point_under_noisytune() -> None:
    run = tiny_run()
    stack = Stack([Mixout(), NoisyTune()])
    stack.setup(run)
    mixout = stack.methods[0]
    assert isinstance(mixout, Mixout)
    for target in mixout.targets_:
        assert not torch.equal(target.anchor, target.weight)
    anchors = {id(target.weight): target.anchor for target in mixout.targets_}
    for name, weight in run.params.items():
        if id(weight) in anchors:
            assert torch.equal(anchors[id(weight)], run.pretrained[name])


def trained(run: TrainingRun) -> dict[str, Tensor]:
    train(run)
    run.method.teardown(run)
    return {name: weight.detach().clone() for name, weight in run.model.state_dict().items()}


@pytest.mark.parametrize("task", [CLASSIFICATION, REGRESSION], ids=lambda task: task.kind)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_training_moves_weights_and_leaves_a_plain_model(architecture: str, task: Task) -> None:
    run = tiny_run(Mixout(p=0.5), architecture=architecture, task=task, dropout=Dropout.ALL_OFF)
    fresh = tiny_model(architecture, task)
    objects = {name: id(weight) for name, weight in run.model.named_parameters()}
    attributes = {path: set(vars(module)) for path, module in run.model.named_modules()}
    before = {name: weight.clone() for name, weight in run.pretrained.items()}
    after = trained(run)
    assert list(after) == list(fresh.state_dict())
    assert {name: id(weight) for name, weight in run.model.named_parameters()} == objects
    assert {path: set(vars(module)) for path, module in run.model.named_modules()} == attributes
    assert all(torch.equal(weight, before[name]) for name, weight in run.pretrained.items())
    assert any(not torch.equal(weight, before[name]) for name, weight in run.params.items())


def test_neutral_equals_vanilla_to_the_last_bit() -> None:
    vanilla = trained(tiny_run(Vanilla(), dropout=Dropout.ALL_OFF))
    neutral = trained(tiny_run(Mixout(**Mixout.neutral), dropout=Dropout.ALL_OFF))
    alive = trained(tiny_run(Mixout(p=0.5), dropout=Dropout.ALL_OFF))
    assert all(torch.equal(weight, neutral[name]) for name, weight in vanilla.items())
    assert any(not torch.equal(weight, alive[name]) for name, weight in vanilla.items())


def test_p_zero_uses_the_weights_themselves() -> None:
    run = tiny_run()
    assert mixed_names(run, mixing(run, Mixout(p=0.0))) == []  # U + (W − U) is not W to the last bit


def test_p_one_without_decay_trains_only_what_is_not_mixed() -> None:
    method = Mixout(p=1.0)
    run = tiny_run(method, dropout=Dropout.ALL_OFF, weight_decay=0.0)
    after = trained(run)
    mixed = set(mixed_names(run, method))
    for name in run.params:
        assert torch.equal(after[name], run.pretrained[name]) == (name in mixed), name


def test_same_seed_gives_the_same_weights() -> None:
    weights = [trained(tiny_run(Mixout(), seed=seed))["classifier.weight"] for seed in (3, 3, 4)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_error_inside_a_pass_leaves_a_plain_model() -> None:
    run = tiny_run()
    method = mixing(run, Mixout())
    with pytest.raises(RuntimeError, match="inside"), method.perturbing(run):
        raise RuntimeError("inside")
    assert all(attribute(run, name) is weight for name, weight in run.params.items())


def test_only_a_mixture_is_stochastic() -> None:
    assert Mixout().stochastic
    assert [Mixout(p=p).stochastic for p in (0.0, 0.9, 1.0)] == [False, True, False]
    assert Mixout().passes(Passes()) == Passes()


def test_gradient_checkpointing_is_refused() -> None:
    facts = Facts(tiny_model(), (), CLASSIFICATION, Recipe(gradient_checkpointing=True), torch.float32)
    assert "gradient checkpointing" in (Mixout().unsupported(facts) or "")
    assert Mixout(p=0.0).unsupported(facts) is None
    plain = Facts(tiny_model(), (), CLASSIFICATION, Recipe(), torch.float32)
    assert Mixout().unsupported(plain) is None


def test_a_weight_that_is_parametrised_already_is_refused() -> None:
    run = tiny_run()
    orthogonal(run.model.get_submodule("bert.pooler.dense"))
    with pytest.raises(FinetuneBenchError, match="re-parametrised"):
        Mixout().setup(run)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_wrong_parameters_are_refused(p: float) -> None:
    with pytest.raises(ParameterError, match="of Mixout must be"):
        Mixout(p=p)


def test_teardown_without_setup() -> None:
    Mixout().teardown(tiny_run())


def test_dropout_beside_it_is_told() -> None:
    for dropout, said in (("keep", True), ("all_off", False)):
        stack = Stack([Mixout(dropout=dropout)])
        assert ["dropout stays on" in text for text in stack.warnings(toys.toy_facts(stack))] == [True] * said
