"""A plugin of an earlier version of the contract is told what to write, before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune_bench import registry, testing
from finetune_bench.errors import UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.former import former_code, refuse_former_code

START = '''"""A method that adds nothing: the loss of what is to the right of it, times a factor, or as it is."""
from dataclasses import replace
from finetune_bench.method import Method
from finetune_bench.parameters import Range, parameter

class Mine(Method):
    name = "mine_of_old"
    alpha: float = parameter(0.5, interval="[0, 2]", help="of nothing")
'''

OBJECTIVE = "    def objective(self, step, inner, view):\n"
FORMER = {
    '    neutral = {"alpha": 0.0}': "write `neutral` at the parameter, as `alpha: ... = parameter(..., neutral=0.0)`",
    '    search_space = {"alpha": (0.1, 1.0)}': (
        "write `search_space` at the parameter, as `alpha: ... = parameter(..., search=(0.1, 1.0))`"
    ),
    "    neutral = None": "leave `neutral` out, it is read off the parameters",
    "    early_backward = True": "leave `early_backward` out",
    "    def stochastic(self):\n        return False": "write `@property` above `def stochastic(self)`",
    "    def __post_init__(self):\n        self.stochastic = True": (
        "write `stochastic` as a property, and set it nowhere"
    ),
    f"{OBJECTIVE}        return inner(replace(view, weight=2 * view.weight))": (
        "write `inner(view, weight=c)`, which returns the loss times c, and no `view.weight`"
    ),
    f"{OBJECTIVE}        step.backward(inner(view).loss, view)\n        return inner(view)": (
        "write `step.backward(part)` without the view"
    ),
}


@pytest.mark.parametrize(("lines", "advice"), FORMER.items(), ids=[text.split("`")[1] for text in FORMER.values()])
def test_a_former_plugin_is_told_what_to_write(tmp_path: Path, lines: str, advice: str) -> None:
    path = tmp_path / "old.py"
    path.write_text(START + lines + "\n", "utf-8")
    with pytest.raises(UsageError) as refused:
        registry.load_plugin(path)
    said = f"Mine is written for an earlier version of finetune-bench: {advice} (docs/moving-a-plugin.md)."
    assert str(refused.value).removeprefix(f"--plugin: '{path}': ") == said
    assert "mine_of_old" not in registry.names("methods")


def test_all_of_it_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text(START + '    neutral = {"alpha": 0.0}\n    early_backward = True\n', "utf-8")
    with pytest.raises(UsageError, match=r"neutral=0.0\)`; leave `early_backward` out \(docs"):
        registry.load_plugin(path)


def test_what_still_works_is_loaded_and_fails_its_check_alone() -> None:
    class Keeping(Method):
        name = "keeping"

        def setup(self, run):  # type: ignore[no-untyped-def]
            self.run_ = run

    refuse_former_code(Keeping)
    with pytest.raises(AssertionError, match=r"write `step.run` where `objective` uses `self.run_`, and keep no run"):
        testing.is_in_present_form(Keeping)


def test_todays_form_is_not_taken_for_the_former() -> None:
    """Weights of layers, a weight of `inner`, and an optimiser's `backward` are no former use."""

    class Present(Method):
        name = "present"
        stochastic = True

        def objective(self, step, inner, view):  # type: ignore[no-untyped-def]
            weight = step.run.model.classifier.weight
            objective = inner(view, weight=0.5)
            return objective if weight is not None else step.backward(objective.loss)

    assert former_code(Present) == []
    for name in registry.names("methods"):
        testing.is_in_present_form(registry.method_class(name))


def test_a_class_without_a_source_is_taken_as_it_is() -> None:
    owner = type("Made", (Method,), {"name": "made"})
    assert former_code(owner) == []


PAGE = Path(__file__).resolve().parents[2] / "docs" / "moving-a-plugin.md"


def test_the_page_moves_a_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands before is refused with all its advice, what stands after keeps the contract, with FreeLB too."""
    text = PAGE.read_text("utf-8")
    before, after = (re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("text", "python"))
    assert before is not None
    assert after is not None
    imports = after[1].partition("class ")[0]
    old, new = tmp_path / "old.py", tmp_path / "halved.py"
    old.write_text(imports + before[1], "utf-8")
    with pytest.raises(UsageError, match=r"`penalty: ... = parameter\(..., neutral=0.0\)`; write `search_space` at"):
        registry.load_plugin(old)
    monkeypatch.setattr(registry, "_added", {"methods": {}, "tasks": {}, "reports": {}})
    new.write_text(after[1], "utf-8")
    assert registry.load_plugin(new) == ["halved"]
    owner = registry.method_class("halved")
    for check in (testing.has_a_card, testing.is_in_present_form, testing.can_be_searched, testing.neutral_is_vanilla):
        check(owner)
    freelb = registry.method_class("freelb")
    testing.check_gradient([owner(), freelb()], [owner(), freelb()])


def test_the_page_names_every_claim_of_the_built_in_methods() -> None:
    text = " ".join(PAGE.read_text("utf-8").split())
    claims = {claim for name in registry.names("methods") for claim in registry.method_class(name)().exclusive}
    assert len(claims) > 4
    assert [claim for claim in claims if f'"{claim}"' not in text] == []
