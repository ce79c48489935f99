"""Dropout as numbers: where it acts, what is put in and taken out again, what is refused, and R-Drop beside it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from finetune_bench import home, registry, testing
from finetune_bench.errors import ParameterError, UsageError
from finetune_bench.method.asking import ask
from finetune_bench.method.base import Facts, Method
from finetune_bench.method.stack import Stack
from finetune_bench.methods.dropout import DropoutRates
from finetune_bench.model import rates
from finetune_bench.model.dropout import Dropout, Rates, Traced, active_dropout
from finetune_bench.model.pretrained import skeleton
from finetune_bench.parameters import parameter
from finetune_bench.testing import toys
from tests.tiny_run import tiny_model

WITHOUT_DROPOUT = ("llama", "qwen3", "modernbert")


class Everywhere(DropoutRates):
    """Dropout everywhere, by default, for the contract's checks."""

    name = "everywhere"
    hidden: float | None = parameter(0.2, interval="[0, 1)", help="hidden states")
    attention: float | None = parameter(0.2, interval="[0, 1)", help="attention")
    head: float | None = parameter(0.5, interval="[0, 1)", help="head")


def made(architecture: str, **numbers: float) -> rates.RateChanges:
    model = skeleton(toys.toy_config(architecture, "classification", Dropout.KEEP))
    return rates.plan_rates(model, Rates(**numbers))


@pytest.mark.parametrize("architecture", toys.ARCHITECTURES)
def test_every_place_has_dropout_of_the_rate(architecture: str) -> None:
    """Embeddings, both blocks of every layer, attention and head: in what is there, or in what is put in."""
    model = tiny_model(architecture)
    before = toys.shape(model), active_dropout(model)
    changes = rates.plan_rates(model, Rates(hidden=0.3, attention=0.3, head=0.6))
    undo = rates.set_rates(model, changes)
    dropped: list[float] = []
    plain = nn.functional.dropout

    def counted(values: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        dropped.extend([p] if training else [])
        return plain(values, p, training, inplace)

    heads = {"roberta": 2, "electra": 2, "mpnet": 2, "deberta": 2, "deberta_v2": 2}.get(architecture, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "dropout", counted)
        patch.setattr(rates.F, "dropout", counted)
        model.train()(input_ids=torch.full((2, 5), 7))
    assert dropped.count(0.6) == heads
    assert dropped.count(0.3) >= 5  # embeddings and two blocks of two layers
    undo.close()
    assert (toys.shape(model), active_dropout(model)) == before


SIZES = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize(
    ("family", "values", "inputs"),
    [("phi", {}, 0), ("gpt_neox", {}, 0), ("opt", {"ffn_dim": 24, "word_embed_proj_dim": 16}, 1)],
)
def test_dropout_behind_a_block_is_not_put_in_again(family: str, values: dict[str, int], inputs: int) -> None:
    """In these layers the dropout of the attention block's output lies outside of that block."""
    config = AutoConfig.for_model(family, **SIZES, **values, pad_token_id=0)
    changes = rates.plan_rates(skeleton(config), Rates(hidden=0.3))
    assert changes.rates != {}
    assert (changes.outputs, len(changes.inputs)) == ({}, inputs)


def test_what_is_put_in_is_inverted_dropout() -> None:
    """Zeros at the rate, the rest divided by what is left; nothing in evaluation."""
    model = tiny_model("llama")
    seen: dict[str, Tensor] = {}
    layer, head = model.model.layers[0], model.score  # type: ignore[union-attr, index]
    layer.register_forward_pre_hook(lambda _, args, kwargs: seen.update(before=args[0]), with_kwargs=True)
    rates.set_rates(model, made("llama", hidden=0.3, head=0.9))
    layer.register_forward_pre_hook(lambda _, args, kwargs: seen.update(after=args[0]), with_kwargs=True)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        layer.get_submodule(name).register_forward_hook(lambda _, args, output, n=name: seen.update({n: output}))
    head.register_forward_pre_hook(lambda _, args: seen.update(head=args[0]))  # type: ignore[operator]
    ids = torch.randint(5, 60, (16, 30), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model.train()(input_ids=ids)
    kept = seen["after"] != 0
    torch.testing.assert_close(seen["after"][kept], seen["before"][kept] / 0.7)
    for name, rate in {"after": 0.3, "self_attn.o_proj": 0.3, "mlp.down_proj": 0.3, "head": 0.9}.items():
        assert float((seen[name] == 0).float().mean()) == pytest.approx(rate, abs=0.02), name
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=ids).logits, tiny_model("llama")(input_ids=ids).logits)


