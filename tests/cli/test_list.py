"""`list methods` has methods by what they act on, with their passes and memory."""

from __future__ import annotations

import pytest

from finetune_bench import cli, registry
from finetune_bench.method.base import PLACES


def test_methods_are_grouped_by_what_they_act_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("vanilla")
    heads = {line.removeprefix("-- ").strip(): number for number, line in enumerate(lines) if line.startswith("-- ")}
    assert [place for place in heads if place in PLACES] == list(PLACES)
    assert list(heads.values()) == sorted(heads.values())

    def head_of(name: str) -> str:
        (at,) = [number for number, line in enumerate(lines) if line.startswith(f"{name} ")]
        return max((number, head) for head, number in heads.items() if number < at)[1]

    expected = {
        "hype": "hidden states",
        "r3f": "inputs",
        "lora": "which weights train",
        "wise_ft": "averages of weights",
    }
    assert {name: head_of(name) for name in expected} == expected
    (sam,) = [line.split() for line in lines if line.startswith("sam ")]
    assert sam[-4:] == ["2", "+", "2", "+1·P_used"]


def test_every_place_that_a_method_names_is_one() -> None:
    assert {registry.method_class(name).acts_on for name in registry.names("methods")} <= {*PLACES, ""}
