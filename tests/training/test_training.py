"""The training step: order of hooks, accumulation, divergence, precision, streams, and what is measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune_bench import device as devices
from finetune_bench import registry
from finetune_bench.errors import Diverged, FinetuneBenchError
from finetune_bench.functional import bernoulli_mask
from finetune_bench.method.base import Method, Phase
from finetune_bench.method.stack import Stack
from finetune_bench.method.step import Inner, Objective, Step, View
from finetune_bench.recipe import Recipe
from finetune_bench.seeds import derive
from finetune_bench.testing import toys
from finetune_bench.training import measure, memory
from finetune_bench.training.loop import train
from finetune_bench.training.memory import saved_activation_bytes
from finetune_bench.training.run import TrainingStep


def vanilla(**parameters: Any) -> Method:
    return registry.method_class("vanilla")(**parameters)


class Diary(Method):
    """Writes down when its hooks run."""

    name = "diary"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.entries_: list[str] = []

    def note(self, what: str) -> None:
        self.entries_.append(what)

    def setup(self, run: Any) -> None:
        self.note("setup")

    def optimizer(self, optimizer: torch.optim.Optimizer, run: Any) -> torch.optim.Optimizer:
        self.note("optimizer")
        return optimizer

    @contextmanager
    def perturbing(self, run: Any) -> Iterator[None]:
        self.note("perturbing")
        yield
        self.note("perturbed")

    def objective(self, step: Step, inner: Inner, view: View) -> Objective:
        self.note("objective")
        return inner(view)

    def gradients(self, run: Any) -> None:
        norm = torch.stack([p.grad.norm() for p in run.params.values()]).norm()
        self.note("gradients" if norm <= run.recipe.clip * 1.0001 else "gradients not clipped")

    def after_step(self, run: Any) -> None:
        self.note("after_step")

    @contextmanager
    def evaluating(self, run: Any) -> Iterator[None]:
        self.note("evaluating")
        yield

    def teardown(self, run: Any) -> None:
        self.note("teardown")


def test_hooks_run_in_the_order_of_the_map() -> None:
    diary = Diary()
    recipe = Recipe(lr=1e-3, batch_size=8, steps=2, clip=0.01)
    toys.toy_train(diary, recipe=recipe)
    step = ["objective", "perturbing", "perturbed", "gradients", "after_step"]
    assert diary.entries_ == ["setup", "optimizer", *step, *step, "evaluating", "teardown"]


def test_setup_runs_by_phase_then_left_to_right_and_teardown_reversed() -> None:
    order: list[str] = []

    def make(label: str, when: Phase) -> Method:
        class Part(Method):
            name = label
            phase = when

            def setup(self, run: Any) -> None:
                order.append(f"setup {label}")

            def teardown(self, run: Any) -> None:
                order.append(f"teardown {label}")

        return Part()

    parts = [make("a", Phase.MEASURE), make("b", Phase.SURGERY), make("c", Phase.WRAP), make("d", Phase.SURGERY)]
    run, stack = toys.toy_run(parts)
    stack.setup(run)
    stack.teardown(run)
    assert order == [f"setup {x}" for x in "bdca"] + [f"teardown {x}" for x in "dcba"]


def test_teardown_of_all_runs_when_one_raises() -> None:
    class Failing(Method):
        name = "failing"

        def teardown(self, run: Any) -> None:
            raise RuntimeError("no")

    diary = Diary()
    run, _ = toys.toy_run(vanilla())
    with pytest.raises(RuntimeError, match="no"):
        Stack([diary, Failing()]).teardown(run)
    assert diary.entries_ == ["teardown"]


@pytest.mark.parametrize("examples", [24, 21])
def test_accumulation_gives_the_same_weights(examples: int) -> None:
    """1 × 8 equals 4 × 2, also where the last batch is smaller and its micro-batches differ in size."""
    found = []
    for accumulation in (1, 4):
        # A large epsilon: Adam divides by the gradient, which blows up the last bits of those near zero.
        recipe = Recipe(lr=1e-3, batch_size=8, epochs=2, accumulation=accumulation, adam_eps=1e-2)
        run, _ = toys.toy_run(vanilla(dropout="all_off"), recipe=recipe)
        run.examples = toys.toy_examples("classification", examples)
        train(run)
        found.append(toys.weights(run))
    worst = max(float((found[0][n].double() - found[1][n].double()).abs().max()) for n in found[0])
    assert worst < 1e-6


def test_accumulation_counts_passes_per_micro_batch() -> None:
    _, result, _ = toys.toy_train(vanilla(), recipe=Recipe(batch_size=8, accumulation=4, epochs=1))
    assert (result.forwards_per_step, result.backwards_per_step) == (1.0, 1.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_divergence_names_its_step(bad: float) -> None:
    class Exploding(Method):
        name = "exploding"

        def setup(self, run: Any) -> None:
            self.calls_ = 0

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            self.calls_ += 1
            found = inner(view)
            return Objective(found.loss * (bad if self.calls_ >= 4 else 1.0), found.output)

    with pytest.raises(Diverged, match="diverged at step 4") as caught:
        toys.toy_train(Exploding())
    assert caught.value.step == 4


def test_reading_the_pretrained_weights_must_be_declared() -> None:
    run, _ = toys.toy_run(vanilla())
    with pytest.raises(FinetuneBenchError, match="reads_pretrained = True"):
        _ = run.pretrained


def test_a_log_cannot_replace_the_runs_own_record() -> None:
    class Liar(Method):
        name = "liar"

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            found = inner(view)
            return Objective(found.loss, found.output, {"loss": 0.0})

    with pytest.raises(FinetuneBenchError, match="A method logs 'loss'"):
        toys.toy_train(Liar())


def test_what_only_some_micro_batches_log_is_the_mean_of_those() -> None:
    """Of four micro-batches a step, every other logs how many it is: 1 and 3, then 5 and 7."""

    class Sometimes(Method):
        name = "sometimes"
        seen = 0

        def objective(self, step: Step, inner: Inner, view: View) -> Objective:
            objective = inner(view)
            self.seen += 1
            return replace(objective, logs={"odd": float(self.seen)} if self.seen % 2 else {})

    recipe = Recipe(batch_size=8, accumulation=4, epochs=1)
    _, result, _ = toys.toy_train(Sometimes(), recipe=recipe)
    assert result.steps["odd"].tolist()[:2] == [2.0, 6.0]


def test_examples_are_counted_as_they_came() -> None:
    _, result, _ = toys.toy_train(vanilla(), recipe=Recipe(batch_size=10, epochs=2))
    assert result.examples.tolist() == [10, 10, 4] * 2


def test_streams_do_not_touch_each_other() -> None:
    run, _ = toys.toy_run(vanilla())
    before = torch.get_rng_state()
    first = torch.rand(3, generator=run.generator("a"))
    assert run.generator("a") is run.generator("a")
    assert not torch.equal(first, torch.rand(3, generator=run.generator("b")))
    with run.own_randomness("a"):
        once = torch.rand(3)
    with run.own_randomness("a"):
        again = torch.rand(3)
    other, _ = toys.toy_run(vanilla())
    with other.own_randomness("b"), other.own_randomness("a"):
        assert torch.equal(once, torch.rand(3))  # another method's block shifts nothing
    assert not torch.equal(once, again)
    assert torch.equal(before, torch.get_rng_state())


def test_a_replay_draws_what_was_drawn_by_a_library_too() -> None:
    """Blocks of a method's own randomness were counted on: a replayed pass drew other numbers."""
    run, _ = toys.toy_run(vanilla())
    step = TrainingStep(run, next(run.batches("test")))

    def draw() -> list[float]:
        with step.run.own_randomness("a"):
            return torch.rand(2).tolist()

    before = draw()
    mark = step.mark()
    first = [draw(), draw()]
    with step.replay(mark):
        assert [draw(), draw()] == first
    assert draw() not in (before, *first)


