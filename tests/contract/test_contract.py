"""Every installed method keeps the contract, alone and in every ordered pair with every other."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest

from finetune_bench import registry, testing
from finetune_bench.method import Method
from finetune_bench.task import Kind

METHODS = registry.names("methods")
ORDERED_PAIRS = [(a, b) for a in METHODS for b in METHODS if a != b and registry.BASELINE not in (a, b)]


@pytest.mark.parametrize("check", [c for c in testing.CHECKS if c is not testing.pairs], ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_method_keeps_the_contract(name: str, check: Callable[[type[Method]], None]) -> None:
    try:
        check(registry.method_class(name))
    except testing.Skip as reason:
        pytest.skip(str(reason))


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize(("left", "right"), ORDERED_PAIRS)
def test_pair_on_bert(left: str, right: str, kind: Kind) -> None:
    testing.check_pair(registry.method_class(left), registry.method_class(right), "bert", kind)


@pytest.mark.parametrize(("left", "right"), ORDERED_PAIRS)
def test_pair_on_another_architecture(left: str, right: str) -> None:
    """Each pair on one of the other architectures, chosen by the pair's name, so that together they meet them all."""
    others = sorted(set(testing.ARCHITECTURES) - {"bert"})
    chosen = others[zlib.crc32(f"{left}+{right}".encode()) % len(others)]
    testing.check_pair(registry.method_class(left), registry.method_class(right), chosen)


def test_pairs_meet_every_architecture() -> None:
    others = sorted(set(testing.ARCHITECTURES) - {"bert"})
    assert {zlib.crc32(f"{a}+{b}".encode()) % len(others) for a, b in ORDERED_PAIRS} == set(range(len(others)))


@pytest.mark.parametrize("name", METHODS)
def test_every_architecture_is_supported_by_default(name: str) -> None:
    """What a built-in method can't do is known, not found out: with its defaults only these cells are unsupported."""
    known = {
        "rdrop": {"modernbert"},  # no dropout by default, hence two identical passes
        "reinit_layers": {"albert"},  # its layers are one, which can't be re-drawn in part
    }
    found = {
        architecture
        for architecture in testing.ARCHITECTURES
        for kind in ("classification", "regression")
        if testing.unsupported(registry.method_class(name)(), architecture, kind)  # type: ignore[arg-type]
    }
    assert found == known.get(name, set())


def test_a_broken_method_fails_its_checks() -> None:
    """The checks can fail: here is a method that draws while evaluating, moves the weights and leaves a hook."""

    class Broken(Method):
        name = "broken"
        neutral = {}

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
