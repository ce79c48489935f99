"""Names, the little language of stacks, plugins."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_bench import registry
from finetune_bench.errors import ParameterError, UnknownName, UsageError
from finetune_bench.model.dropout import Dropout
from finetune_bench.parameters import inside


def test_a_stack_is_described_as_it_is_read() -> None:
    text = "hype(eps=0.0001,noise=uniform_symmetric)+rdrop(alpha=0.5)"
    stack = registry.make_stack(text)
    assert registry.describe(stack) == text
    full = registry.describe(stack, full=True)
    assert registry.describe(registry.make_stack(full), full=True) == full
    assert "dropout=hidden_off" in full
    assert registry.describe(registry.make_stack("hype(eps=1e-05)")) == "hype"


@pytest.mark.parametrize(
    ("text", "dropout"),
    [
        ("vanilla", Dropout.KEEP),
        ("hype", Dropout.HIDDEN_OFF),
        ("hype(dropout=keep)", Dropout.KEEP),
        ("hype(dropout=keep)+rdrop", Dropout.KEEP),
        ("rdrop+hype", Dropout.HIDDEN_OFF),
        ("hype+mixout", Dropout.ALL_OFF),
        ("vanilla(dropout=all_off)", Dropout.ALL_OFF),
    ],
)
def test_the_strongest_dropout_off_wins(text: str, dropout: Dropout) -> None:
    assert registry.make_stack(text).dropout is dropout


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("hpye", UnknownName, "no method called 'hpye'. Did you mean 'hype'"),
        ("hype(epz=1)", UnknownName, "no parameter of HyPe called 'epz'. Did you mean 'eps'"),
        ("hype(eps=-1)", ParameterError, r"The 'eps' parameter of HyPe must be a float in \[0, inf\); got -1"),
        ("hype(eps=nan)", ParameterError, "must be a float"),
        ("hype(eps=big)", ParameterError, "got big"),
        ("hype(noise=pink)", ParameterError, "one of normal, uniform_onesided, uniform_symmetric; got pink"),
        ("hype(dropout=some)", ParameterError, "one of keep, hidden_off, all_off"),
        ("hype(top=0)", ParameterError, "or none; got 0"),
        ("hype(top=1.5)", ParameterError, "must be an int"),
        ("hype+hype", UsageError, "'hype' stands twice"),
        ("vanilla+hype", UsageError, "leave it out"),
        ("hype+", UsageError, "can't be read"),
        ("hype(eps=1", UsageError, "without its"),
        ("hype(eps)", UsageError, "expected key=value"),
        ("hype(eps=1,eps=2)", UsageError, "given twice"),
        ("child_tuning_f(reserve_p=0)", ParameterError, "reserve_p"),
        ("mixout(include_head=maybe)", ParameterError, "true or false; got maybe"),
    ],
)
def test_wrong_stacks_are_told(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        registry.make_stack(text)


def test_none_is_a_value_of_optional_parameters_only() -> None:
    assert registry.make_stack("hype(top=none)").methods[0].top is None  # type: ignore[attr-defined]
    assert registry.make_stack("r3f(noise=none)").methods[0].noise == "none"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("value", "interval", "expected"),
    [(0, "[0, 1)", True), (1, "[0, 1)", False), (0, "(0, 1]", False), (1, "(0, 1]", True), (1e9, "[0, inf)", True)],
)
def test_intervals(value: float, interval: str, expected: bool) -> None:
    assert inside(value, interval) is expected
    assert not inside(float("nan"), interval)


def test_tasks() -> None:
    assert registry.task("rte").metrics == ("accuracy",)
    with pytest.raises(UnknownName, match="no task called 'rtee'. Did you mean 'rte'"):
        registry.task("rtee")
    with pytest.raises(UsageError, match=r"'notes.docx' can't be read: expected a file ending in csv, json,"):
        registry.task("notes.docx(text=body)")
    with pytest.raises(UsageError, match="takes no options"):
        registry.task("rte(limit=3)")


def test_plugins(tmp_path: Path) -> None:
    file = tmp_path / "quiet.py"
    file.write_text(
        "from finetune_bench.method import Method\nclass Quiet(Method):\n    '''Does nothing.'''\n    name = 'quiet'\n",
        "utf-8",
    )
    assert registry.load_plugin(file) == ["quiet"]
    assert registry.load_plugin(file) == ["quiet"]  # the same file again is fine
    assert registry.make_stack("quiet").methods[0].name == "quiet"
    assert "quiet" in registry.names("methods")
    again = tmp_path / "again.py"
    again.write_text(file.read_text("utf-8"), "utf-8")
    with pytest.raises(UsageError, match="the name 'quiet' in .* is taken"):
        registry.load_plugin(again)
    del registry._added["methods"]["quiet"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is none at"),
        ("x = 1", "defines no Method, Task, Analysis or Report"),
        ("import absent_module", "failed with ModuleNotFoundError"),
        ("def broken(:", "failed with SyntaxError"),
        (
            "from finetune_bench.method import Method\nclass A(Method):\n    name = 'hype'",
            "the name 'hype' in .* is taken",
        ),
        ("from finetune_bench.method import Method\nclass A(Method):\n    pass", "has no `name`"),
        ("from finetune_bench.method import Method\nclass A(Method):\n    name = 'a+b'", "may hold a to z"),
        ("from finetune_bench.method import Method\nclass A(Method):\n    name = 'a'\n    b: float", "with a default"),
        (
            "from finetune_bench.method import Method\nclass A(Method):\n    name = 'a'\n    b: list = ()",
            "must be declared",
        ),
        ("import sys\nsys.exit(0)", "failed with SystemExit"),
    ],
)
def test_wrong_plugins_are_told(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "plugin.py"
    if text is not None:
        file.write_text(text, "utf-8")
    with pytest.raises(UsageError, match=message):
        registry.load_plugin(file)
