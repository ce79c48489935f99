"""Every installed method keeps the contract, alone and in every ordered pair with every other."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from finetune_bench import registry, testing
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.step import Run, State
from finetune_bench.metrics import Kind
from finetune_bench.parameters import parameter
from finetune_bench.task import Output
from finetune_bench.testing import accumulation, checks, stacks, toys

METHODS = registry.names("methods")
STACKED = [name for name in METHODS if name != registry.BASELINE]
ORDERED_PAIRS = [(a, b) for a in STACKED for b in STACKED if a != b]
# Every method is once on the left and once on the right of a pair that is tried quickly.
QUICK_PAIRS = list(zip(STACKED, [*STACKED[1:], STACKED[0]], strict=True))
SLOW_CHECKS = (
    testing.trains_everywhere,
    testing.arranges,
    testing.resumes,
    testing.accumulates,
    testing.leaves_a_plain_model,
    testing.survives_checkpointing,
)
ALONE = [check for check in testing.CHECKS if check is not testing.pairs]
CHECKS = [
    pytest.param(check, marks=[pytest.mark.slow] if check in SLOW_CHECKS else [], id=check.__name__) for check in ALONE
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_the_contract(name: str, check: Callable[[type[Method]], None]) -> None:
    try:
        check(registry.method_class(name))
    except testing.Skip as reason:
        pytest.skip(str(reason))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_the_contract_on_a_device(name: str) -> None:
    try:
        outcomes = list(testing.check_method(registry.method_class(name), torch.device("cuda", 0), ALONE))
    finally:
        torch.use_deterministic_algorithms(False)
    assert [f"{check.name}: {check.detail}" for check in outcomes if check.outcome == "FAIL"] == []


class Reached(Exception):
    """Stands for a training that was asked for."""


@pytest.mark.parametrize("check", testing.CHECKS[3:], ids=lambda check: check.__name__)
def test_a_check_trains_on_the_device_that_it_is_given(
    check: Callable[[type[Method], torch.device], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = torch.device("meta")

    def train(*_: object, device: torch.device, **options: object) -> None:
        assert device == elsewhere
        raise Reached

    for module in (checks, stacks, accumulation):
        for name in ("toy_run", "toy_train"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, train)
    with pytest.raises(Reached):
        check(registry.method_class("hype"), elsewhere)


@pytest.mark.parametrize(("left", "right"), QUICK_PAIRS)
def test_pair_on_bert(left: str, right: str) -> None:
    check_pair(left, right, "bert", "classification")


def check_pair(left: str, right: str, architecture: str, kind: Kind) -> None:
    testing.check_pair(registry.method_class(left), registry.method_class(right), architecture, kind)


def covering_sample() -> list[tuple[str, str, str, Kind]]:
    """Stacks of two such that every method meets every architecture and both kinds, on the left and on the right."""
    methods = sorted({left for left, _ in ORDERED_PAIRS})
    random.Random(17).shuffle(methods)
    return [
        (left, methods[(i + j + 1) % len(methods)], architecture, toys.KINDS[(i + j // 2) % 2])
        for i, left in enumerate(methods)
        for j, architecture in enumerate(toys.ARCHITECTURES)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("left", "right", "architecture", "kind"), covering_sample())
def test_pair_of_a_covering_sample(left: str, right: str, architecture: str, kind: Kind) -> None:
    check_pair(left, right, architecture, kind)


def test_the_sample_covers_every_pairing_of_two_factors() -> None:
    sample = covering_sample()
    sizes = [len({row[factor] for row in sample}) for factor in range(4)]
    assert sizes == [len(METHODS) - 1, len(METHODS) - 1, len(toys.ARCHITECTURES), len(toys.KINDS)]
    for one, other in [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]:
        assert len({(row[one], row[other]) for row in sample}) == sizes[one] * sizes[other], (one, other)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", toys.KINDS)
@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
@pytest.mark.parametrize("left", sorted({left for left, _ in ORDERED_PAIRS}))
def test_every_pair_everywhere(left: str, architecture: str, kind: Kind) -> None:
    for one, right in ORDERED_PAIRS:
        if one == left:
            owners = registry.method_class(left), registry.method_class(right)
            testing.check_pair(*owners, architecture, kind, thorough=False)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_every_architecture_is_supported_by_default(name: str) -> None:
    """What a built-in method can't do is known, not found out: with its defaults only these cells are unsupported."""
    classes_only = {"label_smoothing", "focal", "confidence_penalty", "dft"}
    known = {
        "bi_drop": {"modernbert", "llama", "qwen3"},  # no dropout by default, hence identical passes
        "bitfit": {"modernbert", "llama", "qwen3"},  # no biases
        "drophead": {"xlnet"},  # its heads are mixed in one product
        "ewc": set(toys.ARCHITECTURES),  # the tiny models come from no checkpoint whose language model it could read
        "lisa": {"albert"},  # its layers are one, which can't sleep in part
        "rdrop": {"modernbert", "llama", "qwen3"},  # as bi_drop
        "reinit_layers": {"albert"},  # its layers are one, which can't be re-drawn in part
    }
    for kind in toys.KINDS:
        method = registry.method_class(name)
        found = {model for model in toys.ARCHITECTURES if toys.unsupported(method(), model, kind)}
        without_classes = kind == "regression" and name in classes_only
        assert found == (set(toys.ARCHITECTURES) if without_classes else known.get(name, set())), kind