def test_stream_seeds_are_fixed() -> None:
    """Changing the derivation would silently change every number of the benchmark."""
    assert derive(1, "dropout") == derive(1, "dropout") != derive(2, "dropout")
    assert derive(1, "order", "rte") != derive(1, "order", "cola") != derive(1, "init", "cola")
    assert derive(1, "a", "b c") != derive(1, "a b", "c")
    assert derive(1, "dropout") == 8548208086618349406


def test_order_is_the_same_for_every_method() -> None:
    hashes = {
        toys.toy_train(registry.method_class(name)())[0].order.hexdigest() for name in ("vanilla", "rdrop", "mixout")
    }
    assert len(hashes) == 1


def test_bf16_is_autocast_over_fp32_weights() -> None:
    run, result, _ = toys.toy_train(vanilla(), recipe=Recipe(lr=1e-3, batch_size=8, epochs=2, precision="bf16"))
    assert {p.dtype for p in run.params.values()} == {torch.float32}
    exact = toys.toy_train(vanilla(), recipe=Recipe(lr=1e-3, batch_size=8, epochs=2))[1]
    assert not np.array_equal(result.steps["loss"], exact.steps["loss"])
    np.testing.assert_allclose(result.steps["loss"], exact.steps["loss"], rtol=0.02)


def test_embeds_replace_the_token_embeddings_exactly() -> None:
    for architecture in toys.ARCHITECTURES:
        run, _stack = toys.toy_run(vanilla(dropout="all_off"), architecture)
        step = TrainingStep(run, run.examples.batch(range(6), toys.CPU))
        assert torch.equal(step.forward().logits, step.forward(View(embeds=step.embeds())).logits), architecture