def test_built_in_rates_are_numbers_alone() -> None:
    """Where the architecture has the rates, the same numbers are vanilla to the last bit."""
    run, result, predictions = toys.toy_train(DropoutRates(hidden=0.1, attention=0.1, head=0.1))
    twin, trace, twins = toys.toy_train(registry.method_class("vanilla")())
    assert toys.same(run, twin)
    assert np.array_equal(result.steps["loss"], trace.steps["loss"])
    assert np.array_equal(predictions, twins)
    changed = toys.toy_train(DropoutRates(hidden=0.4))[0]
    assert not toys.same(changed, twin)
    # The head's rate, which falls back to the hidden one in the configuration, stays.
    assert (
        made("bert", hidden=0.4).rates.keys() & {("dropout", "p"), ("bert.encoder.layer.0.attention.self.dropout", "p")}
        == set()
    )


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_rates_of_zero_are_vanilla_without_dropout(architecture: str) -> None:
    off = toys.toy_train(DropoutRates(hidden=0.0, attention=0.0, head=0.0), architecture)[0]
    vanilla = registry.method_class("vanilla")(dropout=Dropout.ALL_OFF)
    assert toys.same(off, toys.toy_train(vanilla, architecture)[0])


@pytest.mark.parametrize("architecture", WITHOUT_DROPOUT)
def test_rdrop_trains_where_the_architecture_has_no_dropout(architecture: str) -> None:
    rdrop = registry.method_class("rdrop")
    assert "identical" in str(toys.unsupported(rdrop(), architecture))
    stack = Stack([rdrop(), DropoutRates(hidden=0.1)])
    active = toys.toy_facts(stack, architecture).active_dropout
    assert any(name.endswith("(inserted)") for name in active)
    assert not any(".0" in name for name in active if name.startswith("model.layers.*"))
    assert toys.unsupported(list(stack.methods), architecture) is None
    _, result, _ = toys.toy_train(list(stack.methods), architecture)
    assert (result.steps["rdrop_divergence"] > 0).all()
    assert "identical" in str(toys.unsupported([rdrop(), DropoutRates(hidden=0.0)], architecture))


@pytest.mark.parametrize("name", ["rdrop", "bi_drop"])
def test_the_stack_that_a_refusal_names_trains(name: str) -> None:
    owner = registry.method_class(name)
    reason = str(toys.unsupported(owner(), "llama"))
    assert reason.endswith(f"dropout can be put in, as in {name}+dropout(hidden=0.1)")
    stack = registry.make_stack(reason.rpartition(" ")[2])
    assert toys.unsupported(stack, "llama") is None
    _, result, _ = toys.toy_train(stack, "llama")
    assert len(result.steps["loss"]) == 6
    for settled in ([owner(dropout=Dropout.ALL_OFF)], [owner(), DropoutRates(hidden=0.0)]):
        assert str(toys.unsupported(settled, "llama")).endswith("no partner draws noise")


@pytest.mark.parametrize("architecture", ["modernbert", "llama"])
def test_checkpointed_and_resumed_it_is_the_same(architecture: str) -> None:
    method = DropoutRates(hidden=0.2, attention=0.2, head=0.5)
    plain, _, predictions = toys.toy_train(method, architecture)
    recipe = dataclasses.replace(toys.RECIPE, gradient_checkpointing=True)
    assert toys.same(plain, toys.toy_train(method, architecture, recipe=recipe)[0])
    assert np.array_equal(predictions, toys.toy_train(method, architecture)[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    "check",
    [
        testing.trains_everywhere,
        testing.is_alive,
        testing.resumes,
        testing.evaluation_is_clean,
        testing.leaves_a_plain_model,
        testing.survives_checkpointing,
        testing.gradient_is_that_of_the_loss,
    ],
    ids=lambda check: check.__name__,
)
def test_with_rates_by_default_it_keeps_the_contract(check: Any) -> None:
    check(Everywhere)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (
            [DropoutRates(hidden=0.1), registry.method_class("hype")()],
            "dropout asks for hidden dropout of 0.1, and hype",
        ),
        ([DropoutRates(head=0.1), registry.method_class("hype")()], "hype for dropout=hidden_off"),
        ([DropoutRates(attention=0.1), registry.method_class("mixout")()], "mixout for dropout=all_off"),
        (
            [DropoutRates(hidden=0.1, dropout=Dropout.ALL_OFF)],
            "dropout asks for hidden dropout of 0.1, and dropout for",
        ),
        (
            [DropoutRates(head=0.9), DropoutRates(head=0.5)],
            "dropout asks for head dropout of 0.5; dropout asks for head",
        ),
        ([DropoutRates(hidden=0.1), Everywhere()], "dropout asks for hidden dropout of 0.1; everywhere asks"),
        ([DropoutRates(hidden=0.0), Everywhere()], "hidden dropout of 0; everywhere asks for hidden dropout of 0.2"),
    ],
)
def test_two_methods_that_want_different_dropout_are_refused(methods: list[Method], said: str) -> None:
    for stack in (methods, methods[::-1]):
        reason = str(toys.unsupported(stack))
        assert all(part in reason for part in said.split("; ")), reason


