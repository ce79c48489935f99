"""A plugin whose hooks raise, leave the process or answer nonsense is refused in one sentence, before any compute."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from finetune_bench import cli, registry
from finetune_bench.errors import UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.parameters import parameter
from finetune_bench.spec import parse_stack
from finetune_bench.study.attribution import effect_chain
from finetune_bench.testing import toys

WAYS: dict[str, tuple[object, str]] = {
    "raise": (ValueError("no luck"), "failed with ValueError: no luck"),
    "exit": (SystemExit(0), "failed with SystemExit: 0"),
    "nonsense": (Ellipsis, "must return"),
}
HOOKS: dict[str, Callable[[Stack], object]] = {
    "unsupported": lambda stack: stack.unsupported(toys.toy_facts(stack)),
    "warning": lambda stack: stack.warnings(toys.toy_facts(stack)),
    "noise_scale": lambda stack: stack.lost_noise(toys.toy_facts(stack)),
    "passes": lambda stack: stack.passes(Passes()),
    "memory": lambda stack: stack.memory(Memory()),
    "effects": effect_chain,
}


def method(hook: str, outcome: object) -> Method:
    class Odd(Method):
        name = "odd"

    def answer(*_: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    setattr(Odd, hook, answer)
    return Odd()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_fails_is_told(hook: str, way: str) -> None:
    outcome, said = WAYS[way]
    with pytest.raises(UsageError, match=f"^'odd': .*{said}.*") as caught:
        HOOKS[hook](Stack([method(hook, outcome)]))
    assert f"`{hook}`" in str(caught.value)


@pytest.mark.parametrize("answer", [Passes("two", 1), {"noise": 3}, {}])  # type: ignore[arg-type]
def test_so_is_an_answer_that_would_fail_later(answer: object) -> None:
    hook = "passes" if isinstance(answer, Passes) else "effects"
    with pytest.raises(UsageError, match="must return"):
        HOOKS[hook](Stack([method(hook, answer)]))


RAISING = """
import sys
from finetune_bench.method import Method

class {owner}(Method):
    \"\"\"Fails where it is asked.\"\"\"
    name = "{name}"

    def {hook}(self, *_):
        {body}
"""


@pytest.mark.parametrize("body", ["raise ValueError('no luck')", "sys.exit(0)"])
@pytest.mark.parametrize("hook", ["unsupported", "warning", "noise_scale", "passes", "effects", "__post_init__"])
def test_the_command_ends_with_two_and_writes_nothing(
    hook: str,
    body: str,
    *,
    tmp_path: Path,
    tiny_data: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = f"odd_{hook.strip('_')}_{'exit' if 'exit' in body else 'raise'}"
    plugin = tmp_path / f"{name}.py"
    plugin.write_text(RAISING.format(owner="Odd", name=name, hook=hook, body=body), "utf-8")
    out = tmp_path / "run"
    words = ["run", "--methods", name, "--plugin", str(plugin), "--tasks", str(tiny_data), "--out", str(out)]
    more = ["--attribution"] if hook == "effects" else []
    try:
        code = cli.main([*words, "--model", str(tiny_checkpoint), "--device", "cpu", "--epochs", "1", *more])
    finally:
        registry._added["methods"].pop(name, None)
    said = capsys.readouterr().err
    assert code == 2, said
    assert "failed with" in said
    assert name in said
    assert "Traceback" not in said
    assert not out.exists()


def test_an_installed_package_that_fails_to_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package_of_methods.py").write_text("import sys\nsys.exit('not today')\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("broken", "broken_package_of_methods:Broken", "finetune_bench.methods")
    monkeypatch.setattr(registry, "_installed", lambda group: {"broken": entry})
    with pytest.raises(UsageError, match=r"'broken' can't be used: importing .* failed with SystemExit: not today"):
        registry.method_class("broken")


@pytest.mark.parametrize("text", ["rdrop++hype", "rdrop+ +hype", "rdrop(alpha=1)++hype", "a+b++c"])
def test_nothing_between_two_plus_signs_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="has nothing between two"):
        parse_stack(text)


def test_plus_signs_within_brackets_are_the_values_own() -> None:
    assert [call.name for call in parse_stack("rdrop(alpha=1e+1)+hype")] == ["rdrop", "hype"]


def test_a_check_survives_a_method_that_leaves() -> None:
    from finetune_bench.testing import check_method

    class Leaving(Method):
        name = "leaving"

        x: float = parameter(0.1, interval="[0, 1]", help="nothing")

        def setup(self, run: Any) -> None:
            raise SystemExit(0)

    outcomes = {check.name: check for check in check_method(Leaving)}
    assert outcomes["is alive"].outcome == "FAIL"
    assert "SystemExit" in outcomes["is alive"].detail