def test_a_method_that_forgets_its_state_fails_its_check() -> None:
    class Forgetful(Method):
        name = "forgetful"

        def setup(self, run: Run) -> None:
            self.steps_ = 0

        def gradients(self, run: Run) -> None:
            self.steps_ += 1
            for weight in run.params.values():
                if weight.grad is not None:
                    weight.grad.mul_(1 / self.steps_)

    class Mindful(Forgetful):
        name = "mindful"

        def state(self) -> State:
            return {"steps": self.steps_}

        def load_state(self, state: State) -> None:
            self.steps_ = state["steps"]

    with pytest.raises(AssertionError, match="what changes from step to step belongs into `state`"):
        testing.resumes(Forgetful)
    testing.resumes(Mindful)


def test_a_check_tells_what_a_method_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ARCHITECTURES", dict.fromkeys(("bert", "llama")))

    class Choosy(Method):
        name = "choosy"
        classes_only = True

        def unsupported(self, facts: Facts) -> str | None:
            return None if facts.active_dropout else "there is no dropout"

    (check,) = testing.check_method(Choosy, checks=[testing.trains_everywhere])
    assert check.outcome == "ok"
    assert check.detail == (
        "refused regression: a regression task has no distribution over classes; "
        "refused llama for classification: there is no dropout"
    )


def test_a_misspelt_name_is_found() -> None:
    class Misspelt(Method):
        name = "misspelt"
        class_only = True
        rate: float = parameter(0.1, help="a name of its own, though `rates` is near")

        def loses(self, run: Run, output: Output, losses: Tensor) -> Tensor:
            return 2 * losses

        def gradient_(self) -> None:
            """Stand for what the method learns."""

    with pytest.raises(
        AssertionError, match="`class_only`; did you mean `classes_only`.*`loses`; did you mean `losses`"
    ):
        testing.is_in_present_form(Misspelt)


def test_an_observer_that_moves_weights_is_found() -> None:
    class Shrinking(Method):
        name = "shrinking"
        observer = True

        def after_step(self, run: Run) -> None:
            for weight in run.params.values():
                weight.data.mul_(0.9)

    with pytest.raises(AssertionError, match="says `observer = True`, and it trains to other weights"):
        testing.is_alive(Shrinking)
    testing.is_alive(registry.method_class("ema"))


def test_what_is_drawn_seldom_is_alive() -> None:
    class Seldom(registry.method_class("layerdrop")):  # type: ignore[misc]
        name = "seldom"

        p: float = parameter(0.02, interval="[0, 1)", neutral=0.0, help="probability of a layer to be skipped")

    run, _, _ = toys.toy_train(Seldom())
    assert toys.same(run, toys.toy_train(registry.method_class("vanilla")())[0])  # Nothing is drawn in so few steps.
    testing.is_alive(Seldom)


@pytest.mark.slow
def test_a_broken_method_fails_its_checks() -> None:
    """The checks can fail: here is a method that draws while evaluating, moves the weights and leaves a hook."""

    class Broken(Method):
        name = "broken"

        strength: float = parameter(0.0, neutral=0.0, help="of nothing")

        def setup(self, run):  # type: ignore[no-untyped-def]
            import torch

            run.model.register_forward_pre_hook(lambda *_: torch.rand(1) and None)
            with torch.no_grad():
                for parameter in run.params.values():
                    parameter.add_(torch.rand_like(parameter) * 1e-2)

    outcomes = {check.name: check.outcome for check in testing.check_method(Broken)}
    for name in ("neutral is vanilla", "evaluation is clean", "leaves a plain model"):
        assert outcomes[name] == "FAIL"
    assert outcomes["is alive"] == "ok"