def test_requests_that_agree_are_allowed() -> None:
    hype = registry.method_class("hype")
    assert toys.unsupported([DropoutRates(attention=0.1), hype()]) is None
    assert toys.unsupported([DropoutRates(hidden=0.1), hype(dropout=Dropout.KEEP)]) is None
    assert toys.unsupported([DropoutRates(hidden=0.0), hype()]) is None
    assert toys.unsupported([DropoutRates(hidden=0.2), Everywhere()]) is None
    assert Stack([DropoutRates(hidden=0.2), Everywhere()]).rates == Rates(0.2, 0.2, 0.5)


def test_what_an_architecture_has_no_place_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for numbers in ({"hidden": 0.1}, {"attention": 0.1}, {"hidden": 0.1, "attention": 0.2}):
        assert "one rate for attention" in str(toys.unsupported(DropoutRates(**numbers), "xlnet"))
    assert toys.unsupported(DropoutRates(hidden=0.1, attention=0.1), "xlnet") is None
    monkeypatch.setattr(rates, "traced", lambda *_, **__: Traced({}, {}, frozenset()))
    assert "has no rate for the dropout of attention" in str(toys.unsupported(DropoutRates(attention=0.1)))
    monkeypatch.setattr(rates, "is_linear", lambda _: False)
    assert "ends in no linear layer" in str(toys.unsupported(DropoutRates(hidden=0.1)))
    monkeypatch.undo()
    monkeypatch.setattr(
        "finetune_bench.model.dropout.TRACED", (2, 1000)
    )  # more tokens than the model has positions for
    config = toys.toy_config("bert", "classification", Dropout.KEEP)
    config.max_position_embeddings = 41  # which nothing has traced before
    with pytest.raises(rates.ModelError, match="can't be found out"):
        rates.plan_rates(skeleton(config), Rates(hidden=0.1))


def test_adapters_are_dropped_with_their_matrix() -> None:
    pytest.importorskip("peft")
    run, stack = toys.toy_run([registry.method_class("lora")(), DropoutRates(hidden=0.3)], "modernbert")
    before = toys.shape(run.model)
    try:
        stack.setup(run)
        output = run.model.get_submodule("model.layers.0.attn.Wo")
        assert hasattr(output, "lora_A")
        assert len(output._forward_hooks) == 1
    finally:
        stack.teardown(run)
    assert toys.shape(run.model) == before


def test_a_model_of_ones_own_gets_its_rates_and_its_old_ones_back() -> None:
    model = tiny_model("bert").train()
    before = active_dropout(model)
    with home.attach("dropout(hidden=0.3,head=0)", model, total_steps=2, batch_size=4):
        now = active_dropout(model)
        assert now["bert.encoder.layer.*.output.dropout"] == 0.3
        assert now["bert.encoder.layer.*.attention.self.dropout"] == 0.1
        assert "dropout" not in now
    assert active_dropout(model) == before


def test_what_does_nothing_or_harm_is_said() -> None:
    def warned(method: Method, kind: Any = "classification") -> list[str]:
        stack = Stack([method])
        return stack.warnings(toys.toy_facts(stack, kind=kind))

    assert "so it is vanilla" in warned(DropoutRates())[0]
    assert "regression head" in warned(DropoutRates(head=0.9), "regression")[0]
    assert warned(DropoutRates(head=0.9)) == warned(DropoutRates(hidden=0.1), "regression") == []
    with pytest.raises(testing.Skip, match="so it is vanilla"):
        testing.is_alive(DropoutRates)

    class Silent(DropoutRates):
        name = "silent"

        def warning(self, facts: Facts) -> str | None:
            return None

    with pytest.raises(AssertionError, match="does nothing at all"):
        testing.is_alive(Silent)


def test_rates_are_asked_for() -> None:
    class Careless(Method):
        name = "careless"

        @property
        def rates(self) -> Rates:
            return 0.1  # type: ignore[return-value]

    with pytest.raises(UsageError, match="its `rates` must return Rates; got 0.1"):
        ask(Careless(), "rates")


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), "0.1"])
def test_a_rate_is_a_number_below_one(rate: Any) -> None:
    with pytest.raises(ParameterError, match=r"must be a number in \[0, 1\) or None; got head="):
        Rates(head=rate)


@pytest.mark.parametrize("architecture", ["modernbert", "llama"])
def test_without_padding_it_trains(architecture: str) -> None:
    recipe = dataclasses.replace(toys.RECIPE, batch_layout="unpadded_trimmed")
    method = DropoutRates(hidden=0.2, attention=0.2, head=0.5)
    run, result, _ = toys.toy_train(method, architecture, recipe=recipe)
    assert np.isfinite(result.steps["loss"]).all()
    assert not toys.same(run, toys.toy_train(registry.method_class("vanilla")(), architecture, recipe=recipe)[0])