def test_a_sketch_tells_the_last_bits_apart_under_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    multiplied: list[str] = []
    product = torch.Tensor.__matmul__

    def noted(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        multiplied.append(torch.backends.cuda.matmul.fp32_precision)
        return product(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", noted)
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        measure.sketch([torch.ones(64)])
        assert multiplied == ["ieee"]
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_the_device_of_the_steps_is_waited_for_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda device=None: waited.append(device))
    second = torch.device("cuda", 1)
    mark = SimpleNamespace(elapsed_time=lambda end: 2000.0)
    wall, _ = devices.StepClock(second, [(mark, mark)]).seconds()  # type: ignore[list-item]
    assert waited == [second]
    assert wall.tolist() == [2.0]


def test_sketch_tells_weights_apart() -> None:
    weights = [torch.randn(7, 9), torch.randn(200), torch.randn(200)]
    reference = measure.sketch(weights)
    assert np.array_equal(reference, measure.sketch([w.clone() for w in weights]))
    changed = [w.clone() for w in weights]
    changed[0][3, 4] += 1e-3
    assert not np.array_equal(reference, measure.sketch(changed))
    assert not np.array_equal(reference, measure.sketch([weights[0], weights[2], weights[1]]))


@pytest.mark.parametrize(("steps", "expected"), [(100, [10 * i for i in range(1, 11)]), (3, [1, 2, 3]), (1, [1])])
def test_sketches_are_spread_over_the_run(steps: int, expected: list[int]) -> None:
    assert measure.sketch_steps(steps) == expected


def test_saved_bytes_of_a_known_graph() -> None:
    """(x·w).sin(): sin keeps its input of 5×3, the product keeps x of 5×4, and w is a parameter, hence apart."""
    x, w = torch.randn(5, 4), torch.randn(4, 3, requires_grad=True)
    meter = memory.SavedActivations([w])
    with meter.counting():
        y = (x @ w).sin().sum()
    assert meter.peak_bytes == (5 * 3 + 5 * 4) * 4
    y.backward()
    del y
    with meter.counting():
        (x @ w).sin().sum().backward()
        (x @ w).sin().sum().backward()  # one after the other: the peak stays that of one
    assert meter.peak_bytes == (5 * 3 + 5 * 4) * 4


def test_a_counted_graph_is_let_go_without_a_backward_pass() -> None:
    """tanh saves its output: a hook that keeps it as it is makes a cycle, and a worker grows with every cell."""
    meter = memory.SavedActivations([])
    x = torch.randn(31, 37, requires_grad=True)
    with meter.counting():
        y = x.tanh()
    assert meter._bytes == 31 * 37 * 4
    del y
    gc.collect()
    assert meter._bytes == 0


def test_saved_bytes_of_methods() -> None:
    def saved(name: str, **parameters: Any) -> int:
        run, _ = toys.toy_run(registry.method_class(name)(**parameters))
        train(run)
        before = torch.get_rng_state(), toys.weights(run)["classifier.weight"].clone()
        count = saved_activation_bytes(run)
        assert torch.equal(before[0], torch.get_rng_state())
        assert torch.equal(before[1], toys.weights(run)["classifier.weight"])
        assert all(p.grad is None for p in run.params.values())
        return count

    plain = saved("vanilla")
    assert saved("hype") == saved("vanilla", dropout="hidden_off") < plain
    assert 1.9 < saved("rdrop") / plain <= 2.0
    assert 1.9 < saved("r3f") / plain <= 2.05
    assert saved("child_tuning_f") == plain


def test_mask_keeps_the_stated_share() -> None:
    generator = torch.Generator().manual_seed(1)
    for p in (0.05, 0.3, 0.9):
        mask = bernoulli_mask(torch.Size((1000, 999)), p, generator)
        assert mask.shape == (1000, 999)
        assert float(mask.float().mean()) == pytest.approx(p, abs=5 * (p * (1 - p) / 999_000) ** 0.5)
    assert bernoulli_mask(torch.Size((999,)), 1.0, generator).all()


def test_the_trace_has_the_gradients_norm_before_it_is_clipped() -> None:
    class Watching(Method):
        """Measures the gradients after clipping."""

        name = "watching"

        def gradients(self, run: Any) -> None:
            self.__dict__.setdefault("norms_", []).append(
                float(torch.stack([p.grad.norm() for p in run.params.values()]).norm())
            )

    norms = {}
    for clip in (1e9, 0.1):
        watching = Watching()
        _, result, _ = toys.toy_train(watching, recipe=Recipe(batch_size=8, epochs=1, clip=clip))
        norms[clip] = result.steps["grad_norm"], np.array(watching.norms_)  # type: ignore[attr-defined]
    np.testing.assert_allclose(*norms[1e9], rtol=1e-5)
    assert norms[0.1][0][0] == norms[1e9][0][0] > 0.1
    np.testing.assert_allclose(norms[0.1][1], 0.1, rtol=1e-4)
