from __future__ import annotations

from dataclasses import replace

import pytest

from finetune_bench import registry
from finetune_bench.method.base import Method
from finetune_bench.method.step import Run
from finetune_bench.methods.unfreezing import LISA, GradualUnfreezing
from finetune_bench.model.structure import parameter_depths
from finetune_bench.testing import toys
from finetune_bench.training.loop import train

RECIPE = replace(toys.RECIPE, steps=8, epochs=None)


class Awake(Method):
    """Note at which depths weights have gradients at each step."""

    name = "awake"

    def setup(self, run: Run) -> None:
        self.depth_ = parameter_depths(run.model)
        self.seen_: list[list[int]] = []

    def gradients(self, run: Run) -> None:
        self.seen_.append(sorted({self.depth_[w] for w in run.params.values() if w.grad is not None}))


def awake(method: Method, architecture: str = "bert") -> list[list[int]]:
    noted = Awake()
    run, _, _ = toys.toy_train([noted, method], architecture, recipe=RECIPE)
    assert all(weight.requires_grad for weight in run.params.values())
    return noted.seen_


@pytest.mark.parametrize("architecture", ["bert", "llama", "mpnet"])
def test_layers_wake_from_the_top_down(architecture: str) -> None:
    """Head, layer 1, layer 0 and embeddings wake at 0, 2, 4 and 6 of 8 steps where the share is 3/4."""
    seen = awake(GradualUnfreezing(share=0.75), architecture)
    assert seen == [[2]] * 2 + [[1, 2]] * 2 + [[0, 1, 2]] * 2 + [[-1, 0, 1, 2]] * 2


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_lisa_wakes_as_many_layers_as_asked_and_keeps_them(architecture: str) -> None:
    seen = awake(LISA(layers=1, interval=2), architecture)
    assert all(depths in ([-1, 0, 2], [-1, 1, 2]) for depths in seen)
    assert seen[::2] == seen[1::2]
    assert len({tuple(depths) for depths in seen}) == 2


def test_lisa_with_all_layers_draws_nothing() -> None:
    assert awake(LISA(layers=2)) == [[-1, 0, 1, 2]] * 8


def test_weights_step_only_while_awake() -> None:
    noted = Awake()
    run, stack = toys.toy_run([noted, GradualUnfreezing(share=0.75)], recipe=RECIPE)
    before = {name: weight.detach().clone() for name, weight in run.params.items()}

    class Stop(Exception):
        """Ends the run."""

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        train(run, tell=stop)
    moved = {noted.depth_[w] for name, w in run.params.items() if not w.equal(before[name])}
    stack.teardown(run)
    assert moved == {1, 2}


@pytest.mark.parametrize("method", [GradualUnfreezing(), LISA()], ids=lambda method: method.name)
def test_what_is_refused(method: Method) -> None:
    for other in ("lora", "peft", "bitfit", "top_k"):
        assert "both decide about the weights that train" in str(
            toys.unsupported([method, registry.method_class(other)()])
        )
    assert "both decide" in str(toys.unsupported([GradualUnfreezing(), LISA()]))
    sage = registry.method_class("sage")()
    assert f"write sage+{method.name}" in str(toys.unsupported([method, sage]))
    assert toys.unsupported([sage, method]) is None
    recipe = replace(toys.RECIPE, gradient_checkpointing=True)
    assert "gradient checkpointing" in str(toys.unsupported(method, recipe=recipe))
