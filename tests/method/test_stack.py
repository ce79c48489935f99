"""A stack is a method in every respect, and refuses two methods that need the same for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from finetune_bench import registry, testing
from finetune_bench.errors import UsageError
from finetune_bench.method.base import Method
from finetune_bench.method.cost import Memory, Passes
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Run, Step
from finetune_bench.testing import toys
from tests.tiny_run import first_step, tiny_run


def make(text: str) -> Stack:
    return registry.make_stack(text)


class Averager(Method):
    """An average of the weights, by a stranger: the last of them and the first."""

    name = "averager"

    @property
    def exclusive(self) -> tuple[str, ...]:
        return ("evaluated weights",)

    @contextmanager
    def evaluating(self, run: Run) -> Iterator[None]:
        yield


@pytest.mark.parametrize("other", ["ema", "swa"])
def test_a_strangers_averager_is_refused(other: str) -> None:
    built_in = registry.method_class(other)
    said = f"{other} and averager both decide about the evaluated weights, and only one method can"
    assert toys.unsupported([built_in(), Averager()]) == said
    assert toys.unsupported([Averager(), make("rdrop").methods[0], built_in()]) == (
        f"averager and {other} both decide about the evaluated weights, and only one method can"
    )
    assert toys.unsupported([Averager(), make("rdrop").methods[0]]) is None


@pytest.mark.parametrize(
    "pair",
    [
        *(("ema", "swa"), ("l2_sp", "prior_decay"), ("l2_sp", "recadam"), ("prior_decay", "recadam")),
        *(("recadam", "sage"), ("recadam", "sam"), ("freelb", "sam"), ("ema", "child_tuning_d(strict=true)")),
    ],
)
def test_the_pairs_that_were_refused_by_name_are_refused(pair: tuple[str, str]) -> None:
    left, right = (make(text).methods[0] for text in pair)
    assert "and only one method can" in str(toys.unsupported([left, right]))
    assert "and only one method can" in str(toys.unsupported([right, left]))


@pytest.mark.parametrize("pair", ["sam+sage", "ema+child_tuning_d", "swa+l2_sp", "freelb+rdrop", "sage+ema"])
def test_the_pairs_that_were_not_are_not(pair: str) -> None:
    assert toys.unsupported(list(make(pair).methods)) is None


@pytest.mark.parametrize("claims", ["evaluated weights", ("one", 2), None, ["evaluated weights"]])
def test_a_claim_that_is_no_tuple_of_texts_is_refused(claims: object) -> None:
    """A text without its comma would be read letter by letter, and refuse partners at random."""

    class Careless(Method):
        name = "careless"
        exclusive = claims  # type: ignore[assignment]

    with pytest.raises(UsageError, match=r"'careless': its `exclusive` must return a tuple of texts, as \(\"evaluated"):
        toys.unsupported([Careless(), Averager()])


def test_a_stack_answers_every_question_of_a_method() -> None:
    stack = make("hype(eps=1e-3)+r3f(eps=1e-4)+ema")
    assert stack.noise_scale() == pytest.approx(1e-4 / 3**0.5)
    assert stack.stochastic
    assert not make("ema").stochastic
    assert stack.exclusive == ("evaluated weights", "weights after the step")
    assert dict(stack.effects()) == {"stack": stack}
    assert list(make("r3f").effects()) == ["two passes", "noise"]
    facts = toys.toy_facts(make("lnsr(noise=0)+hype"))
    assert "penalty is 0" in str(make("lnsr(noise=0)+hype").warning(facts))
    assert "; lnsr and hype all put noise" in str(make("lnsr(noise=0)+hype").warning(facts))
    assert make("hype").warning(toys.toy_facts(make("hype"))) is None
    assert make("hype").noise_scale() == 1e-5
    assert make("ema").noise_scale() is None


def test_the_state_of_a_stack_is_that_of_its_methods() -> None:
    stack, again = make("rdrop+ema+swa(share=1)"), make("rdrop+ema+swa(share=1)")
    for made in (stack, again):
        made.setup(tiny_run())
    run = tiny_run()
    stack.after_step(run)
    kept = stack.state()
    assert kept["1 steps"] == kept["2 points"] == 1
    assert not any(key.startswith("0 ") for key in kept)
    again.load_state(kept)
    restored = again.state()
    assert restored.keys() == kept.keys()
    assert all(np.array_equal(kept[key], restored[key]) for key in kept)


def test_stacks_within_a_stack_are_their_methods() -> None:
    flat, nested = make("hype+rdrop+ema"), Stack([make("hype+rdrop"), *make("ema").methods])
    assert [method.name for method in nested.methods] == ["hype", "rdrop", "ema"]
    assert registry.describe(nested, full=True) == registry.describe(flat, full=True)
    assert (nested.passes(Passes()), nested.memory(Memory())) == (flat.passes(Passes()), flat.memory(Memory()))
    runs = [toys.toy_train(list(stack.methods))[0] for stack in (flat, nested)]
    assert toys.same(*runs)


def test_a_step_knows_its_run_and_the_tasks_loss() -> None:
    for kind in testing.KINDS:
        run = tiny_run(task=toys.toy_task(kind))
        step: Step = first_step(run)
        assert step.run is run
        output = step.forward()
        other = step.batch.labels.flip(0)
        torch.testing.assert_close(step.loss(output, other), run.task.loss(output, other))
        if kind == "classification":
            by_hand = -output.logits.log_softmax(-1)[torch.arange(len(other)), other].mean()
            torch.testing.assert_close(step.loss(output, other), by_hand)
        assert first_step(run).task_losses == []  # it is in no trace


def test_no_method_keeps_a_run() -> None:
    for name in registry.names("methods"):
        method = registry.method_class(name)()
        if toys.unsupported(method, "bert", "classification"):
            continue
        run, stack = toys.toy_run(method)
        try:
            stack.setup(run)
            assert run not in [value for value in vars(stack.methods[0]).values() if isinstance(value, type(run))], name
        finally:
            stack.teardown(run)
